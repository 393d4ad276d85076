"""Statistics by hand, and that they add up."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from calibrune.activations import (
    InputHessian,
    InputMoments,
    InputNorm,
    InputPeak,
    InputSample,
    InputStatistic,
    LayerStats,
)
from calibrune.errors import ConfigError


def norm_of(*sequences: torch.Tensor) -> InputNorm:
    norm = InputNorm(sequences[0].shape[1], torch.device("cpu"))
    for sequence in sequences:
        norm.update(sequence)
    return norm


def test_the_norm_by_hand():
    # squares of the first feature: 9, 16; of the second: 0, 4
    norm = norm_of(torch.tensor([[3.0, 0.0]]), torch.tensor([[4.0, 2.0]]))
    assert norm.tokens == 2
    torch.testing.assert_close(norm.rms, torch.tensor([12.5, 2.0]).sqrt())


@given(cuts=st.lists(st.integers(0, 30), max_size=5))
def test_how_tokens_are_batched_does_not_matter(cuts):
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    edges = [0, *sorted(cuts), 30]
    pieces = [x[a:b] for a, b in pairwise(edges)]
    torch.testing.assert_close(norm_of(*pieces).rms, norm_of(x).rms)


def test_merging_two_halves_gives_the_whole():
    x = torch.randn(10, 4)
    half, other = norm_of(x[:3]), norm_of(x[3:])
    half.merge(other)
    assert half.tokens == 10
    torch.testing.assert_close(half.rms, norm_of(x).rms)


KINDS = (InputNorm, InputMoments, InputHessian, InputPeak, InputSample)


def seen(kind: type[InputStatistic], *sequences: torch.Tensor) -> InputStatistic:
    made = kind(4, torch.device("cpu"))
    for sequence in sequences:
        made.update(sequence)
    return made


def held(statistic: InputStatistic) -> list[torch.Tensor]:
    values = [torch.cat(value) if isinstance(value, list) else value for value in vars(statistic).values()]
    return [torch.as_tensor(value) for value in values]


@pytest.mark.parametrize("kind", KINDS)
def test_every_statistic_merges_with_its_own_kind_and_no_other(kind):
    x, y = torch.randn(5, 4), torch.randn(3, 4)
    merged = seen(kind, x)
    merged.merge(seen(kind, y))
    assert merged.tokens == 8
    for mine, whole in zip(held(merged), held(seen(kind, x, y)), strict=True):
        torch.testing.assert_close(mine, whole)
    other = next(one for one in KINDS if one is not kind)
    with pytest.raises(TypeError, match=f"{kind.__name__} cannot add up with {other.__name__}"):
        merged.merge(seen(other, x))
    assert merged.tokens == 8


def test_the_peak_by_hand():
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[0.0, 1.0, 1e-40, 2.0], [0.0, nan, 0.0, 3.0]])
    peak = seen(InputPeak, rows, torch.tensor([[-0.0, 5.0, 0.0, -inf]]))
    assert (peak.dead, peak.broken) == (1, 2)
    peak = seen(InputPeak, torch.tensor([[0.0, -6e4, 6e4, 1e-7]], dtype=torch.float16), torch.empty(0, 4))
    assert (peak.dead, peak.broken, peak.tokens) == (1, 0, 1)
    assert seen(InputPeak).dead == 4


def test_half_precision_inputs_do_not_overflow_when_squared():
    norm = norm_of(torch.full((4, 2), 60000.0, dtype=torch.float16))
    torch.testing.assert_close(norm.rms, torch.full((2,), 59999.0), rtol=1e-3, atol=0)


def test_a_feature_that_nobody_saw_has_norm_zero():
    assert InputNorm(3, torch.device("cpu")).rms.tolist() == [0, 0, 0]


def test_a_statistic_that_was_not_collected_is_named():
    with pytest.raises(ConfigError, match=r"InputNorm was not collected \(collected: none\)"):
        LayerStats((), 4, torch.device("cpu"))[InputNorm]


@pytest.mark.parametrize(("dtype", "exact"), [(torch.bfloat16, True), (torch.float16, True), (torch.float32, False)])
@pytest.mark.parametrize("before", [True, False])
def test_a_gpu_rounds_the_factors_of_the_hessian_only_where_that_changes_nothing(
    dtype: torch.dtype, exact: bool, before: bool
):
    matmul = torch.backends.cuda.matmul
    allowed: list[bool] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") == "addmm_":
                allowed.append(matmul.allow_tf32)
            return func(*args, **(kwargs or {}))

    original, matmul.allow_tf32 = matmul.allow_tf32, before
    try:
        with Watch():
            InputHessian(4, torch.device("cpu")).update(torch.ones(3, 4, dtype=dtype))
        assert allowed == [exact]
        assert matmul.allow_tf32 is before
    finally:
        matmul.allow_tf32 = original
