"""The main job: engine + pruner + allocation -> a pruned model and a report of every layer."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from calibrune.activations.statistics import InputPeak, InputSample, LayerStats
from calibrune.activations.stream import BATCH_TOKENS, LayerInputs, Propagate, blocks_with, stream_blocks
from calibrune.allocators import Allocator, SparsityAllocation, Uniform
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import CalibruneError, ConfigError, ModelError, RunError
from calibrune.lm.inference import runs_well
from calibrune.lm.layout import Coverage, DecoderBlock, decoder_blocks, n_parameters
from calibrune.lm.loading import context_length
from calibrune.lm.weights import loaded_blocks, names_in_blocks
from calibrune.patterns import SparsityPattern, parse_target, percent
from calibrune.pruners import ChecksPattern, Magnitude, PerLayer, PrunedWeight, Pruner, Wanda
from calibrune.pruners.masks import pieces

MIN_EXPERT_TOKENS = 16
"""An expert that saw fewer is pruned without looking at them, unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What was asked of one layer and what came of it."""

    name: str
    block: int
    shape: tuple[int, int]
    """[out, in]"""
    asked: str
    """The pattern: "0.5" or "2:4"."""
    pruned: int
    """Weights set to zero by the mask."""
    sparsity: float
    """Share of exact zeros in the new weight, counted; at least `pruned` / size."""
    tokens: int | None
    """Calibration tokens the layer saw (an expert only those that were routed to it); None where the method needs
    none."""
    damping: float | None
    """What was added to the Hessian's diagonal, as a fraction of its mean; None where the method has no Hessian."""
    dead_channels: int | None
    """Inputs of the layer that were zero in every calibration token; None where it saw no token, or the method needs
    none."""
    output_error: float | None
    """Squared change of the layer's output over the squared output, on a sample of its calibration inputs (8 tokens of
    each sequence); None where the method sees no inputs, statistics were given, or all outputs are 0."""
    seconds: float
    """Time of the pruning itself, without the passes through the model."""
    fallback: str | None = None
    """What was done instead of what was asked for, and why: an expert that saw too few tokens."""


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What was done to a model, layer by layer."""

    layers: tuple[LayerReport, ...]
    parameters: int
    """Of the whole model, tied ones once."""
    seconds: float
    covered: Coverage
    """How much of the decoder blocks was pruned, and what was not."""

    @property
    def prunable(self) -> int:
        """Weights of the layers that were pruned, kept ones included."""
        return sum(layer.shape[0] * layer.shape[1] for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros over all pruned layers."""
        return sum(layer.sparsity * layer.shape[0] * layer.shape[1] for layer in self.layers) / self.prunable

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that lie in pruned layers."""
        return self.prunable / self.parameters

    def to_json(self) -> dict[str, Any]:
        """The report as JSON, with its totals."""
        totals = {"sparsity": self.sparsity, "coverage": self.coverage, "prunable": self.prunable}
        record = asdict(self)
        covered = record.pop("covered")
        return totals | {"decoder_coverage": self.covered.share} | record | {
            "skipped": covered["skipped"], "unsplit": covered["unsplit"]
        }  # fmt: skip


def prune_model(
    model: PreTrainedModel,
    calibration: CalibrationSet | Int[Tensor, "batch seq"] | None = None,
    pruner: Pruner | None = None,
    pattern: SparsityPattern | str | float = "50%",
    *,
    allocation: Allocator | SparsityAllocation | None = None,
    propagate: Propagate = "pruned",
    batch_tokens: int = BATCH_TOKENS,
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
    statistics: Mapping[str, LayerStats] | None = None,
    already: Sequence[LayerReport] = (),
    after_block: Callable[[DecoderBlock, Sequence[LayerReport]], None] | None = None,
) -> PruneReport:
    """Prune the linear layers of a causal language model's decoder blocks, in place, front to back.

    Embeddings, norms and the head are left alone. The same call on the same machine gives the same bytes.

    All that can be checked is checked before the first weight changes. What breaks under way (a Hessian that cannot be
    factorised, NaN from a block on) leaves the layers before it pruned: to undo that would take a second copy of the
    model. The error says how many they are; load the model anew.

    Args:
        model: any causal language model that transformers loads.
        calibration: what the model reads while the inputs of its layers are measured: a `CalibrationSet`, or token
            ids [n_samples, seq_len] of one's own. None for methods that need no data.
        pruner: the method; Wanda unless said otherwise.
        pattern: "60%", 0.6, "2:4", or a pattern object.
        allocation: how the sparsity is shared out over the layers; the same everywhere unless said otherwise.
        propagate: "pruned": each block sees what the pruned blocks before it give (as published). "dense": what the
            unpruned ones give; one pass instead of two, and no rounding is amplified from block to block.
        batch_tokens: tokens that go through a block at once: memory against speed; changes results by rounding only.
        min_expert_tokens: an expert that saw fewer calibration tokens is pruned by magnitude within its rows, and the
            report says so; 0: only one that saw none.
        statistics: what the dense model's layers see of the calibration data, by layer, where that is known already:
            then nothing is run. For `propagate="dense"`; output errors, which need inputs, are not measured.
        already: the reports of the first blocks, whole ones, where their weights are pruned: it goes on after them.
        after_block: called with each block and its reports as soon as its weights are final.

    Raises:
        CalibruneError: the request cannot be met; the model is untouched. An error under way says which layer, and
            how many were pruned before it.
    """
    pruner = Wanda() if pruner is None else pruner
    _check_kinds(pruner, allocation)
    target = parse_target(pattern)
    if propagate not in ("pruned", "dense"):
        raise ConfigError(f"propagate must be 'pruned' or 'dense', got {propagate!r}")
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens must be 1 or more, got {batch_tokens}")
    if min_expert_tokens < 0:
        raise ConfigError(f"min_expert_tokens must be 0 or more, got {min_expert_tokens}")
    if statistics is not None and propagate != "dense":
        raise ConfigError(
            "statistics are of the dense model, so for propagate='dense', got 'pruned': leave one of them out"
        )
    allocation = Uniform() if allocation is None else allocation
    check_pattern(pruner, target, allocation)
    _check_weights(model)
    data = _calibration(model, calibration, pruner, allocation)
    if not isinstance(allocation, SparsityAllocation):
        allocation = allocation.allocate(model, data, target, batch_tokens=batch_tokens)
    _check_layers(model, allocation, pruner)
    start = time.perf_counter()
    reports = list(already)
    start_block = len({report.block for report in already})
    description = f"pruning ({type(pruner).__name__}, {percent(target)})"
    is_measured = bool(pruner.requires) and statistics is None
    if statistics is None:
        blocks = stream_blocks(
            model,
            data.input_ids if data else None,
            (*pruner.requires, InputSample) if is_measured else (),
            propagate=propagate,
            batch_tokens=batch_tokens,
            attention_mask=data.attention_mask if data else None,
            start=start_block,
            description=description,
        )
    else:
        blocks = blocks_with(model, statistics, start=start_block, description=description)
    with _saying_how_far(reports):
        for block in blocks:
            for inputs in block.layers:
                asked = allocation[inputs.layer.name]
                reports.append(
                    _prune_layer(inputs, block.block.index, pruner, asked, min_expert_tokens, is_measured=is_measured)
                )
            if after_block is not None:
                after_block(block.block, [report for report in reports if report.block == block.block.index])
    return PruneReport(
        layers=tuple(reports),
        parameters=n_parameters(model),
        seconds=time.perf_counter() - start,
        covered=Coverage.of(decoder_blocks(model)),
    )


def needs_data(pruner: Pruner, allocation: Allocator | SparsityAllocation) -> str | None:
    """What of the two reads calibration data, by its name; None: nothing does."""
    return next((type(one).__name__ for one in (pruner, allocation) if getattr(one, "requires", ())), None)


def check_pattern(
    pruner: Pruner, pattern: SparsityPattern, allocation: Allocator | SparsityAllocation | None = None
) -> None:
    """Raise `ConfigError` where a method, or an allocator, cannot give a pattern, before hours of calibration."""
    asked: tuple[object, ...] = (pruner, allocation)
    for one in asked:
        if isinstance(one, ChecksPattern):
            one.check_pattern(pattern)


def _check_kinds(pruner: object, allocation: object) -> None:
    """Raise `ConfigError` where a name or a class was given for an object."""
    if isinstance(pruner, type) or not isinstance(pruner, Pruner):
        raise ConfigError(f"pruner must be a method's object, such as Wanda() or PRUNERS['wanda'](), got {pruner!r}")
    is_object = isinstance(allocation, Allocator | SparsityAllocation) and not isinstance(allocation, type)
    if allocation is not None and not is_object:
        raise ConfigError(
            f"allocation must be an allocator's object, such as OWL(), or a SparsityAllocation, got {allocation!r}"
        )


def _calibration(
    model: PreTrainedModel,
    calibration: CalibrationSet | Tensor | None,
    pruner: Pruner,
    allocation: Allocator | SparsityAllocation,
) -> CalibrationSet | None:
    """The calibration set, checked against the model; None where nothing reads one."""
    reader = needs_data(pruner, allocation)
    if reader is None:
        return None
    if calibration is None:
        raise ConfigError(
            f"{reader} needs calibration data, got none; give a CalibrationSet or token ids [n_samples, seq_len], or "
            f"choose a method and an allocation that need none (magnitude, uniform)"
        )
    if isinstance(calibration, Tensor):
        calibration = CalibrationSet.from_ids(calibration)
    if not isinstance(calibration, CalibrationSet):
        raise ConfigError(
            f"calibration must be a CalibrationSet or a tensor of token ids [n_samples, seq_len], got "
            f"{type(calibration).__name__}; for a list use torch.tensor(...)"
        )
    calibration.check_fits(
        vocab_size=int(model.get_input_embeddings().weight.shape[0]), context_length=context_length(model)
    )
    return calibration


def _check_layers(model: PreTrainedModel, allocation: SparsityAllocation, pruner: Pruner) -> None:
    """Every layer has a pattern that fits it and the method: before the first is changed."""
    for pattern in set(allocation.patterns.values()):
        check_pattern(pruner, pattern)
    for block in decoder_blocks(model):
        for layer in block.layers:
            allocation.check_covers(layer)


def _check_weights(model: PreTrainedModel) -> None:
    """All weights are numbers, those of norms and embeddings too: before anything is run."""
    in_blocks = names_in_blocks(model)

    def weights() -> Iterator[tuple[str, Tensor]]:
        for block in loaded_blocks(model):
            yield from ((layer.name, layer.weight) for layer in block.layers)
            yield from block.module.named_parameters(prefix=block.name)
        yield from ((name, parameter) for name, parameter in model.named_parameters() if name not in in_blocks)

    for name, weight in weights():
        if not _is_finite(weight.detach()):
            n = int((~torch.isfinite(weight.detach())).sum())
            raise ModelError(
                f"{n} of {weight.numel()} weights of {name} are NaN or infinite; the checkpoint is damaged, or "
                f"overflowed in half precision: get it anew, or load it in float32"
            )


def _is_finite(values: Tensor) -> bool:
    # a sum is one pass without a copy, a test of each value is three; only where it is too large, the values are tested
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


@contextmanager
def _saying_how_far(pruned: Sequence[LayerReport]) -> Iterator[None]:
    """Add to an error how much of the model is no longer as it was."""
    try:
        yield
    except Exception as error:
        if pruned:
            error.add_note(
                f"{len(pruned)} layers were pruned already, up to {pruned[-1].name}: the model in memory is neither "
                f"dense nor pruned, load it anew; nothing was written"
            )
        raise


def _fallback(inputs: LayerInputs, min_tokens: int) -> str | None:
    """Why an expert is not pruned with the method that was asked for; None where it is."""
    seen = inputs.stats.tokens
    # of one that saw nothing no method knows anything, whatever was asked for
    least = max(min_tokens, 1)
    if inputs.layer.expert is None or seen is None or seen >= least:
        return None
    return f"magnitude within rows: {seen} calibration tokens were routed to it, fewer than {least}"


def _prune_layer(
    inputs: LayerInputs,
    block: int,
    pruner: Pruner,
    asked: SparsityPattern,
    min_expert_tokens: int,
    *,
    is_measured: bool,
) -> LayerReport:
    """Give a layer its new weight, and say what was done; the method's own copies end here, before the next layer."""
    start = time.perf_counter()
    fallback = _fallback(inputs, min_expert_tokens)
    pruned = _prune(inputs, Magnitude(group="row") if fallback else pruner, asked)
    seconds = time.perf_counter() - start
    error = _output_error(inputs, pruned) if is_measured else None
    inputs.layer.replace_weight(pruned.weight)
    return _report(inputs, block, asked, pruned, error, seconds, fallback)


