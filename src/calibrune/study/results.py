"""The folder of a study: rows that are only ever appended, a record of every run, and a lock."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from calibrune.durable import append, parsed, sealed, to_json, unsealed, write_whole
from calibrune.errors import OutputError, StorageError

log = logging.getLogger(__name__)

NO_ROW = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What `check_row` raises."""

ITEMS_IN_A_ROW = 4096
"""A row with more items than this has them in its record alone."""


@dataclass(frozen=True)
class Results:
    """What a study has found, in its folder.

    `results.jsonl` has one row a run, in the order in which they ended, each on disk before the next begins; of two
    rows with one key the later counts. `runs/KEY.json` is the run's record, written before its row: the manifest of the
    calibration set, every layer, every protocol, all items. `plan.yaml` is the plan as it was run last.
    """

    folder: Path

    @property
    def file(self) -> Path:
        """Where the rows are."""
        return self.folder / "results.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a last one that a crash cut short, or one that is damaged, is passed over."""
        if not self.file.exists():
            return []
        rows = []
        for number, line in enumerate(self.file.read_bytes().split(b"\n")[:-1], 1):
            try:
                row = unsealed(parsed(line))
                check_row(row)
                rows.append(row)
            except NO_ROW:
                log.warning("line %d of %s is damaged; its run counts as not done", number, self.file)
        return rows

    def latest(self) -> dict[str, dict[str, Any]]:
        """The row that counts, by key; one whose record is damaged, and not just removed, counts as not done."""
        found = {row["key"]: row for row in self.rows()}
        for key, row in list(found.items()):
            try:
                _ = row["status"] == "done" and self._file(key).exists() and self.record(key)
            except OutputError as error:
                log.warning("%s", error)
                del found[key]
        return found

    def record(self, key: str) -> dict[str, Any]:
        """The record of a run.

        Raises:
            OutputError: there is none, or it is damaged.
        """
        file = self._file(key)
        try:
            return unsealed(parsed(file.read_bytes()))
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{file}, the record of a run, cannot be read ({error}); `calibrune study run` does the run anew"
            ) from None

    def _file(self, key: str) -> Path:
        return self.folder / "runs" / f"{Path(key).name}.json"

    def items(self, row: Mapping[str, Any]) -> list[list[float]]:
        """The items of a row's scores, wherever they are."""
        scores = row["scores"]
        if any(score["items"] is None for score in scores):
            record = self.record(row["key"])
            try:
                check_row(record | {name: row[name] for name in ("key", "id", "status", "seconds", "run")})
                scores = record["scores"]
            except NO_ROW:
                raise OutputError(f"the record of the run {row['key']} in {self.folder} is none of a run") from None
        return [score["items"] or [] for score in scores]

    def append(self, row: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> None:
        """Add a row, and its run's record before it; when this returns, both survive a crash of the machine.

        Raises:
            StorageError: they cannot be written; the rows before are safe.
        """
        scores = row.get("scores", ())
        if sum(len(score["items"]) for score in scores) > ITEMS_IN_A_ROW:
            row = {**row, "scores": [{**score, "items": None} for score in scores]}
        # through `to_json`, which knows what to do with inf and nan; in one line
        line = json.dumps(sealed(json.loads(to_json(row))), ensure_ascii=False) + "\n"
        with self._writing("a row cannot be added to", self.file):
            if record is not None:
                kept = sealed(json.loads(to_json(record)))
                write_whole(self._file(row["key"]), to_json(kept).encode())
            self.folder.mkdir(parents=True, exist_ok=True)
            append(self.file, line.encode())

    def note(self, state: Mapping[str, Any]) -> None:
        """Say what is being done, for `calibrune study status`; `StorageError` where there is no room for it."""
        file = self.folder / "state.json"
        with self._writing("nothing can be written to", file):
            write_whole(file, to_json({"pid": os.getpid(), **state}).encode())

    @contextmanager
    def _writing(self, what: str, file: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, OutputError) as error:
            cause = error.__cause__ if isinstance(error, OutputError) else error
            raise StorageError(
                f"{what} {str(file)!r} ({getattr(cause, 'strerror', None) or error}); the rows that there are are "
                f"safe: make room, and start the same command again"
            ) from error

    def state(self) -> dict[str, Any]:
        """What was noted last; nothing where nothing was."""
        try:
            found = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """While it lasts, no other process works on this study; a process that is killed lets go of it.

        Raises:
            OutputError: another one does, or the folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"another process (number {self.state().get('pid', 'unknown')}) is at work on the study in "
                f"{self.folder}: wait for it, end it, or give this one another --out; `calibrune study status "
                f"{self.folder}` says how far it is"
            ) from None
        except OSError as error:
            raise OutputError(
                f"nothing can be written to {self.folder} ({error.strerror}); choose another --out"
            ) from None
        try:
            yield
        finally:
            lock.release()

    @property
    def is_running(self) -> bool:
        """Whether a process is at work on it."""
        if not (self.folder / ".lock").exists():
            return False
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                return False
        except Timeout:
            return True


def check_row(row: Mapping[str, Any]) -> None:
    """Raise one of `NO_ROW` unless a row has what is read of it; rows are files too, and may be anybody's."""
    if not all(isinstance(row[name], str) for name in ("key", "id")) or row["status"] not in ("done", "failed"):
        raise ValueError("its key, id or status is none")
    if row["status"] == "failed":
        row["error"] + ""
        return
    if not isfinite(row["seconds"]["all"]) or not isinstance(row["run"]["pruner"], str | None):
        raise ValueError("its time or method is none")
    if not all(isinstance(row.get(part), dict | None) for part in ("calibration", "pruning", "compute", "versions")):
        raise ValueError("a part of it is none")
    if not all(isinstance(version, str | None) for version in (row.get("versions") or {}).values()):
        raise ValueError("a version is none")
    for score in row["scores"]:
        if not isinstance(score["dataset"], str | None) or not isinstance(score["metric"], str):
            raise ValueError("a score has no name")
        items = score["items"] if score["items"] is not None else []
        for number in (score["value"], score["stderr"], *items):
            isinstance(number, bool) or number is None or isnan(number)
        if not isinstance(items, list) or not isinstance(score["higher_is_better"], bool):
            raise ValueError("a score is none")
