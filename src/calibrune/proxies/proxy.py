"""What every proxy is: a function from a calibration set to a number, known before anything is pruned."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from calibrune.activations import InputNorm, stream_blocks
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.durable import keeping
from calibrune.errors import CalibrationError
from calibrune.lm.likelihood import token_moments
from calibrune.lm.loading import LanguageModel, cache_folder, weights_fingerprint
from calibrune.lm.tensors import read_tensors, write_tensors
from calibrune.progress import track

Better = Literal["higher", "lower", "unknown"]

FORMAT = 2
"""Counts changes of what is measured with the model, so that an old measurement is not taken for a new one."""


class Context:
    """What proxies share: the model, its own samples, and what the model makes of a set, each measured once.

    Measurements are kept in the cache by weights, dtype, attention and the set's fingerprint: a comparison that was
    stopped goes on with the set that it was at.
    """

    def __init__(self, lm: LanguageModel, own: Callable[[], CalibrationSet]) -> None:
        self.lm = lm
        self._make_own = own

    @cached_property
    def own(self) -> CalibrationSet:
        """Text that the model wrote itself: what other sets are held against."""
        return self._make_own()

    def moments(self, data: CalibrationSet) -> Sequence[Float[Tensor, "_ 3"]]:
        """Of each sample, log p of every real token but the first, its mean and standard deviation; on the CPU.

        Raises:
            CalibrationError: a sample has no token that could be scored.
        """
        check_scorable(data)

        def measure() -> dict[str, Tensor]:
            samples = track(data.samples, "scoring the samples", unit="sample")
            return {"moments": torch.cat([token_moments(self.lm.model, ids[None])[0].cpu() for ids in samples])}

        kept = self._kept("moments", data, measure)["moments"]
        return torch.split(kept, [len(ids) - 1 for ids in data.samples])

    def input_rms(self, data: CalibrationSet) -> dict[str, Float[Tensor, "in"]]:
        """Root of the mean square of every input channel, by layer; layers with one input share it, and are one.

        Padding does not count. Experts that saw no token are left out.
        """

        def measure() -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for block in stream_blocks(
                self.lm.model, data.input_ids, [InputNorm], propagate="dense", attention_mask=data.attention_mask
            ):
                seen = set()
                for inputs in block.layers:
                    norm = inputs.stats[InputNorm]
                    if norm.tokens and id(norm) not in seen:
                        seen.add(id(norm))
                        found[inputs.layer.name] = norm.rms.cpu()
            return found

        return self._kept("rms", data, measure)

    @cached_property
    def _key(self) -> str:
        model = self.lm.model
        what = [
            weights_fingerprint(model),
            str(model.dtype),
            getattr(model.config, "_attn_implementation", None),
            FORMAT,
        ]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]

    def _kept(self, what: str, data: CalibrationSet, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        file = cache_folder() / "proxies" / self._key / f"{what}-{data.fingerprint}.safetensors"
        if (kept := read_tensors(file)) is not None:
            return kept[0]
        measured = measure()
        with keeping("what was measured", file):
            write_tensors(file, {name: tensor.contiguous().clone() for name, tensor in measured.items()})
        return measured


@runtime_checkable
class Proxy(Protocol):
    """A function from a calibration set to a number. Implementations are settings classes: fields are parameters."""

    better: ClassVar[Better]
    """Which way it is thought to point; "unknown" where nobody has said."""
    founded: ClassVar[str]
    """What that rests on, in one sentence. How well it predicts a pruned model's accuracy is not measured for any."""

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """The number; nan where the set does not say what is needed."""


@runtime_checkable
class PerSample(Protocol):
    """A proxy with a number for every sample, for histograms and standard errors."""

    def per_sample(self, data: CalibrationSet, context: Context) -> list[float]:
        """One number a sample, in their order."""


def check_scorable(data: CalibrationSet) -> None:
    """Raise `CalibrationError` if a sample has fewer than two real tokens: the model is asked for all but the first."""
    if short := [i for i, ids in enumerate(data.samples) if len(ids) < 2]:
        raise CalibrationError(
            f"{len(short)} of the {data.n_samples} samples of the calibration set {data.fingerprint} (the first is "
            f"number {short[0] + 1}) have fewer than 2 real tokens, too few to score: use windows=packed, or longer "
            f"documents"
        )
