"""Comparisons over the same items or the same seeds: differences, their tests, and what a plan could show at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from calibrune.errors import ConfigError
from calibrune.uncertainty.estimate import (
    CELLS,
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    bootstrap_interval,
    check_confidence,
    differences_of,
    generator,
    scipy,
    standard_error,
    t_interval,
)

FEW_DISCORDANT = 25
"""Below so many discordant pairs, McNemar's test is the exact binomial one."""


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, name: str, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """mean(b) - mean(a) over the same items, with the bootstrap interval of the items' differences."""
    return bootstrap_interval(differences_of(a, b), name=name, seed=seed, confidence=confidence)


def sign_flip_test(a: Sequence[float], b: Sequence[float], *, name: str, seed: int = 0) -> float:
    """The p-value, two-sided, of "the items' differences are as often one way as the other" (Fisher's randomization).

    Exact up to 13 pairs, whose signs are all tried; of more, `RESAMPLES` are drawn.
    """
    differences = np.asarray(differences_of(a, b))
    if len(differences) < 2 or not differences.any():
        return 1.0  # either way to sign a single one is as far from zero as the other
    found = scipy("stats").permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES,
        batch=max(1, CELLS // len(differences)), rng=generator(seed, "sign flips", name),
    )  # fmt: skip
    return float(found.pvalue)


@dataclass(frozen=True)
class McNemar:
    """Two models on the same items, each right or wrong."""

    difference: Estimate
    """Accuracy of b less that of a."""
    only_a: int
    """Items that a alone got right; with `only_b` the discordant pairs, which are all that the test looks at."""
    only_b: int
    p_value: float
    """Of "each is as often the only one to be right", two-sided."""
    method: str


def mcnemar(a: Sequence[float], b: Sequence[float], *, confidence: float = CONFIDENCE) -> McNemar:
    """McNemar's test (1947) of two accuracies over the same items, which are 0 or 1.

    The p-value is exact (binomial) below `FEW_DISCORDANT` discordant pairs, else of chi-squared without a continuity
    correction (Fagerland, Lydersen and Laake, 2013). The interval is Bonett and Price's adjusted Wald (2012).
    """
    differences_of(a, b)
    check_confidence(confidence)
    if wrong := next((x for x in (*a, *b) if x not in (0, 1)), None):
        raise ConfigError(f"McNemar's test takes items that are 0 or 1, got {wrong!r}; use the paired bootstrap")
    n = len(a)
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(x < y for x, y in zip(a, b, strict=True))
    discordant, stats = only_a + only_b, scipy("stats")
    if discordant < FEW_DISCORDANT:
        test = f"McNemar, exact binomial of {discordant} discordant pairs"
        p_value = float(stats.binomtest(only_b, discordant).pvalue) if discordant else 1.0
    else:
        test = f"McNemar, chi-squared of {discordant} discordant pairs"
        p_value = float(stats.chi2.sf((only_b - only_a) ** 2 / discordant, 1))
    p_b, p_a = (only_b + 1) / (n + 2), (only_a + 1) / (n + 2)
    half = float(stats.norm.ppf((1 + confidence) / 2)) * sqrt((p_a + p_b - (p_b - p_a) ** 2) / (n + 2))
    low, high = max(p_b - p_a - half, -1.0), min(p_b - p_a + half, 1.0)
    difference = Estimate((only_b - only_a) / n, low, high, confidence, n, "Bonett and Price")
    return McNemar(difference, only_a, only_b, p_value, test)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, raised for how many there are (Holm, 1979): each below alpha is a finding, all of them together.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ConfigError(f"a p-value is in [0, 1], got {wrong[0]}")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for done, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[i]))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class Equivalence:
    """Whether a difference is shown to be smaller than what would matter."""

    difference: Estimate
    """With the interval of confidence 1 - 2 alpha: inside the margin exactly where the test says so."""
    margin: float
    p_value: float
    equivalent: bool


def equivalence(a: Sequence[float], b: Sequence[float], margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t tests on pairs (Schuirmann, 1987): is mean(b) - mean(a) within (-margin, margin)?

    "No difference shown" is no such finding: it is also what too few items say.

    Args:
        margin: the smallest difference that would matter, over 0; to be chosen before the numbers are seen.
    """
    differences = differences_of(a, b)
    if not (0 < margin < inf):
        raise ConfigError(f"the margin of an equivalence test must be over 0, got {margin}")
    if len(differences) < 2:
        raise ConfigError(f"an equivalence test needs at least 2 pairs, got {len(differences)}")
    estimate = t_interval(differences, confidence=1 - 2 * alpha)
    error, t = standard_error(differences), scipy("stats").t
    nearest = margin - abs(estimate.value)
    p_value = float(t.sf(nearest / error, len(differences) - 1)) if error else float(nearest <= 0)
    return Equivalence(estimate, margin, p_value, p_value < alpha)


def smallest_difference(sd: float, n: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that a paired t test of `n` pairs finds with probability `power`.

    Args:
        sd: standard deviation of the pairs' differences, in the unit of the answer; from a pilot, or from before.
        n: pairs that are planned, at least 2.
    """
    if not 0 <= sd < inf or n < 2 or not 0 < alpha < power < 1:
        raise ConfigError(
            f"the smallest difference needs sd >= 0, n >= 2 and 0 < alpha < power < 1, "
            f"got sd={sd}, n={n}, power={power}, alpha={alpha}"
        )
    stats, root = scipy("stats"), sqrt(n)
    critical = float(stats.t.ppf(1 - alpha / 2, n - 1))

    def missing(effect: float) -> float:
        # to be found in the wrong direction adds less than alpha / 2, and nothing to speak of near such a power
        return power - float(stats.nct.sf(critical, n - 1, effect * root))

    highest = 1.0
    while missing(highest) > 0:
        highest *= 2
    return sd * float(scipy("optimize").brentq(missing, 0.0, highest))


def rank_correlation(x: Sequence[float], y: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """Spearman's correlation of two rankings of the same things, in [-1, 1]; Bonett and Wright's interval (2000).

    The interval needs 4 things, and is rough for fewer than 10. A perfect order is no certain one: its interval is
    made as of the order next to it, with two neighbours in each other's place.

    Raises:
        ConfigError: fewer than 3 things, or all of them are equal in `x` or in `y`.
    """
    differences_of(x, y)
    check_confidence(confidence)
    n = len(x)
    if n < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        raise ConfigError(f"a rank correlation needs 3 things or more that differ in both, got {list(x)} and {list(y)}")
    stats = scipy("stats")
    value = float(stats.spearmanr(x, y).statistic)
    if n < 4:
        return Estimate(value, None, None, confidence, n, "Spearman, too few for an interval")
    most = 1 - 12 / (n * (n**2 - 1))
    middle = float(np.arctanh(min(max(value, -most), most)))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * sqrt((1 + value**2 / 2) / (n - 3))
    low, high = float(np.tanh(middle - half)), float(np.tanh(middle + half))
    low, high = min(low, value), max(high, value)
    return Estimate(value, low, high, confidence, n, "Spearman, Bonett and Wright")
