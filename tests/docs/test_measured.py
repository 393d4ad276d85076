"""The tables of what was measured say what the rows say."""

import importlib.util
import json
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("measured", Path(__file__).resolve().parents[2] / "docs" / "measured.py")
measured = importlib.util.module_from_spec(spec)
spec.loader.exec_module(measured)


def rows(run: tuple[str, str, str], losses: list[float], alpaca: float) -> list[dict]:
    setting = dict(zip(("method", "allocation", "pattern"), run, strict=True))
    values = {("wikitext2", "perplexity"): 10.0 * losses[0]}
    values |= {("alpaca", "mean perplexity of texts"): alpaca, ("alpaca", "perplexity"): alpaca - 1}
    return [
        {"setting": setting | {"text": text, "metric": metric}, "value": value, "items": losses}
        for (text, metric), value in values.items()
    ]


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    def write(name: str, *some: list[dict]) -> None:
        lines = [json.dumps(row) for group in some for row in group]
        (tmp_path / f"2026-01-01-{name}.jsonl").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    dense = rows(("none", "none", "dense"), [1.0, 2.0], 4.0)
    write(
        "methods",
        dense,
        rows(("wanda", "uniform", "50%"), [3.0, 4.0], 8.0),
        rows(("ria", "uniform", "50%"), [2.5, 3.7], 7.0),
    )
    write("allocations", dense, rows(("wanda", "owl", "50%"), [2.0, 4.0], 6.0))
    write("fidelity", rows(("wanda:select=cumulative", "uniform", "50%"), [3.1, 4.1], 9.0))
    write("fidelity-masks", [{"name": "wanda:select=cumulative, 50%", "value": 0.0123}])


def test_a_table_for_each_text_and_then_the_paired_differences():
    text = measured.methods_tables()
    assert text.startswith(
        "WikiText-2 (dense: 10.00)\n\n| method | 50% |\n| --- | --- |\n| `wanda` | 30 |\n| `ria` | 25 |"
    )
    assert "exp of the mean loss (dense: 3.00)\n\n| method | 50% |\n| --- | --- |\n| `wanda` | 7 |" in text
    # windows differ by -0.5 and -0.3: mean -0.4, standard error 0.1
    assert text.endswith("| `ria` | -0.400 ± 0.100 |")


def test_allocations_stand_beside_the_uniform_one():
    assert measured.allocations_table().splitlines()[2:] == [
        "| 50% | `wanda` | `uniform` | 30 | 8 | 7 |  |",
        "| 50% | `wanda` | `owl` | 20 | 6 | 5 | -0.500 ± 0.500 |",
    ]


def test_a_difference_from_the_released_code_has_its_effect():
    (line,) = [line for line in measured.fidelity_table().splitlines() if "select=cumulative" in line]
    assert line.endswith("| `wanda:select=cumulative` | 1.23% (50%) | 30 / 31 (50%) |")
