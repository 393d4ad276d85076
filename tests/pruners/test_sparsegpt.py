"""SparseGPT against optimal brain surgeon by explicit inverse, and what happens when a factorisation fails."""

import pytest
import torch
from reference.obs import sparsegpt

from calibrune.activations import InputHessian, LayerStats
from calibrune.errors import ConfigError, RunError
from calibrune.patterns import SemiStructured, Unstructured
from calibrune.pruners import SparseGPT, Wanda
from calibrune.pruners.sparsegpt import inverse_factor


def problem(n_out: int, n_in: int, seed: int = 0, tokens: int = 200) -> tuple[torch.Tensor, LayerStats]:
    generator = torch.Generator().manual_seed(seed)
    # a few directions carry most of the inputs, as in language models: what one weight lost another can make up for
    directions = torch.randn(max(n_in // 4, 1), n_in, generator=generator)
    x = torch.randn(tokens, len(directions), generator=generator) @ directions
    x += 0.5 * torch.randn(tokens, n_in, generator=generator)
    stats = LayerStats((InputHessian, *Wanda.requires), n_in, x.device)
    stats.update(x)
    return torch.randn(n_out, n_in, generator=generator), stats


def output_error(W: torch.Tensor, new: torch.Tensor, stats: LayerStats) -> float:
    difference, H = (W - new).double(), stats[InputHessian].matrix.double()
    return float((difference @ H * difference).sum() / (W.double() @ H * W.double()).sum())


@pytest.mark.parametrize("asked", [0.5, 0.7, (2, 4), (4, 8), (1, 3)], ids=str)
@pytest.mark.parametrize("shape", [(5, 24), (12, 72), (7, 48)], ids=str)
def test_masks_equal_and_weights_agree_with_the_equations(asked, shape):
    W, stats = problem(*shape)
    block = 24
    pattern = SemiStructured(*asked) if isinstance(asked, tuple) else Unstructured(asked)
    weight, mask = sparsegpt(W, stats[InputHessian].matrix, asked, block, 0.01)
    found = SparseGPT(block_size=block).prune(W, stats, pattern)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.weight.double(), weight, rtol=1e-4, atol=1e-5)
    assert found.damping == 0.01


def test_the_released_codes_threshold_takes_one_more_in_each_block():
    W, stats = problem(7, 48)
    ours = SparseGPT(block_size=24).prune(W, stats, Unstructured(0.5)).mask
    theirs = SparseGPT(block_size=24, select="threshold").prune(W, stats, Unstructured(0.5)).mask
    assert [(~ours[:, block]).sum() for block in (slice(0, 24), slice(24, 48))] == [84, 84]
    assert [(~theirs[:, block]).sum() for block in (slice(0, 24), slice(24, 48))] == [85, 85]
    assert (ours[:, :24] | ~theirs[:, :24]).all()


def test_the_output_is_nearer_to_the_dense_layers_than_wandas():
    for seed in range(5):
        W, stats = problem(32, 64, seed)
        pattern = Unstructured(0.6)
        ours = output_error(W, SparseGPT().prune(W, stats, pattern).weight, stats)
        assert ours < 0.8 * output_error(W, Wanda().prune(W, stats, pattern).weight, stats)


def test_an_input_that_never_fires_is_pruned_whole_and_harms_nothing():
    W, _ = problem(6, 16)
    x = torch.randn(100, 16)
    x[:, 3] = 0
    stats = LayerStats((InputHessian,), 16, x.device)
    stats.update(x)
    found = SparseGPT().prune(W, stats, Unstructured(0.5))
    assert (found.weight[:, 3] == 0).all()
    assert found.weight.isfinite().all()


def test_the_factor_is_that_of_the_inverse():
    _, stats = problem(1, 20)
    H = stats[InputHessian].matrix
    damped = H.double() + 0.01 * H.diagonal().mean() * torch.eye(20)
    upper = inverse_factor(H.clone(), 0.01).upper.double()
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped), rtol=1e-3, atol=1e-4)
    assert (upper.tril(-1) == 0).all()


def test_damping_is_raised_step_by_step_and_reported():
    # a negative eigenvalue, as rounding may leave one: it takes a damping above 0.3 to lift it
    H = torch.eye(4)
    H[0, 1] = H[1, 0] = 1.3
    found = inverse_factor(H, 0.01)
    assert found.damping == pytest.approx(1.0)
    assert found.upper.isfinite().all()


def test_activations_that_are_no_numbers_are_an_error_and_no_identity():
    with pytest.raises(RunError, match="cannot be factorised: the activations hold NaN or infinity"):
        inverse_factor(torch.full((3, 3), float("nan")), 0.01)


def test_a_hessian_that_no_damping_lifts_says_what_was_tried():
    H = torch.eye(4)
    H[0, 1] = H[1, 0] = 1000.0
    with pytest.raises(RunError, match=r"cannot be factorised, tried with damping 0.01 to 100 times its mean diagonal"):
        inverse_factor(H, 0.01)


def test_a_block_that_cuts_groups_apart_is_refused():
    W, stats = problem(4, 24)
    with pytest.raises(ConfigError, match=r"2:4 sparsity needs a block_size that is a multiple of 4, got 6"):
        SparseGPT(block_size=6).prune(W, stats, SemiStructured(2, 4))
