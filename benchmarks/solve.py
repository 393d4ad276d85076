"""SparseGPT's solve against the published algorithm, written plainly from its equations; in one process, in turns."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.turns import compared, in_turns
from calibrune.activations.statistics import InputHessian, LayerStats
from calibrune.patterns import Unstructured
from calibrune.pruners import SparseGPT

WIDTHS, REPEATS = (1024, 2048, 4096), 3
SPARSITY, BLOCK, DAMPING = 0.5, 128, 0.01


def measure(widths: tuple[int, ...] = WIDTHS, repeats: int = REPEATS) -> Iterator[dict[str, Any]]:
    """A row for each square matrix: both times, how far the masks agree, the largest difference of two weights."""
    for width in widths:
        yield _row(width, repeats)


def _row(width: int, repeats: int) -> dict[str, Any]:
    weight, stats = problem(width)
    found: dict[str, Tensor] = {}

    def ours() -> None:
        pruner = SparseGPT(block_size=BLOCK, damping=DAMPING)
        found["ours"] = pruner.prune(weight, stats, Unstructured(SPARSITY)).weight

    def theirs() -> None:
        found["theirs"] = as_published(weight, stats[InputHessian].matrix, SPARSITY)

    seconds = in_turns({"ours": ours, "theirs": theirs}, repeats, warm=1 if width <= 2048 else 0)
    agree = (found["ours"] != 0) == (found["theirs"] != 0)
    return {
        "name": f"SparseGPT's solve, {width} x {width}",
        "setting": {
            "weights": [width, width],
            "dtype": "float32",
            "sparsity": SPARSITY,
            "block_size": BLOCK,
            "damping": DAMPING,
            "threads": torch.get_num_threads(),
            "masks_agree": float(agree.double().mean()),
            "largest_difference_of_a_weight": float((found["ours"] - found["theirs"]).abs().max()),
            "largest_weight": float(weight.abs().max()),
            "seed": 0,
        },
    } | compared(seconds["ours"], seconds["theirs"], "the algorithm as published")


def problem(width: int) -> tuple[Tensor, LayerStats]:
    """A random matrix, and inputs whose channels are correlated and of many sizes, as a model's are."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, generator=generator)
    sizes = torch.randn(width, generator=generator).exp()
    shared = torch.randn(16, width, generator=generator)
    stats = LayerStats((InputHessian,), width, torch.device("cpu"))
    for _ in range(4):
        apart = torch.randn(width // 2, width, generator=generator)
        stats.update((apart + torch.randn(width // 2, 16, generator=generator) @ shared / 4) * sizes)
    return weight, stats


def as_published(weight: Tensor, hessian: Tensor, sparsity: float) -> Tensor:
    """SparseGPT by its Algorithm 1 (Frantar and Alistarh, 2023, arXiv 2301.00774); the pruned weight.

    The inverse of the damped Hessian by its Cholesky factor, the factor of that inverse, and then the columns one by
    one in blocks: each column's loss is made up for in the columns after it, at once in its block, and for all later
    blocks when the block is done. Of a block, exactly the given share goes.
    """
    W, H = weight.clone(), hessian
    columns = W.shape[1]
    H.diagonal().add_(DAMPING * H.diagonal().mean())
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        part, upper = W[:, start:end].clone(), factor[start:end, start:end]
        errors = torch.zeros_like(part)
        costs = part.square() / upper.diagonal().square()
        threshold = costs.flatten().sort().values[int(sparsity * costs.numel())]
        keeps = costs >= threshold
        for i in range(end - start):
            column = part[:, i].clone()
            kept = column * keeps[:, i]
            errors[:, i] = (column - kept) / upper[i, i]
            part[:, i:] -= errors[:, i, None] @ upper[i, None, i:]
            part[:, i] = kept
        W[:, start:end] = part
        W[:, end:] -= errors @ factor[start:end, end:]
    return W
