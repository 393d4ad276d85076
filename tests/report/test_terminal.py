"""Text for terminals fits them, says why counts are what they are, and leaves nothing that matters out."""

import pytest

from calibrune.evaluation.score import Score
from calibrune.report.terminal import checkpoint_text, choices_text, model_text, scores_text, set_text

HASH = "0123456789abcdef" * 4


def layer(kind="q_proj", shape=(4, 576), asked="0.6", pruned=4 * 345, sparsity=345 / 576, block=0, **more):
    return {
        "name": f"model.layers.{block}.{kind}", "block": block, "shape": list(shape), "asked": asked, "pruned": pruned,
        "sparsity": sparsity, **more,
    }  # fmt: skip


def checkpoint(*layers, pattern="0.6", calibration=None, dtype="float32"):
    return {
        "key": "abc",
        "request": {
            "model": {"name": "tiny", "dtype": dtype}, "pruner": {"name": "wanda"}, "pattern": pattern,
            "allocation": {"name": "uniform"}, "propagate": "pruned",
        },
        "calibration": calibration,
        "report": {"sparsity": 0.59896, "coverage": 0.8, "seconds": 1.0, "parameters": 10**6, "layers": list(layers)},
    }  # fmt: skip


def test_a_count_that_was_rounded_down_says_so():
    said = " ".join(checkpoint_text(checkpoint(layer(), layer())).split())
    assert "rounded down in each row: 60% of 576 is 345.6, so 345 go" in said
    assert "q_proj 2 4 x 576 345 of 576 a row 59.90%" in said


def test_a_count_that_is_exact_says_nothing_of_rounding():
    said = checkpoint_text(checkpoint(layer(asked="0.5", pruned=4 * 288, sparsity=0.5), pattern="0.5"))
    assert "rounded" not in said
    assert "288 of 576 a row" in said


def test_layers_that_are_compared_as_a_whole_are_counted_as_a_whole():
    assert "1,382 in all" in checkpoint_text(checkpoint(layer(pruned=1382)))


def test_what_the_zeros_save_and_do_not_save_is_said():
    loose = " ".join(checkpoint_text(checkpoint(layer())).split())
    assert "4.0 MB, dense, zeros included: no smaller than before" in loose
    assert "no mainstream engine runs unstructured sparsity faster" in loose
    two = layer(asked="2:4", sparsity=0.5, shape=(64, 128)), layer(asked="2:4", sparsity=0.5, shape=(33, 128))
    said = " ".join(checkpoint_text(checkpoint(*two, pattern="2:4", dtype="bfloat16")).split())
    assert "to_sparse_semi_structured takes 1 of the 2 layers in bfloat16, on CUDA" in said
    assert "in PyTorch's 2:4 format" in said
    other = checkpoint_text(checkpoint(layer(asked="4:8", sparsity=0.5), pattern="4:8"))
    assert "N:M other than 2:4" in " ".join(other.split())


def test_n_of_m_is_counted_in_blocks_and_unlike_layers_have_rows_of_their_own():
    said = checkpoint_text(
        checkpoint(
            layer(asked="2:4", sparsity=0.5, pruned=1152), layer("up_proj", asked="2:4", sparsity=0.5), pattern="2:4"
        )
    )
    assert said.count("2 of every 4") == 2
    assert "pruned to 2:4" in said


def measured(block, error, kind="q_proj", **more):
    facts = {
        "tokens": 128,
        "damping": 0.01,
        "dead_channels": 0,
        "output_error": error,
        "seconds": 0.5,
        "fallback": None,
    }
    return layer(kind, block=block, **facts | more)


def test_the_worst_layers_are_shown_and_all_on_request():
    layers = [measured(block, block / 100) for block in range(30)]
    said = checkpoint_text(checkpoint(*layers))
    assert "the 5 of 30 layers whose output changed most (--layers shows all):" in said
    rows = [line.split() for line in said.splitlines() if ".q_proj" in line]
    assert [row[0] for row in rows] == [f"{block}.q_proj" for block in (29, 28, 27, 26, 25)]
    assert rows[0] == ["29.q_proj", "60%", "59.90%", "128", "0.01", "0.290", "0", "0.50"]
    assert "q_proj 30 4 x 576 345 of 576 a row 59.90% 0.145 0.290 0 15.0" in " ".join(said.split())
    assert all(len(line) <= 80 for line in said.splitlines())
    every = checkpoint_text(checkpoint(*layers), every_layer=True)
    assert [line.split()[0] for line in every.splitlines() if ".q_proj" in line] == [f"{i}.q_proj" for i in range(30)]
    assert "layer of model.layers " in every
    assert "fallback" not in every


