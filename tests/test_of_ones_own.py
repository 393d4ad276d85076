"""Classes of one's own, by `module:Class`, wherever something is chosen by name: they work, and are in the records."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibrune.calibration.spec import build_calibration, check_options, short_name
from calibrune.cli import app
from calibrune.errors import ConfigError
from calibrune.lm.loading import load_model
from calibrune.progress import show_progress
from calibrune.pruners import PRUNERS, Pruner
from calibrune.settings import choose
from calibrune.study.reading import read_plan
from calibrune.study.results import Results
from calibrune.study.runner import run_study

DOCS = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


@pytest.fixture(autouse=True)
def quiet_afterwards():
    yield
    show_progress(None)


def cli(*arguments, status=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def small_prune(model, out, *options):
    asked = ("--sparsity", "50%", "--samples", 2, "--seq-len", 16, "--out", out, "--json")
    return json.loads(cli("prune", model, *asked, *options).stdout)


def test_a_method_and_an_allocation_of_ones_own_prune_and_are_in_the_manifest(model, tmp_path):
    method, allocation = "of_ones_own:Powered:power=2", "of_ones_own:Tilted:tilt=0.2"
    request = small_prune(model, tmp_path / "own", "--method", method, "--allocation", allocation)["request"]
    own = {"name": "of_ones_own:Powered", "class": "of_ones_own:Powered", "power": 2}
    assert request["pruner"] == own
    assert request["allocation"] == {"name": "of_ones_own:Tilted", "class": "of_ones_own:Tilted", "tilt": 0.2}
    layers = json.loads((tmp_path / "own" / "calibrune.json").read_text())["report"]["layers"]
    assert (layers[0]["asked"], layers[-1]["asked"]) == ("0.3", "0.7")


def test_a_method_of_ones_own_is_what_another_one_starts_from(model, tmp_path):
    method = "dsnot:initial={name: 'of_ones_own:Powered', power: 3}:max_cycles=0"
    request = small_prune(model, tmp_path / "out", "--method", method, "--calibration", "random")["request"]
    assert request["pruner"]["initial"] == {"kind": "Powered", "class": "of_ones_own:Powered", "power": 3}


def test_a_set_of_ones_own_text_through_ones_own_filter(lm):
    spec = "of_ones_own:Counting:n=60:filter={name: 'of_ones_own:Wordy', min_words: 20}"
    data = build_calibration(spec, lm, n_samples=3, seq_len=16)
    assert data.manifest["source"] == {
        "class": "of_ones_own:Counting", "kind": "counting", "name": "counting", "n": 60
    }  # fmt: skip
    own = {"kind": "Wordy", "class": "of_ones_own:Wordy", "min_words": 20}
    assert data.manifest["filters"] == [own]
    assert data.manifest["dropped"]["few words"] > 0
    assert short_name("of_ones_own:Counting:n=60,random") == "Counting:n=60 + random"
    mixed = build_calibration(f"{spec},random", lm, n_samples=4, seq_len=16)
    assert mixed.manifest["source"]["parts"][0]["source"]["class"] == "of_ones_own:Counting"


def test_an_engine_of_ones_own_writes(lm):
    data = build_calibration("selfgen:engine=of_ones_own:Parrot:token=9:drop_highest=0", lm, n_samples=2, seq_len=8)
    assert (data.input_ids == 9).sum() >= 2 * 6
    assert data.manifest["source"]["class"] == "of_ones_own:Parrot"
    assert data.manifest["source"]["token"] == 9
    prompted = build_calibration(
        "selfgen:prompts=of_ones_own:Counting:engine=of_ones_own:Parrot", lm, n_samples=2, seq_len=8
    )
    assert prompted.manifest["source"]["prompts"]["class"] == "of_ones_own:Counting"


def test_sets_are_ranked_by_a_proxy_of_ones_own(model, tmp_path):
    out = tmp_path / "out"
    sizes = ("--samples", 2, "--seq-len", 16, "--model", model, "--out", out)
    said = cli("compare", "of_ones_own:Counting", "random", *sizes, "--by", "of_ones_own:Different:least=1").stdout
    assert "Ranking: random > Counting" in said
    assert "of_ones_own:Different:least=1" in (out / "compare.html").read_text()


PLAN = """
name: own
models: [MODEL]
calibration:
  - {source: 'of_ones_own:Counting', n: [40, 50], filter: {name: 'of_ones_own:Wordy', min_words: 3}}
  - {source: selfgen, name: parrot, engine: 'of_ones_own:Parrot', token: 9}
