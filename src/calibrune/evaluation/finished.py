"""Finished tasks on disk, so that an evaluation that was interrupted goes on where it was."""

import json
from pathlib import Path
from typing import Any

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
