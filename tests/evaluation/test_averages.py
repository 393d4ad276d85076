"""Means over tokens, and standard errors that know neighbours from strangers."""

import math
from statistics import mean, stdev

import numpy as np
import pytest

from calibrune.evaluation.averages import MAX_BLOCKS, TokenMean, of_independent, of_neighbours


def series(n: int, likeness: float, seed: int) -> list[float]:
    """An autoregressive series of mean 0 and variance 1: each is so like the one before it."""
    noise = np.random.default_rng(seed).standard_normal(n)
    values = [noise[0]]
    for one in noise[1:]:
        values.append(likeness * values[-1] + math.sqrt(1 - likeness**2) * one)
    return list(map(float, values))


def test_blocks_tell_the_spread_of_a_mean_whose_items_are_alike_and_independence_does_not():
    drawn = [series(1600, 0.8, seed) for seed in range(300)]
    truth = stdev(map(mean, drawn))
    by_blocks = mean(of_neighbours(one, "windows").value for one in drawn)
    naive = mean(of_independent(one, "windows").value for one in drawn)
    assert by_blocks == pytest.approx(truth, rel=0.15)
    # by theory, too small by sqrt((1 + 0.8) / (1 - 0.8)) = 3
    assert naive == pytest.approx(truth / 3, rel=0.15)


def test_of_strangers_blocks_say_the_same_as_independence():
    drawn = [series(400, 0.0, seed) for seed in range(300)]
    by_blocks = mean(of_neighbours(one, "windows").value for one in drawn)
    assert by_blocks == pytest.approx(1 / math.sqrt(400), rel=0.1)
    assert mean(of_independent(one, "texts").value for one in drawn) == pytest.approx(by_blocks, rel=0.1)


def test_blocks_by_hand():
    # five blocks of five: means 0, 1, 2, 3, 4, of variance 2.5
    values = [float(i // 5) for i in range(25)]
    found = of_neighbours(values, "windows")
    assert found.value == pytest.approx(math.sqrt(2.5 / 5))
    assert found.how == "from 5 blocks of 5 neighbouring windows"


@pytest.mark.parametrize(("n", "blocks"), [(25, 5), (35, 5), (36, 6), (899, 29), (900, 30), (4000, MAX_BLOCKS)])
def test_there_are_about_as_many_blocks_as_items_in_one_up_to_thirty(n, blocks):
    assert of_neighbours(series(n, 0.0, 0), "windows").how.startswith(f"from {blocks} blocks of {n // blocks} ")


def test_where_there_is_too_little_there_is_no_standard_error():
    few = of_neighbours([1.0, 2.0] * 12, "windows")
    assert (few.value, few.how) == (None, "none for fewer than 25 windows in a row")
    assert of_independent([1.0], "texts").value is None
    assert of_neighbours([math.nan, *[1.0] * 99], "windows").value is None
    assert of_independent([math.inf, 1.0], "texts").value is None


def test_a_mean_over_tokens_by_hand():
    found = TokenMean(totals=(3.0, 1.0), counts=(3, 1))  # each token 1
    assert (found.value, found.items) == (1.0, (1.5, 0.5))
    assert found.deviations == [0.0, 0.0]
    # of pieces of one size, the deviations are those from the mean
    assert TokenMean(totals=(2.0, 6.0), counts=(2, 2)).deviations == [-1.0, 1.0]
