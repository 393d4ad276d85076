"""Wanda by hand and against the definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrune.activations import InputNorm, LayerStats
from calibrune.errors import ConfigError
from calibrune.patterns import SemiStructured, Unstructured
from calibrune.pruners import Wanda


def stats_of(x: torch.Tensor) -> LayerStats:
    stats = LayerStats((InputNorm,), x.shape[1], x.device)
    stats.update(x)
    return stats


def test_wanda_by_hand():
    # input norms are 1, 2, 4, 8: the scores of the first row are 8, 8, 8, 8.8; of the second 1, 2, 4, 8
    W = torch.tensor([[8.0, -4.0, 2.0, 1.1], [1.0, 1.0, -1.0, 1.0]])
    pruned = Wanda().prune(W, stats_of(torch.tensor([[1.0, 2.0, 4.0, 8.0]])), Unstructured(0.5))
    assert pruned.weight.tolist() == [[8.0, 0.0, 0.0, 1.1000000238418579], [0.0, 0.0, -1.0, 1.0]]
    assert pruned.mask.tolist() == [[True, False, False, True], [False, False, True, True]]


def test_with_equal_inputs_wanda_is_magnitude_within_a_row():
    W = torch.tensor([[3.0, -4.0, 1.0, 2.0]])
    pruned = Wanda().prune(W, stats_of(torch.ones(5, 4)), SemiStructured(2, 4))
    assert pruned.weight.tolist() == [[3.0, -4.0, 0.0, 0.0]]


def test_wanda_equals_the_definition_on_random_problems():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        W, x = torch.randn(5, 12, generator=generator), torch.randn(30, 12, generator=generator)
        found = Wanda().prune(W, stats_of(x), Unstructured(0.6)).mask
        for row, kept in zip(W, found, strict=True):
            scores = [abs(float(w)) * float(x[:, j].norm()) for j, w in enumerate(row)]
            gone = sorted(range(12), key=scores.__getitem__)[: int(0.6 * 12)]
            assert [j not in gone for j in range(12)] == kept.tolist()


def test_the_cumulative_selection_by_hand():
    # shares of the first row: 0.1, 0.3, 0.6, 1; of the second: 0.25, 0.5, 0.75, 1
    W = torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    mask = Wanda(select="cumulative").prune(W, stats_of(torch.ones(3, 4)), Unstructured(0.5)).mask
    # alpha = 0.4 takes two of the first row and one of the second (3/8); 0.5 and more takes two of each
    assert mask.tolist() == [[True, False, True, False], [False, False, True, True]]


@given(seed=st.integers(0, 200), sparsity=st.sampled_from([0.3, 0.5, 0.6]))
def test_the_cumulative_selection_comes_near_the_sparsity_and_rows_differ(seed, sparsity):
    generator = torch.Generator().manual_seed(seed)
    W, x = torch.randn(64, 256, generator=generator), torch.randn(20, 256, generator=generator)
    W[:32] = W[:32] ** 3  # rows of another shape
    mask = Wanda(select="cumulative").prune(W, stats_of(x), Unstructured(sparsity)).mask
    assert abs(float((~mask).float().mean()) - sparsity) < 0.003
    by_row = (~mask).float().mean(dim=1)
    assert by_row[:32].mean() > by_row[32:].mean() + 0.05
    scores = W.abs() * stats_of(x)[InputNorm].rms
    for row in range(64):
        if not mask[row].all():
            assert scores[row][~mask[row]].max() <= scores[row][mask[row]].min()


def test_the_cumulative_selection_cannot_give_n_of_m():
    with pytest.raises(ConfigError, match="cannot give 2:4"):
        Wanda(select="cumulative").prune(torch.ones(2, 4), stats_of(torch.ones(1, 4)), SemiStructured(2, 4))


def test_a_row_of_zeros_is_no_error_for_the_cumulative_selection():
    W = torch.tensor([[0.0, 0.0, 0.0, 0.0], [4.0, 1.0, 3.0, 2.0]])
    pruned = Wanda(select="cumulative").prune(W, stats_of(torch.ones(1, 4)), Unstructured(0.5))
    assert pruned.weight.isfinite().all()


@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.99])
def test_the_cumulative_selection_reaches_high_sparsities_too(sparsity):
    W, x = torch.randn(64, 256), torch.randn(20, 256)
    mask = Wanda(select="cumulative").prune(W, stats_of(x), Unstructured(sparsity)).mask
    assert abs(float((~mask).float().mean()) - sparsity) < 0.003
