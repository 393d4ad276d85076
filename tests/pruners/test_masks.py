"""Which weights stay: by hand, and what must always hold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrune.errors import ConfigError, RunError
from calibrune.patterns import SemiStructured, Unstructured
from calibrune.pruners import keep_highest
from calibrune.pruners.masks import AT_ONCE


def test_a_row_by_hand():
    scores = torch.tensor([[1.0, 4.0, 2.0, 3.0], [9.0, 8.0, 7.0, 6.0]])
    assert keep_highest(scores, Unstructured(0.5)).tolist() == [[False, True, False, True], [True, True, False, False]]
    # in the layer as a whole, the four of the second row are highest
    assert keep_highest(scores, Unstructured(0.5), "layer").tolist() == [[False] * 4, [True] * 4]


def test_of_equal_scores_the_ones_further_left_stay():
    scores = torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0, 0.0]])
    assert keep_highest(scores, Unstructured(0.5)).tolist() == [[True, True, False, False, True, False]]


def test_a_threshold_takes_one_too_many_and_all_ties():
    scores = torch.tensor([[1.0, 4.0, 2.0, 3.0], [5.0, 5.0, 5.0, 6.0]])
    kept = keep_highest(scores, Unstructured(0.5), select="threshold")
    assert kept.tolist() == [[False, True, False, False], [False, False, False, True]]
    assert keep_highest(scores, Unstructured(0.5), "layer", "threshold").sum() == 1
    # N:M has no threshold, in the released code either
    assert torch.equal(
        keep_highest(scores, SemiStructured(2, 4), select="threshold"), keep_highest(scores, SemiStructured(2, 4))
    )


@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
def test_many_rows_are_selected_from_by_pieces_as_they_are_one_by_one(pattern):
    # of 16 values in a row of 512 many are equal
    scores = torch.randint(16, (2 * AT_ONCE // 512 + 3, 512), generator=torch.Generator().manual_seed(0)).float()
    mask = keep_highest(scores, pattern)
    for i in (0, 1, AT_ONCE // 512 - 1, AT_ONCE // 512, len(scores) - 1):
        assert torch.equal(mask[i], keep_highest(scores[i : i + 1], pattern)[0])
    assert (mask.sum(dim=1) == 256).all()


def test_n_of_m_counts_the_weights_that_stay():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 4.0]])
    assert keep_highest(scores, SemiStructured(1, 4)).tolist() == [[True] + [False] * 6 + [True]]
    assert keep_highest(scores, SemiStructured(3, 4)).tolist() == [[True] * 3 + [False] * 2 + [True] * 3]


SCORES = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


@given(
    rows=st.integers(1, 6),
    cols=st.integers(1, 33),
    sparsity=st.floats(0, 0.99),
    levels=st.integers(1, 9),
    chance=SCORES,
)
def test_exactly_as_many_go_as_were_asked_for_ties_or_not(rows, cols, sparsity, levels, chance):
    scores = torch.randint(levels, (rows, cols), generator=chance).float()
    pattern = Unstructured(sparsity)
    by_row, by_layer = keep_highest(scores, pattern), keep_highest(scores, pattern, "layer")
    assert ((~by_row).sum(dim=1) == int(sparsity * cols)).all()
    assert (~by_layer).sum() == int(sparsity * rows * cols)
    # the same as a stable sort, written the slow way
    kept = scores.argsort(dim=-1, descending=True, stable=True)[:, : cols - int(sparsity * cols)]
    assert torch.equal(by_row, torch.zeros_like(by_row).scatter_(1, kept, True))


@given(rows=st.integers(1, 5), blocks=st.integers(1, 6), m=st.integers(2, 9), data=st.data(), chance=SCORES)
def test_every_block_of_m_keeps_n(rows, blocks, m, data, chance):
    n = data.draw(st.integers(1, m - 1))
    mask = keep_highest(torch.randint(4, (rows, m * blocks), generator=chance).float(), SemiStructured(n, m))
    assert (mask.reshape(-1, m).sum(dim=1) == n).all()


def test_a_width_that_m_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"2:4 sparsity needs layers whose in_features are divisible by 4, got 6"):
        keep_highest(torch.ones(2, 6), SemiStructured(2, 4))


def test_scores_that_are_not_numbers_are_refused_and_counted():
    with pytest.raises(RunError, match="1 of 4 pruning scores are not a number"):
        keep_highest(torch.tensor([[1.0, float("nan"), 2.0, 3.0]]), Unstructured(0.5))
