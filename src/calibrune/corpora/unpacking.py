"""The bytes of a file, unpacked by its ending (gzip, Zstandard); one that was cut off is an error, not a short file."""

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from calibrune.errors import CorpusError

PACKED_ENDINGS = (".gz", ".zst")

_CHUNK = 1 << 12
"""Packed bytes that are unpacked at once: of a file that is made to fill the memory, they are some 100 MB."""

LONGEST_LINE = 1 << 28
"""Bytes; a packed file can hold a line larger than any memory."""


def optional(module: str, path: Path) -> ModuleType:
    """Import a module of the extra `files`, or say how to install it."""
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise CorpusError(
            f"reading {path.name} needs the package {package}, which is not installed: pip install 'calibrune[files]'"
        ) from None


@contextmanager
def unpacked(path: Path) -> Iterator[Iterable[bytes]]:
    """Open a file for reading its lines, unpacked by its ending.

    Raises:
        CorpusError: also while the body of the `with` reads, where the packed bytes are damaged or end too early.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                yield _lines(gzip.GzipFile(fileobj=file), path)
            elif path.suffix == ".zst":
                yield _lines(io.BufferedReader(_Unzst(file, optional("zstandard", path))), path)
            else:
                yield _lines(file, path)
    except (gzip.BadGzipFile, zlib.error, EOFError, _BrokenZstError) as error:
        raise CorpusError(
            f"{path} cannot be unpacked ({str(error).rstrip('.').lower()}): it is damaged, cut off, "
            f"or not a {path.suffix} file; get it again"
        ) from None


def _lines(file: Any, path: Path) -> Iterator[bytes]:
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise CorpusError(
                f"line {number} of {path} has more than {LONGEST_LINE >> 20} MB: it is damaged, or no file of documents"
            )
        yield line


class _BrokenZstError(Exception):
    """The bytes are not Zstandard."""


class _Unzst(io.RawIOBase):
    """Zstandard frames as one stream. The library's own reader takes a frame that was cut off for the file's end."""

    def __init__(self, file: IO[bytes], zstandard: ModuleType) -> None:
        self._file = file
        self._zstandard = zstandard
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._frame.unused_data or self._file.read(_CHUNK)
            if not packed:
                if self._frame.eof:
                    return 0
                raise EOFError("the last frame has no end")
            if self._frame.eof:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(packed))
            except self._zstandard.ZstdError as error:
                raise _BrokenZstError(str(error)) from None
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n
