"""What the dense model's layers see of single samples: kept by the samples' tokens, added up for every set they are in.

With dense propagation a set's statistics are the sum of its samples' own. So a sample is run once, whatever sets,
seeds, sizes, mixtures, methods and patterns it serves: then the statistics are read and added in the set's order, which
gives what one pass over the set gives, to the bit but for the rounding of the batches that the forward ran in.
"""

import hashlib
import json
import logging
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from calibrune.activations.statistics import (
    InputMoments,
    InputNorm,
    InputPeak,
    InputStatistic,
    LayerStats,
)
from calibrune.activations.stream import stream_blocks
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.durable import keeping
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import LanguageModel, cache_folder
from calibrune.lm.tensors import read_tensors, write_tensors
from calibrune.study.spec import hash_of

log = logging.getLogger(__name__)

KINDS: tuple[type[InputStatistic], ...] = (InputNorm, InputMoments, InputPeak)
"""Statistics of a number or two a channel: 28 bytes. A sample's Hessian would take a gigabyte."""

FORMAT = 1
"""Counts changes of what is kept."""


class _Each(InputStatistic):
    """The statistics of every sequence by itself, in their order."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._kind = (KINDS, in_features, device)
        self.samples: list[LayerStats] = []

    def _add(self, x: Tensor) -> None:
        one = LayerStats(*self._kind)
        one.update(x)
        self.samples.append(one)

    def _join(self, other: "_Each") -> None:
        self.samples += other.samples


class SampleStatistics:
    """The store of one dense model; `weights` is its fingerprint."""

    def __init__(self, lm: LanguageModel, weights: str) -> None:
        self._model = lm.model
        attention = getattr(lm.model.config, "_attn_implementation", None)
        self._folder = cache_folder() / "statistics" / hash_of([weights, str(lm.model.dtype), attention, FORMAT])
        self._last: tuple[str, dict[str, LayerStats] | None] = ("", None)

    def of(self, data: CalibrationSet, batch_tokens: int) -> dict[str, LayerStats] | None:
        """The statistics of a set, by layer; samples that were never seen are run, through the model as it is: dense.

        None where a layer does not see every sample, as experts may not: then the set is to be run as a whole.

        Raises:
            RunError: the inputs of a layer hold NaN or infinity.
        """
        if self._last[0] != data.fingerprint:
            self._last = (data.fingerprint, self._added_up(data, batch_tokens))
        return self._last[1]

    def _added_up(self, data: CalibrationSet, batch_tokens: int) -> dict[str, LayerStats] | None:
        files = [self._folder / f"{_name(ids)}.safetensors" for ids in data.samples]
        kept = {file: _read(file) for file in dict.fromkeys(files)}
        new = [file for file, found in kept.items() if found is None]
        if new and not self._run(data, [files.index(file) for file in new], new, batch_tokens):
            return None
        log.info("statistics: %d of %d samples were known, %d are new", len(files) - len(new), len(files), len(new))
        kept |= {file: _read(file) for file in new}
        layers = {layer.name: layer for block in decoder_blocks(self._model) for layer in block.layers}
        sums: dict[str, LayerStats] = {}
        for file in files:
            found = kept[file]
            assert found is not None
            states, shared = found
            for name, first in shared.items():
                if name == first:
                    layer = layers[name]
                    wide = (KINDS, layer.in_features, layer.weight.device)
                    sums.setdefault(name, LayerStats(*wide)).merge(_restored(LayerStats(*wide), states[name]))
        return {name: sums[first] for name, first in shared.items()}

    def _run(self, data: CalibrationSet, rows: list[int], files: list[Path], batch_tokens: int) -> bool:
        """Run samples and keep what the layers see; False where a layer does not see each of them."""
        states: list[dict[str, Tensor]] = [{} for _ in rows]
        shared: dict[str, str] = {}
        mask = data.attention_mask
        for block in stream_blocks(
            self._model,
            data.input_ids[rows],
            (_Each,),
            propagate="dense",
            batch_tokens=batch_tokens,
            attention_mask=None if mask is None else mask[rows],
            description="statistics of samples",
        ):
            first: dict[int, str] = {}
            for inputs in block.layers:
                each, name = inputs.stats[_Each], inputs.layer.name
                if len(each.samples) != len(rows):
                    return False
                shared[name] = first.setdefault(id(each), name)
                if shared[name] == name:
                    for state, one in zip(states, each.samples, strict=True):
                        state |= _state(name, one)
        for file, state in zip(files, states, strict=True):
            _write(file, state, shared)
        return True


def _name(ids: Tensor) -> str:
    """Of a sample, by its tokens."""
    return hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()[:24]


def _state(layer: str, stats: LayerStats) -> dict[str, Tensor]:
    return {
        f"{layer}|{kind.__name__}|{field}": value.cpu().contiguous()
        for kind in KINDS
        for field, value in stats[kind].state().items()
    }


def _restored(stats: LayerStats, states: dict[str, dict[str, Tensor]]) -> LayerStats:
    for kind in KINDS:
        stats[kind].restore(states[kind.__name__])
    return stats


_Kept = tuple[dict[str, dict[str, dict[str, Tensor]]], dict[str, str]]
"""By layer, kind and field; and of every layer, which one has its inputs."""


def _read(file: Path) -> _Kept | None:
    """What is kept of a sample; None where nothing is, or it is damaged."""
    if (kept := read_tensors(file)) is None:
        return None
    tensors, shared = kept[0], json.loads(kept[1])
    states: dict[str, dict[str, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in tensors.items():
        layer, kind, field = name.split("|")
        states[layer][kind][field] = tensor
    return states, shared


def _write(file: Path, state: dict[str, Tensor], shared: dict[str, str]) -> None:
    with keeping("the statistics of a sample", file):
        write_tensors(file, state, json.dumps(shared))
