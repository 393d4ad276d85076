"""`evaluate` of several models, with tasks, and its page: from the command line to the file, and in a browser."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from calibrune import verbs
from calibrune.cli import app
from calibrune.durable import unsealed
from calibrune.lm.inference import runs_well
from calibrune.report import extras
from calibrune.uncertainty import estimate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<script>alert('x')<script>.txt"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, its copy, and one that is just as wrong but far surer; texts, some under an unfriendly name."""
    folder = tmp_path_factory.mktemp("place")
    for name, sureness in (("dense", 1.0), ("copy", 1.0), ("far", 30.0)):
        model = tiny_model()
        # real questions are longer than 128 of its tokens; the tests share its own configuration
        model.config = type(model.config)(**model.config.to_dict() | {"max_position_embeddings": 4096})
        with torch.no_grad():
            model.lm_head.weight.mul_(sureness)
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / EVIL).write_text("".join(f"Line {i}: all work and no play. " for i in range(90)))
    rows = [{"text": f"Text {i} says: {'the quick brown fox. ' * (1 + i % 4)}"} for i in range(30)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def run(*arguments, status=0):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result


MEASURE = ("--perplexity", f"{EVIL},texts.jsonl", "--seq-len", 32, "--limit", 24)


@pytest.fixture(scope="module")
def compared(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        said = run("dense", "copy", "far", "--compare", *MEASURE, "--out", out / "all.json", "--page", out / "all.html")
    return out, said.stdout


def test_models_beside_the_first_are_told_apart_or_not(compared):
    out, said = compared
    assert "copy beside dense" in said
    assert "far beside dense" in said
    assert re.search(r"copy: no difference shown\.", said)
    assert re.search(r"far: worse in .*texts.jsonl perplexity", said)
    assert "Holm" in said
    found = json.loads((out / "all.json").read_text())
    assert [one["model"] for one in found["evaluations"]] == ["dense", "copy", "far"]
    assert len(found["comparisons"]) == 4
    verdicts = {one["model"]: one["verdict"] for one in found["comparisons"] if one["dataset"] == "texts.jsonl"}
    assert verdicts["copy"] == "no difference shown"
    far = next(one for one in found["comparisons"] if one["model"] == "far")
    assert far["scale"] == "logarithm"
    assert far["difference"]["low"] <= far["difference"]["value"] <= far["difference"]["high"]
    assert far["p_holm"] >= far["p_value"]


def test_what_was_stored_is_compared_without_a_model(here, compared, tmp_path, monkeypatch):
    files = []
    for name in ("dense", "far"):
        files.append(tmp_path / f"{name}.json")
        found = json.loads(run(name, *MEASURE, "--out", files[-1], "--json").stdout)
        assert found == unsealed(json.loads(files[-1].read_text()))
        assert found["model"] == name
        assert found["command"].startswith(f"calibrune evaluate {name} --perplexity")
    monkeypatch.setattr(verbs, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    again = json.loads(run(*files, "--compare", "--json").stdout)["comparisons"]
    first = json.loads((compared[0] / "all.json").read_text())["comparisons"]
    assert [one["difference"] for one in again] == [one["difference"] for one in first if one["model"] == "far"]
    # a comparison can be read as well, and a page made of one file alone
    assert "far beside dense" in run(compared[0] / "all.json", "--compare").stdout
    run(files[0], "--page", tmp_path / "one.html")
    assert "Scores of dense" in (tmp_path / "one.html").read_text()


def test_what_was_stored_stands_beside_a_model(here, tmp_path):
    run("dense", *MEASURE, "--out", tmp_path / "dense.json")
    assert "copy: no difference shown" in run(tmp_path / "dense.json", "copy", "--compare", *MEASURE).stdout
    said = run(tmp_path / "dense.json", "copy", "--compare", *MEASURE[:-1], 12, status=2).stderr
    assert "dense and copy were not measured alike" in said
    assert "limit (24, 12)" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("dense", "far"), "2 models were named, and one is evaluated at a time; to see them side by side: --compare"),
        (("dense", "--compare"), "--compare needs two models or more, got dense"),
        (("dense", "no-such-model/here", "--compare"), "no-such-model/here"),
        (("dense", "gone.json", "--compare"), "'gone.json' cannot be read"),
        (("stored.json", "--limit", "3"), "--limit says what to measure, but stored.json holds scores"),
        (("stored.json", "stored.json", "--compare", "--seq-len", "8"), "--seq-len says what to measure"),
        (("dense", "--page", "."), "is a folder"),
    ],
)
def test_what_cannot_be_compared_is_told_before_a_model_is_loaded(here, arguments, says, monkeypatch):
    (here / "stored.json").write_text('{"model": "m", "scores": []}')
    monkeypatch.setattr(verbs, "load_model", lambda *_, **__: pytest.fail("the model was loaded first"))
    assert says in run(*arguments, status=2).stderr


