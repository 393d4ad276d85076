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

FORMAT = 2
"""Counts changes of what is kept."""


class _Each(InputStatistic):
    """The statistics of every sequence by itself, in their order."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._kind = (KINDS, in_features, device)
        self.samples: list[LayerStats] = []

    def _add(self, x: Tensor) -> None:
        one = LayerStats(*self._kind)
        one.update(x.float())  # once for all kinds, each of which would do it
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
        # layers side by side as one wide layer: a sample is a handful of additions, however many layers there are
        wide: LayerStats | None = None
        counts: dict[str, Tensor] = {}
        for file in files:
            found = kept[file]
            assert found is not None
            vectors, scalars, shared = found
            empty = (KINDS, len(next(iter(vectors.values()))), torch.device("cpu"))
            one = LayerStats(*empty)
            for kind in KINDS:
                one[kind].restore(_fields(vectors, kind))
            wide = wide or LayerStats(*empty)
            wide.merge(one)
            counts = {name: counts.get(name, 0) + scalar for name, scalar in scalars.items()}
        assert wide is not None
        return self._apart(wide, counts, shared)

    def _apart(self, wide: LayerStats, counts: dict[str, Tensor], shared: dict[str, str]) -> dict[str, LayerStats]:
        """The statistics of each layer, which lie side by side in the order of `shared`."""
        layers = {layer.name: layer for block in decoder_blocks(self._model) for layer in block.layers}
        sums: dict[str, LayerStats] = {}
        start = 0
        for place, name in enumerate(dict.fromkeys(shared.values())):
            layer = layers[name]
            end = start + layer.in_features
            sums[name] = LayerStats(KINDS, layer.in_features, layer.weight.device)
            for kind in KINDS:
                vectors = {field: value[start:end] for field, value in wide[kind].state().items() if value.ndim}
                scalars = {field: value[place] for field, value in _fields(counts, kind).items()}
                sums[name][kind].restore(vectors | scalars)
            start = end
        return {name: sums[first] for name, first in shared.items()}

    def _run(self, data: CalibrationSet, rows: list[int], files: list[Path], batch_tokens: int) -> bool:
        """Run samples and keep what the layers see; False where a layer does not see each of them."""
        states: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in rows]
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
                        for kind in KINDS:
                            for field, value in one[kind].state().items():
                                state[f"{kind.__name__}|{field}"].append(value.cpu())
        for file, state in zip(files, states, strict=True):
            _write(file, state, shared)
        return True


def _name(ids: Tensor) -> str:
    """Of a sample, by its tokens."""
    return hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()[:24]


def _fields(kept: dict[str, Tensor], kind: type[InputStatistic]) -> dict[str, Tensor]:
    """Those of a kind, by their own names."""
    named = (name.split("|") for name in kept)
    return {field: kept[f"{owner}|{field}"] for owner, field in named if owner == kind.__name__}


_Kept = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]
"""By kind and field: those of a number a channel, of all layers side by side; those of a number a layer. And of every
layer, which one has its inputs: these are the layers, in their order."""


def _read(file: Path) -> _Kept | None:
    """What is kept of a sample; None where nothing is, or it is damaged."""
    if (kept := read_tensors(file)) is None:
        return None
    tensors, about = kept[0], json.loads(kept[1])
    scalars = {name: tensor for name, tensor in tensors.items() if name in about["scalars"]}
    return {name: tensor for name, tensor in tensors.items() if name not in scalars}, scalars, about["shared"]


def _write(file: Path, state: dict[str, list[Tensor]], shared: dict[str, str]) -> None:
    scalars = {name: torch.stack(values) for name, values in state.items() if not values[0].ndim}
    vectors = {name: torch.cat(values) for name, values in state.items() if name not in scalars}
    with keeping("the statistics of a sample", file):
        write_tensors(file, vectors | scalars, json.dumps({"shared": shared, "scalars": list(scalars)}))
