"""How fast the machine is, for estimates before a run: of a matrix product like a model's, measured in a moment."""

import time

import torch
from torch import Tensor

from calibrune.lm.inference import quick_products

ROWS = 1024
SECONDS = 0.2


def operations_per_second(width: int, dtype: torch.dtype, device: torch.device) -> float:
    """Multiplications and additions per second of a product [1024, width] x [width, width], undisturbed by others."""
    a = torch.ones(ROWS, width, dtype=dtype, device=device)
    b = torch.ones(width, width, dtype=dtype, device=device)
    with quick_products(dtype, device):
        return _fastest(a, b)


def _fastest(a: Tensor, b: Tensor) -> float:
    (a @ b).sum().item()
    begun = time.perf_counter()
    best = float("inf")
    while (start := time.perf_counter()) < begun + SECONDS or best == float("inf"):
        (a @ b).sum().item()  # a number in hand: the device is done
        best = min(best, time.perf_counter() - start)
    return 2 * a.numel() * b.shape[1] / best
