"""Finished tasks on disk, so that an evaluation that was interrupted goes on where it was."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrune.errors import OutputError
from calibrune.lm.loading import cache_folder


def finished_folder() -> Path:
    """Where the results of single tasks are kept."""
    return cache_folder() / "evaluations"


def read_finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The record of a task that was finished under this key; None where there is none, or one that is damaged."""
    try:
        record = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("key") == key else None


def write_atomically(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all: readers see the old one or the new one.

    Raises:
        OutputError: nothing can be written there.
    """
    text = json.dumps(record, ensure_ascii=False, indent=1, default=str)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise OutputError(f"nothing can be written to {str(path)!r} ({error.strerror}); choose another file") from None


def check_writable(path: Path) -> None:
    """Raise `OutputError` before work begins if a file cannot be written there."""
    if path.is_dir():
        raise OutputError(f"{str(path)!r} is a folder, a file was expected; choose another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OutputError(f"nothing can be written to {str(path)!r} ({error.strerror}); choose another file") from None


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