def _prune(inputs: LayerInputs, pruner: Pruner, asked: SparsityPattern) -> PrunedWeight:
    try:
        chosen = pruner.for_layer(inputs.layer.name) if isinstance(pruner, PerLayer) else pruner
        pruned = chosen.prune(inputs.layer.weight, inputs.stats, asked)
        _check_pruned(pruned, inputs.layer.weight)
        return pruned
    except CalibruneError as error:
        error.add_note(f"while pruning {inputs.layer.name} with {pruner}")
        raise


def _check_pruned(pruned: PrunedWeight, weight: Tensor) -> None:
    """What a method of anybody's returns: of the layer's shape, numbers, and zero where the mask says so."""
    if pruned.weight.shape != weight.shape or pruned.mask.shape != weight.shape:
        raise RunError(
            f"the method returned a weight {tuple(pruned.weight.shape)} and a mask {tuple(pruned.mask.shape)} for a "
            f"layer of {tuple(weight.shape)}; both must have the layer's shape"
        )
    if not _is_finite(pruned.weight):
        how = "look for inputs that are far too large" if weight.dtype == torch.float32 else "prune in float32"
        raise RunError(f"the method returned weights that are NaN or infinite; {how}, or mend the method")
    if not all(
        torch.equal(some, some * stays) for some, stays in zip(pieces(pruned.weight), pieces(pruned.mask), strict=True)
    ):
        raise RunError("the method returned weights that are not zero where its mask is False; mend the method")