def test_the_extras_of_a_comparison_and_of_a_page_are_missed_before_a_model_is_loaded(here, tmp_path, monkeypatch):
    def without(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(verbs, "load_model", lambda *_, **__: pytest.fail("the model was loaded first"))
    monkeypatch.setattr(estimate, "import_module", without)
    assert "pip install 'calibrune[study]'" in run("dense", "far", "--compare", status=2).stderr
    monkeypatch.setattr(extras, "import_module", without)
    assert "pip install 'calibrune[report]'" in run("dense", "--page", tmp_path / "x.html", status=2).stderr


def browser(page, profile, *arguments):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *arguments]
    command += [f"--user-data-dir={profile}", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, and it is not installed")
def test_in_a_browser_the_page_shows_the_differences_fetches_nothing_and_runs_nothing(compared, tmp_path):
    page, log = compared[0] / "all.html", tmp_path / "net.json"
    shown = browser(page, tmp_path / "profile", "--dump-dom", f"--log-net-log={log}", "--disable-background-networking")
    assert shown.count('role="img"') == shown.count("</svg>") == 1
    assert "no difference shown" in shown
    assert "calibrune evaluate dense copy far --compare" in shown
    assert shown.count("<details>") == 2
    assert "text_sha256" in shown
    assert "<script" not in shown
    assert "&lt;script&gt;alert" in shown
    assert not re.search(r"""(src|href)\s*=\s*["']|url\((?!#)|@import""", re.sub(r"xlink:href=\"#", "", shown))
    asked = set(re.findall(r'"url":"((?!file:|data:|chrome|about:)[^"]+)"', log.read_text()))
    own = re.compile(r"^\w+://[\w.-]*(google|googleapis|gvt1)\.com[/:]")
    assert [url for url in asked if not own.match(url)] == []


def test_a_page_of_one_model_has_its_scores_and_how_they_were_measured(here, tmp_path):
    said = run("dense", *MEASURE, "--page", tmp_path / "one.html").stdout
    assert said.endswith(f"page: {tmp_path / 'one.html'}\n")
    html = (tmp_path / "one.html").read_text()
    assert "Scores of dense" in html
    assert "perplexity" in html
    assert "text_sha256" in html
    assert html.count("<details>") == 2
    assert "What differs" not in html


# --- tasks


def test_without_the_harness_the_extra_is_named_before_a_model_is_loaded(here, monkeypatch):
    from calibrune.evaluation import tasks

    monkeypatch.setattr(verbs, "load_model", lambda *_, **__: pytest.fail("the model was loaded first"))
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    said = run("dense", "--tasks", "piqa", status=2).stderr
    assert "pip install 'calibrune[evaluate]'" in said


@pytest.fixture
def harness():
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'calibrune[evaluate]'")


def test_tasks_on_real_rows_from_the_command_line(here, harness, shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    asked = ("--tasks", "piqa,arc_easy", "--data", shared_data, "--limit", 6)
    first = run("dense", *asked, "--out", tmp_path / "dense.json")
    # task, share done, requests done of all, time taken and time left
    assert re.search(r"arc_easy: +\d+%\|.*\| \d+/\d+ \[\d\d:\d\d<\d\d:\d\d", first.stderr)
    assert re.search(r"^piqa +acc +0\.\d+ +0\.\d+ +6$", first.stdout, re.MULTILINE)
    found = json.loads((tmp_path / "dense.json").read_text())
    assert {one["metric"] for one in found["scores"]} == {"acc", "acc_norm"}
    for one in found["scores"]:
        assert len(one["items"]) == len(one["protocol"]["documents"]) == one["n"] == 6
        assert one["protocol"].keys() >= {"version", "shots", "harness", "metric_key", "requests_sha256"}
    # again, from what was finished; beside another model, on the same documents
    again = run("dense", "far", "--compare", *asked, "--page", tmp_path / "tasks.html", "--json")
    assert "tasks that were finished before: 2 of 2; read" in again.stderr
    compared = json.loads(again.stdout)
    assert compared["evaluations"][0]["scores"] == found["scores"]
    assert all(one["test"].startswith("McNemar") for one in compared["comparisons"])
    assert len(compared["comparisons"]) == 4
    assert "accuracy" in (tmp_path / "tasks.html").read_text()


def test_numbers_that_the_machine_computes_slowly_are_float32_unless_asked_for(here, tmp_path, monkeypatch):
    tiny_model().bfloat16().save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")

    def measured(*options):
        found = json.loads(
            run(tmp_path / "half", "--perplexity", "texts.jsonl", "--seq-len", 32, "--json", *options).stdout
        )
        return found["scores"][0]["protocol"]["dtype"]

    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert measured() == ("bfloat16" if able else "float32")
        assert measured("--dtype", "bfloat16") == "bfloat16"
        assert measured("--dtype", "float32") == "float32"
    cpu = torch.device("cpu")
    assert runs_well(torch.float32, cpu)
    assert not runs_well(torch.bfloat16, cpu)
