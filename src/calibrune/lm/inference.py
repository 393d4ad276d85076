"""How a model is run: in evaluation mode, without gradients, and by products that the processor is good at.

A processor that has no arithmetic for bfloat16 multiplies such matrices one number after another, five to eight times
slower than the same matrices in float32. So there each product is worked out in float32, a piece at a time, and
rounded back: it is what bfloat16 arithmetic means anyway, whose sums are kept in float32, and the model in memory stays
as small as it was.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

PIECE = 2**24
"""Numbers of a matrix that are held in float32 at a time: 64 MiB."""
FEWEST_ROWS = 4
"""With fewer, a product reads the weights once and hardly computes: widening them would only be more to read."""
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.baddbmm, torch.addmm)


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode (no dropout), no gradients, quick products; afterwards the model is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), quick_products(model.dtype, model.device):
            yield
    finally:
        for module in training:
            module.training = True


def quick_products(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Inside, matrices of this dtype are multiplied in float32 where the processor has no arithmetic for it."""
    # a model that is read block by block is on no device in between
    on_cpu = device.type in ("cpu", "meta")
    return _WideProducts(dtype) if on_cpu and not runs_well(dtype, torch.device("cpu")) else nullcontext()


def runs_well(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the machine computes with such numbers itself: where not, float32 is faster, and no less exact."""
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    able = (
        ("_is_amx_fp16_supported",)
        if dtype == torch.float16
        else ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(getattr(torch.cpu, name, lambda: False)() for name in able)


class _WideProducts(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.linear and not kwargs and self._narrow(*args[:2]) and _rows(args[0]) >= FEWEST_ROWS:
            return _linear(*args)
        if func in PRODUCTS and kwargs.keys() <= {"alpha", "beta"} and self._narrow(*args):
            wide = [one.float() if isinstance(one, Tensor) else one for one in args]
            return func(*wide, **kwargs).to(self._dtype)
        return func(*args, **kwargs)

    def _narrow(self, *args: Any) -> bool:
        return all(one.dtype == self._dtype and one.device.type == "cpu" for one in args if isinstance(one, Tensor))


def _linear(
    x: Float[Tensor, "*batch in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*batch out"]:
    """x @ weight.T + bias in float32, rounded to the dtype of x once."""
    rows = x.reshape(-1, x.shape[-1])
    at_once = max(1, PIECE // max(x.shape[-1], 1))
    result = x.new_empty(len(rows), len(weight))
    for i in range(0, len(weight), at_once):
        wide = weight[i : i + at_once].float()
        added = None if bias is None else bias[i : i + at_once].float()
        for j in range(0, len(rows), at_once):
            result[j : j + at_once, i : i + at_once] = nn.functional.linear(rows[j : j + at_once].float(), wide, added)
    return result.view(*x.shape[:-1], len(weight))


def _rows(x: Tensor) -> int:
    return x.numel() // max(x.shape[-1], 1)
