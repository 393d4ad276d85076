"""Files that are whole or not there: what is written aside, and then given its name."""

import json
import math
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from calibrune.errors import OutputError, RunError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all: readers see the old one or the new one.

    Raises:
        OutputError: nothing can be written there; an older file is as it was.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r} ({error.strerror}); choose another file") from error


@contextmanager
def keeping(what: str, place: Path, safe: str = "what was kept before is safe") -> Iterator[None]:
    """Around what writes to the cache: where that fails, say on a full disk, `RunError` says what to do."""
    try:
        yield
    except (OSError, OutputError, SafetensorError) as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        raise RunError(
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
    """A record as JSON for readers of any language: inf and nan, which JSON does not know, become null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, default=str, allow_nan=False)


def is_running(pid: str) -> bool:
    """Whether another process of this number is at work, so that what it left unfinished is not to be touched."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
