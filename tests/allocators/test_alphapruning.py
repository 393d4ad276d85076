"""AlphaPruning: the exponent on spectra that are known, and the ratios by hand."""

import math

import pytest
import torch
from tiny_models import tiny_model

from calibrune.allocators import AlphaPruning
from calibrune.allocators.alphapruning import LIGHTEST, hill_exponent
from calibrune.errors import ConfigError
from calibrune.lm.layout import decoder_blocks
from calibrune.patterns import SemiStructured, Unstructured


def test_hills_estimator_by_hand():
    # eigenvalues 1, 2, 4, 8: the upper half is 4 and 8, over 2: logs of 2 and 4
    W = torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0]).sqrt())
    assert hill_exponent(W) == pytest.approx(1 + 2 / (math.log(2) + math.log(4)))


@pytest.mark.parametrize("alpha", [2.0, 3.0, 5.0])
def test_a_power_laws_exponent_is_found(alpha):
    # quantiles of a Pareto density with this exponent
    u = (torch.arange(1000).double() + 0.5) / 1000
    eigenvalues = (1 - u) ** (-1 / (alpha - 1))
    assert hill_exponent(torch.diag(eigenvalues.sqrt()).float()) == pytest.approx(alpha, rel=0.03)


def test_the_exponent_is_that_of_the_transposed_and_of_the_scaled_weight():
    W = torch.randn(20, 50)
    assert hill_exponent(W.T) == pytest.approx(hill_exponent(W), rel=1e-3)
    assert hill_exponent(7 * W) == pytest.approx(hill_exponent(W), rel=1e-3)


def test_a_weight_without_a_tail_is_no_error():
    assert hill_exponent(torch.eye(6)) == LIGHTEST
    assert hill_exponent(torch.zeros(4, 6)) == LIGHTEST


def test_lighter_tails_lose_more_and_the_mean_is_what_was_asked_for():
    model = tiny_model()
    # block 1 gets a heavy tail
    for layer in decoder_blocks(model)[1].layers:
        U, S, V = torch.linalg.svd(layer.weight, full_matrices=False)
        layer.replace_weight(U @ torch.diag(torch.logspace(1, -1, len(S))) @ V)
    allocation = AlphaPruning(spread=0.2).allocate(model, None, Unstructured(0.5))
    found = [allocation[block.layers[0].name].sparsity for block in decoder_blocks(model)]
    assert found[1] == min(found)
    assert max(found) / min(found) == pytest.approx(1.2 / 0.8)
    assert sum(found) / 3 == pytest.approx(0.5)


def test_n_of_m_leaves_no_ratio_to_choose():
    with pytest.raises(ConfigError, match="does not allow; use a percentage"):
        AlphaPruning().allocate(tiny_model(), None, SemiStructured(2, 4))


def test_a_single_eigenvalue_has_no_tail():
    assert hill_exponent(torch.randn(1, 8)) == LIGHTEST
