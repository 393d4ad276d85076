"""Weights that stay on disk: a checkpoint's tensors by name, and a model that reads its blocks when it needs them.

A model of which only the embeddings, the head and a single block are in memory runs like any other: a block reads its
weights when it is called, the one before gives its memory back, and the one after is read ahead meanwhile.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibrune.durable import parsed
from calibrune.errors import ModelError
from calibrune.lm.layout import DecoderBlock, decoder_blocks
from calibrune.lm.trust import INDEX

SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Shards:
    """The tensors of safetensors files, by name; read one by one."""

    files: dict[str, Path]
    """Tensor -> the file that holds it."""

    @classmethod
    def of(cls, folder: Path) -> "Shards":
        """Those of a Hugging Face checkpoint.

        Raises:
            ModelError: it has no safetensors files, one that its index names is missing, or one cannot be read.
        """
        if (folder / INDEX).is_file():
            try:
                names = parsed((folder / INDEX).read_bytes())["weight_map"]
                # a name is a file of this folder, whatever the index says; `locate` has refused others
                files = {str(name): folder / Path(file).name for name, file in names.items()}
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ModelError(
                    f"{INDEX} in {str(folder)!r} cannot be read ({type(error).__name__}); get it anew"
                ) from None
        elif (folder / SINGLE).is_file():
            return cls.single(folder / SINGLE)
        else:
            raise ModelError(
                f"{str(folder)!r} has neither {INDEX} nor {SINGLE}; only safetensors are read block by block: save the "
                f"model with save_pretrained, or prune it in memory (--no-stream)"
            )
        if missing := sorted({path.name for path in files.values() if not path.is_file()}):
            raise ModelError(f"{str(folder)!r} lacks {missing[0]}, which its index names; get the checkpoint anew")
        return cls(files)

    @classmethod
    def single(cls, path: Path) -> "Shards":
        """Those of one file."""
        with _opened(path) as file:
            return cls(dict.fromkeys(file.keys(), path))

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names, in memory of their own."""
        found: dict[str, Tensor] = {}
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        for path, inside in by_file.items():
            with _opened(path) as file:
                for name in inside:
                    tensor = file.get_tensor(name)
                    # what is mapped from the file would stay in memory with all of it
                    found[name] = tensor if _READS else tensor.clone()
        return found

    @cached_property
    def headers(self) -> dict[str, "Header"]:
        """Where and what each tensor is, from the heads of the files."""
        found: dict[str, Header] = {}
        for path in sorted(set(self.files.values())):
            found |= {name: header for name, header in _headers(path).items() if self.files.get(name) == path}
        return found

    def read_ahead(self, names: Iterable[str]) -> None:
        """Ask the system to have these tensors at hand soon, in its cache of files and not in our memory."""
        if not hasattr(os, "posix_fadvise"):  # macOS, Windows
            return
        for name in names:
            header = self.headers[name]
            handle = os.open(self.files[name], os.O_RDONLY)
            try:
                os.posix_fadvise(handle, header.start, header.nbytes, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(handle)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(path.stat().st_size for path in set(self.files.values()))


class Header(NamedTuple):
    """What a file says of one of its tensors."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Of its bytes in the file."""
    nbytes: int


class BlockStore:
    """Reads the weights of a model's blocks from disk, one block at a time.

    Args:
        model: with the parameters of its blocks on the meta device, and all others in place.
        source: the checkpoint; a tensor is called as the parameter is, or without the prefix of the model's body.
        device: where a block is put when it runs.
    """

    def __init__(self, model: PreTrainedModel, source: Shards, device: torch.device) -> None:
        self.written: dict[str, Path] = {}
        """Parameter -> the file that holds it since it was changed; read there from then on."""
        self.scratch: Path | None = None
        """Where activations that are too many for memory may be written."""
        self.ahead = device.type != "cpu"
        """Whether the next block is brought to the device while one runs: there it waits for the disk and the bus, and
        not for the processor that is at work; and two blocks are in its memory."""
        self._blocks = decoder_blocks(model)
        self._dtype, self._device = model.dtype, device
        self._source, self._keys = source, source_keys(model, source)
        self._loaded: int | None = None
        self._coming: _Coming | None = None
        for block in self._blocks:
            _reads_itself(block.module, self, block.index)

    def load(self, index: int) -> None:
        """Have the weights of this block in memory, and of no other; changes that were not written are lost."""
        if self._loaded == index:
            return
        coming = self._coming
        self.release()
        wanted = self._places(index)
        tensors = coming.tensors() if coming is not None and coming.places == wanted else self._read(wanted)
        _put(self._blocks[index], tensors, self._device)
        self._loaded = index
        after = self._places((index + 1) % len(self._blocks))
        if self.ahead:
            self._coming = _Coming(after, self._read, self._device)
        else:
            self._source.read_ahead(self._keys[name] for name, written in after.items() if written is None)

    def release(self) -> None:
        """Give back the memory of the block that is loaded, and of the one that is on its way."""
        self._coming = None
        if self._loaded is not None:
            block = self._blocks[self._loaded]
            empty = {name: p.to("meta") for name, p in block.module.named_parameters(prefix=block.name)}
            _put(block, empty, torch.device("meta"))
            self._loaded = None

    def tensor(self, name: str) -> Tensor:
        """A parameter of a block, read from disk."""
        return self._read({name: self.written.get(name)})[name]

    def _places(self, index: int) -> "Places":
        block = self._blocks[index]
        return {name: self.written.get(name) for name, _ in block.module.named_parameters(prefix=block.name)}

    def _read(self, places: "Places") -> dict[str, Tensor]:
        files = {name: written for name, written in places.items() if written is not None}
        found = Shards(files).read(files)
        rest = [name for name in places if name not in files]
        read = self._source.read(self._keys[name] for name in rest)
        return found | {name: read[self._keys[name]].to(self._dtype) for name in rest}


Places = Mapping[str, Path | None]
"""Parameter -> the file that it was written to; None: as it is in the checkpoint."""


class _Coming:
    """A block's weights on their way to a device: a thread reads them into pinned memory, and copies them in a stream
    of its own."""

    def __init__(self, places: Places, read: Callable[[Places], dict[str, Tensor]], device: torch.device) -> None:
        self.places = places
        self._device = device
        self._on_cuda = device.type == "cuda"
        # not from a pool: its threads would keep the process alive when something else has broken
        self._found: Future[dict[str, Tensor]] = Future()
        Thread(target=self._fetch, args=(read,), daemon=True).start()

    def tensors(self) -> dict[str, Tensor]:
        """They, once they are there; what broke in the thread is raised here."""
        found = self._found.result()
        if self._on_cuda:
            for tensor in found.values():  # its memory is of the other stream, and must stay until this one is done
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return found

    def _fetch(self, read: Callable[[Places], dict[str, Tensor]]) -> None:
        try:
            found = read(self.places)
            if self._on_cuda:
                stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                with torch.cuda.stream(stream):
                    pinned = [tensor.pin_memory() for tensor in found.values()]
                    copies = [tensor.to(self._device, non_blocking=True) for tensor in pinned]
                stream.synchronize()  # this thread alone waits
                found = dict(zip(found, copies, strict=True))
            self._found.set_result(found)
        except BaseException as error:  # noqa: BLE001  (it is raised by who asks)
            self._found.set_exception(error)


def store_of(model: PreTrainedModel) -> BlockStore | None:
    """What reads the model's blocks from disk; None for a model in memory."""
    return _STORES.get(model)


def load_block(model: PreTrainedModel, block: DecoderBlock) -> None:
    """Have the weights of a block in memory, wherever the model keeps them."""
    if (store := store_of(model)) is not None:
        store.load(block.index)


def loaded_blocks(model: PreTrainedModel) -> Iterator[DecoderBlock]:
    """The model's decoder blocks, front to back, each with its weights in memory while it is looked at."""
    for block in decoder_blocks(model):
        load_block(model, block)
        yield block


def read_blocks_from(model: PreTrainedModel, source: Shards, device: torch.device) -> BlockStore:
    """Let a model, whose parameters are all on the meta device, read them: the blocks' when they run, others now."""
    _give_back_at_once()
    keys = source_keys(model, source)
    in_blocks = names_in_blocks(model)
    for name, parameter in list(model.named_parameters()):
        if name not in in_blocks:
            path, _, last = name.rpartition(".")
            read = source.read([keys[name]])[keys[name]].to(device, parameter.dtype)
            setattr(model.get_submodule(path), last, nn.Parameter(read, requires_grad=False))
    model.tie_weights()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    store = _STORES[model] = BlockStore(model, source, device)
    return store


def names_in_blocks(model: PreTrainedModel) -> set[str]:
    """The parameters of the decoder blocks, by name."""
    return {name for block in decoder_blocks(model) for name, _ in block.module.named_parameters(prefix=block.name)}


def source_keys(model: PreTrainedModel, source: Shards) -> dict[str, str]:
    """Parameter -> its name in the checkpoint.

    Raises:
        ModelError: the checkpoint lacks one, or holds it in another shape: it is stored in another form (experts one by
            one, say) than transformers keeps it in.
    """
    prefix = f"{model.base_model_prefix}."
    renamed = _renamed(model, source)
    keys = {}
    for name, parameter in model.named_parameters():
        candidates = (name, name.removeprefix(prefix), prefix + name)
        key = next((renamed[key] for key in candidates if key in renamed), None)
        if key is None or source.headers[key].shape != tuple(parameter.shape):
            raise ModelError(
                f"{name} {tuple(parameter.shape)} of {type(model).__name__} is not in the checkpoint as it is in the "
                f"model, so its blocks cannot be read one by one; prune it in memory (--no-stream)"
            )
        keys[name] = key
    return keys


def _renamed(model: PreTrainedModel, source: Shards) -> dict[str, str]:
    """Name that transformers gives to a tensor of the checkpoint -> its name there; most are the same."""
    names = {name: name for name in source.headers}
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # no part of its public interface; then only what is called alike is read
        return names
    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    return names | {rename_source_key(name, renamings, [])[0]: name for name in source.headers}


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Parameters that are made here have a shape and no memory; buffers are made as always."""
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        original(self, name, param)
        if param is not None and not param.is_meta:  # one that is tied to another stays the same one
            self._parameters[name] = nn.Parameter(param.detach().to("meta"), requires_grad=False)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


_STORES: "WeakKeyDictionary[PreTrainedModel, BlockStore]" = WeakKeyDictionary()

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of the format; a tensor of any other is no weight that we prune."""

M_MMAP_THRESHOLD, LARGE = -3, 4 << 20
"""Of `mallopt`; and bytes from which on a piece of memory is the system's own, as long as a model is read from disk."""

_READS = {"backend": "pread"} if "backend" in signature(safe_open).parameters else {}
"""How safetensors is told to read a file, and not to map it (from 0.8 on)."""


def _reads_itself(module: nn.Module, store: BlockStore, index: int) -> None:
    """Let a block read its weights when its own forward runs; a stand-in for that forward reads nothing."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        store.load(index)
        return original(*args, **kwargs)

    module.forward = forward


def _give_back_at_once() -> None:
    """Have the C library return large pieces to the system when they are freed; glibc keeps those of up to 32 MB."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):  # musl has none
        mallopt(M_MMAP_THRESHOLD, LARGE)


def _put(block: DecoderBlock, tensors: dict[str, Tensor], device: torch.device) -> None:
    for name, tensor in tensors.items():
        path, _, last = name.removeprefix(f"{block.name}.").rpartition(".")
        block.module.get_submodule(path)._parameters[last] = nn.Parameter(tensor.to(device), requires_grad=False)


def _headers(path: Path) -> dict[str, Header]:
    """The head of a safetensors file: the length of a JSON object in eight bytes, and the object."""
    with _opened(path):
        pass  # safetensors has looked at it: the head is whole, and the places are inside the file
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    return {
        name: Header(_DTYPES.get(one["dtype"], torch.uint8), tuple(one["shape"]), 8 + length + start, end - start)
        for name, one in entries.items()
        if name != "__metadata__"
        for start, end in [one["data_offsets"]]
    }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", **_READS) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{str(path)!r} cannot be read ({error}); get it anew") from error
