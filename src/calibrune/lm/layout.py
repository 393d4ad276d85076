"""Where a decoder's blocks are, and which weights in them can be pruned: found by structure, not by names.

A weight is seen as a matrix [out, in] whatever the module stores: `Linear` keeps it so, GPT-2's `Conv1D` transposed,
fused matrices several in one, experts a stack of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from calibrune.errors import ModelError
from calibrune.lm.fused import Rows, parts_of


@dataclass(frozen=True, eq=False)
class PrunableLayer:
    """One weight matrix of a decoder block."""

    name: str
    """In the model: `model.layers.0.self_attn.q_proj`; `...qkv_proj[q]` for one of several that are stored as one, and
    `...experts.3.down_proj` for one of a stack."""
    module: nn.Module
    """Holds the weight, and is called with the inputs (the experts' module with those of all experts)."""
    key: str
    """Of the stored parameter, in the model's state: `model.layers.0.self_attn.q_proj.weight`."""
    rows: Rows | None = None
    """Which outputs of the stored matrix are this one's; None: all."""
    expert: int | None = None
    """Which matrix of a stack."""
    is_transposed: bool = False
    """Whether it is stored [in, out]."""

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weight as a matrix whose rows are outputs. To change it there is `replace_weight`: this may be a copy."""
        return self._stored() if self.rows is None else self._stored()[self.rows]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self._stored().shape[1]

    def replace_weight(self, weight: Float[Tensor, "out in"]) -> None:
        """Overwrite the model's weight in place."""
        with torch.no_grad():
            self._stored()[... if self.rows is None else self.rows] = weight.to(self._stored())

    def _stored(self) -> Float[Tensor, "all in"]:
        """The matrix that this one's rows are in; shares the model's memory."""
        parameter: Tensor = getattr(self.module, self.key.rpartition(".")[2]).detach()
        matrix = parameter if self.expert is None else parameter[self.expert]
        return matrix.T if self.is_transposed else matrix


@dataclass(frozen=True)
class SkippedWeight:
    """A matrix of a decoder block that is left alone."""

    key: str
    size: int
    reason: str


@dataclass(frozen=True, eq=False)
class DecoderBlock:
    """One of the repeated blocks between embedding and head."""

    index: int
    name: str
    module: nn.Module
    layers: tuple[PrunableLayer, ...]
    skipped: tuple[SkippedWeight, ...] = ()
    unsplit: tuple[str, ...] = ()
    """Layers that look like several matrices in one, and are pruned as one: where each lies is not known."""


@dataclass(frozen=True)
class Coverage:
    """How much of a decoder is pruned, and what is not."""

    prunable: int
    """Weights in layers that are pruned."""
    parameters: int
    """Of the decoder blocks, norms and biases included."""
    skipped: tuple[SkippedWeight, ...]
    unsplit: tuple[str, ...]

    @classmethod
    def of(cls, blocks: Sequence[DecoderBlock]) -> "Coverage":
        """Count what the blocks hold."""
        return cls(
            prunable=sum(layer.weight.numel() for block in blocks for layer in block.layers),
            parameters=sum(p.numel() for block in blocks for p in block.module.parameters()),
            skipped=tuple(weight for block in blocks for weight in block.skipped),
            unsplit=tuple(name for block in blocks for name in block.unsplit),
        )

    @property
    def share(self) -> float:
        """Of the decoder's parameters, those that can be pruned."""
        return self.prunable / self.parameters


def decoder_blocks(model: PreTrainedModel) -> tuple[DecoderBlock, ...]:
    """The model's decoder blocks, front to back, with their prunable layers.

    Raises:
        ModelError: no list of alike blocks is found, the model has an encoder too, or a block holds matrices that are
            not understood: a model is never pruned in part without a word.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{type(model).__name__} has an encoder beside its decoder; only plain decoders are pruned")
    name, modules = _block_list(model)
    blocks = tuple(_block(model, index, f"{name}.{index}", module) for index, module in enumerate(modules))
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


def _block(model: PreTrainedModel, index: int, name: str, module: nn.Module) -> DecoderBlock:
    skipped = tuple(_routers(name, module))
    left_alone = {weight.key for weight in skipped}
    layers: list[PrunableLayer] = []
    unsplit: list[str] = []
    for path, parent in module.named_modules(prefix=name):
        if stacks := _stacks(parent):
            layers += _experts(path, parent, stacks)
            continue
        matrices = {
            f"{path}.{child}": linear
            for child, linear in parent.named_children()
            if isinstance(linear, nn.Linear | Conv1D) and f"{path}.{child}.weight" not in left_alone
        }
        shapes = {child: _shape(linear) for child, linear in matrices.items()}
        for child, linear in matrices.items():
            others = [shape for other, shape in shapes.items() if other != child]
            parts = parts_of(model.config.get_text_config(), shapes[child], others)
            if parts is None:
                unsplit.append(child)
            whole: dict[str, Rows | None] = {"": None}
            for part, rows in (parts or whole).items():
                full = f"{child}[{part}]" if part else child
                layers.append(
                    PrunableLayer(full, linear, f"{child}.weight", rows, is_transposed=isinstance(linear, Conv1D))
                )
    return DecoderBlock(index, name, module, tuple(layers), skipped, tuple(unsplit))


def _shape(linear: nn.Module) -> tuple[int, int]:
    n_out, n_in = linear.weight.shape  # type: ignore[misc]
    return (n_in, n_out) if isinstance(linear, Conv1D) else (n_out, n_in)


def _matrices_not_understood(block: DecoderBlock) -> Iterator[str]:
    known = {layer.key for layer in block.layers} | {weight.key for weight in block.skipped}
    stacked = {layer.module for layer in block.layers if layer.expert is not None}
    shared = {f"{path}." for path, module in block.module.named_modules(prefix=block.name) if module in stacked}
    for name, parameter in block.module.named_parameters(prefix=block.name):
        is_bias = name.endswith("_bias") and any(name.startswith(path) for path in shared)  # one for each expert
        if parameter.ndim >= 2 and name not in known and not is_bias:
            yield f"{name} {tuple(parameter.shape)}"


def _routers(name: str, block: nn.Module) -> Iterator[SkippedWeight]:
    """Weights that choose between experts: beside them, with an output for each, or one that scales a shared one."""
    for path, parent in block.named_modules(prefix=name):
        if not (n_experts := next((n for child in parent.children() if (n := _n_experts(child))), 0)):
            continue
        for child, beside in parent.named_children():
            if _n_experts(beside):
                continue
            # a router may be a module that holds its matrix one level deeper, but one that holds several is none:
            # a shared expert may be as wide as there are experts
            matrices = [(key, p) for key, p in beside.named_parameters(prefix=f"{path}.{child}") if p.ndim >= 2]
            if len(matrices) != 1 or not (key := matrices[0][0]).endswith(".weight"):
                continue
            weight = matrices[0][1]
            if len(weight) == n_experts:
                yield SkippedWeight(key, weight.numel(), f"chooses between {n_experts} experts")
            elif len(weight) == 1:
                yield SkippedWeight(key, weight.numel(), "scales the shared expert")


def _n_experts(module: nn.Module) -> int:
    """How many experts a module holds, stacked in 3-D tensors or as a list of modules; 0: it holds none."""
    if isinstance(module, nn.ModuleList):
        return len(module) if len(module) > 1 else 0
    return next((len(stack) for stack in _stacks(module).values()), 0)


def _stacks(module: nn.Module) -> dict[str, Tensor]:
    """The 3-D weights of an experts' module in the common form of transformers; others are not understood."""
    if not hasattr(module, "is_transposed") or not hasattr(module, "has_gate"):
        return {}
    return {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and name in ("gate_up_proj", "up_proj", "down_proj")
    }


def _experts(path: str, module: nn.Module, stacks: dict[str, Tensor]) -> Iterator[PrunableLayer]:
    """Every matrix of every expert; gate and up are two."""
    transposed = bool(module.is_transposed)
    for expert in range(len(next(iter(stacks.values())))):
        for name, stack in stacks.items():
            parts: dict[str, slice | None] = {"": None}
            if name == "gate_up_proj":
                half = stack.shape[2 if transposed else 1] // 2
                gate, up = slice(0, half), slice(half, None)
                if not module.is_concatenated:  # in turn
                    gate, up = slice(0, None, 2), slice(1, None, 2)
                parts = {"[gate]": gate, "[up]": up}
            for part, rows in parts.items():
                yield PrunableLayer(
                    f"{path}.{expert}.{name}{part}", module, f"{path}.{name}", rows, expert, is_transposed=transposed
                )
