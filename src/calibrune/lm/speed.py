"""How fast the machine is, for estimates before a run: of a matrix product like a model's, measured in a moment."""

import time

import torch

ROWS = 1024
SECONDS = 0.2


def operations_per_second(width: int, dtype: torch.dtype, device: torch.device) -> float:
    """Multiplications and additions per second of a product [1024, width] x [width, width]."""
    a = torch.ones(ROWS, width, dtype=dtype, device=device)
    b = torch.ones(width, width, dtype=dtype, device=device)
    (a @ b).sum().item()
    start, n, took = time.perf_counter(), 0, 0.0
    while took < SECONDS:
        (a @ b).sum().item()  # a number in hand: the device is done
        n += 1
        took = time.perf_counter() - start
    return 2.0 * n * a.numel() * width / took
