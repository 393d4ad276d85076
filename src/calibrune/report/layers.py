"""What became of each layer, as tables: of a pruned model's report, or of a model that is only looked at."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from calibrune.patterns import SemiStructured, parse_pattern
from calibrune.report.tables import Cell, Table

Layer = Mapping[str, Any]
"""A layer of a report or of `verbs.inspect`, as JSON: `name`, `block`, `shape`, `sparsity`, and what else is known."""


def by_kind(layers: Iterable[Layer]) -> Table:
    """One row for every kind of layer (q_proj, ...) and shape, over all blocks.

    The error is the median of the layers' output errors, beside the worst; dead channels and seconds are sums.
    """
    kinds: dict[tuple[str, int, int], list[Layer]] = {}
    for layer in layers:
        kinds.setdefault((kind(layer), *layer["shape"]), []).append(layer)
    rows: list[list[Cell]] = []
    for (name, n_out, n_in), group in kinds.items():
        asked = {_went(layer) for layer in group}
        errors, dead = _known(group, "output_error"), _known(group, "dead_channels")
        rows.append(
            [
                name,
                str(len(group)),
                f"{n_out} x {n_in}",
                asked.pop() if len(asked) == 1 else "by block",
                _range([layer["sparsity"] for layer in group]),
                f"{median(errors):.3f}" if errors else None,
                f"{max(errors):.3f}" if errors else None,
                sum(dead) if dead else None,
                f"{sum(_known(group, 'seconds')):.1f}" if "seconds" in group[0] else None,
            ]
        )
    columns = ("layer", "count", "out x in", "pruned", "zeros", "error", "worst", "dead", "sec")
    return _without_empty_columns(columns, rows)


def one_by_one(layers: Sequence[Layer]) -> Table:
    """One row a layer, named from its block on: what stands before that is in the head of the column."""
    stems = {layer["name"].partition(f".{layer['block']}.")[0] for layer in layers}
    stem = f"{stems.pop()}." if len(stems) == 1 else ""
    columns = (
        f"layer of {stem[:-1]}" if stem else "layer",
        *("asked", "zeros", "tokens", "damping", "error", "dead", "seconds", "fallback"),
    )
    rows: list[list[Cell]] = [
        [
            layer["name"].removeprefix(stem),
            _asked(layer["asked"]) if "asked" in layer else None,
            f"{layer['sparsity']:.2%}",
            layer.get("tokens"),
            f"{layer['damping']:g}" if layer.get("damping") is not None else None,
            f"{layer['output_error']:.3f}" if layer.get("output_error") is not None else None,
            layer.get("dead_channels"),
            f"{layer['seconds']:.2f}" if "seconds" in layer else None,
            (layer.get("fallback") or "").partition(":")[0] or None,
        ]
        for layer in layers
    ]
    return _without_empty_columns(columns, rows)


def worst(layers: Iterable[Layer], n: int = 5) -> list[Layer]:
    """The layers with the largest output error, the largest first; none where no error is known."""
    known = [layer for layer in layers if layer.get("output_error") is not None]
    return sorted(known, key=lambda layer: -layer["output_error"])[:n]


def kind(layer: Layer) -> str:
    """What a layer is called in every block: "q_proj", "qkv_proj[q]"; those of routed experts "experts.down_proj"."""
    name: str = layer["name"]
    last = name.rpartition(".")[2]
    return f"experts.{last}" if ".experts." in name else last


def remarks(layers: Sequence[Layer]) -> dict[str, str]:
    """What is worth a word about all layers together, by what it is about; empty where there is nothing to say."""
    said = {}
    if errors := _known(layers, "output_error"):
        said["output error"] = (
            f"{median(errors):.3f} in the median of the layers, at most {max(errors):.3f} (squared change of a layer's "
            f"output over the squared output)"
        )
    if dead := [layer["dead_channels"] for layer in layers if layer.get("dead_channels")]:
        said["dead channels"] = (
            f"{sum(dead):,} inputs of {len(dead)} layers were zero in every calibration token (at most {max(dead):,} "
            f"of one layer); if the model uses them elsewhere, more calibration data helps"
        )
    dampings = _known(layers, "damping")
    if raised := [damping for damping in dampings if damping > min(dampings)]:
        said["damping"] = f"raised in {len(raised)} layers, up to {max(raised):g} times the Hessian's mean diagonal"
    if fell_back := [layer for layer in layers if layer.get("fallback")]:
        fewest = min(layer["tokens"] for layer in fell_back)
        said["experts"] = (
            f"{len(fell_back)} matrices saw too few tokens (down to {fewest}) and were pruned by magnitude within "
            f"rows; more calibration data helps"
        )
    return said


def _went(layer: Layer) -> str | None:
    """What went, in whole weights: 60% of a row of 576 is 345.6, so 345."""
    if "asked" not in layer:
        return None
    (n_out, n_in), pattern = layer["shape"], parse_pattern(layer["asked"])
    if isinstance(pattern, SemiStructured):
        return f"{pattern.m - pattern.n} of every {pattern.m}"
    in_rows = layer["pruned"] == n_out * pattern.n_pruned(n_in)
    return f"{layer['pruned'] // n_out:,} of {n_in:,} a row" if in_rows else f"{layer['pruned']:,} in all"


def _asked(pattern: str) -> str:
    """Short: an allocation's percentages have sixteen digits."""
    read = parse_pattern(pattern)
    return str(read) if isinstance(read, SemiStructured) else f"{100 * read.sparsity:.4g}%"


def _known(layers: Iterable[Layer], what: str) -> list[float]:
    return [layer[what] for layer in layers if layer.get(what) is not None]


def _without_empty_columns(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """A model that is only looked at has nothing pruned, magnitude no inputs to measure an error on."""
    there = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return Table([columns[i] for i in there], [[row[i] for i in there] for row in rows])


def _range(values: Sequence[float]) -> str:
    least, most = f"{min(values):.2%}", f"{max(values):.2%}"
    return least if least == most else f"{least} to {most}"
