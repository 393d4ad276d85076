"""Magnitude pruning: the smallest weights go; the baseline that needs no data."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from calibrune.activations.statistics import InputStatistic, LayerStats
from calibrune.patterns import SparsityPattern
from calibrune.pruners.masks import ComparisonGroup, Selection, keep_highest
from calibrune.pruners.pruner import PrunedWeight
from calibrune.settings import settings


@settings
class Magnitude:
    """The smallest weights go (Han et al., 2015, arXiv 1506.02626); needs no calibration data."""

    group: ComparisonGroup = "layer"
    """The weights that compete with each other: the whole layer (as in the pruning papers), or each output row."""
    select: Selection = "rank"
    """rank: exactly as many go as were asked for. threshold (the released code): one more, and all that equal it."""

    requires: ClassVar[tuple[type[InputStatistic], ...]] = ()

    def prune(self, weight: Float[Tensor, "out in"], stats: LayerStats, pattern: SparsityPattern) -> PrunedWeight:
        """Keep the weights of the largest absolute value; no weight that stays is changed."""
        mask = keep_highest(weight.abs().float(), pattern, self.group, self.select)
        return PrunedWeight(weight.masked_fill(~mask, 0), mask)
