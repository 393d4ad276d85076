"""Means over tokens that come in pieces (windows, texts, documents), and how uncertain they are."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import isfinite, isqrt, sqrt
from statistics import mean, stdev

MAX_BLOCKS = 30
"""More blocks than these make a standard error hardly better known (Schmeiser, 1982, Operations Research 30:556)."""

MIN_BLOCKS = 5
"""Of fewer blocks there is no standard error: it would itself be uncertain by more than a third."""


@dataclass(frozen=True)
class TokenMean:
    """A mean over all tokens, which come in pieces of different sizes: the sum of totals over the sum of counts."""

    totals: tuple[float, ...]
    """Of each piece, the sum over its tokens."""
    counts: tuple[int, ...]
    """Of each piece, its tokens; at least 1."""

    @cached_property
    def items(self) -> tuple[float, ...]:
        """A number for each piece, in units of the mean; their plain mean is the mean over tokens."""
        typical = mean(self.counts)
        return tuple(total / typical for total in self.totals)

    @property
    def value(self) -> float:
        """The mean over tokens."""
        return mean(self.items)

    @property
    def deviations(self) -> list[float]:
        """By how much each piece moves the mean, times the pieces: the delta method for a ratio of two means."""
        typical, value = mean(self.counts), self.value
        return [item - value * count / typical for item, count in zip(self.items, self.counts, strict=True)]


@dataclass(frozen=True)
class StandardError:
    """A standard error, and how it was come by."""

    value: float | None
    """None where there is too little to tell."""
    how: str
    """For the record, in a few words."""
    blocks: int | None = None
    """Of neighbours, whose means it is made of; None where it is made of the items."""


def of_independent(deviations: list[float], what: str) -> StandardError:
    """The standard error of the mean of items that have nothing to do with each other; `what` they are, in a word."""
    how = f"from {what} taken for independent"
    if len(deviations) < 2 or not all(map(isfinite, deviations)):
        return StandardError(None, how)
    return StandardError(stdev(deviations) / sqrt(len(deviations)), how)


def of_neighbours(deviations: list[float], what: str) -> StandardError:
    """The standard error of the mean of items that follow each other in one text, by non-overlapping batch means.

    Neighbours are alike (a window goes on with the article of the one before), so that taking them for independent
    makes the error too small. Runs of neighbours are nearly independent when they are long: n items are cut into
    about sqrt(n) blocks of about sqrt(n), which is consistent for series that forget (Flegal and Jones, 2010, Annals
    of Statistics 38:1034), at most `MAX_BLOCKS`; None for fewer than `MIN_BLOCKS`, which takes 25 items.
    """
    n = len(deviations)
    n_blocks = min(isqrt(n), MAX_BLOCKS)
    if n_blocks < MIN_BLOCKS:
        return StandardError(None, f"none for fewer than {MIN_BLOCKS**2} {what} in a row")
    # sizes that differ by one at most
    ends = [n * i // n_blocks for i in range(n_blocks + 1)]
    how = f"from {n_blocks} blocks of {n // n_blocks} neighbouring {what}"
    if not all(map(isfinite, deviations)):
        return StandardError(None, how)
    centre = mean(deviations)
    sums = [sum(deviations[start:end]) - (end - start) * centre for start, end in pairwise(ends)]
    return StandardError(sqrt(n_blocks / (n_blocks - 1) * sum(one**2 for one in sums)) / n, how, n_blocks)
