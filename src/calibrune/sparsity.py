"""The zeros of a checkpoint: whether they are where they should be, put back where they are not, and what they save.

Whoever fine-tunes or merges a pruned model gets a dense one, for neither knows which weights are to stay zero.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from calibrune.checkpoint import check_free, give_name, save_model, sweep, versions
from calibrune.durable import claimed, sealed_json
from calibrune.errors import ModelError, RunError
from calibrune.lm.layout import PrunableLayer, decoder_blocks
from calibrune.lm.loading import LanguageModel, load_model
from calibrune.lm.record import CONVERTED, MANIFEST, MASKED, UNFINISHED, files_in, read_manifest
from calibrune.lm.streaming import load_streamed, local_checkpoint
from calibrune.lm.trust import PICKLES
from calibrune.lm.weights import Shards, loaded_blocks, source_keys
from calibrune.patterns import SemiStructured, SparsityPattern, parse_pattern, parse_target, percent

KNOWN = tuple(SemiStructured(n, m) for n, m in ((1, 4), (2, 4), (2, 8), (4, 8)))
"""The N:M that a layer is looked at for."""

KERNELS = {
    "cuSPARSELt": {"float16": (16, 16), "bfloat16": (16, 16)},
    "CUTLASS": {"float16": (32, 64), "bfloat16": (32, 64), "float32": (32, 32)},
}
"""What PyTorch's `to_sparse_semi_structured` takes (2:4, on CUDA): [out, in] are multiples of these."""

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class LayerCheck:
    """The zeros of one layer."""

    name: str
    shape: tuple[int, int]
    """[out, in]"""
    sparsity: float
    """Share of exact zeros."""
    holds: tuple[str, ...]
    """The N:M, of `KNOWN`, that every group of the layer obeys."""
    came_back: int | None
    """Weights that the mask prunes and that are not zero; None: there is no mask."""
    is_asked: bool
    """Whether anything was asked of it: a pattern, or to have the zeros of a mask."""
    deviates: str | None
    """In which way the layer is not what was asked for; None: in none, or nothing was asked."""


def check_sparsity(
    model: str | Path, *, pattern: str | SparsityPattern | None = None, mask: str | Path | None = None
) -> list[LayerCheck]:
    """Look at the zeros of every layer of a checkpoint, one block in memory at a time.

    Args:
        model: as for `load_model`; whoever made it.
        pattern: what every layer should have. None: what the mask's record says, or the model's own, if it has one.
        mask: a pruned checkpoint of the same shape, whose zeros should be zeros here.

    Raises:
        ModelError: one of them cannot be read, or they are not of one shape.
        ConfigError: the pattern is none.
    """
    target = None if pattern is None else parse_target(pattern)
    asked = {} if target else _asked(Path(mask if mask is not None else model))
    checked, pruned = _opened(model), None if mask is None else _opened(mask, as_written=True)
    blocks = loaded_blocks(checked.model)
    if pruned is None:
        return [_check(layer, target or asked.get(layer.name), None) for block in blocks for layer in block.layers]
    found = []
    for block, other in zip(blocks, loaded_blocks(pruned.model), strict=False):
        if [_shape(one) for one in block.layers] != [_shape(one) for one in other.layers]:
            raise _unlike(block.name)
        for layer, masked in zip(block.layers, other.layers, strict=True):
            found.append(_check(layer, target or asked.get(layer.name), masked.weight == 0))
    if len(decoder_blocks(checked.model)) != len(decoder_blocks(pruned.model)):
        raise _unlike("the number of blocks")
    return found


def apply_mask(model: str | Path, mask: str | Path, out: Path) -> dict[str, Any]:
    """Write a checkpoint anew with zeros where a pruned one has them; a tensor in memory at a time.

    Args:
        model: a dense checkpoint of the same architecture: the pruned one after fine-tuning, or merged with others.
        mask: the pruned checkpoint.
        out: the new folder. It holds the files of `model`, and `calibrune-mask.json`.

    Returns:
        That record: how many layers, how many zeros, and how many weights had come back.

    Raises:
        ModelError: one of them cannot be read, they are not of one shape, or the pruned one has no zeros.
        OutputError: `out` is not free, or another run is making it.
        RunError: it cannot be written; nothing is left of it.
    """
    check_free(out)
    out = out.resolve()
    with claimed(out):
        check_free(out)  # another run may have made it since it was looked at
        sweep(out)
        return _masked(model, mask, out)


