"""The demo on a model of a few thousand weights: the table, the page, the checkpoint, and whose folder it is."""

import gzip
import json
import re
from dataclasses import replace

import pytest
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from calibrune import demo
from calibrune.demo import DemoSize, Outcome, run_demo
from calibrune.errors import OutputError
from calibrune.evaluation.score import Score

TINY = DemoSize(
    samples=4, seq_len=16, texts_at_once=8, windows=3, window_length=32, texts=3, new_tokens=6
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny <b>&"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def result(model, out):
    return run_demo(out, model=model, size=TINY)


def test_the_table_compares_three_ways_with_the_dense_model(result):
    assert result["columns"] == ["model", "sparsity", "python-docs", "seconds"]
    assert [row[0] for row in result["rows"]] == [
        "dense", "magnitude", "Wanda, random tokens", "Wanda, self-generated",
    ]  # fmt: skip
    assert [row[1] for row in result["rows"]] == ["0.00%", "50.00%", "50.00%", "50.00%"]
    assert all(row[2] > 1 for row in result["rows"])
    assert json.loads(json.dumps(result)) == result


def test_the_checkpoint_is_the_self_generated_one(result, out):
    pruned = AutoModelForCausalLM.from_pretrained(out / "model")
    assert (pruned.model.layers[0].mlp.down_proj.weight == 0).sum(dim=1).tolist() == [32] * 32
    manifest = json.loads((out / "model" / "calibrune.json").read_text())
    assert manifest["calibration"]["fingerprint"] == result["calibration"]
    assert manifest["calibration"]["source"]["name"] == "selfgen"


def test_the_page_is_whole_escaped_and_asks_nobody_for_anything(result, out):
    html = (out / "report.html").read_text()
    assert html.count("<svg") == 2
    assert "tiny &lt;b&gt;&amp;" in html
    assert "<b>" not in html
    assert "<script" not in html
    assert re.findall(r"""(?:src|href)=["'](?!#)""", html) == []
    assert not re.search(r"[0-9a-f]{64}", html)
    assert "3 windows of 32 tokens" in html
    assert "The capital of France is" in html
    assert result["conclusion"].split(" does ")[0] in html
    assert sorted(path.name for path in out.iterdir()) == ["model", "report.html"]


def test_a_second_demo_replaces_the_first_and_says_the_same(result, model, out):
    again = run_demo(out, model=model, size=TINY)
    assert [row[:3] for row in again["rows"]] == [row[:3] for row in result["rows"]]
    assert again["calibration"] == result["calibration"]
    assert sorted(path.name for path in out.iterdir()) == ["model", "report.html"]


def test_with_data_both_averages_of_alpaca_have_short_names(model, tmp_path):
    rows = [json.dumps({"text": f"text {i}: " + "some words to be read " * 4}) for i in range(6)]
    for name in ("wikitext2_test", "alpaca"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    result = run_demo(tmp_path / "out", model=model, data=tmp_path, size=TINY)
    assert result["columns"] == ["model", "sparsity", "wikitext2", "alpaca (mean)", "alpaca", "seconds"]


def test_what_no_demo_wrote_is_left_alone(result, model, out, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("do not touch")
    with pytest.raises(OutputError, match="not empty"):
        run_demo(tmp_path, model="nobody/no-such-model", size=TINY)
    assert (tmp_path / "model" / "thesis.tex").read_text() == "do not touch"
    # a run of `prune` that somebody put there
    other = tmp_path / "other"
    (other / "model").mkdir(parents=True)
    (other / "model" / "calibrune.json").write_text((out / "model" / "calibrune.json").read_text())
    with pytest.raises(OutputError, match="no demo wrote"):
        run_demo(other, model="nobody/no-such-model", size=TINY)
    assert (other / "model" / "calibrune.json").is_file()


def outcome(name, **values):
    scores = {
        key: Score(metric="p", value=v, stderr=None, n=1, higher_is_better=False, items=(), protocol={})
        for key, v in values.items()
    }
    return Outcome(name, scores, ())


def test_the_conclusion_holds_whoever_won():
    dense, a, b = outcome("dense", x=10, y=5), outcome("a", x=30, y=9), outcome("b", x=20, y=8)
    assert demo._conclusion([dense, a, b]).startswith("At 50%, b does the least harm by every measure here")
    mixed = demo._conclusion([dense, a, replace(b, scores=outcome("b", x=20, y=11).scores)])
    assert "depends on the measure: b on x, a on y" in mixed
