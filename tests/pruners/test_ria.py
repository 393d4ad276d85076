"""RIA by hand."""

import torch

from calibrune.activations import InputNorm, LayerStats
from calibrune.patterns import Unstructured
from calibrune.pruners import RIA


def stats_of(x: torch.Tensor) -> LayerStats:
    stats = LayerStats((InputNorm,), x.shape[1], x.device)
    stats.update(x)
    return stats


def test_ria_by_hand():
    # |W| sums to 4 in both rows and both columns, so a share is |w|/2; the root of the second input's norm doubles
    # scores: [[1.5, 1.0], [0.5, 3.0]]
    W = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    pruned = RIA().prune(W, stats_of(torch.tensor([[1.0, 4.0]])), Unstructured(0.5))
    assert pruned.weight.tolist() == [[3.0, 0.0], [0.0, 3.0]]


def test_the_power_says_how_much_the_activations_count():
    W = torch.tensor([[3.0, 2.0], [2.0, 3.0]])
    stats = stats_of(torch.tensor([[1.0, 4.0]]))
    # shares in row 0: 3/5 + 3/5 and 2/5 + 2/5; with power 1 the second is 4 x 0.8
    assert RIA(power=0).prune(W, stats, Unstructured(0.5)).mask.tolist() == [[True, False], [False, True]]
    assert RIA(power=1).prune(W, stats, Unstructured(0.5)).mask.tolist() == [[False, True], [False, True]]


def test_a_row_and_a_column_of_zeros_do_not_spoil_the_rest():
    W = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
    pruned = RIA().prune(W, stats_of(torch.ones(2, 3)), Unstructured(0.4))
    assert pruned.weight.isfinite().all()
    assert pruned.mask[1].tolist() == [False, True, True]