def _output_error(inputs: LayerInputs, pruned: PrunedWeight) -> float | None:
    """How much of the layer's output the new weight changes, before the old one is overwritten."""
    W = inputs.layer.weight
    # where bfloat16 is quick its products are rounded to it, several times faster: sums of squares even that out
    quick = W.dtype == torch.bfloat16 and runs_well(W.dtype, W.device)
    X = inputs.stats[InputSample].rows.to(W.dtype if quick else torch.float32)
    dense, changed = X.new_zeros((), dtype=torch.float64), X.new_zeros((), dtype=torch.float64)
    for before, after in zip(pieces(W), pieces(pruned.weight), strict=True):
        before = before.to(X.dtype)
        dense += _square_sum(X @ before.T)
        changed += _square_sum(X @ (before - after.to(X.dtype)).T)
    return float(changed / dense) if dense > 0 else None


def _square_sum(values: Tensor) -> Tensor:
    return values.float().square().sum(dtype=torch.float64)


def _report(
    inputs: LayerInputs,
    block: int,
    asked: SparsityPattern,
    pruned: PrunedWeight,
    error: float | None,
    seconds: float,
    fallback: str | None,
) -> LayerReport:
    weight = inputs.layer.weight
    return LayerReport(
        name=inputs.layer.name,
        block=block,
        shape=(weight.shape[0], weight.shape[1]),
        asked=str(asked),
        pruned=weight.numel() - int(pruned.mask.count_nonzero()),
        sparsity=(weight.numel() - int(weight.count_nonzero())) / weight.numel(),
        tokens=inputs.stats.tokens,
        damping=pruned.damping,
        dead_channels=inputs.stats[InputPeak].dead if inputs.stats.tokens else None,
        output_error=error,
        seconds=seconds,
        fallback=fallback,
    )


def check_allocatable(model: PreTrainedModel, pattern: SparsityPattern) -> None:
    """Raise `ConfigError` where the pattern does not fit the model's layers; reads shapes only."""
    layers = [layer for block in decoder_blocks(model) for layer in block.layers]
    SparsityAllocation.of(layers, {layer.name: pattern for layer in layers}, pattern)
