"""Files that are whole or not there, and that say when they are no longer what was written.

What is written is written aside, synced, and then given its name. A record that is read back carries its own hash, its
seal: what was cut, changed or damaged since is never taken for what was written.
"""

import hashlib
import json
import logging
import math
import os
import platform
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from calibrune.errors import OutputError, StorageError, without_secrets

log = logging.getLogger(__name__)

SEAL, HASHED = "seal", "sha256:"
"""The last key of a sealed record, and what its value begins with: where one of them is damaged, the other tells."""

_HERE = re.sub(r"\W", "", platform.node())[:40]
_LEFT = re.compile(rf"\..+\.{_HERE}-(\d+)-\d+\.unfinished", re.DOTALL)
_swept: set[Path] = set()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and synced: readers see the old one or the new one, also after a crash.

    Raises:
        OutputError: nothing can be written there; an older file is as it was.
    """
    unfinished = path.with_name(f".{path.name}.{_HERE}-{os.getpid()}-{threading.get_ident()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r} ({error.strerror}); choose another file") from error


def append(path: Path, lines: bytes) -> None:
    """Add whole lines to a file: all of them, synced, or none. For who alone writes to it at the time.

    Half a line at its end, which a crash left, is cut off first.

    Raises:
        OSError: they cannot be written; the file is as it was.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = whole = os.fstat(handle).st_size
        while whole and os.pread(handle, 1, whole - 1) != b"\n":
            whole -= 1
        if whole < size:
            log.warning("the last line of %s was cut short by a crash; what it held is made anew", path.name)
            os.ftruncate(handle, whole)
        try:
            left = memoryview(lines)
            while left:  # the system may take less than it is given
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except BaseException:
            os.ftruncate(handle, whole)  # half a line is worth nothing
            raise
        if not size:
            sync(path.parent)
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before what is done next."""
    if os.name == "posix" or path.is_file():  # elsewhere folders cannot be synced
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def name_folder(unfinished: Path, folder: Path) -> None:
    """Sync a folder in which all is written, and let it have its name, under which at most an empty folder is."""
    for one in (*unfinished.rglob("*"), unfinished):
        sync(one)
    if folder.is_dir():
        folder.rmdir()
    unfinished.rename(folder)
    sync(folder.parent)


def make_readable(folder: Path) -> None:
    """Give all files the rights that new files have here; safetensors leaves its own to their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its own hash as its last entry; of JSON, for what is not is not what will be read."""
    return {**record, SEAL: _seal(record)}


def sealed_json(record: Mapping[str, Any]) -> str:
    """A sealed record as JSON, sealed as it is written: without secrets, and with null for what JSON does not know."""
    return to_json(sealed(json.loads(to_json(record))))


def unsealed(record: Any) -> dict[str, Any]:
    """What a record held when it was sealed; one that never was is given back as it is.

    Raises:
        ValueError: it is no record, or not what it was.
    """
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    name, seal = next(reversed(record.items()), ("", ""))
    if name != SEAL and not str(seal).startswith(HASHED):
        return record
    held = {key: value for key, value in record.items() if key != name}
    if name != SEAL or seal != _seal(held):
        raise ValueError("it is not what its seal says: it was changed or damaged after it was written")
    return held


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text, whoever wrote it.

    Raises:
        ValueError: it is none, whatever is wrong with it.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """While it lasts, no other process makes `out`; one that is killed lets go of it.

    Raises:
        OutputError: another one does, or nothing can be written beside it.
    """
    out = out.resolve()
    missing = [folder for folder in out.parents if not folder.exists()]
    place = out.with_name(f".{out.name}.lock")
    lock = FileLock(place)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise OutputError(
            f"another run is writing to {str(out)!r} at this moment; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise OutputError(f"nothing can be written to {str(out)!r} ({error.strerror}); choose another --out") from None
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held, so that nobody waits for a file that has gone
            place.unlink()
        lock.release()
        with suppress(OSError):  # what was made for nothing goes again
            for folder in missing:
                folder.rmdir()


def let_go(out: Path) -> None:
    """Remove the lock beside `out` if who made `out` was killed before it could."""
    place = out.with_name(f".{out.name}.lock")
    if place.is_file():
        lock = FileLock(place)
        with suppress(Timeout, OSError):
            lock.acquire(blocking=False)
            place.unlink()
            lock.release()


@contextmanager
def keeping(what: str, place: Path, safe: str = "what was kept before is safe") -> Iterator[None]:
    """Around what writes to the cache: where that fails, say on a full disk, `StorageError` says what to do."""
    try:
        yield
    except (OSError, OutputError, SafetensorError) as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        raise StorageError(
            f"{what} cannot be kept in {str(place)!r} ({getattr(cause, 'strerror', None) or cause}); {safe}: "
            f"make room, or set CALIBRUNE_CACHE to a folder elsewhere, and start again"
        ) from error


def check_writable(path: Path) -> None:
    """Raise `OutputError` before work begins if a file cannot be written there."""
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder, a file was expected; choose another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r} ({error.strerror}); choose another file") from None


def to_json(value: Any) -> str:
    """A record as JSON for readers of any language: inf and nan, which JSON does not know, become null; no secrets."""
    return json.dumps(_told(value), indent=1, ensure_ascii=False, allow_nan=False)


def is_running(pid: str) -> bool:
    """Whether another process of this number is at work, so that what it left unfinished is not to be touched."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def _seal(record: dict[str, Any]) -> str:
    # through JSON, as it will be read: tuples are lists then, and keys are text
    plain = json.dumps(json.loads(json.dumps(record)), sort_keys=True)
    return HASHED + hashlib.sha256(plain.encode()).hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written in a folder; once a process."""
    if folder not in _swept:
        _swept.add(folder)
        for name in os.listdir(folder):
            if (left := _LEFT.fullmatch(name)) and not is_running(left[1]) and int(left[1]) != os.getpid():
                (folder / name).unlink(missing_ok=True)


def _told(value: Any) -> Any:
    """The value as it is written: made of what JSON knows, and without secrets."""
    if isinstance(value, dict):
        return {_told(key) if isinstance(key, str) else key: _told(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_told(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    # half a pair of surrogates is no character, and cannot be written
    return without_secrets(str(value).encode("utf-8", "backslashreplace").decode(), of_a_record=True)
