"""Wanda by hand and against the definition."""

import torch

from calibrune.activations import InputNorm, LayerStats
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
