"""Tests of hypotheses: by hand, that a planted difference is found, and that equal ones are not called different.

An error rate that is more than four binomial standard errors over what is stated is a failure.
"""

from itertools import permutations
from math import atan, cos, isclose, pi, sin, sqrt

import numpy as np
import pytest

from calibrune.errors import ConfigError
from calibrune.uncertainty import (
    equivalence,
    groups_differ,
    holm,
    mcnemar,
    sign_flip_test,
    smallest_difference,
    t_interval,
)

RUNS = 400


def share_below(test, alpha=0.05):
    """Of the p-values that `test` draws, the share below alpha."""
    return sum(test(np.random.default_rng(run)) < alpha for run in range(RUNS)) / RUNS


def at_most(share, stated):
    return share <= stated + 4 * sqrt(stated * (1 - stated) / RUNS)


def answers(n, only_a, only_b):
    """0/1 items of two models, both right in the rest."""
    a = [1.0] * only_a + [0.0] * only_b + [1.0] * (n - only_a - only_b)
    return a, [0.0] * only_a + [1.0] * only_b + [1.0] * (n - only_a - only_b)


def test_mcnemar_of_few_discordant_pairs_is_the_binomial_by_hand():
    found = mcnemar(*answers(100, 1, 8))
    # of nine coins, none or one on one side or on the other: 2 * (1 + 9) / 2**9
    assert isclose(found.p_value, 20 / 512)
    assert (found.only_a, found.only_b) == (1, 8)
    assert isclose(found.difference.value, 0.07)
    # (8 + 1, 1 + 1) of 102: 9/102 - 2/102 -+ 1.959964 * sqrt((11/102 - (7/102)**2) / 102)
    half = 1.959964 * sqrt((11 / 102 - (7 / 102) ** 2) / 102)
    assert isclose(found.difference.low, 7 / 102 - half, rel_tol=1e-6)
    assert isclose(found.difference.high, 7 / 102 + half, rel_tol=1e-6)


def test_mcnemar_of_many_discordant_pairs_is_chi_squared_by_hand():
    found = mcnemar(*answers(200, 10, 30))
    assert isclose(found.p_value, 0.00156540, rel_tol=1e-5)  # chi-squared of (30 - 10)**2 / 40 = 10
    assert "chi-squared of 40" in found.method


def test_models_that_never_differ_are_not_different():
    found = mcnemar(*answers(50, 0, 0))
    assert found.p_value == 1.0
    assert found.difference.holds(0.0)
    assert found.difference.low < 0 < found.difference.high  # not certain: 50 items are few


@pytest.mark.parametrize("discordant", [0.05, 0.3])
def test_equal_accuracies_are_not_called_different_more_often_than_stated(discordant):
    def null(rng):
        kind = rng.choice(3, size=200, p=[1 - discordant, discordant / 2, discordant / 2])
        return mcnemar((kind == 1).astype(float).tolist(), (kind == 2).astype(float).tolist()).p_value

    assert at_most(share_below(null), 0.05)


def test_sign_flips_by_hand():
    # of eight ways to sign three differences, one is as high as what was seen, and one as low
    assert isclose(sign_flip_test([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], name="hand"), 2 / 8)
    assert sign_flip_test([1.0, 2.0], [1.0, 2.0], name="equal") == 1.0
    assert sign_flip_test([1.0], [9.0], name="one") == 1.0


def test_sign_flips_find_what_was_planted_and_nothing_else():
    rng = np.random.default_rng(0)
    items = rng.normal(3.0, 1.0, 60)
    assert sign_flip_test(items, items + 0.1 + rng.normal(0.0, 0.05, 60), name="planted") < 0.001
    share = share_below(lambda rng: sign_flip_test([0.0] * 10, rng.normal(size=10), name="null"))
    assert at_most(share, 0.05)


def test_holm_by_hand_and_in_any_order():
    p_values = {0.01: 0.04, 0.02: 0.06, 0.03: 0.06, 0.04: 0.06}
    for order in permutations(p_values):
        assert np.allclose(holm(order), [p_values[p] for p in order])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_five_comparisons_of_equals_together_err_as_often_as_one():
    any_found = share_below(lambda rng: min(holm(rng.uniform(size=5))))
    assert at_most(any_found, 0.05)
    assert not at_most(share_below(lambda rng: min(rng.uniform(size=5))), 0.05)


