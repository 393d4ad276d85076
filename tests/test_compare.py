"""`compare` and `inspect --model` from end to end, and the page as a browser shows it."""

import json
import re

import pytest
from browser import CHROMIUM, browser
from full_disk import room_for
from tiny_models import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from calibrune import verbs
from calibrune.cli import app
from calibrune.demo import run_demo
from calibrune.errors import ConfigError, ModelError, OutputError
from calibrune.proxies import PROXIES
from calibrune.proxies.compare import Measured, rank
from calibrune.report import extras
from calibrune.report.comparison import comparison_text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, word in (("geese", "The geese had settled on a lake"), ("loop", "and on and on")):
        lines = [json.dumps({"text": f"{word} number {i}. " * 6}) for i in range(20)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def compared(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIBRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        sets = [str(place / "geese.jsonl"), str(place / "loop.jsonl:drop_highest=0.2"), "random"]
        arguments = ["compare", *sets, "--model", str(place / "model"), "--samples", "4", "--seq-len", "32"]
        result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_the_terminal_shows_every_proxy_the_order_and_its_reason(compared):
    out, said = compared
    assert all(re.search(rf"^{name} ", said, re.MULTILINE) for name in PROXIES)
    assert "Ranking: " in said
    assert "Ji et al. (2025)" in said
    assert "never chooses data" in said
    assert str(out / "compare.html") in said


def test_every_number_is_in_the_record_with_what_it_was_measured_on(compared):
    out, _ = compared
    assert sorted(file.name for file in out.iterdir()) == ["compare.html", "compare.json"]
    found = json.loads((out / "compare.json").read_text())
    assert [one["name"] for one in found["sets"]] == ["geese", "loop:drop_highest=0.2", "random"]
    for one in found["sets"]:
        assert one["values"].keys() == PROXIES.keys()
        assert len(one["samples"]["perplexity"]) == 4
        assert one["manifest"]["fingerprint"] == one["fingerprint"]
    assert sorted(found["ranking"]["order"]) == sorted(one["name"] for one in found["sets"])
    assert len(found["model"]["weights"]) == 12
    assert found["own_samples"]["fingerprint"] not in [one["fingerprint"] for one in found["sets"]]


def test_a_table_is_no_wider_than_the_terminal_and_every_set_is_in_one(compared, monkeypatch):
    found = json.loads((compared[0] / "compare.json").read_text())
    monkeypatch.setenv("COLUMNS", "60")
    said = comparison_text(found)
    assert max(map(len, said.splitlines())) <= 60
    heads = re.findall(r"^proxy +better +(.+)$", said, re.MULTILINE)
    assert len(heads) == 2
    assert [name for head in heads for name in head.split()] == found["ranking"]["order"]


def test_sets_of_a_few_documents_are_warned_of():
    def one(name, documents):
        values = {"min_k_plus_plus": -1.0, "effective_documents": documents}
        return Measured(name, "", values, {"min_k_plus_plus": [-1.0] * 8})

    said = " ".join(rank([one("wide", 7.5), one("narrow", 1.2)]).cautions)
    assert "Of few documents: narrow, " in said


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, and it is not installed")
def test_in_a_browser_the_charts_are_there_and_nothing_is_fetched(compared, tmp_path):
    with browser(tmp_path) as tab:
        tab.open(compared[0] / "compare.html")
        html, picture = tab.html, tab.picture()
    # five bar charts, and two pictures of how the samples of all sets are spread
    assert html.count('role="img"') == html.count("</svg>") == 7
    assert html.count("<path") > 50
    assert "Which set to try first" in html
    assert not re.search(r"""(src|href)\s*=\s*["']|url\((?!#)|@import""", re.sub(r"xlink:href=\"#", "", html))
    assert (tab.asked_elsewhere, tab.errors) == ([], [])
    assert len(picture) > 50_000  # something is drawn


@pytest.mark.parametrize("room", [2_000, 30_000])
def test_on_a_full_disk_there_is_no_half_comparison(room, place, compared, tmp_path):
    found = json.loads((compared[0] / "compare.json").read_text())
    assert len((compared[0] / "compare.json").read_bytes()) < 30_000 < len((compared[0] / "compare.html").read_bytes())
    with pytest.MonkeyPatch.context() as patch, room_for(room):
        patch.setattr(verbs, "quality", lambda *_args, **_more: found)  # measured before
        with pytest.raises(OutputError, match="File too large"):
            verbs.compare(["random", "random"], out=tmp_path / "out", model=str(place / "model"))
    assert list((tmp_path / "out").iterdir()) == []


def test_one_set_is_shown_without_a_ranking(place, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path))
    arguments = [str(place / "geese.jsonl"), "--model", str(place / "model"), "--samples", "2", "--seq-len", "32"]
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == 0, result.output
    assert re.search(r"^min_k_plus_plus +higher +-?\d", result.stdout, re.MULTILINE)
    assert "Ranking" not in result.stdout
    as_json = CliRunner().invoke(app, ["inspect", *arguments, "--json"])
    assert json.loads(as_json.stdout)["sets"][0]["values"].keys() == PROXIES.keys()


def test_finished_sets_are_compared_as_they_are(place, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    model = str(place / "model")
    verbs.calibrate("random", model=model, out=tmp_path / "set", samples=3, seq_len=24, seed=0)
    found = verbs.quality([str(tmp_path / "set")] * 2, model=model)
    assert found["size"] == {"samples": 3, "seq_len": 24}
    assert [one["name"] for one in found["sets"]] == ["set", "set'"]
    assert found["sets"][0]["values"]["perplexity"] == found["sets"][1]["values"]["perplexity"]


def test_where_a_comparison_cannot_be_written_nothing_is_measured(compared, tmp_path):
    out, _ = compared
    page = (out / "compare.html").read_bytes()
    with pytest.raises(OutputError, match="already holds a comparison; choose another --out"):
        verbs.compare(["random", "random"], out=out, model="nowhere/at-all")
    assert (out / "compare.html").read_bytes() == page
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="is a file"):
        verbs.compare(["random", "random"], out=tmp_path / "file", model="nowhere/at-all")


@pytest.mark.parametrize("name", ["jinja2", "altair", "vl_convert"])
def test_a_library_that_the_page_needs_is_missed_before_the_model_is_loaded(name, tmp_path, monkeypatch):
    def without(wanted):
        if wanted == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras, "import_module", without)
    told = pytest.raises(ConfigError, match=f"reports need {name}, which is not installed")
    with told:
        verbs.compare(["random", "random"], out=tmp_path / "out", model="nowhere/at-all")
    with told:
        run_demo(tmp_path / "demo", model="nowhere/at-all")
    result = CliRunner().invoke(app, ["inspect", "nowhere/at-all", "--picture", str(tmp_path / "layers.html")])
    assert f"reports need {name}" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_a_mixture_with_commas_in_its_options_is_no_finished_set(place):
    mixture = f"{place / 'geese.jsonl'}:evals=['{place / 'loop.jsonl'}','{place / 'geese.jsonl'}'],random"
    # the SPEC is right, so the first that is wrong is the model
    with pytest.raises(ModelError, match="nowhere/at-all"):
        verbs.quality([mixture], model="nowhere/at-all")


@pytest.mark.parametrize(
    ("sets", "by", "says"),
    [
        (["random"], "perplexity", "needs two sets or more, got random"),
        (["random", "random"], "perplexty", "did you mean 'perplexity'"),
        (["random", "randm"], "perplexity", "no calibration source 'randm'"),
    ],
)
def test_what_cannot_be_compared_is_told_before_the_model_is_loaded(sets, by, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        verbs.compare(sets, out=tmp_path / "out", by=by, model="nowhere/at-all")
    assert not (tmp_path / "out").exists()
