"""Wanda: a weight is as important as its size times the norm of its input."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrune.activations.statistics import InputNorm, InputStatistic, LayerStats
from calibrune.errors import ConfigError
from calibrune.patterns import SemiStructured, SparsityPattern
from calibrune.pruners.masks import keep_highest, pieces
from calibrune.pruners.pruner import PrunedWeight
from calibrune.settings import settings

WITHIN = 0.001
"""How near the cumulative selection comes to the sparsity, and the width at which its search ends, as published."""


@settings
class Wanda:
    """Weights with the least |weight| x input norm go, row by row (Sun et al., 2024, arXiv 2306.11695)."""

    select: Literal["rank", "cumulative"] = "rank"
    """rank: the same share of each row. cumulative (the paper's appendix): in each row the least weights that together
    have a share alpha of the row's scores; alpha is searched so that the layer comes within 0.001 of the sparsity."""

    requires: ClassVar[tuple[type[InputStatistic], ...]] = (InputNorm,)

    def prune(self, weight: Float[Tensor, "out in"], stats: LayerStats, pattern: SparsityPattern) -> PrunedWeight:
        """Keep the highest scores of each output row; no weight that stays is changed.

        Raises:
            ConfigError: N:M was asked for with the cumulative selection, which leaves rows different sparsities.
        """
        self.check_pattern(pattern)
        rms = stats[InputNorm].rms
        if self.select == "cumulative":
            mask = _above_a_share(_scores(weight, rms), pattern.sparsity)
        else:
            mask = torch.empty_like(weight, dtype=torch.bool)
            for some, chosen in zip(pieces(weight), pieces(mask), strict=True):
                chosen.copy_(keep_highest(_scores(some, rms), pattern))
        return PrunedWeight(torch.where(mask, weight, 0), mask)

    def check_pattern(self, pattern: SparsityPattern) -> None:
        """Raise `ConfigError` for N:M with the cumulative selection, which leaves rows different sparsities."""
        if self.select == "cumulative" and isinstance(pattern, SemiStructured):
            raise ConfigError(f"Wanda with select='cumulative' cannot give {pattern}; use select='rank'")


def _scores(weight: Float[Tensor, "out in"], rms: Float[Tensor, "in"]) -> Float[Tensor, "out in"]:
    return weight.abs().float().mul_(rms)


def _above_a_share(scores: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """Prune each row's lowest scores up to a share of the row's total that gives the layer its sparsity."""
    rising = scores.sort(dim=1, stable=True)
    shares = rising.values.double().cumsum(dim=1)
    shares /= shares[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)
    low, high, alpha = 0.0, 0.8, 0.4
    if float((shares <= high).double().mean()) < sparsity - WITHIN:
        # the released code looks no further, and stays below what was asked for
        low, high, alpha = high, 1.0, (high + 1) / 2
    while True:
        gone = shares <= alpha
        reached = float(gone.double().mean())
        if abs(reached - sparsity) <= WITHIN or high - low < WITHIN:
            break
        low, high = (low, alpha) if reached > sparsity else (alpha, high)
        alpha = (low + high) / 2
    return torch.ones_like(gone).scatter_(1, rising.indices, ~gone)
