"""Statistics by hand, and that they add up."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrune.activations import InputNorm, LayerStats


def norm_of(*sequences: torch.Tensor) -> InputNorm:
    norm = InputNorm(sequences[0].shape[1], torch.device("cpu"))
    for sequence in sequences:
        norm.update(sequence)
    return norm


def test_the_norm_by_hand():
    # squares of the first feature: 9, 16; of the second: 0, 4
    norm = norm_of(torch.tensor([[3.0, 0.0]]), torch.tensor([[4.0, 2.0]]))
    assert norm.tokens == 2
    torch.testing.assert_close(norm.rms, torch.tensor([12.5, 2.0]).sqrt())


@given(cuts=st.lists(st.integers(0, 30), max_size=5))
def test_how_tokens_are_batched_does_not_matter(cuts):
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    edges = [0, *sorted(cuts), 30]
    pieces = [x[a:b] for a, b in pairwise(edges)]
    torch.testing.assert_close(norm_of(*pieces).rms, norm_of(x).rms)


def test_merging_two_halves_gives_the_whole():
    x = torch.randn(10, 4)
    half, other = norm_of(x[:3]), norm_of(x[3:])
    half.merge(other)
    assert half.tokens == 10
    torch.testing.assert_close(half.rms, norm_of(x).rms)


def test_half_precision_inputs_do_not_overflow_when_squared():
    norm = norm_of(torch.full((4, 2), 60000.0, dtype=torch.float16))
    torch.testing.assert_close(norm.rms, torch.full((2,), 59999.0), rtol=1e-3, atol=0)


def test_a_feature_that_nobody_saw_has_norm_zero():
    assert InputNorm(3, torch.device("cpu")).rms.tolist() == [0, 0, 0]


def test_a_statistic_that_was_not_collected_is_named():
    with pytest.raises(KeyError, match=r"InputNorm was not collected \(collected: none\)"):
        LayerStats((), 4, torch.device("cpu"))[InputNorm]