def _masked(model: str | Path, mask: str | Path, out: Path) -> dict[str, Any]:
    unfinished = out.with_name(f".{out.name}.unfinished-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        (unfinished / UNFINISHED).write_text(str(os.getpid()))
        try:
            tuned, pruned = _Stored.of(model), _Stored.of(mask, as_written=True)
        except ModelError:  # experts that are stored one by one, say: in memory they are as they are pruned
            done = _mask_in_memory(_in_memory(model), _in_memory(mask, as_written=True), unfinished)
        else:
            done = _mask_on_disk(tuned, pruned, unfinished)
        if not done["zeros"]:
            raise ModelError(f"{str(mask)!r} has no zeros to be put into a model; give a pruned checkpoint as the mask")
        record = {"format": 1, **done, "versions": versions(), "files": files_in(unfinished)}
        (unfinished / MASKED).write_text(sealed_json(record) + "\n", encoding="utf-8")
        give_name(unfinished, out)
    except OSError as error:
        raise RunError(f"the masked model cannot be written to {str(out)!r} ({error.strerror}); make room") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return record


def stored_bytes(layers: Sequence[Mapping[str, Any]], parameters: int, dtype: str) -> dict[str, int]:
    """What a pruned model takes in bytes, by how it is stored: as it is, and as it could be.

    Args:
        layers: of a report, as JSON.
        parameters: of the whole model.
        dtype: of its weights.

    Returns:
        "dense"; "bitmask": a bit for each weight of a layer, and the values that are not zero; "coded": as few bits as
        the places of the zeros can be told in, were they random, and the values; and, where layers are 2:4 and in a
        shape that PyTorch takes, "2:4": half of the values and two bits for each.
    """
    size = ITEMSIZE.get(dtype, 4)
    found = dict.fromkeys(("dense", "bitmask", "coded", "2:4"), float(parameters * size))
    for layer in layers:
        n, s = math.prod(layer["shape"]), layer["sparsity"]
        values, entropy = (1 - s) * n * size, -sum(p * math.log2(p) for p in (s, 1 - s) if p)
        found["bitmask"] += values + n / 8 - n * size
        found["coded"] += values + n * entropy / 8 - n * size
        if layer.get("asked") == "2:4" and kernels(layer["shape"], dtype):
            found["2:4"] += n / 2 * size + n / 2 / 4 - n * size
    if found["2:4"] == found["dense"]:
        del found["2:4"]
    return {name: round(number) for name, number in found.items()}


def kernels(shape: Sequence[int], dtype: str) -> list[str]:
    """Those of PyTorch's 2:4 kernels that take a weight [out, in] of this dtype."""
    return [
        name
        for name, by_dtype in KERNELS.items()
        if (least := by_dtype.get(dtype)) and all(n % unit == 0 for n, unit in zip(shape, least, strict=True))
    ]


def obeys(weight: Float[Tensor, "out in"], pattern: SemiStructured) -> bool:
    """Whether at most N weights are there in every M consecutive inputs."""
    return weight.shape[1] % pattern.m == 0 and _too_full(weight, pattern) == 0


def _too_full(weight: Float[Tensor, "out in"], pattern: SemiStructured) -> int:
    return int(((weight != 0).reshape(-1, pattern.m).sum(dim=1) > pattern.n).sum())


def _check(layer: PrunableLayer, asked: SparsityPattern | None, pruned: Bool[Tensor, "out in"] | None) -> LayerCheck:
    weight = layer.weight
    zeros = int((weight == 0).sum())
    came_back = None if pruned is None else int((pruned & (weight != 0)).sum())
    said = []
    if came_back:
        said.append(f"{came_back:,} weights that the mask prunes are not zero")
    if isinstance(asked, SemiStructured):
        if weight.shape[1] % asked.m:
            said.append(f"{weight.shape[1]:,} inputs are not made of groups of {asked.m}")
        elif wrong := _too_full(weight, asked):
            said.append(
                f"{wrong:,} of {weight.numel() // asked.m:,} groups of {asked.m} have more than {asked.n} weights"
            )
    elif asked is not None and zeros < len(weight) * asked.n_pruned(weight.shape[1]):
        said.append(f"{zeros / weight.numel():.2%} of its weights are zero, {percent(asked)} were asked for")
    return LayerCheck(
        name=layer.name,
        shape=_shape(layer),
        sparsity=zeros / weight.numel(),
        holds=tuple(str(one) for one in KNOWN if zeros and obeys(weight, one)),
        came_back=came_back,
        is_asked=asked is not None or pruned is not None,
        deviates="; ".join(said) or None,
    )


def _shape(layer: PrunableLayer) -> tuple[int, int]:
    return layer.out_features, layer.in_features


def _asked(folder: Path) -> dict[str, SparsityPattern]:
    """What a checkpoint's own record says of its layers; those that a method of whole layers pruned have no rows."""
    report = (read_manifest(folder) or {}).get("report")
    layers = report.get("layers", ()) if isinstance(report, dict) else ()
    try:
        return {str(layer["name"]): parse_pattern(layer["asked"]) for layer in layers if not layer.get("fallback")}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ModelError(
            f"{str(folder / MANIFEST)!r} does not say what was asked of every layer; say it with --sparsity"
        ) from None


# what a mask is put into was trained since, maybe, and is not as it was written; the mask itself has to be


def _opened(name: str | Path, *, as_written: bool = False) -> LanguageModel:
    try:
        return load_streamed(name, as_written=as_written)
    except ModelError:  # experts that are stored one by one, say: in memory they are as they are pruned
        return _in_memory(name, as_written=as_written)


def _in_memory(name: str | Path, *, as_written: bool = False) -> LanguageModel:
    return load_model(name, as_written=as_written)


class _Stored(NamedTuple):
    """A checkpoint whose tensors are read one by one."""

    place: Path
    source: dict[str, Any]
    shards: Shards
    keys: dict[str, str]
    """Parameter -> tensor, of the parameters that are pruned."""

    @classmethod
    def of(cls, name: str | Path, *, as_written: bool = False) -> "_Stored":
        place, source = local_checkpoint(str(name))
        lm, shards = load_streamed(place, as_written=as_written), Shards.of(place)
        keys = source_keys(lm.model, shards)
        return cls(place, source, shards, {key: keys[key] for key in _pruned_keys(lm)})

    def tensor(self, name: str) -> Tensor:
        return self.shards.read([self.keys[name]])[self.keys[name]]


def _pruned_keys(lm: LanguageModel) -> list[str]:
    return list(dict.fromkeys(layer.key for block in decoder_blocks(lm.model) for layer in block.layers))


def _mask_on_disk(tuned: _Stored, pruned: _Stored, folder: Path) -> dict[str, Any]:
    for file in tuned.place.iterdir():
        if file.is_file() and file.name not in (MANIFEST, MASKED, CONVERTED) and not file.name.endswith(PICKLES):
            shutil.copyfile(file, folder / file.name)

    def write(name: str, weight: Tensor) -> None:
        key = tuned.keys[name]
        with (folder / tuned.shards.files[key].name).open("r+b") as written:
            written.seek(tuned.shards.headers[key].start)
            written.write(weight.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    counts = _mask(tuned.keys, tuned.tensor, pruned.keys, pruned.tensor, write)
    return {"model": tuned.source, "mask": pruned.source, **counts}


def _mask_in_memory(tuned: LanguageModel, pruned: LanguageModel, folder: Path) -> dict[str, Any]:
    weights, others = tuned.model.state_dict(), pruned.model.state_dict()
    counts = _mask(_pruned_keys(tuned), weights.__getitem__, _pruned_keys(pruned), others.__getitem__, lambda *_: None)
    save_model(tuned.model, folder)
    tuned.tokenizer.save_pretrained(folder)
    return {"model": tuned.source, "mask": pruned.source, **counts}


def _mask(
    names: Iterable[str],
    weight_of: Callable[[str], Tensor],
    pruned_names: Iterable[str],
    pruned_of: Callable[[str], Tensor],
    write: Callable[[str, Tensor], None],
) -> dict[str, int]:
    """Make the weights zero, in place, that are zero in the pruned model, and count them."""
    if unlike := set(names) ^ set(pruned_names):
        raise _unlike(min(unlike))
    tensors = zeros = came_back = 0
    for name in names:
        weight, goes = weight_of(name), pruned_of(name) == 0
        if weight.shape != goes.shape:
            raise _unlike(name)
        tensors, zeros = tensors + 1, zeros + int(goes.sum())
        came_back += int((goes & (weight != 0)).sum())
        weight[goes] = 0
        write(name, weight)
    return {"tensors": tensors, "zeros": zeros, "came_back": came_back}


def _unlike(what: str) -> ModelError:
    return ModelError(f"the model and the mask are not of one shape ({what}); give checkpoints of the same model")
