"""Pruning a model that need not fit in memory: a block is read, pruned and written, and then the next.

What is finished lies beside the output under another name: every block in a file of its own, and a journal that says
what was done to it. A run that was killed goes on after the last block whose file is whole.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from calibrune.activations.kept import BUDGET
from calibrune.activations.stream import Propagate
from calibrune.allocators import Allocator, SparsityAllocation
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.checkpoint import PruneRequest, check_free, give_name, save_masks, save_model, write_records
from calibrune.durable import append, claimed, parsed, sealed, sha256_of, sync, unsealed, write_whole
from calibrune.errors import OutputError, RunError
from calibrune.lm.layout import DecoderBlock, decoder_blocks, n_parameters
from calibrune.lm.loading import LanguageModel
from calibrune.lm.record import JOURNAL, MANIFEST, UNFINISHED
from calibrune.lm.speed import operations_per_second
from calibrune.lm.trust import INDEX
from calibrune.lm.weights import SINGLE, Shards, names_in_blocks, source_keys, store_of
from calibrune.patterns import parse_pattern, parse_target
from calibrune.prune import LayerReport, PruneReport, prune_model
from calibrune.pruners import Pruner

log = logging.getLogger(__name__)


def prune_streamed(
    lm: LanguageModel,
    calibration: CalibrationSet | None,
    pruner: Pruner,
    request: PruneRequest,
    out: Path,
    *,
    allocation: Allocator,
    masks: bool = False,
) -> dict[str, Any]:
    """Prune a model of `load_streamed` into the new folder `out`; the manifest, and every weight, is as in memory.

    Args:
        lm: its blocks are read from disk, one at a time.
        request: what is asked for, which is carried out; an unfinished run of the same request is gone on with.
        masks: write `masks/masks.safetensors` too.

    Raises:
        OutputError: `out` is not free, or another run, or another request's unfinished one, is in its place.
        RunError: something broke under way; the finished blocks are kept, and the same request goes on after them.
    """
    if (store := store_of(lm.model)) is None:
        raise ValueError("prune_streamed needs a model of load_streamed")
    with _unfinished(out.resolve()) as folder:
        journal = _Journal.read(folder, request.key, len(decoder_blocks(lm.model)))
        store.scratch = folder
        log.info("%s", plan(lm, calibration, request))
        if journal.allocation is None:
            made = allocation.allocate(
                lm.model, calibration, parse_target(request.pattern), batch_tokens=request.batch_tokens
            )
            journal.begin(request.key, made)
        assert journal.allocation is not None
        if request.propagate == "pruned":
            store.written |= journal.written
        store.release()
        propagate: Propagate = "pruned" if request.propagate == "pruned" else "dense"
        report = prune_model(
            lm.model,
            calibration,
            pruner,
            request.pattern,
            allocation=journal.allocation,
            propagate=propagate,
            batch_tokens=request.batch_tokens,
            min_expert_tokens=request.min_expert_tokens,
            already=journal.reports,
            after_block=lambda block, reports: journal.add(block, reports),
        )
        store.written |= journal.written
        store.release()
        manifest = _finish(lm, report, request, journal, masks)
        (journal.folder / JOURNAL).unlink()
        give_name(journal.folder, out.resolve())
    return manifest


def plan(lm: LanguageModel, calibration: CalibrationSet | None, request: PruneRequest) -> str:
    """What a streamed run will take, in a sentence: memory, disk and time; before it starts."""
    model, blocks = lm.model, decoder_blocks(lm.model)
    itemsize = model.dtype.itemsize
    sizes = [sum(p.numel() for p in block.module.parameters()) for block in blocks]
    resident = (n_parameters(model) - sum(sizes)) * itemsize
    tokens = 0 if calibration is None else calibration.input_ids.numel()
    activations = tokens * model.config.get_text_config().hidden_size * itemsize
    memory = resident + max(sizes) * itemsize + min(activations, BUDGET)
    disk = n_parameters(model) * itemsize + max(0, activations - BUDGET)
    said = (
        f"{len(blocks)} blocks are read, pruned and written one by one: some {_bytes(memory)} of memory and what the "
        f"method gathers, {_bytes(disk)} of disk"
    )
    passes = 2 if request.propagate == "pruned" else 1
    speed = operations_per_second(model.config.get_text_config().hidden_size, model.dtype, model.device)
    seconds = 2 * passes * tokens * sum(sizes) / speed
    return f"{said}, and for the passes through the model about {_duration(seconds)}" if tokens else said


def _bytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


@dataclass
class _Journal:
    """The blocks that are finished: a line for each, written after its file."""

    folder: Path
    allocation: SparsityAllocation | None
    reports: list[LayerReport]
    written: dict[str, Path]
    """Parameter -> file."""
    n_blocks: int
    hashes: dict[str, str] = field(default_factory=dict)
    """File -> SHA-256."""

    @classmethod
    def read(cls, folder: Path, key: str, n_blocks: int) -> "_Journal":
        """What an earlier run of the same request left; blocks from the first damaged file on are not in it."""
        found = cls(folder, None, [], {}, n_blocks)
        file = folder / JOURNAL
        lines = _whole_lines(file) if file.is_file() else []
        if not lines:
            found._clear([])
            return found
        if lines[0].get("key") != key:
            raise OutputError(
                f"{str(folder)!r} holds the unfinished run of another request ({lines[0].get('key')}, this one is "
                f"{key}); remove it, or choose another --out"
            )
        found.allocation = SparsityAllocation(
            {name: parse_pattern(pattern) for name, pattern in lines[0]["allocation"].items()}
        )
        whole = lines[:1]
        for line in lines[1:]:
            path = folder / Path(line["file"]).name
            if not path.is_file() or sha256_of(path) != line["sha256"]:
                log.warning("%s is damaged; its block and those after it are pruned again", path)
                break
            found.written |= dict.fromkeys(line["names"], path)
            found.hashes[path.name] = line["sha256"]
            found.reports += [LayerReport(**report | {"shape": tuple(report["shape"])}) for report in line["layers"]]
            whole.append(line)
        write_whole(file, b"".join(map(_line, whole)))
        found._clear([file, *found.written.values()])
        if len(whole) > 1:
            log.info("going on after block %d, which an earlier run finished", len(whole) - 2)
        return found

    def begin(self, key: str, allocation: SparsityAllocation) -> None:
        """Say whose run this is, and how the sparsity is shared out, which is not worked out twice."""
        self.allocation = allocation
        self._append({"key": key, "allocation": {name: str(one) for name, one in allocation.patterns.items()}})

    def add(self, block: DecoderBlock, reports: Sequence[LayerReport]) -> None:
        """Write a block's weights, read them back, and only then its line."""
        path = self.folder / _shard(block.index, self.n_blocks)
        tensors = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in block.module.named_parameters(prefix=block.name)
        }
        _write_tensors(tensors, path)
        files = dict.fromkeys(tensors, path)
        shards = Shards(files)
        for name, tensor in tensors.items():  # one by one: a second block need not fit in memory
            if not torch.equal(tensor, shards.read([name])[name]):
                raise RunError(f"{name} does not read back from {str(path)!r} as it was written; check the disk")
        self.written |= files
        self.hashes[path.name] = sha256_of(path)
        line = {"block": block.index, "file": path.name, "sha256": self.hashes[path.name], "names": list(tensors)}
        self._append(line | {"layers": [asdict(report) for report in reports]})

    def _append(self, line: dict[str, Any]) -> None:
        append(self.folder / JOURNAL, _line(line))

    def _clear(self, files: Sequence[Path]) -> None:
        """Remove what a killed run left that is in no line: half a file, a folder of its own, or another request's."""
        kept = {UNFINISHED, *(file.name for file in files)}
        for left in self.folder.iterdir():
            if left.name not in kept:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """The folder beside `out` in which a run is at work, for one process at a time; it stays until it is `out`."""
    folder = out.with_name(f".{out.name}.streaming")
    with claimed(out):
        check_free(out)  # another run may have made it since it was looked at
        try:
            folder.mkdir(exist_ok=True)
            names = os.listdir(folder)
            if names and not {UNFINISHED, JOURNAL, MANIFEST} & set(names):
                raise OutputError(f"{str(folder)!r} is in the way, and not of this program; choose another --out")
            (folder / UNFINISHED).touch()
            yield folder
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"the pruned model cannot be written to {str(out)!r}: {error}; what is finished is kept in "
                f"{str(folder)!r}, and the same command goes on after it"
            ) from error


