"""Intervals hold the truth as often as they say: known answers by hand, and simulations with a fixed seed.

A share of `RUNS` simulated intervals that is more than four binomial standard errors from what is stated is a failure.
"""

from math import asin, isclose, pi, sqrt

import numpy as np
import pytest

from calibrune.errors import ConfigError
from calibrune.uncertainty import (
    Estimate,
    bootstrap_interval,
    estimate,
    mcnemar,
    paired_bootstrap,
    range_over_groups,
    rank_correlation,
    seeds_and_items,
    t_interval,
)

RUNS = 500


def share_that_hold(make, truth):
    """Of intervals that `make` draws, the share that hold the truth."""
    return sum(make(np.random.default_rng(run)).holds(truth) for run in range(RUNS)) / RUNS


def off_by_chance(share, stated):
    return abs(share - stated) <= 4 * sqrt(stated * (1 - stated) / RUNS)


def test_the_t_interval_by_hand():
    found = t_interval([1.0, 2.0, 3.0, 4.0])
    # 3.182446 is t's quantile for three degrees of freedom, 1.290994 the standard deviation
    assert found.value == 2.5
    assert isclose(found.high - found.value, 3.182446 * 1.290994 / 2, rel_tol=1e-5)
    assert isclose(found.value - found.low, found.high - found.value)
    assert (found.n, found.confidence, found.method) == (4, 0.95, "t, 3 degrees of freedom")


@pytest.mark.parametrize("interval", [t_interval, lambda values: bootstrap_interval(values, name="one")])
def test_of_one_value_there_is_no_interval_and_nothing_is_ruled_out(interval):
    found = interval([3.0])
    assert (found.value, found.low, found.high) == (3.0, None, None)
    assert found.holds(1e9)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_t_interval_holds_the_mean_of_five_seeds_as_often_as_it_says(confidence):
    share = share_that_hold(lambda rng: t_interval(rng.normal(7.0, 2.0, 5), confidence=confidence), 7.0)
    assert off_by_chance(share, confidence)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [(lambda rng: rng.normal(1.0, 3.0, 80), 1.0), (lambda rng: rng.exponential(2.0, 150), 2.0)],
    ids=["normal", "skewed"],
)
def test_the_bootstrap_interval_holds_the_mean_as_often_as_it_says(draw, truth):
    share = share_that_hold(lambda rng: bootstrap_interval(draw(rng), name="coverage", resamples=999), truth)
    assert off_by_chance(share, 0.95)


def test_an_interval_that_is_too_narrow_would_be_found():
    def too_narrow(rng):
        found = t_interval(rng.normal(0.0, 1.0, 20))
        half = 0.8 * (found.high - found.value)
        return Estimate(found.value, found.value - half, found.value + half, 0.95, 20, "too narrow")

    assert not off_by_chance(share_that_hold(too_narrow, 0.0), 0.95)


def test_pairing_takes_out_what_items_have_in_common():
    rng = np.random.default_rng(0)
    hardness = rng.normal(0.0, 10.0, 100)
    a, b = hardness + rng.normal(0.0, 1.0, 100), hardness + 0.8 + rng.normal(0.0, 1.0, 100)
    found = paired_bootstrap(a, b, name="paired")
    assert not found.holds(0.0)
    assert found.holds(0.8)
    assert t_interval([*b - a.mean()]).holds(0.0)  # unpaired, the noise of the items hides it


def test_where_all_values_are_equal_bca_gives_way_to_percentile():
    found = bootstrap_interval([2.0] * 9, name="equal")
    assert (found.low, found.high) == (2.0, 2.0)
    assert found.method.startswith("percentile")
    assert bootstrap_interval([1.0, 2.0, 4.0], name="other").method.startswith("BCa")


def test_the_draws_of_a_bootstrap_have_a_name():
    values = list(np.random.default_rng(0).normal(size=30))
    ends = [
        (found.low, found.high)
        for name, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))
        for found in [bootstrap_interval(values, name=name, seed=seed, resamples=199)]
    ]
    assert ends[0] == ends[1]
    assert len(set(ends)) == 3


def test_the_interval_of_paired_accuracies_holds_the_difference_as_often_as_it_says():
    def draw(rng):
        kind = rng.choice(4, size=200, p=[0.5, 0.1, 0.06, 0.34])  # both, only b, only a, neither
        return mcnemar([float(k in (0, 2)) for k in kind], [float(k in (0, 1)) for k in kind]).difference

    assert off_by_chance(share_that_hold(draw, 0.04), 0.95)


