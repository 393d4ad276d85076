"""Magnitude pruning by hand."""

import torch

from calibrune.activations import LayerStats
from calibrune.patterns import Unstructured
from calibrune.pruners import Magnitude

W = torch.tensor([[4.0, -3.0, 0.5], [-0.2, 0.1, 2.0]])
NO_STATS = LayerStats((), 3, torch.device("cpu"))


def test_the_whole_layer_competes_unless_said_otherwise():
    assert Magnitude().prune(W, NO_STATS, Unstructured(0.5)).weight.tolist() == [[4, -3, 0], [0, 0, 2]]


def test_rows_can_compete_by_themselves():
    pruned = Magnitude(group="row").prune(W, NO_STATS, Unstructured(0.34))
    assert pruned.mask.tolist() == [[True, True, False], [True, False, True]]


def test_the_released_codes_threshold_takes_one_more():
    pruned = Magnitude(select="threshold").prune(W, NO_STATS, Unstructured(0.5))
    assert pruned.weight.tolist() == [[4, -3, 0], [0, 0, 0]]
