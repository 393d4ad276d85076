"""Wanda: a weight is as important as its size times the norm of its input."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrune.activations.statistics import InputNorm, InputStatistic, LayerStats
from calibrune.patterns import SparsityPattern
from calibrune.pruners.masks import keep_highest
from calibrune.pruners.pruner import PrunedWeight
from calibrune.settings import settings


@settings
class Wanda:
    """Weights with the least |weight| x input norm go, row by row (Sun et al., 2024, arXiv 2306.11695)."""

    requires: ClassVar[tuple[type[InputStatistic], ...]] = (InputNorm,)

    def prune(self, weight: Float[Tensor, "out in"], stats: LayerStats, pattern: SparsityPattern) -> PrunedWeight:
        """Keep the highest scores of each output row; no weight that stays is changed."""
        mask = keep_highest(weight.abs().float() * stats[InputNorm].rms, pattern)
        return PrunedWeight(weight.masked_fill(~mask, 0), mask)
