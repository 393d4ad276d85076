"""What is measured can be measured: small runs of the benchmarks give whole rows, and what is in results/ is whole."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import random_ids, tiny_lm, tiny_model
from transformers import LlamaConfig

from calibrune.activations import InputHessian
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.lm.layout import decoder_blocks
from calibrune.patterns import Unstructured
from calibrune.pruners import SparseGPT

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # benchmarks/ is a package beside tests/

from benchmarks import __main__ as suite  # noqa: E402
from benchmarks import engine, grid, memory, narrow, scaling, solve, turns, vocabulary  # noqa: E402


def is_whole(row: dict) -> bool:
    return {"name", "setting"} <= row.keys() and ("seconds" in row or {"value", "stderr"} <= row.keys())


def test_every_measurement_can_be_started_by_its_name(capsys):
    assert {"engine", "grid", "memory", "peers", "scaling", "solve", "startup"} <= suite.MEASUREMENTS.keys()
    assert suite.main(["speed"]) == 2
    assert "there is no measurement 'speed'" in capsys.readouterr().err


def test_every_row_in_the_results_is_whole():
    head = {"date", "command", "commit", "machine", "versions"}
    files = sorted((REPOSITORY / "benchmarks" / "results").glob("*.jsonl"))
    assert files
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert is_whole(row), f"{file.name}: {row['name']}"
            assert head <= row.keys(), f"{file.name}: {row['name']}"


def test_sides_take_turns_and_the_first_runs_do_not_count():
    calls = []
    sides = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = turns.in_turns(sides, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert turns.spread([3.0, 1.0, 2.0, 5.0, 4.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert turns.spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert turns.compared([1.0, 2.0, 3.0], [8.0, 4.0, 6.0], "theirs")["ratio"] == 3.0


def test_the_published_solve_is_the_same_pruning_and_the_row_says_so():
    (row,) = solve.measure((160,), repeats=1)
    assert is_whole(row)
    assert row["setting"]["masks_agree"] == 1.0
    assert row["setting"]["largest_difference_of_a_weight"] < 1e-4
    assert row["ratio"] == row["baseline"]["the algorithm as published, seconds"]["median"] / row["seconds"]["median"]
    weight, stats = solve.problem(160)
    published = solve.as_published(weight, stats[InputHessian].matrix, 0.5)
    assert int((published == 0).sum()) == 160 * 160 // 2
    ours = SparseGPT().prune(weight, stats, Unstructured(0.5))
    assert torch.equal(ours.mask, published != 0)


def test_narrow_numbers_are_measured_both_ways_where_the_processor_has_none(monkeypatch, capsys):
    lm = tiny_lm()
    lm.model.bfloat16()
    monkeypatch.setattr(narrow, "LENGTH", 32)
    monkeypatch.setattr(narrow, "NEW_TOKENS", 4)
    monkeypatch.setattr(narrow.inference, "runs_well", lambda *_: False)
    rows = list(narrow.measure(lm, repeats=1))
    assert len(rows) == 3
    assert all(is_whole(row) and row["ratio"] > 0 for row in rows)
    monkeypatch.setattr(narrow.inference, "runs_well", lambda *_: True)
    assert list(narrow.measure(lm)) == []
    assert "nothing to measure" in capsys.readouterr().err


def test_scores_are_measured_in_pieces_and_at_once():
    (row,) = vocabulary.measure([tiny_lm()], repeats=1)
    assert is_whole(row)
    assert row["name"].endswith("96 words")
    assert row["ratio"] > 0


def test_a_pass_is_measured_with_its_parts():
    lm = engine.cut(tiny_lm(), 1)
    assert len(decoder_blocks(lm.model)) == 1
    row = engine._forward(lm.model, random_ids(), "a pass", 1)
    assert is_whole(row)
    parts = row["setting"]["parts_of_the_calibration"]
    assert set(parts) == {"matrix products", "attention", "the rest"}
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(1, abs=0.01)


def test_a_wide_block_is_measured_in_each_dtype():
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "max_position_embeddings": 32}
    for dtype in engine.DTYPES:
        (row,) = engine._wide(dtype, 1, LlamaConfig(**small))
        assert is_whole(row)
        assert row["name"].endswith(dtype)
        assert row["setting"]["blocks"] == 1


def test_methods_are_measured_on_the_dense_model_each_time():
    lm = tiny_lm()
    before = [layer.weight.clone() for block in decoder_blocks(lm.model) for layer in block.layers]
    rows = list(engine._methods(lm, random_ids(), "float32", 1))
    assert all(map(is_whole, rows))
    assert [row["name"].split(": ")[1] for row in rows] == [f"{name}, float32" for name in engine.METHODS][1:]
    assert len({json.dumps(row["baseline"]) for row in rows}) == 1
    after = [layer.weight for block in decoder_blocks(lm.model) for layer in block.layers]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_grid_makes_every_cell_once_and_magnitude_once_for_each_sparsity():
    lm = tiny_lm()
    pool = CalibrationSet.from_ids(random_ids(6))
    before = lm.model.state_dict()["lm_head.weight"].clone()
    seconds, cells = grid.whole_grid(lm, pool, 2, (2, 3), ("50%", "60%"))
    # three methods that read data: 2 seeds x 2 sizes x 2 sparsities each
    assert cells == 2 + 3 * 8
    assert set(seconds) == {"the pool's statistics, to disk", "sums of statistics", *grid.METHODS}
    assert min(seconds.values()) > 0
    assert torch.equal(before, lm.model.state_dict()["lm_head.weight"])


def test_the_parts_of_a_streamed_prune_are_those_of_the_model():
    model = tiny_model()
    config, (block, *_) = model.config, decoder_blocks(model)
    parts = memory.parts_of(config, "sparsegpt", 3, 24)
    assert parts["one block"] == 2 * sum(p.numel() for p in block.module.parameters())
    assert parts["activations"] == 3 * 24 * config.hidden_size * 2
    hessians = 4 * (3 * config.hidden_size**2 + config.intermediate_size**2)
    assert hessians < parts["statistics"] < hessians * 1.5 + 10_000
    assert parts["statistics"] > memory.parts_of(config, "wanda", 3, 24)["statistics"]


def test_a_point_of_growth_is_seconds_and_memory():
    request = scaling.BASE | {"tokens": 256, "width": 64, "depth": 2, "repeats": 3}
    found = scaling.run_point(request)
    assert found["seconds"] > 0
    assert found["peak_mb"] > 0
    assert scaling.run_point(request | {"seeds": 1, "repeats": 1})["seconds"] > 0
