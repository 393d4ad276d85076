"""The same sparsity in every layer."""

from typing import ClassVar

from transformers import PreTrainedModel

from calibrune.activations.statistics import InputStatistic
from calibrune.activations.stream import BATCH_TOKENS
from calibrune.allocators.allocation import SparsityAllocation
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.lm.layout import decoder_blocks
from calibrune.patterns import SparsityPattern
from calibrune.settings import settings


@settings
class Uniform:
    """Every layer gets the target's own sparsity."""

    requires: ClassVar[tuple[type[InputStatistic], ...]] = ()

    def allocate(
        self,
        model: PreTrainedModel,
        calibration: CalibrationSet | None,
        target: SparsityPattern,
        *,
        batch_tokens: int = BATCH_TOKENS,
    ) -> SparsityAllocation:
        """Give every prunable layer the target pattern; reads no data."""
        layers = [layer for block in decoder_blocks(model) for layer in block.layers]
        return SparsityAllocation.of(layers, {layer.name: target for layer in layers}, target)
