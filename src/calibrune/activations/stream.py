"""The engine: a walk through the model's blocks, front to back, with the statistics of every layer's inputs.

Pruning, allocating sparsity and measuring an error are each the body of a `for` over `stream_blocks`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from calibrune.activations.kept import KeptActivations
from calibrune.activations.replay import Hook, Replay
from calibrune.activations.statistics import InputPeak, InputStatistic, LayerStats
from calibrune.errors import ModelError, RunError
from calibrune.lm.layout import DecoderBlock, PrunableLayer, decoder_blocks
from calibrune.lm.weights import load_block, store_of
from calibrune.progress import track

Propagate = Literal["pruned", "dense"]

BATCH_TOKENS = 4096
"""Tokens that go through a block at once, unless told otherwise."""

MOST_BATCH_TOKENS = 32_768
"""More make no accelerator faster."""


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """A prunable layer and what it saw."""

    layer: PrunableLayer
    stats: LayerStats
    """Shared between layers that are called with the same input (q, k and v; gate and up). Where any were asked for,
    `InputPeak` is among them."""


@dataclass(frozen=True, eq=False)
class BlockInputs:
    """A decoder block, handed over when the statistics of all its layers are complete."""

    block: DecoderBlock
    layers: tuple[LayerInputs, ...]


def fitting_batch_tokens(model: PreTrainedModel, memory: int | None = None) -> int:
    """Tokens that should go through a block at once: `BATCH_TOKENS`; on an accelerator, which waits for Python between
    small batches, twice that again and again, as long as what a block makes of them takes a quarter of what the
    model's weights leave free. It is the same whenever the same model is on the same device, so that a run that was
    cut short goes on.

    Args:
        memory: bytes that the model's device has; None: what it says.
    """
    device = model.device
    if memory is None:
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    free = memory - sum(parameter.nbytes for parameter in model.parameters() if not parameter.is_meta)
    # as if everything that a block computes were kept, though most of it is not
    widest = max(sum(one.in_features + one.out_features for one in block.layers) for block in decoder_blocks(model))
    tokens = BATCH_TOKENS
    while tokens < MOST_BATCH_TOKENS and 2 * tokens * widest * model.dtype.itemsize <= free / 4:
        tokens *= 2
    return tokens


def stream_blocks(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch seq"] | None,
    requires: Sequence[type[InputStatistic]],
    *,
    propagate: Propagate = "pruned",
    batch_tokens: int = BATCH_TOKENS,
    attention_mask: Bool[Tensor, "batch seq"] | None = None,
    start: int = 0,
    description: str = "blocks",
) -> Iterator[BlockInputs]:
    """Yield the decoder blocks front to back; the caller may change the weights of the block in its hands.

    Statistics inside a block come from the block as it was before the caller changed it. With `propagate="pruned"` the
    next block sees what the changed block makes of the calibration data (sequential pruning, as published); with
    "dense" it sees what the unchanged one does, in a single pass.

    Args:
        input_ids: the calibration sequences; None where `requires` is empty, then nothing is run.
        requires: the statistics to collect.
        batch_tokens: tokens that go through a block at once; at least one whole sequence does.
        attention_mask: False at padding, which is on the right: the model is told, and statistics are of the real
            tokens alone. None: there is no padding.
        start: the first block that is handed over; those before are as they should be, and are only passed through.

    Raises:
        RunError: the inputs of a layer hold NaN or infinity; said before its block is handed over.
    """
    blocks = decoder_blocks(model)
    if not requires:
        yield from blocks_with(model, defaultdict(_no_stats), start=start, description=description)
        return
    if input_ids is None:
        raise ValueError("stream_blocks needs input_ids to collect " + ", ".join(kind.__name__ for kind in requires))
    was_training = model.training
    model.eval()
    try:
        mask = None if attention_mask is None else attention_mask.to(model.device)
        yield from _stream(
            model, blocks, input_ids.to(model.device), mask, requires, propagate, batch_tokens, start, description
        )
    finally:
        model.train(was_training)


def blocks_with(
    model: PreTrainedModel, statistics: Mapping[str, LayerStats], *, start: int = 0, description: str = "blocks"
) -> Iterator[BlockInputs]:
    """Yield the decoder blocks from `start` on, with statistics that are there already, by layer; nothing is run."""
    for block in track(decoder_blocks(model), description, unit="block"):
        if block.index < start:
            continue
        load_block(model, block)
        yield BlockInputs(block, tuple(LayerInputs(layer, statistics[layer.name]) for layer in block.layers))


def _stream(
    model: PreTrainedModel,
    blocks: Sequence[DecoderBlock],
    input_ids: Int[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"] | None,
    requires: Sequence[type[InputStatistic]],
    propagate: Propagate,
    batch_tokens: int,
    start: int,
    description: str,
) -> Iterator[BlockInputs]:
    replay = Replay(model, blocks, input_ids[:1] if mask is None else input_ids[:1, mask[0]])
    size = min(max(1, batch_tokens // input_ids.shape[1]), len(input_ids))
    batches = list(torch.split(input_ids, size))
    masks: list[Tensor | None] = [None] * len(batches)
    if mask is not None:
        # a batch is as long as the longest of its sequences
        lengths = [int(part.sum(dim=1).max()) for part in torch.split(mask, size)]
        masks = [part[:, :length] for part, length in zip(torch.split(mask, size), lengths, strict=True)]
        batches = [batch[:, :length] for batch, length in zip(batches, lengths, strict=True)]
    store = store_of(model)
    # one buffer for the whole walk: each block's results overwrite what it was given
    with KeptActivations(len(batches), store.scratch if store else None) as hidden:
        yield from _walk(model, blocks, replay, batches, masks, hidden, requires, propagate, start, description)


def _walk(
    model: PreTrainedModel,
    blocks: Sequence[DecoderBlock],
    replay: Replay,
    batches: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    hidden: KeptActivations,
    requires: Sequence[type[InputStatistic]],
    propagate: Propagate,
    start: int,
    description: str,
) -> Iterator[BlockInputs]:
    def run(index: int, stats: dict[str, LayerStats], *, keep: bool) -> None:
        for i, (batch, real) in enumerate(zip(batches, masks, strict=True)):
            hooks = {name: _add_by_sequence(name, own, batch.shape[1], real) for name, own in stats.items()}
            stop_after = 0 if keep else len(hooks)
            before = None if index == 0 else hidden[i]
            result = replay.run(index, batch, before, hooks, stop_after=stop_after, attention_mask=real)
            if keep:
                hidden[i] = result

    for block in track(blocks, description, unit="block"):
        load_block(model, block)
        if block.index < start:
            run(block.index, {}, keep=True)
            continue
        stats = {
            layer.name: LayerStats((*requires, InputPeak), layer.in_features, layer.weight.device)
            for layer in block.layers
            if replay.shared_inputs[layer.name] == layer.name
        }
        is_last = block is blocks[-1]
        run(block.index, stats, keep=propagate == "dense" and not is_last)
        _check_finite(model, {name: stats[name] for name in replay.in_call_order if name in stats})
        yield BlockInputs(
            block, tuple(LayerInputs(layer, stats[replay.shared_inputs[layer.name]]) for layer in block.layers)
        )
        if propagate == "pruned" and not is_last:
            run(block.index, {}, keep=True)


def _add_by_sequence(name: str, stats: LayerStats, seq_len: int, mask: Bool[Tensor, "batch seq"] | None) -> Hook:
    """Add a batch of inputs sequence by sequence, without padding, so that sums do not depend on the batch."""

    def add(x: Float[Tensor, "*batch in"], tokens: Int[Tensor, "tokens"] | None) -> None:
        flat = x.reshape(-1, x.shape[-1])
        if mask is not None:
            if tokens is None and len(flat) != mask.numel():
                raise ModelError(
                    f"{name} is given {len(flat)} of {mask.numel()} tokens and says not which, so padding cannot be "
                    f"left out; calibrate this model on windows without padding (windows=packed)"
                )
            tokens = torch.arange(len(flat), device=flat.device) if tokens is None else tokens
            real = mask.flatten()[tokens]
            flat, tokens = flat[real], tokens[real]
        if tokens is not None:
            sequences = torch.split(flat, torch.bincount(tokens // seq_len, minlength=1).tolist())
        else:
            # experts in modules of their own say not which tokens they are given; these are added as they come
            sequences = torch.split(flat, seq_len if len(flat) % seq_len == 0 else len(flat))
        for sequence in sequences:
            if len(sequence):
                stats.update(sequence)

    return add


def _check_finite(model: PreTrainedModel, stats: dict[str, LayerStats]) -> None:
    """Raise `RunError` at the first layer, in the order of the calls, whose inputs are not numbers, and say why."""
    for name, layer_stats in stats.items():
        if layer_stats[InputPeak].vanishes:
            raise RunError(
                f"the inputs of {name} are so small on the calibration data (below 1e-18) that their squares are 0 in "
                f"float32, and no method could tell them apart; look for weights that are far too small"
            )
        if not (broken := layer_stats[InputPeak].broken):
            continue
        weights = ((key, value) for key, value in model.named_parameters() if not value.is_meta)
        damaged = next((key for key, value in weights if not value.isfinite().all()), None)
        dtype = str(model.dtype).removeprefix("torch.")
        if damaged:
            why = f"so does {damaged}: the checkpoint is damaged, get it anew"
        elif dtype == "float32":
            why = (
                "no weight does: something in the model makes them, or it overflows even float32; look for weights "
                "that are far too large"
            )
        else:
            why = f"no weight does, so {dtype} overflowed: load the model in float32"
        raise RunError(f"{broken} of the inputs of {name} hold NaN or infinity on the calibration data, and {why}")


def _no_stats() -> LayerStats:
    return LayerStats((), 0, torch.device("cpu"))
