"""SparseGPT: columns go one by one, and the weights that stay make up for those that went."""

from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from calibrune.activations.statistics import InputHessian, InputStatistic, LayerStats
from calibrune.errors import ConfigError, RunError
from calibrune.patterns import SemiStructured, SparsityPattern
from calibrune.pruners.masks import Selection, keep_highest
from calibrune.pruners.pruner import PrunedWeight
from calibrune.settings import settings

DAMPING_STEP, HIGHEST_DAMPING = 10.0, 100.0
"""When the factorisation fails the damping is raised by this factor, to no more than that."""

PANEL = 16
"""Columns that are updated one by one; all others of a block by one matrix product for a panel."""


@settings
class SparseGPT:
    """Prunes by the error that a loss costs and updates the rest (Frantar and Alistarh, 2023, arXiv 2301.00774)."""

    block_size: Annotated[int, Ge(1)] = 128
    """Columns whose mask is chosen at once; the sparsity is exact in each block of columns, free across rows."""
    damping: Annotated[float, Gt(0)] = 0.01
    """Added to the Hessian's diagonal, as a fraction of its mean; raised step by step where the factorisation fails."""
    select: Selection = "rank"
    """rank: exactly as many go in each block as were asked for. threshold (the released code): one more in each, and
    all that equal it."""

    requires: ClassVar[tuple[type[InputStatistic], ...]] = (InputHessian,)

    def prune(self, weight: Float[Tensor, "out in"], stats: LayerStats, pattern: SparsityPattern) -> PrunedWeight:
        """Choose and update block by block; the weights that stay change.

        Raises:
            ConfigError: the block size is not a multiple of M.
            RunError: the Hessian cannot be factorised even with the highest damping.
        """
        self.check_pattern(pattern)
        factor = inverse_factor(stats[InputHessian].matrix, self.damping)
        # inputs as rows: the weights of one input lie side by side, so that a column is read and written at once
        W = weight.float().T.contiguous()
        W[factor.dead] = 0
        mask = torch.ones_like(W, dtype=torch.bool)
        for start in range(0, len(W), self.block_size):
            end = min(start + self.block_size, len(W))
            block, upper = slice(start, end), factor.upper[start:end, start:end]
            errors = _prune_block(W[block], mask[block], upper, pattern, self.select)
            W[end:].addmm_(factor.upper[start:end, end:].T, errors, alpha=-1)
        kept = mask.T.contiguous()
        return PrunedWeight(W.T.contiguous().to(weight.dtype).masked_fill_(~kept, 0), kept, damping=factor.damping)

    def check_pattern(self, pattern: SparsityPattern) -> None:
        """Raise `ConfigError` for N:M where M does not divide the block size."""
        if isinstance(pattern, SemiStructured) and self.block_size % pattern.m:
            raise ConfigError(
                f"{pattern} sparsity needs a block_size that is a multiple of {pattern.m}, got {self.block_size}"
            )


class InverseFactor(NamedTuple):
    """The inverse of a damped Hessian, factorised."""

    upper: Float[Tensor, "in in"]
    """U, upper triangular, with U^T U the inverse."""
    damping: float
    """The fraction that was needed."""
    dead: Bool[Tensor, "in"]
    """Inputs that the Hessian had zero for on its diagonal."""


def inverse_factor(hessian: Float[Tensor, "in in"], damping: float) -> InverseFactor:
    """Factorise the inverse of a Hessian whose dead inputs (zero diagonal) are made 1; `hessian` is used up.

    Raises:
        RunError: it is not finite, or not even the highest damping makes it positive definite.
    """
    diagonal = hessian.diagonal()
    if not diagonal.isfinite().all():
        raise RunError(
            f"the Hessian of {len(hessian)} inputs cannot be factorised: the activations hold NaN or infinity, or are "
            f"too large to be squared; check the model in float32"
        )
    asked, dead = damping, diagonal == 0
    diagonal[dead] = 1
    original, mean = diagonal.clone(), diagonal.mean()
    # the Cholesky factor of the reversed matrix, reversed, is an upper R with R R^T = H; then U is R's inverse, by one
    # triangular solve: no inverse of H is formed, and what is done with is given back at once
    reversed_ = hessian.flip(0, 1)
    n = len(hessian)
    del hessian, diagonal
    while True:
        reversed_.diagonal().copy_((original + damping * mean).flip(0))
        lower, failed = torch.linalg.cholesky_ex(reversed_)
        if not failed and lower.isfinite().all():
            del reversed_
            upper = lower.flip(0, 1)
            del lower
            eye = torch.eye(n, dtype=upper.dtype, device=upper.device)
            return InverseFactor(torch.linalg.solve_triangular(upper, eye, upper=True), damping, dead)
        if damping * DAMPING_STEP > HIGHEST_DAMPING:
            raise RunError(
                f"the Hessian of {n} inputs cannot be factorised, tried with damping {asked:g} to "
                f"{damping:g} times its mean diagonal; give more calibration data, or use a method without one (wanda)"
            )
        damping *= DAMPING_STEP


def _prune_block(
    W: Float[Tensor, "block out"],
    mask: Bool[Tensor, "block out"],
    upper: Float[Tensor, "block block"],
    pattern: SparsityPattern,
    select: Selection,
) -> Float[Tensor, "block out"]:
    """Prune a block of inputs in place; return each input's error, for the inputs that come after the block."""
    diagonal = upper.diagonal()
    if not isinstance(pattern, SemiStructured):
        costs = (W / diagonal[:, None]).square()
        mask.copy_(keep_highest(costs.T.contiguous(), pattern, "layer", select).T)
    errors = torch.empty_like(W)
    # N:M chooses from updated weights, so a panel ends where a group of M does
    panel = PANEL if not isinstance(pattern, SemiStructured) else pattern.m * max(1, PANEL // pattern.m)
    for start in range(0, len(W), panel):
        end = min(start + panel, len(W))
        for i in range(start, end):
            if isinstance(pattern, SemiStructured) and i % pattern.m == 0:
                group = slice(i, i + pattern.m)
                costs = (W[group] / diagonal[group, None]).square()
                mask[group] = keep_highest(costs.T.contiguous(), pattern).T
            kept = W[i] * mask[i]
            errors[i] = (W[i] - kept) / diagonal[i]
            W[i + 1 : end].addr_(upper[i, i + 1 : end], errors[i], alpha=-1)
            W[i] = kept
        W[end:].addmm_(upper[start:end, end:].T, errors[start:end], alpha=-1)
    return errors
