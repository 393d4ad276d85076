"""The same sparsity in every layer."""

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from calibrune.allocators.allocation import SparsityAllocation
from calibrune.lm.layout import decoder_blocks
from calibrune.patterns import SparsityPattern
from calibrune.settings import settings


@settings
class Uniform:
    """Every layer gets the target's own sparsity."""

    def allocate(
        self,
        model: PreTrainedModel,
        input_ids: Int[Tensor, "batch seq"] | None,
        target: SparsityPattern,
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
    ) -> SparsityAllocation:
        """Give every prunable layer the target pattern; reads no data."""
        layers = [layer for block in decoder_blocks(model) for layer in block.layers]
        return SparsityAllocation.of(layers, {layer.name: target for layer in layers}, target)