def test_the_rank_correlation_by_hand_and_how_often_its_interval_holds_the_truth():
    # sum of squared rank differences 4: 1 - 6 * 4 / (5 * 24)
    assert isclose(rank_correlation([1, 2, 3, 4, 5], [20, 10, 40, 30, 50]).value, 0.8)

    def draw(rng):
        x = rng.normal(size=60)
        return rank_correlation(x, 0.5 * x + sqrt(0.75) * rng.normal(size=60))

    assert off_by_chance(share_that_hold(draw, 6 / pi * asin(0.5 / 2)), 0.95)


def test_a_perfect_order_is_no_certain_one():
    up, down = rank_correlation(range(6), range(6)), rank_correlation(range(6), range(0, -6, -1))
    assert (up.value, up.high) == (1.0, 1.0)
    assert 0 < up.low < 0.95
    assert (down.low, down.value, down.high) == (-1.0, -1.0, -up.low)
    assert rank_correlation([1, 2, 3], [1, 2, 3]).low is None


def test_the_range_of_groups_that_lie_apart_is_held_as_often_as_it_says():
    def draw(rng):
        groups = [rng.normal(middle, 1.0, 40) for middle in (0.0, 3.0, 6.0)]
        return range_over_groups(groups, name="coverage", resamples=499)

    assert off_by_chance(share_that_hold(draw, 6.0), 0.95)
    assert range_over_groups([[1.0, 3.0], [5.0, 6.0], [4.0, 4.0]], name="hand").value == 3.5


def test_the_range_of_paired_groups_is_the_sharper_for_it():
    rng = np.random.default_rng(1)
    seeds = rng.normal(0.0, 5.0, 30)
    groups = [seeds + middle + rng.normal(0.0, 0.1, 30) for middle in (0.0, 1.0)]
    paired, apart = (range_over_groups(groups, name="range", paired=one) for one in (True, False))
    assert paired.value == apart.value
    assert 5 * (paired.high - paired.low) < apart.high - apart.low


def test_errors_over_seeds_and_over_items_by_hand():
    found = seeds_and_items([[1.0, 2.0], [3.0, 4.0]])
    # means of the seeds 1.5 and 3.5, of the items 2 and 3, and nothing is left over
    assert (found.value, found.n_seeds, found.n_items) == (2.5, 2, 2)
    assert isclose(found.over_seeds, 1.0)
    assert isclose(found.over_items, 0.5)
    assert isclose(found.both, sqrt(1.25))
    alone = seeds_and_items([[1.0, 2.0]])
    assert (alone.over_seeds, alone.over_items, alone.both) == (None, 0.5, None)
    assert seeds_and_items([[1.0], [2.0]]).over_items is None


def test_the_error_over_both_is_that_of_new_seeds_and_new_items():
    seeds, items, of_seeds, of_items, of_rest = 6, 40, 1.0, 4.0, 3.0

    def draw(rng):
        rows, columns = rng.normal(0, of_seeds, (seeds, 1)), rng.normal(0, of_items, items)
        return seeds_and_items((rows + columns + rng.normal(0, of_rest, (seeds, items))).tolist())

    found = [draw(np.random.default_rng(run)) for run in range(RUNS)]
    truth = of_seeds**2 / seeds + of_items**2 / items + of_rest**2 / (seeds * items)
    estimated = [one.both**2 for one in found]
    assert abs(np.mean(estimated) - truth) < 4 * np.std(estimated) / sqrt(RUNS)
    # the truth is the spread of the means themselves: chi-squared, so its relative error is sqrt(2 / runs)
    assert abs(np.var([one.value for one in found]) / truth - 1) < 4 * sqrt(2 / RUNS)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: t_interval([]), "at least one value, got none"),
        (lambda: t_interval([1.0, float("nan")]), "value 1 is nan"),
        (lambda: t_interval([1.0, 2.0], confidence=95), "confidence must be in"),
        (lambda: paired_bootstrap([1.0], [1.0, 2.0], name="x"), "as many values on both sides, got 1 and 2"),
        (lambda: rank_correlation([1, 1, 1], [1, 2, 3]), "differ in both"),
        (lambda: range_over_groups([[1.0, 2.0]], name="x"), "two groups or more"),
        (lambda: range_over_groups([[1.0, 2.0], [1.0, 2.0, 3.0]], name="x", paired=True), "as many values each"),
        (lambda: seeds_and_items([[1.0, 2.0], [1.0]]), "as many items of every seed"),
    ],
)
def test_what_has_no_interval_is_refused(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong()


def test_where_scipy_is_missing_the_extra_is_named(monkeypatch):
    def without(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="scipy")

    monkeypatch.setattr(estimate, "import_module", without)
    with pytest.raises(ConfigError, match=r"pip install 'calibrune\[study\]'"):
        t_interval([1.0, 2.0])
