"""A number with its interval, and the two ways to make one of a mean: Student's t, and the bootstrap."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from math import isfinite, sqrt
from statistics import mean
from typing import Any

import numpy as np

from calibrune.errors import ConfigError
from calibrune.seeds import seed_for

CONFIDENCE = 0.95
RESAMPLES = 9_999
"""Draws of a bootstrap or a permutation: their own noise is then a hundredth of the width of an interval."""

CELLS = 2**22
"""Numbers that one batch of resamples may hold: 32 MB."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float | None
    """The ends of the interval; None where there are too few values to say."""
    high: float | None
    confidence: float
    """The share of such intervals that hold the true value, in (0, 1)."""
    n: int
    """Values, or pairs of values, that it rests on."""
    method: str
    """How the interval was made."""

    def holds(self, value: float) -> bool:
        """Whether `value` is not ruled out; nothing is where there is no interval."""
        return self.low is None or self.high is None or self.low <= value <= self.high


def t_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """The mean, with Student's t interval: for means over a handful of seeds, which are near enough to normal.

    Args:
        values: independent; at least one. Of one there is no interval. Differences of pairs give the paired interval.
    """
    check_values(values, confidence)
    n = len(values)
    if n < 2:
        return Estimate(mean(values), None, None, confidence, n, "one value, no interval")
    half = float(scipy("stats").t.ppf((1 + confidence) / 2, n - 1)) * standard_error(values)
    middle = mean(values)
    return Estimate(middle, middle - half, middle + half, confidence, n, f"t, {n - 1} degrees of freedom")


def t_of_mean(
    value: float, error: float, degrees: int, n: int, *, method: str, confidence: float = CONFIDENCE
) -> tuple[Estimate, float]:
    """A mean whose standard error is known in another way, with Student's t interval and the p-value of "it is zero".

    Args:
        error: of `value`, from `degrees` + 1 values that are nearly independent, such as the means of blocks.
        n: the values or pairs behind it all.
    """
    check_confidence(confidence)
    t = scipy("stats").t
    half = float(t.ppf((1 + confidence) / 2, degrees)) * error
    p_value = 2 * float(t.sf(abs(value) / error, degrees)) if error else float(value == 0)
    return Estimate(value, value - half, value + half, confidence, n, method), p_value


def bootstrap_interval(
    values: Sequence[float], *, name: str, seed: int = 0, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> Estimate:
    """The mean, with a bootstrap interval: BCa (Efron, 1987), or percentile where BCa is not defined.

    Args:
        values: independent; at least one. Of one there is no interval; of fewer than about 20, `t_interval` is closer.
        name: what the draws are for; with `seed` it decides them.
    """
    check_values(values, confidence)
    if len(values) < 2:
        return Estimate(mean(values), None, None, confidence, len(values), "one value, no interval")
    data = (np.asarray(values, dtype=float),)
    low, high, method = bootstrap_ends(data, np.mean, name, seed, confidence, resamples)
    return Estimate(mean(values), low, high, confidence, len(values), method)


def bootstrap_ends(
    data: tuple[Any, ...],
    statistic: Callable[..., Any],
    name: str,
    seed: int,
    confidence: float,
    resamples: int,
    paired: bool = False,
) -> tuple[float, float, str]:
    """The ends of the interval, and its method."""
    stats = scipy("stats")
    draw = partial(
        stats.bootstrap, data, statistic, confidence_level=confidence, vectorized=True, paired=paired,
        batch=max(1, CELLS // sum(map(len, data))), rng=generator(seed, "bootstrap", name),
    )  # fmt: skip
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # BCa is not defined where all values are equal: what it says of that is said by the method
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found, method = draw(n_resamples=resamples, method="BCa"), "BCa"
        if not (isfinite(found.confidence_interval.low) and isfinite(found.confidence_interval.high)):
            found, method = draw(n_resamples=0, bootstrap_result=found, method="percentile"), "percentile"
    ends = found.confidence_interval
    return float(ends.low), float(ends.high), f"{method} bootstrap, {resamples} resamples"


def differences_of(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """b - a, pair by pair; `ConfigError` where they do not pair, or a value is not finite."""
    if len(a) != len(b):
        raise ConfigError(f"pairs need as many values on both sides, got {len(a)} and {len(b)}")
    check_values(a, CONFIDENCE)
    check_values(b, CONFIDENCE)
    return [y - x for x, y in zip(a, b, strict=True)]


def check_values(values: Sequence[float], confidence: float) -> None:
    """Raise `ConfigError` unless there is a value, all are finite, and there can be such a confidence."""
    check_confidence(confidence)
    if not len(values):
        raise ConfigError("an estimate needs at least one value, got none")
    for i, value in enumerate(values):
        if not isfinite(value):
            raise ConfigError(f"an estimate needs finite values, and value {i} is {value}; leave it out, and say so")


def check_confidence(confidence: float) -> None:
    """Raise `ConfigError` unless it is in (0, 1)."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be in (0, 1), got {confidence}")


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of two values or more."""
    return float(np.std(values, ddof=1)) / sqrt(len(values))


def generator(seed: int, *label: str) -> Any:
    """The draws of one purpose."""
    return np.random.default_rng(seed_for(seed, "uncertainty", *label))


def check_installed() -> None:
    """Raise `ConfigError` unless there is scipy: before hours of work, not after them."""
    scipy("stats")


def scipy(part: str) -> Any:
    """`scipy.stats`, ...; or an error that says how to install it."""
    try:
        return import_module(f"scipy.{part}")
    except ModuleNotFoundError as error:
        if error.name not in ("scipy", f"scipy.{part}"):
            raise
        raise ConfigError(
            "intervals and tests need scipy, which is not installed: pip install 'calibrune[study]'"
        ) from None