def test_equivalence_agrees_with_its_interval_by_hand():
    a, b = [0.0] * 4, [0.1, 0.2, 0.0, 0.1]
    # mean 0.1, variance 0.02 / 3, standard error sqrt(0.02 / 12); of three degrees of freedom t has a closed form
    angle = atan((0.5 - 0.1) / sqrt(0.02 / 12) / sqrt(3))
    found = equivalence(a, b, 0.5)
    assert isclose(found.p_value, 0.5 - (angle + sin(angle) * cos(angle)) / pi, rel_tol=1e-6)
    assert found.difference == t_interval([y - x for x, y in zip(a, b, strict=True)], confidence=0.9)
    for margin in (0.15, 0.19, 0.2, 0.25):
        inside = -margin < found.difference.low and found.difference.high < margin
        assert equivalence(a, b, margin).equivalent == inside


def test_too_few_items_show_no_equivalence_and_a_difference_at_the_margin_is_rarely_called_none():
    rng = np.random.default_rng(0)
    assert not equivalence([0.0] * 5, rng.normal(0.0, 1.0, 5), 0.2).equivalent
    assert equivalence([0.0] * 1000, rng.normal(0.0, 1.0, 1000), 0.2).equivalent
    share = share_below(lambda rng: equivalence([0.0] * 50, rng.normal(0.3, 1.0, 50), 0.3).p_value)
    assert at_most(share, 0.05)
    assert equivalence([1.0] * 3, [1.0] * 3, 0.1).equivalent


def test_the_smallest_difference_of_the_tables_and_its_power():
    # Cohen's d = 0.5, paired, two-sided 5%, power 80%: 34 pairs
    assert smallest_difference(1.0, 34) <= 0.5 < smallest_difference(1.0, 33)
    assert isclose(smallest_difference(3.0, 34), 3 * smallest_difference(1.0, 34))
    assert smallest_difference(1.0, 34, power=0.9) > 0.5
    assert smallest_difference(0.0, 2) == 0.0
    # of many pairs, (1.959964 + 0.841621) standard errors
    assert isclose(smallest_difference(1.0, 100_000), 2.801585 / sqrt(100_000), rel_tol=1e-3)
    assert smallest_difference(1.0, 2) > smallest_difference(1.0, 3) > 1.0
    effect = smallest_difference(2.0, 8)
    found = share_below(lambda rng: 0.01 if not t_interval(rng.normal(effect, 2.0, 8)).holds(0.0) else 1.0)
    assert abs(found - 0.8) <= 4 * sqrt(0.8 * 0.2 / RUNS)


@pytest.mark.parametrize("paired", [False, True])
def test_groups_that_are_equal_differ_no_more_often_than_stated_and_one_apart_is_found(paired):
    def null(rng):
        groups = rng.normal(size=(4, 8)) + (rng.normal(0.0, 5.0, 8) if paired else 0.0)
        return groups_differ(groups.tolist(), name="null", paired=paired, resamples=199)

    assert at_most(share_below(null), 0.05)
    rng = np.random.default_rng(0)
    seeds = rng.normal(0.0, 5.0 if paired else 0.0, 8)
    groups = [(seeds + middle + rng.normal(0.0, 0.5, 8)).tolist() for middle in (0.0, 0.0, 2.0)]
    assert groups_differ(groups, name="planted", paired=paired) < 0.005


def test_permutations_of_groups_by_hand():
    # of six ways to part four values, two are as far apart as what was seen; a binomial error of 9,999 draws is 0.005
    assert abs(groups_differ([[0.0, 0.0], [1.0, 1.0]], name="hand") - 1 / 3) < 0.02


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: mcnemar([0.0, 0.5], [0.0, 1.0]), "0 or 1, got 0.5"),
        (lambda: holm([1.2]), "p-value is in"),
        (lambda: equivalence([1.0, 2.0], [1.0, 2.0], 0.0), "margin of an equivalence test must be over 0"),
        (lambda: equivalence([1.0], [2.0], 1.0), "at least 2 pairs, got 1"),
        (lambda: smallest_difference(1.0, 1), "n >= 2"),
        (lambda: smallest_difference(-1.0, 5), "sd >= 0"),
    ],
)
def test_what_cannot_be_tested_is_refused(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong()
