"""The tables of what was measured, from the rows in benchmarks/results; of equal rows the newest counts."""

import json
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

TEXTS = {
    ("wikitext2", "perplexity"): "WikiText-2",
    ("alpaca", "mean perplexity of texts"): "Alpaca, mean of the texts' perplexities",
    ("alpaca", "perplexity"): "Alpaca, exp of the mean loss",
}

Row = dict[str, Any]
Run = tuple[str, str, str]
"""Method, allocation, pattern."""

FIDELITY: tuple[tuple[str, str, str, tuple[str, ...], tuple[Run, Run] | None], ...] = (
    (
        "magnitude: how many go",
        "exactly `int(s n)`, by rank",
        "all up to a threshold: one more, and all ties",
        ("magnitude:select=threshold, 50%",),
        (("magnitude", "uniform", "50%"), ("magnitude:select=threshold", "uniform", "50%")),
    ),
    (
        "SparseGPT: how many go in a block of columns",
        "exactly `int(s n)`, by rank",
        "all up to a threshold: one more, and all ties",
        ("sparsegpt:select=threshold, 50%",),
        (("sparsegpt", "uniform", "50%"), ("sparsegpt:select=threshold", "uniform", "50%")),
    ),
    (
        "Wanda: of equal scores in a row",
        "the ones further left stay",
        "the ones further left go",
        ("wanda, ties go from the left, 50%",),
        None,
    ),
    (
        "Wanda: how a row's share is found",
        "the same share of each row",
        "the same; its appendix: a share of each row's summed scores",
        ("wanda:select=cumulative, 50%",),
        (("wanda", "uniform", "50%"), ("wanda:select=cumulative", "uniform", "50%")),
    ),
    (
        "DSnoT: which of the swaps counts",
        "all up to the one that left the smallest error",
        "all, to the last",
        ("dsnot:keep_best=false, 50%", "dsnot:keep_best=false, 2:4"),
        (("dsnot", "uniform", "50%"), ("dsnot:keep_best=false", "uniform", "50%")),
    ),
    (
        "DSnoT: which layers are refined",
        "all",
        "those without `mlp` in their name: LLaMA's attention, all of DCLM-7B",
        ("dsnot-published, 50%", "dsnot-published, 2:4"),
        (("dsnot", "uniform", "50%"), ("dsnot-published", "uniform", "50%")),
    ),
    (
        "OWL: N of each block under N:M",
        "rounded so that the mean N is the target's",
        "rounded block by block, which can miss it",
        (),
        (("wanda", "owl:outlier=6", "2:4"), ("wanda", "owl:n_m=published:outlier=6", "2:4")),
    ),
    (
        "fused q, k and v",
        "pruned as the matrices that they are",
        "one matrix: matters where a whole layer competes (magnitude, ALPS, SparseGPT), not within rows",
        ("magnitude, q, k and v as one matrix, 50%",),
        None,
    ),
)
"""What differs, here, in the released code, the rows of the masks, and the runs (ours, theirs) of the perplexities."""


def methods_tables() -> str:
    """Perplexity by method and pattern, a table for each text; then each method against Wanda, window by window."""
    runs = _runs("methods")
    patterns = [p for p in ("50%", "60%", "2:4", "4:8") if any(run[2] == p for run in runs)]
    methods = list(dict.fromkeys(run[0] for run in runs if run[0] != "none"))
    parts = []
    for text, title in TEXTS.items():
        dense = runs["none", "none", "dense"][text]
        rows = [[f"`{m}`", *(_value(runs.get((m, "uniform", p), {}).get(text)) for p in patterns)] for m in methods]
        parts.append(f"{title} (dense: {dense['value']:.2f})\n\n" + _table(["method", *patterns], rows))
    against = [m for m in methods if m != "wanda" and not m.startswith("magnitude")]
    rows = [[f"`{m}`", *(_paired(runs, (m, "uniform", p), ("wanda", "uniform", p)) for p in patterns)] for m in against]
    parts.append(
        "Against Wanda: difference of the loss on WikiText-2, paired by window, ± its standard error; below 0 is "
        "better\n\n" + _table(["method", *patterns], rows)
    )
    return "\n\n".join(parts)


def allocations_table() -> str:
    """Perplexity by allocation, and each against the same method's uniform one."""
    runs = _runs("methods") | _runs("allocations")
    rows = []
    for method, allocation, pattern in runs:
        uniform = (method, "uniform", pattern)
        if allocation == "none" or not any(run[1] != "uniform" and run[::2] == uniform[::2] for run in runs):
            continue
        found = runs[method, allocation, pattern]
        against = "" if allocation == "uniform" else _paired(runs, (method, allocation, pattern), uniform)
        values = [_value(found.get(text)) for text in TEXTS]
        rows.append([pattern, f"`{method}`", f"`{allocation}`", *values, against])
    rows.sort(key=lambda row: (row[0], row[1]))
    return _table(["pattern", "method", "allocation", *TEXTS.values(), "against uniform"], rows)


def fidelity_table() -> str:
    """Every difference from the released code that can be measured, with its effect."""
    runs = _runs("methods") | _runs("allocations") | _runs("fidelity")
    masks = {row["name"]: row for row in _rows("fidelity-masks")}
    rows = []
    for what, ours, theirs, names, pair in FIDELITY:
        shares = ", ".join(
            f"{_share(masks[name]['value'])} ({name.rpartition(', ')[2]})" for name in names if name in masks
        )
        setting, effect = "none", ""
        if pair:
            setting = f"`{next(new for old, new in zip(*pair, strict=True) if old != new)}`"
        if pair and all(run in runs for run in pair):
            text = next(iter(TEXTS))
            effect = " / ".join(_value(runs[run][text]) for run in pair) + f" ({pair[0][2]})"
        rows.append([what, ours, theirs, setting, shares, effect])
    columns = ["what", "here", "released code", "to have it", "weights whose fate differs", "WikiText-2: here / theirs"]
    return _table(columns, rows)


def _rows(name: str) -> list[Row]:
    files = sorted(RESULTS.glob(f"????-??-??-{name}.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _runs(name: str) -> dict[Run, dict[tuple[str, str], Row]]:
    """The rows of a measurement by method, allocation and pattern, then by text and metric."""
    runs: dict[Run, dict[tuple[str, str], Row]] = {}
    for row in _rows(name):
        setting = row["setting"]
        run = (setting["method"], setting["allocation"], setting["pattern"])
        runs.setdefault(run, {})[setting["text"], setting["metric"]] = row
    return runs


def _paired(runs: dict[Any, dict[Any, Row]], one: Run, other: Run) -> str:
    """The mean difference of the windows' losses ± its standard error."""
    text = next(iter(TEXTS))
    if one not in runs or other not in runs:
        return ""
    differences = [a - b for a, b in zip(runs[one][text]["items"], runs[other][text]["items"], strict=True)]
    return f"{mean(differences):+.3f} ± {stdev(differences) / sqrt(len(differences)):.3f}"


def _value(row: Row | None) -> str:
    return "" if row is None else f"{row['value']:.4g}"


def _share(value: float) -> str:
    return "0" if value == 0 else f"{value:.2%}" if value >= 0.0001 else f"{value:.1e}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
