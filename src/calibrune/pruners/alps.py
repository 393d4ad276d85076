"""ALPS: mask and weights together, by operator splitting on the layer's output error."""

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from calibrune.activations.statistics import InputHessian, InputStatistic, LayerStats
from calibrune.errors import RunError
from calibrune.patterns import SparsityPattern
from calibrune.pruners.masks import ComparisonGroup, keep_highest
from calibrune.pruners.pruner import PrunedWeight
from calibrune.settings import settings

CHECK_EVERY = 3
"""Iterations between two looks at how much the mask still changes."""

PACE = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Where more than this share of the kept weights changed since the last look, the penalty grows by this factor."""


@settings
class ALPS:
    """ADMM over mask and weights, then conjugate gradients (Meng et al., NeurIPS 2024, arXiv 2406.07831)."""

    damping: Annotated[float, Gt(0)] = 0.01
    """Added to the Hessian's diagonal, as a fraction of its mean."""
    penalty: Annotated[float, Gt(0)] = 0.1
    """rho: how strongly the two copies of the weight are drawn together at the start; it grows."""
    max_iterations: Annotated[int, Ge(1)] = 300
    """Of the splitting; it ends sooner when the mask stands still."""
    refit_iterations: Annotated[int, Ge(0)] = 10
    """Conjugate gradient steps on the weights that stay."""
    group: ComparisonGroup = "layer"
    """The weights that compete with each other: the whole layer (as published), or each output row."""

    requires: ClassVar[tuple[type[InputStatistic], ...]] = (InputHessian,)

    def prune(self, weight: Float[Tensor, "out in"], stats: LayerStats, pattern: SparsityPattern) -> PrunedWeight:
        """Minimise the output error under the pattern; the weights that stay change.

        Raises:
            RunError: the Hessian is not finite.
        """
        H = stats[InputHessian].matrix
        diagonal = H.diagonal()
        if not diagonal.isfinite().all():
            raise RunError("the activations hold NaN or infinity, so ALPS has no Hessian; check the model in float32")
        dead = diagonal == 0
        diagonal += self.damping * diagonal.mean().clamp(min=torch.finfo(H.dtype).tiny)
        # in units in which every input has the same size, as published: W x = (W s) (x / s)
        scale = diagonal.sqrt()
        H /= scale[:, None] * scale
        dense = weight.float() * scale
        mask = self._split(H, dense, pattern)
        kept = self._refit(H, dense, mask) / scale
        kept[:, dead] = 0
        return PrunedWeight(kept.to(weight.dtype).masked_fill(~mask, 0), mask, damping=self.damping)

    def _split(
        self, H: Float[Tensor, "in in"], dense: Float[Tensor, "out in"], pattern: SparsityPattern
    ) -> Bool[Tensor, "out in"]:
        """Alternate between the best weights near a sparse copy and the best sparse copy near the weights."""
        values, Q = torch.linalg.eigh(H)
        values = values.clamp(min=0)
        target = dense @ H
        rho = self.penalty
        mask = keep_highest(dense.abs(), pattern, self.group)
        sparse, dual = dense * mask, torch.zeros_like(dense)
        looked_at = mask
        for iteration in range(1, self.max_iterations + 1):
            # (H + rho I)^-1 by the one eigendecomposition, whatever rho has grown to
            W = ((target - dual + rho * sparse) @ Q / (values + rho)) @ Q.T
            moved = W + dual / rho
            mask = keep_highest(moved.abs(), pattern, self.group)
            sparse = moved * mask
            dual = dual + rho * (W - sparse)
            if iteration % CHECK_EVERY == 0:
                changed = float((mask ^ looked_at).sum()) / max(int(mask.sum()), 1)
                if not changed:
                    break
                rho *= next(factor for share, factor in PACE if changed > share)
                looked_at = mask
        return mask

    def _refit(
        self, H: Float[Tensor, "in in"], dense: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"]
    ) -> Float[Tensor, "out in"]:
        """Conjugate gradients for all rows at once, on the weights that stay; H has a diagonal of ones already."""
        W = dense * mask
        residual = ((dense - W) @ H) * mask
        direction = residual.clone()
        size = residual.square().sum(dim=1, keepdim=True)
        for _ in range(self.refit_iterations):
            image = (direction @ H) * mask
            curvature = (direction * image).sum(dim=1, keepdim=True)
            step = torch.where(curvature > 0, size / curvature, 0.0)
            W = W + step * direction
            residual = residual - step * image
            new_size = residual.square().sum(dim=1, keepdim=True)
            direction = residual + torch.where(size > 0, new_size / size, 0.0) * direction
            size = new_size
        return W