def _finish(
    lm: LanguageModel, report: PruneReport, request: PruneRequest, journal: _Journal, masks: bool
) -> dict[str, Any]:
    """All that stands beside the blocks: the other weights, the index, tokenizer, masks, card and manifest."""
    model, folder = lm.model, journal.folder
    in_blocks = names_in_blocks(model)
    others = folder / _shard(journal.n_blocks, journal.n_blocks)
    # in a folder of its own: save_pretrained removes what looks like the shards of an earlier model
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        rest = {name: tensor for name, tensor in model.state_dict().items() if name not in in_blocks}
        save_model(model, Path(aside), rest)
        (Path(aside) / SINGLE).rename(others)
        for file in Path(aside).iterdir():
            file.replace(folder / file.name)
    files = {name: path.name for name, path in journal.written.items()} | dict.fromkeys(
        Shards.single(others).files, others.name
    )
    size = sum(path.stat().st_size for path in {*journal.written.values(), others})
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": files}, indent=1), encoding="utf-8"
    )
    source_keys(model, Shards.of(folder))  # every weight is there, under a name that transformers knows
    lm.tokenizer.save_pretrained(folder)
    if masks:
        save_masks(model, folder)
    return write_records(lm, report, request, folder, journal.hashes)


def _shard(index: int, n_blocks: int) -> str:
    return f"model-{index + 1:05d}-of-{n_blocks + 1:05d}.safetensors"


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Beside its place, synced, and then given its name."""
    aside = path.with_suffix(".unfinished")
    save_file(tensors, aside, metadata={"format": "pt"})
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def _line(record: dict[str, Any]) -> bytes:
    return f"{json.dumps(sealed(record))}\n".encode()


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """The lines up to the first that is cut short or damaged."""
    found: list[dict[str, Any]] = []
    for line in file.read_bytes().split(b"\n")[:-1]:
        try:
            found.append(unsealed(parsed(line)))
        except ValueError:
            log.warning("line %d of %s is damaged; what it and those after it held is made anew", len(found) + 1, file)
            break
    return found
