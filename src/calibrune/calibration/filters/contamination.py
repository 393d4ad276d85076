"""Calibration text that is also in an evaluation set: runs of words that the two share.

Thirteen words in a row are what Brown et al. (2020, arXiv 2005.14165, appendix C) take for a collision. Text that a
model writes itself can hold evaluation text too, where the model has learned it by heart.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from calibrune.calibration.filters.repetition import words
from calibrune.corpora.document import Document
from calibrune.corpora.files import FileCorpus, check_is_file
from calibrune.corpora.unpacking import unpacked
from calibrune.durable import parsed, sha256_of
from calibrune.errors import ConfigError, CorpusError
from calibrune.settings import home_path, settings

log = logging.getLogger(__name__)

ENDINGS = tuple(f"{kind}{packing}" for kind in (".jsonl", ".json", ".txt") for packing in ("", ".gz", ".zst"))

Runs = NDArray[np.uint64]
"""Hashes of runs of words: sorted, each once."""


@settings
class ContaminationFilter:
    """Drop documents that share a run of words with an evaluation set, or keep them and say so in the manifest."""

    remark_name: ClassVar[str] = "contamination"

    evals: tuple[Path, ...] | Path
    """Files of evaluation text, or folders of them (`.jsonl`, `.json`, `.txt`, packed or not); of JSON, all text in a
    line counts as one item."""
    contaminated: Literal["drop", "keep"] = "drop"
    """keep: such documents stay, and the manifest names them with the evaluation sets."""
    overlap_words: int = Field(default=13, ge=1)
    """Words in a run; an item with fewer cannot be found."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("evals names no file: give a folder or files of evaluation text")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files and folders, as they were given."""
        return (self.evals,) if isinstance(self.evals, Path) else tuple(self.evals)

    @cached_property
    def files(self) -> dict[str, tuple[Path, ...]]:
        """The files of each evaluation set, by its name: the folder of a file in a folder's folder, else the file's.

        Where two sets have one name, each gets the folders before it that tell them apart: mmlu/test, arc/test.

        Raises:
            CorpusError: there is no such file, or a folder has none that can be read.
        """
        found: dict[Path, dict[Path, None]] = {}
        for path in (home_path(path) for path in self.paths):
            if path.is_dir():
                inside = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name.endswith(ENDINGS)]
                if not inside:
                    raise CorpusError(f"the folder {path} has no evaluation text in it ({', '.join(ENDINGS)})")
            else:
                check_is_file(path)
                if not path.name.endswith(ENDINGS):
                    raise CorpusError(f"{path} cannot be read as evaluation text; give one of {', '.join(ENDINGS)}")
                inside = [path]
            for file in inside:
                alone = file.parent == path or file == path
                place = file.with_name(file.name.partition(".")[0] or file.name) if alone else file.parent
                found.setdefault(place.absolute(), {})[file.absolute()] = None
        return {name: tuple(files) for name, files in zip(_names(list(found)), found.values(), strict=True)}

    def describe(self) -> dict[str, Any]:
        """The settings, and the SHA-256 of every file; of folders no more than tells files apart."""
        return {
            "kind": type(self).__name__,
            "evals": {
                name: {under: sha256_of(file)[:16] for under, file in zip(_names(files), files, strict=True)}
                for name, files in self.files.items()
            },
            "contaminated": self.contaminated,
            "overlap_words": self.overlap_words,
            "items": {name: some.items for name, some in self._evaluations.items()},
            "items_too_short_to_find": {name: some.too_short for name, some in self._evaluations.items()},
        }

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield the documents that share nothing (all, where contaminated ones are to be kept)."""
        for document in documents:
            shared = self._shared(document) if self.contaminated == "drop" else None
            if shared:
                dropped[f"shares {self.overlap_words} words in a row with {max(shared, key=shared.__getitem__)}"] += 1
            else:
                yield document

    def remark(self, document: Document) -> dict[str, int] | None:
        """How many different runs of words the document shares with each evaluation set; None: none with any.

        Where contaminated documents are dropped, one that stayed shares none: it is not looked up again.
        """
        return (self._shared(document) or None) if self.contaminated == "keep" else None

    def _shared(self, document: Document) -> dict[str, int]:
        own = _runs(document.text, self.overlap_words)
        shared = {name: _n_shared(own, some.runs) for name, some in self._evaluations.items()}
        return {name: n for name, n in shared.items() if n}

    @cached_property
    def _evaluations(self) -> "dict[str, _Evaluation]":
        found = {name: _read(files, self.overlap_words) for name, files in self.files.items()}
        if short := {name: some for name, some in found.items() if some.too_short}:
            said = ", ".join(f"{some.too_short:,} of {some.items:,} of {name}" for name, some in short.items())
            log.warning(
                "items of evaluation text with fewer than %d words cannot be found in calibration text: %s; a smaller "
                "overlap_words finds more of them, and more that only looks alike",
                *(self.overlap_words, said),
            )
        return found


class _Evaluation(NamedTuple):
    """What is known of an evaluation set."""

    runs: Runs
    items: int
    too_short: int
    """Items with fewer words than a run."""


def _names(places: Sequence[Path], parts: int = 1) -> list[str]:
    """Each path by its last name, and where two have the same, by as many more as tell them apart."""
    names = ["/".join(place.parts[-parts:]) for place in places]
    again = {name for name in names if names.count(name) > 1}
    if not again:
        return names
    longer = iter(_names([place for place, name in zip(places, names, strict=True) if name in again], parts + 1))
    return [next(longer) if name in again else name for name in names]


@cache
def _read(files: tuple[Path, ...], n: int) -> _Evaluation:
    # read once a process, however many sets are compared with it
    items = [_runs(text, n) for file in files for text in _items(file) if text]
    runs = np.unique(np.concatenate([np.zeros(0, np.uint64), *items]))
    return _Evaluation(runs, len(items), sum(not len(some) for some in items))


def _items(file: Path) -> Iterator[str]:
    """Every item of a file as one text: a line's strings in their order, or the whole of a `.txt`."""
    if ".txt" in file.suffixes:
        yield from (document.text for document in FileCorpus(path=file).documents())
        return
    with unpacked(file) as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield "\n".join(_strings(parsed(line))) if line.strip() else ""
            except ValueError:
                raise CorpusError(
                    f"line {number} of {file} is not JSON: evaluation text is one object a line"
                ) from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def _runs(text: str, n: int) -> Runs:
    """A 64-bit hash of every run of `n` words, sorted, each once."""
    numbers = np.array([_number(word) for word in words(text)], dtype=np.uint64)
    if len(numbers) < n:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(len(numbers) - n + 1, np.uint64)
    for place in range(n):  # a polynomial in an odd base, modulo 2^64
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + numbers[place : place + len(hashes)]
    return np.unique(hashes)


def _n_shared(few: Runs, many: Runs) -> int:
    # looked up one by one: the runs of an evaluation set are millions, and stay sorted
    places = np.searchsorted(many, few)
    inside = places < len(many)
    return int((many[places[inside]] == few[inside]).sum())


@lru_cache(maxsize=1 << 18)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
