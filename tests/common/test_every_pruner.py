"""What must hold of every pruning method, whatever it does; a new entry in the table is tested by itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrune.activations import LayerStats
from calibrune.patterns import SemiStructured, SparsityPattern, Unstructured
from calibrune.pruners import PRUNERS, DSnoT, DSnoTPublished, PrunedWeight, Pruner

PATTERNS = [
    Unstructured(0.0),
    Unstructured(0.3),
    Unstructured(0.5),
    Unstructured(0.9),
    SemiStructured(2, 4),
    SemiStructured(1, 8),
]
every_method = pytest.mark.parametrize("name", PRUNERS)
every_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def problem(seed: int, dtype: torch.dtype = torch.float32, ties: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    W, x = torch.randn(6, 16, generator=generator), torch.randn(40, 16, generator=generator)
    if ties:
        W, x = W.round(), torch.ones_like(x)
    return W.to(dtype), x.to(dtype)


# a threshold in the unit of the activations is no matter of scale alone: with it, doubled weights go on for longer
SCALE_FREE = {
    "dsnot": DSnoT(threshold=0.0),
    "dsnot-published": DSnoTPublished(refine=DSnoT(threshold=0.0, keep_best=False)),
}


def pruned(
    name: str, W: torch.Tensor, x: torch.Tensor, pattern: SparsityPattern, pruner: Pruner | None = None
) -> PrunedWeight:
    pruner = PRUNERS[name]() if pruner is None else pruner
    stats = LayerStats(pruner.requires, W.shape[1], W.device)
    stats.update(x)
    return pruner.prune(W, stats, pattern)


@every_method
@every_pattern
@given(seed=st.integers(0, 1000), ties=st.booleans())
def test_sparsity_is_exact_and_the_weight_agrees_with_the_mask(name, pattern, seed, ties):
    W, x = problem(seed, ties=ties)
    before = W.clone()
    weight, mask, _ = pruned(name, W, x, pattern)
    if isinstance(pattern, SemiStructured):
        assert (mask.reshape(-1, pattern.m).sum(dim=1) == pattern.n).all()
    else:
        assert int((~mask).sum()) in (6 * int(pattern.sparsity * 16), int(pattern.sparsity * 96))
    assert (weight[~mask] == 0).all()
    assert weight.isfinite().all()
    assert torch.equal(W, before), "the weight that was handed over was changed"


@every_method
@every_pattern
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_stays_and_the_same_call_gives_the_same_answer(name, pattern, dtype):
    W, x = problem(0, dtype)
    first, second = pruned(name, W, x, pattern), pruned(name, W, x, pattern)
    assert first.weight.dtype == dtype
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.mask, second.mask)


@every_method
@every_pattern
@given(seed=st.integers(0, 100))
def test_the_mask_is_the_same_when_all_weights_are_doubled(name, pattern, seed):
    W, x = problem(seed)
    pruner = SCALE_FREE.get(name)
    assert torch.equal(pruned(name, W, x, pattern, pruner).mask, pruned(name, 2 * W, x, pattern, pruner).mask)


@every_method
@every_pattern
@given(seed=st.integers(0, 100), order=st.permutations(range(6)))
def test_permuting_the_outputs_permutes_the_result(name, pattern, seed, order):
    W, x = problem(seed)
    torch.testing.assert_close(pruned(name, W[order], x, pattern).weight, pruned(name, W, x, pattern).weight[order])
