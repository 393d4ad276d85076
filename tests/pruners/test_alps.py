"""ALPS: its parts against the equations, and that it is worth its time."""

import pytest
import torch

from calibrune.activations import InputHessian, LayerStats
from calibrune.errors import RunError
from calibrune.patterns import SemiStructured, SparsityPattern, Unstructured
from calibrune.pruners import ALPS, SparseGPT


def problem(n_out: int = 24, n_in: int = 48, seed: int = 0) -> tuple[torch.Tensor, LayerStats]:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_in // 4, n_in, generator=generator)
    x = torch.randn(300, len(directions), generator=generator) @ directions
    x += 0.5 * torch.randn(300, n_in, generator=generator)
    stats = LayerStats((InputHessian,), n_in, x.device)
    stats.update(x)
    return torch.randn(n_out, n_in, generator=generator), stats


def output_error(W: torch.Tensor, new: torch.Tensor, stats: LayerStats) -> float:
    difference, H = (W - new).double(), stats[InputHessian].matrix.double()
    return float((difference @ H * difference).sum() / (W.double() @ H * W.double()).sum())


def best_weights_on(mask: torch.Tensor, W: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """The least-squares weights on a mask, row by row."""
    best = torch.zeros_like(W)
    for row, kept in enumerate(mask):
        best[row, kept] = torch.linalg.solve(H[kept][:, kept], (W[row] @ H)[kept])
    return best


@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
def test_enough_refits_give_the_least_squares_weights_on_the_mask(pattern: SparsityPattern):
    W, stats = problem()
    found = ALPS(refit_iterations=200).prune(W, stats, pattern)
    H = stats[InputHessian].matrix.double()
    H += 0.01 * H.diagonal().mean() * torch.eye(len(H))
    torch.testing.assert_close(found.weight.double(), best_weights_on(found.mask, W.double(), H), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("pattern", [Unstructured(0.7), SemiStructured(2, 4)], ids=str)
def test_its_output_error_is_below_sparsegpts_at_high_sparsity(pattern: SparsityPattern):
    ours, theirs = 0.0, 0.0
    for seed in range(5):
        W, stats = problem(seed=seed)
        ours += output_error(W, ALPS().prune(W, stats, pattern).weight, stats)
        theirs += output_error(W, SparseGPT().prune(W, stats, pattern).weight, stats)
    assert ours < 0.9 * theirs


def test_the_refit_alone_already_lowers_the_error():
    W, stats = problem()
    pattern = Unstructured(0.6)
    without, with_it = ALPS(refit_iterations=0), ALPS()
    assert output_error(W, with_it.prune(W, stats, pattern).weight, stats) < output_error(
        W, without.prune(W, stats, pattern).weight, stats
    )


def test_an_input_that_never_fires_is_given_no_weight():
    W, _ = problem()
    x = torch.randn(100, 48)
    x[:, 5] = 0
    stats = LayerStats((InputHessian,), 48, x.device)
    stats.update(x)
    found = ALPS().prune(W, stats, Unstructured(0.5))
    assert (found.weight[:, 5] == 0).all()
    assert found.weight.isfinite().all()


def test_activations_that_are_no_numbers_are_an_error():
    W, _ = problem()
    stats = LayerStats((InputHessian,), 48, W.device)
    stats.update(torch.full((3, 48), float("nan")))
    with pytest.raises(RunError, match="ALPS has no Hessian"):
        ALPS().prune(W, stats, Unstructured(0.5))