def test_what_is_unusual_about_the_layers_is_said_once():
    layers = [
        measured(0, 0.1),
        measured(1, 0.2, damping=0.1, dead_channels=3),
        measured(2, None, "experts.3.down_proj", tokens=2, dead_channels=None, damping=None)
        | {"fallback": "magnitude within rows: 2 calibration tokens were routed to it, fewer than 16"},
    ]
    said = " ".join(checkpoint_text(checkpoint(*layers), every_layer=True).split())
    assert "output error 0.150 in the median of the layers, at most 0.200" in said
    assert "dead channels 3 inputs of 1 layers were zero in every calibration token" in said
    assert "damping raised in 1 layers, up to 0.1 times" in said
    assert "2.experts.3.down_proj 60% 59.90% 2 – – – 0.50 magnitude within rows" in said
    assert "experts.down_proj" in checkpoint_text(checkpoint(*layers))


def test_an_allocations_percentages_are_short_and_nothing_is_said_of_their_rounding():
    layers = [measured(0, 0.1, asked="0.6601681307214"), measured(1, 0.1)]
    said = checkpoint_text(checkpoint(*layers), every_layer=True)
    assert "66.02%" in said
    assert "rounded" not in said


def test_a_model_that_is_only_looked_at_has_no_column_for_what_was_asked():
    layers = [{"name": f"m.{i}.q_proj", "block": i, "shape": [2, 2], "sparsity": i / 4} for i in range(2)]
    found = {
        "source": {"name": "tiny"}, "architecture": "Tiny", "parameters": 8, "dtype": "float32", "blocks": 2,
        "coverage": 1.0, "context_length": None, "vocab_size": 9, "layers": layers,
    }  # fmt: skip
    said = model_text(found)
    assert "pruned" not in said
    assert "0.00% to 25.00%" in said
    assert "not known" in said


def test_what_is_left_alone_and_what_is_not_understood_is_said():
    found = {
        "source": {"name": "tiny"}, "architecture": "Tiny", "parameters": 8, "dtype": "float32", "blocks": 2,
        "coverage": 1.0, "context_length": None, "vocab_size": 9,
        "layers": [{"name": "m.0.q_proj", "block": 0, "shape": [2, 2], "sparsity": 0.0}],
        "skipped": [{"key": f"m.{i}.gate.weight", "size": 600, "reason": "chooses between 4 experts"} for i in (0, 1)],
        "unsplit": ["m.0.Wqkv"],
    }  # fmt: skip
    said = " ".join(model_text(found).split())
    assert "left alone 2 matrices of 1,200 weights: each chooses between 4 experts" in said
    assert "1 matrices look like several stored as one, and are pruned as one: m.0.Wqkv" in said


def test_experts_that_saw_too_little_are_counted():
    fell_back = layer("mlp.experts.3.down_proj") | {"fallback": "magnitude", "tokens": 3}
    said = " ".join(checkpoint_text(checkpoint(layer(), fell_back)).split())
    assert "experts 1 matrices saw too few tokens (down to 3)" in said
    assert "too few" not in checkpoint_text(checkpoint(layer()))


@pytest.mark.parametrize("columns", [60, 80, 120, 300])
def test_lines_fit_the_terminal_and_hashes_are_cut(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    manifest = {
        "fingerprint": "abc", "n_samples": 1234, "seq_len": 16, "seed": 0,
        "source": {"kind": "self-generated text", "name": "selfgen", "model": {"weights": HASH}, "licence": "w " * 60},
        "windows": {"policy": "packed"},
        "filters": [{"kind": "PerplexityFilter", "among": None}], "dropped": {"bad": 3},
    }  # fmt: skip
    said = set_text(manifest)
    assert all(len(line) <= min(columns, 110) for line in said.splitlines())
    assert HASH[:12] in said
    assert HASH[:13] not in said
    assert "1,234 sequences" in said
    assert "3 bad" in said


def test_a_part_of_a_mixture_shows_its_weight_and_its_filters():
    parts = [
        {"source": {"kind": "file", "file": "c4.jsonl"}, "weight": 2.0, "filters": [{"kind": "Length", "min": 9}]},
        {"source": {"kind": "random"}, "weight": 0.5, "filters": []},
    ]
    manifest = {"fingerprint": "abc", "n_samples": 8, "seq_len": 16, "source": {"kind": "mixture", "parts": parts}}
    said = " ".join(set_text(manifest).split())
    assert "part 1 file, file=c4.jsonl; weight=2.0; Length, min=9" in said
    assert "part 2 random; weight=0.5" in said


def test_a_score_is_followed_by_its_protocol():
    protocol = {
        "protocol": "window_perplexity",
        "join": "\n\n",
        "limit": None,
        "dataset": "w",
        "source": {"note": "N."},
    }
    score = Score(
        metric="perplexity", value=9.0, stderr=None, n=1, higher_is_better=False, items=(), protocol=protocol
    )  # fmt: skip
    said = scores_text([score])
    assert said.splitlines()[-1] == r"  w  window_perplexity, join='\n\n'. N."


def test_defaults_are_shown_as_a_spec_takes_them_and_commands_are_not_broken():
    command = "pip install " + "x" * 200
    entries = {"a": {"summary": "s", "command": command, "options": {"filter": {"among": None, "on": True, "p": 0.5}}}}
    said = choices_text(entries)
    assert "filter  among=null, on=true, p=0.5" in said
    assert command in said
