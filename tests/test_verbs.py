"""The verbs as Python calls: what they check before any work, and what they give back."""

import json

import pytest
from safetensors.torch import save_file
from tiny_models import random_ids, tiny_model, tiny_tokenizer

from calibrune import choices, verbs
from calibrune.allocators import ALLOCATORS
from calibrune.calibration.spec import SOURCES
from calibrune.errors import ConfigError
from calibrune.pruners import PRUNERS


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    save_file({"input_ids": random_ids(4, 16)}, folder / "tokens.safetensors")
    (folder / "text.txt").write_text("All work and no play makes Jack a dull boy. " * 60)
    return folder


def prune(place, out, **changes):
    asked = {
        "model": str(place / "model"), "method": "wanda", "sparsity": "50%", "samples": None, "seq_len": None,
        "calibration": str(place / "tokens.safetensors"), "allocation": "uniform", "propagate": "pruned", "seed": 0,
    }  # fmt: skip
    return verbs.prune(out=out, **asked | changes)


def test_the_same_request_has_the_same_key_and_the_same_weights(place, tmp_path):
    one, two = prune(place, tmp_path / "one"), prune(place, tmp_path / "two")
    assert (one["key"], one["weights"]) == (two["key"], two["weights"])
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(
    "change", [{"sparsity": "2:4"}, {"method": "magnitude"}, {"propagate": "dense"}, {"samples": 2}], ids=str
)
def test_another_request_has_another_key(place, tmp_path, change):
    assert prune(place, tmp_path / "one")["key"] != prune(place, tmp_path / "two", **change)["key"]


def test_what_is_recorded_is_enough_to_ask_again(place, tmp_path):
    manifest = prune(place, tmp_path / "out", method="magnitude:group=row")
    assert manifest["request"]["pruner"] == {"name": "magnitude", "group": "row", "select": "rank"}
    assert manifest["request"]["pattern"] == "0.5"
    assert manifest["request"]["batch_tokens"] == 4096
    assert manifest["calibration"] is None
    assert verbs.inspect(str(tmp_path / "out")) == ("pruned checkpoint", json.loads(json.dumps(manifest)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sparsity": "1.2"}, "sparsity"),
        ({"propagate": "both"}, "propagate cannot be 'both'"),
        ({"dtype": "float99"}, "dtype cannot be 'float99'; did you mean 'float16' or 'float32'"),
        ({"calibration": "selfgne"}, "did you mean 'selfgen'"),
        ({"method": "magnitude", "calibration": "selfgne"}, "did you mean 'selfgen'"),  # though it would not be read
    ],
    ids=str,
)
def test_all_that_needs_no_model_is_checked_before_one_is_loaded(place, tmp_path, monkeypatch, change, said):
    monkeypatch.setattr(verbs, "load_model", lambda *_, **__: pytest.fail("the model was loaded first"))
    with pytest.raises(ConfigError, match=said):
        prune(place, tmp_path / "out", **change)


def test_evaluation_texts_are_read_before_the_model(place, monkeypatch):
    monkeypatch.setattr(verbs, "load_model", lambda *_, **__: pytest.fail("the model was loaded first"))
    with pytest.raises(ConfigError, match="wikitext2"):
        verbs.evaluate("any", names=["wikitxet2"], limit=None, data=None, seq_len=None, bos="tokenizer")


def test_windows_are_as_long_as_asked_for_or_as_the_context(place):
    def length(seq_len):
        texts = [str(place / "text.txt")]
        (score,) = verbs.evaluate(
            str(place / "model"), names=texts, limit=1, data=None, seq_len=seq_len, bos="window"
        )  # fmt: skip
        assert score.protocol["bos"] == "window"
        return score.protocol["seq_len"]

    assert (length(None), length(40)) == (128, 40)


def test_a_pruned_model_is_compared_with_the_dense_one_on_what_is_measured(place, tmp_path):
    prune(place, tmp_path / "pruned")
    asked = {"names": [f"{place / 'text.txt'}:seq_len=16"], "limit": 3, "data": None, "seq_len": None}
    scores = verbs.evaluate(str(tmp_path / "pruned"), against=str(place / "model"), **asked)
    assert [score.metric for score in scores] == ["perplexity", "KL divergence", "top-1 agreement"]
    assert len({score.protocol["text_sha256"] for score in scores}) == 1
    kl = scores[1]
    assert kl.value > 0
    assert kl.protocol["against"]["name"] == "model"
    same = verbs.evaluate(str(place / "model"), against=str(place / "model"), **asked)
    assert [score.value for score in same[1:]] == [pytest.approx(0, abs=1e-6), 1]


def test_what_cannot_be_compared_is_refused_before_a_model_is_loaded(place, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'calibrune[evaluate]'")
    monkeypatch.setattr(verbs, "load_model", lambda *_, **__: pytest.fail("the model was loaded first"))
    names = ["python-docs:protocol=harness-word"]
    with pytest.raises(ConfigError, match="word_perplexity has neither; use protocol=windows"):
        verbs.evaluate("any", names=names, against="other", limit=None, data=None, seq_len=None)


def test_every_table_is_listed_whole_and_as_json():
    shared_out = {f"--allocation {name}" for name in ALLOCATORS if name != "uniform"}
    assert choices.known("methods").keys() == PRUNERS.keys() | shared_out
    assert choices.known("allocators").keys() == ALLOCATORS.keys()
    assert choices.known("sources").keys() >= SOURCES.keys()
    for what in choices.LISTS:
        for name, entry in choices.known(what).items():
            assert entry["summary"], name
            assert json.loads(json.dumps(entry)) == entry
