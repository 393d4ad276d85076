"""Where a decoder's blocks are, and which weights in them can be pruned: found by structure, not by names.

A weight is seen as a matrix [out, in] whatever the module stores: `Linear` keeps it so, GPT-2's `Conv1D` transposed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from calibrune.errors import ModelError


@dataclass(frozen=True, eq=False)
class PrunableLayer:
    """One weight matrix of a decoder block."""

    name: str
    """The module's full name in the model: `model.layers.0.self_attn.q_proj`."""
    module: nn.Module

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weight as a matrix whose rows are outputs; shares the model's memory."""
        weight: Tensor = self.module.weight.detach()  # type: ignore[operator]
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    def replace_weight(self, weight: Float[Tensor, "out in"]) -> None:
        """Overwrite the model's weight in place."""
        with torch.no_grad():
            self.weight.copy_(weight)


@dataclass(frozen=True, eq=False)
class DecoderBlock:
    """One of the repeated blocks between embedding and head."""

    index: int
    name: str
    module: nn.Module
    layers: tuple[PrunableLayer, ...]


def decoder_blocks(model: PreTrainedModel) -> tuple[DecoderBlock, ...]:
    """The model's decoder blocks, front to back, with their prunable layers.

    Raises:
        ModelError: no list of alike blocks is found, or a block holds matrices that are not understood (fused experts,
            say): a model is never pruned in part without a word.
    """
    name, modules = _block_list(model)
    blocks = tuple(
        DecoderBlock(index, f"{name}.{index}", module, tuple(_prunable(f"{name}.{index}", module)))
        for index, module in enumerate(modules)
    )
    if not any(block.layers for block in blocks):
        raise ModelError(f"the blocks {name}.* of {type(model).__name__} hold no Linear layer that could be pruned")
    if other := [text for block in blocks for text in _matrices_not_understood(block)]:
        raise ModelError(
            f"{type(model).__name__} holds weights that this version does not know how to prune, for example "
            f"{', '.join(other[:3])} ({len(other)} in all); nothing was pruned"
        )
    return blocks


def n_parameters(model: PreTrainedModel) -> int:
    """Parameters of the whole model, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _block_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Of the module lists with as many entries as the model has layers, the one that weighs most."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and (depth is None or len(module) == depth)
    ]
    if not lists:
        shown = ", ".join(name for name, _ in model.named_children())
        raise ModelError(
            f"no list of {depth or 'several'} decoder blocks was found in {type(model).__name__} (it has: {shown}); "
            f"this architecture is not supported"
        )
    return max(lists, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))


def _prunable(prefix: str, block: nn.Module) -> Iterator[PrunableLayer]:
    for name, module in block.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear | Conv1D):
            yield PrunableLayer(name, module)


def _matrices_not_understood(block: DecoderBlock) -> Iterator[str]:
    known = {id(layer.module.weight) for layer in block.layers}
    for name, parameter in block.module.named_parameters(prefix=block.name):
        if parameter.ndim >= 2 and id(parameter) not in known:
            yield f"{name} {tuple(parameter.shape)}"
