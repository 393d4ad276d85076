"""DSnoT against a loop over single rows and swaps, and the traps of the published code."""

import pytest
import torch
from reference.dsnot_slow import inputs_of, refine_row, refine_row_in_groups

from calibrune.activations import InputHessian, InputMoments, InputNorm, LayerStats
from calibrune.errors import ConfigError
from calibrune.patterns import SemiStructured, Unstructured
from calibrune.pruners import ALPS, DSnoT, DSnoTPublished, Magnitude, SparseGPT, Wanda


def problem(n_out: int = 8, n_in: int = 64, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor], LayerStats]:
    generator = torch.Generator().manual_seed(seed)
    # inputs with means of their own, as behind a norm with a bias or an activation function
    shift = torch.randn(n_in, generator=generator)
    sequences = [torch.randn(30, n_in, generator=generator) + shift for _ in range(5)]
    stats = LayerStats((InputNorm, InputMoments, InputHessian), n_in, sequences[0].device)
    for sequence in sequences:
        stats.update(sequence)
    return torch.randn(n_out, n_in, generator=generator), sequences, stats


def expected_errors(W, sequences, mask) -> torch.Tensor:
    mean, _, _ = inputs_of(W, sequences)
    return (mean * ~mask).sum(dim=1).abs()


@pytest.mark.parametrize("initial", [Wanda(), Magnitude(), SparseGPT()], ids=lambda pruner: type(pruner).__name__)
@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_refined_as_the_loop_does(initial, seed):
    W, sequences, stats = problem(seed=seed)
    pattern = Unstructured(0.6)
    start = initial.prune(W, stats, pattern).mask
    mean, gain, score = inputs_of(W, sequences)
    found = DSnoT(initial=initial, keep_best=False, threshold=5.0).prune(W, stats, pattern).mask
    for i in range(len(W)):
        expected, _ = refine_row(
            start[i].tolist(), mean[i].tolist(), gain[i].tolist(), score[i].tolist(), cycles=50, threshold=5.0
        )
        assert found[i].tolist() == expected


@pytest.mark.parametrize("pattern", [SemiStructured(2, 4), SemiStructured(4, 8), SemiStructured(3, 4)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_refined_inside_its_groups_as_the_loop_does(pattern, seed):
    W, sequences, stats = problem(seed=seed)
    start = Wanda().prune(W, stats, pattern).mask
    mean, gain, score = inputs_of(W, sequences)
    found = DSnoT(keep_best=False).prune(W, stats, pattern).mask
    swapped = 0
    for i in range(len(W)):
        expected, errors = refine_row_in_groups(
            start[i].tolist(), mean[i].tolist(), gain[i].tolist(), score[i].tolist(), 50, 0.1, pattern.m
        )
        assert found[i].tolist() == expected
        swapped += len(errors) - 1
    assert swapped > 0


@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
def test_the_best_error_of_a_row_is_kept_and_is_never_worse_than_at_the_start(pattern):
    W, sequences, stats = problem(n_out=40)
    start = expected_errors(W, sequences, Wanda().prune(W, stats, pattern).mask)
    last = expected_errors(W, sequences, DSnoT(keep_best=False).prune(W, stats, pattern).mask)
    best = expected_errors(W, sequences, DSnoT().prune(W, stats, pattern).mask)
    assert (best <= start + 1e-9).all()
    assert (best <= last + 1e-9).all()
    assert best.mean() < 0.7 * start.mean()


def test_inputs_that_never_vary_do_not_attract_the_regrowth():
    W, sequences, _ = problem()
    dead = torch.arange(64) % 4 == 0
    stats = LayerStats((InputNorm, InputMoments), 64, W.device)
    for sequence in sequences:
        stats.update(sequence.masked_fill(dead, 0.0))
    start = Wanda().prune(W, stats, Unstructured(0.5)).mask
    found = DSnoT().prune(W, stats, Unstructured(0.5))
    assert not (found.mask & ~start)[:, dead].any()
    assert found.weight.isfinite().all()


@pytest.mark.parametrize("n_in", [2, 3, 5, 16])
def test_a_narrow_layer_runs_out_of_candidates_and_keeps_its_sparsity(n_in):
    for seed in range(10):
        W, _, stats = problem(n_in=n_in, seed=seed)
        mask = DSnoT(keep_best=False).prune(W, stats, Unstructured(0.5)).mask
        assert ((~mask).sum(dim=1) == int(0.5 * n_in)).all()


def test_without_cycles_the_initial_mask_is_returned():
    W, _, stats = problem()
    assert torch.equal(
        DSnoT(max_cycles=0).prune(W, stats, Unstructured(0.5)).mask, Wanda().prune(W, stats, Unstructured(0.5)).mask
    )


def test_the_weights_that_stay_are_the_dense_ones_also_after_an_initial_method_that_updates_them():
    W, _, stats = problem()
    found = DSnoT(initial=SparseGPT()).prune(W, stats, Unstructured(0.5))
    assert torch.equal(found.weight[found.mask], W[found.mask])
    assert found.damping == 0.01


def test_the_initial_method_can_be_named_and_asks_for_what_it_reads():
    assert DSnoT(initial="magnitude").initial == Magnitude()
    assert set(DSnoT(initial="sparsegpt").requires) == {InputMoments, InputNorm, InputHessian}
    with pytest.raises(ConfigError, match=r"no initial method 'wand'; did you mean 'wanda'"):
        DSnoT(initial="wand")


def test_the_released_codes_scope_is_the_attention_on_llama_names_and_everything_on_others():
    published = DSnoTPublished()
    assert published.for_layer("model.layers.0.mlp.up_proj") == Wanda()
    assert published.for_layer("model.layers.0.self_attn.q_proj") == DSnoT(keep_best=False)
    assert published.for_layer("transformer.blocks.0.feed_forward.w12") == DSnoT(keep_best=False)


def test_the_initial_method_can_have_settings_of_its_own():
    assert DSnoT(initial={"name": "sparsegpt", "damping": 0.1}).initial == SparseGPT(damping=0.1)
    assert DSnoT(initial="alps").initial == ALPS()
    published = DSnoTPublished(refine={"initial": "magnitude"})
    assert published.refine == DSnoT(initial=Magnitude(), keep_best=False)
    assert DSnoTPublished(refine={"initial": "magnitude", "keep_best": True}).refine.keep_best
