"""RIA: a weight's share of its row and column, times a power of its input's norm."""

from typing import Annotated, ClassVar

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from calibrune.activations.statistics import InputNorm, InputStatistic, LayerStats
from calibrune.patterns import SparsityPattern
from calibrune.pruners.masks import keep_highest
from calibrune.pruners.pruner import PrunedWeight
from calibrune.settings import settings

TINY = 1e-12
"""Against a row or column of zeros, whose weights have no share."""


@settings
class RIA:
    """Relative importance (share of row plus share of column) x activation norm^power (Zhang et al., ICLR 2024)."""

    power: Annotated[float, Ge(0)] = 0.5
    """Exponent of the input norm; 0 ignores the activations."""

    requires: ClassVar[tuple[type[InputStatistic], ...]] = (InputNorm,)

    def prune(self, weight: Float[Tensor, "out in"], stats: LayerStats, pattern: SparsityPattern) -> PrunedWeight:
        """Keep the highest scores of each output row; no weight that stays is changed."""
        size = weight.abs().float()
        of_column, of_row = size.sum(dim=0), size.sum(dim=1, keepdim=True)
        share = size / of_column.clamp(min=TINY) + size / of_row.clamp(min=TINY)
        mask = keep_highest(share * stats[InputNorm].rms ** self.power, pattern)
        return PrunedWeight(weight.masked_fill(~mask, 0), mask)