samples: 2
seq_len: 16
pruners: [wanda, {name: 'of_ones_own:Powered', power: [1, 2]}]
allocators: [uniform, 'of_ones_own:Tilted:tilt=0.2']
patterns: [50%]
evaluations: [{perplexity: 'texts.txt', limit: 2, seq_len: 8}]
proxies: ['of_ones_own:Different:least=1', {name: min_k, k: [0.1, 0.2]}]
exclude: [{pruner: wanda, allocator: 'of_ones_own:Tilted'}]
"""


@pytest.fixture
def plan(model, tmp_path):
    (tmp_path / "texts.txt").write_text("the cat sat on a mat and saw no dog " * 20)
    (tmp_path / "plan.yaml").write_text(PLAN.replace("MODEL", str(model)))
    return tmp_path / "plan.yaml"


def test_a_plan_takes_all_of_them_and_its_rows_name_them(plan, tmp_path):
    read = read_plan(plan)
    assert sorted(str(spec).partition(", ")[2] for spec in read.runs) == [
        "dense",
        *[f"of_ones_own:Powered:power={power}, 50%{own}" for power in (1, 2) for own in ("", TILTED)],
        *[f"wanda, 50%, {name}, seed 0" for name in NAMES],
    ]
    assert run_study(read, tmp_path / "out", data=tmp_path)["done"] == len(read.runs) == 8
    rows = Results(tmp_path / "out").rows()
    (measured,) = [row["proxies"] for row in rows if row["run"]["calibration"] == rows[1]["run"]["calibration"]]
    assert [*measured] == ["of_ones_own:Different:least=1", "min_k:k=0.1", "min_k:k=0.2"]
    assert measured["min_k:k=0.1"] != measured["min_k:k=0.2"]
    assert len({row["key"] for row in rows}) == 8
    weights = {row["run"]["pruner"] and str(row["run"]["allocator"]): row["weights"] for row in rows}
    assert len(set(weights.values())) == 3  # dense, uniform, tilted


TILTED = ", of_ones_own:Tilted:tilt=0.2"
OWN = """filter={"name": "of_ones_own:Wordy", "min_words": 3}"""
NAMES = (f"Counting:{OWN}:n=40", f"Counting:{OWN}:n=50", "parrot")


def test_a_key_has_the_class_and_its_settings(plan):
    def first(method):
        runs = read_plan(plan, [f"pruners=[wanda, 'of_ones_own:{method}']"]).runs
        return next(run for run in runs if run.pruner == f"of_ones_own:{method}")

    runs = [first(method) for method in ("Powered:power=3", "Powered:power=2", "Powered")]
    assert len({run.key for run in runs}) == 3
    assert runs[1].key in {run.key for run in read_plan(plan).runs}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere.at.all:Mine", {}, "there is no module 'nowhere'; is its folder on PYTHONPATH?"),
        ("of_ones_own.deeper:Mine", {}, "there is no module 'of_ones_own.deeper'"),
        ("broken_module:Mine", {}, "cannot be imported .AttributeError: as it should.; mend it"),
        ("of_ones_own:Poweredd", {}, "the module 'of_ones_own' has no class 'Poweredd'; did you mean 'Powered'"),
        ("of_ones_own:a_function", {}, "must be a dataclass"),
        ("of_ones_own:NoDataclass", {}, "must be a dataclass"),
        ("of_ones_own:Nothing", {}, "'of_ones_own:Nothing' is no method: it has no prune and no requires"),
        ("of_ones_own:Choosy", {"n": 2}, "cannot be made with the settings {'n': 2}: n is too large"),
        ("of_ones_own:Powered", {"pow": 2}, "cannot be made with the settings.*unexpected keyword argument 'pow'"),
        ("of_ones_own:Tilted", {"tillt": 2}, "Tilted has no setting 'tillt'; did you mean 'tilt'"),
    ],
)
def test_what_is_wrong_with_a_class_is_one_sentence(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        choose(PRUNERS, "method", name, options, Pruner)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("of_ones_own:Nowhere", "no class 'Nowhere'"),
        ("of_ones_own:Counting:m=3", "has no option 'm'"),
        ("selfgen:engine=of_ones_own:Nowhere", "no class 'Nowhere'"),
        ("selfgen:engine=of_ones_own:Parrot:tokens=3", "has no option 'tokens'; did you mean 'token'"),
    ],
)
def test_a_spec_is_checked_before_anything_is_read(spec, message):
    with pytest.raises(ConfigError, match=message):
        check_options(spec)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("of_ones_own:Nowhere", "no class 'Nowhere'"),
        ("of_ones_own:Powered", "is no filter: it has no keep"),
        ("length", "there is no filter 'length'; there is none to choose from"),
    ],
)
def test_a_filter_is_a_class_of_ones_own_that_filters(given, message, lm):
    with pytest.raises(ConfigError, match=message):
        build_calibration(f"of_ones_own:Counting:filter={given}", lm)


def test_a_plan_says_in_which_line_a_class_cannot_be_found(plan):
    plan.write_text(plan.read_text().replace("of_ones_own:Powered", "of_ones_own:Powred"))
    with pytest.raises(ConfigError, match=r"plan.yaml, line 9 \(pruners\): the module 'of_ones_own' has no class"):
        read_plan(plan)


def test_the_example_of_the_docs_prunes(model, tmp_path, monkeypatch):
    (example,) = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    request = small_prune(
        model, tmp_path / "out", "--method", "mine:Noisy:noise=0.1", "--calibration", "random"
    )["request"]  # fmt: skip
    assert request["pruner"] == {"name": "mine:Noisy", "class": "mine:Noisy", "noise": 0.1, "seed": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_models import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("own") / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(model):
    return load_model(str(model))
