"""Several groups at once: how far apart they are, and how an error over seeds and items is made up."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from calibrune.errors import ConfigError
from calibrune.uncertainty.estimate import (
    CELLS,
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    bootstrap_ends,
    check_confidence,
    check_values,
    generator,
    standard_error,
)


def range_over_groups(
    groups: Sequence[Sequence[float]],
    *,
    name: str,
    paired: bool = False,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The highest mean of a group less the lowest: how much the choice of a group matters; a bootstrap interval.

    A range is never below 0, and over groups that are equal it is chance alone, more of it the more groups there are:
    whether they differ at all is for `groups_differ` to say.

    Args:
        groups: two or more, of two values or more each.
        paired: value i of every group belongs together (the same seed), and they are drawn together.
    """
    data = _groups(groups, paired)
    check_confidence(confidence)
    low, high, method = bootstrap_ends(data, _range, name, seed, confidence, resamples, paired=paired)
    return Estimate(float(_range(*data)), low, high, confidence, sum(map(len, data)), method)


def groups_differ(
    groups: Sequence[Sequence[float]], *, name: str, paired: bool = False, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """The p-value of "it does not matter in which group a value is", by permutations of the groups' range.

    Args:
        groups, paired: as for `range_over_groups`; paired values change places only with their partners.
    """
    data = _groups(groups, paired)
    rng = generator(seed, "permutations", name)
    values, ends = np.concatenate(data), np.cumsum([len(one) for one in data])[:-1]
    # a hair below the range that was seen: the same sum in another order may be rounded the other way
    seen, at_least = float(_range(*data)), 0
    seen -= 1e-12 * max(1.0, abs(seen))
    stacked = np.stack(data) if paired else values
    at_once = max(1, CELLS // values.size)
    for first in range(0, resamples, at_once):
        copies = np.broadcast_to(stacked, (min(at_once, resamples - first), *stacked.shape))
        mixed = rng.permuted(copies, axis=1)
        parts = np.moveaxis(mixed, 1, 0) if paired else np.split(mixed, ends, axis=1)
        at_least += int((_range(*parts) >= seen).sum())
    return (at_least + 1) / (resamples + 1)


@dataclass(frozen=True)
class SeedsAndItems:
    """A mean over seeds and items, and what each of the two adds to its error."""

    value: float
    over_seeds: float | None
    """Standard error if the run were repeated with other seeds on these items; None for one seed."""
    over_items: float | None
    """Standard error if other items were asked of these runs; None for one item."""
    both: float | None
    """Standard error with other seeds and other items; None where one of the two is not known."""
    n_seeds: int
    n_items: int


def seeds_and_items(values: Sequence[Sequence[float]]) -> SeedsAndItems:
    """Take apart the error of a mean over runs (seeds) and items, all runs having answered the same items.

    The two-way layout with random rows and columns (Searle, Casella and McCulloch, 1992): the rest that neither row
    nor column explains is in both errors, and so it is counted once in `both`.

    Args:
        values: a row for every seed, a column for every item.
    """
    if not values or len({len(row) for row in values}) != 1:
        raise ConfigError("the error over seeds and items needs as many items of every seed, at least one of each")
    for row in values:
        check_values(row, CONFIDENCE)
    table = np.asarray(values, dtype=float)
    seeds, items = table.shape
    grand, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    over_seeds = standard_error(rows.tolist()) if seeds > 1 else None
    over_items = standard_error(columns.tolist()) if items > 1 else None
    both = None
    if over_seeds is not None and over_items is not None:
        rest = table - rows[:, None] - columns + grand
        shared = float((rest**2).sum()) / ((seeds - 1) * (items - 1)) / (seeds * items)
        both = sqrt(max(over_seeds**2 + over_items**2 - shared, over_seeds**2, over_items**2))
    return SeedsAndItems(float(grand), over_seeds, over_items, both, seeds, items)


def _range(*groups: Any, axis: int = -1) -> Any:
    means = np.stack([np.mean(one, axis=axis) for one in groups])
    return means.max(axis=0) - means.min(axis=0)


def _groups(groups: Sequence[Sequence[float]], paired: bool) -> tuple[Any, ...]:
    sizes = [len(one) for one in groups]
    if len(groups) < 2 or min(sizes) < 2:
        raise ConfigError(f"a range needs two groups or more, of two values or more each, got groups of {sizes}")
    if paired and len(set(sizes)) > 1:
        raise ConfigError(f"paired groups have as many values each, got groups of {sizes}")
    for one in groups:
        check_values(one, CONFIDENCE)
    return tuple(np.asarray(one, dtype=float) for one in groups)
