"""The folder of a study: rows that are only ever appended, a record of every run, and a lock."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from calibrune.durable import to_json, write_whole
from calibrune.errors import OutputError, RunError

log = logging.getLogger(__name__)

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
                row = json.loads(line)
                rows.append(row | {"key": row["key"], "status": row["status"]})
            except (ValueError, KeyError, TypeError):
                log.warning("line %d of %s is damaged; its run counts as not done", number, self.file)
        return rows

    def latest(self) -> dict[str, dict[str, Any]]:
        """The row that counts, by key."""
        return {row["key"]: row for row in self.rows()}

    def record(self, key: str) -> dict[str, Any]:
        """The record of a run.

        Raises:
            OutputError: there is none, or it is damaged.
        """
        try:
            found: dict[str, Any] = json.loads((self.folder / "runs" / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"the run {key} has no readable record in {self.folder / 'runs'} ({error})") from None
        return found

    def items(self, row: Mapping[str, Any]) -> list[list[float]]:
        """The items of a row's scores, wherever they are."""
        scores = row["scores"]
        if any(score["items"] is None for score in scores):
            scores = self.record(row["key"])["scores"]
        return [score["items"] for score in scores]

    def append(self, row: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> None:
        """Add a row, and its run's record before it; when this returns, both survive a crash of the machine.

        Raises:
            OutputError, RunError: they cannot be written; the rows before are safe.
        """
        if record is not None:
            write_whole(self.folder / "runs" / f"{row['key']}.json", to_json(record).encode())
        scores = row.get("scores", ())
        if sum(len(score["items"]) for score in scores) > ITEMS_IN_A_ROW:
            row = {**row, "scores": [{**score, "items": None} for score in scores]}
        # through `to_json`, which knows what to do with inf and nan; in one line
        line = json.dumps(json.loads(to_json(row)), ensure_ascii=False) + "\n"
        try:
            with self.file.open("ab", buffering=0) as file:
                file.write(line.encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"a row cannot be added to {self.file} ({error.strerror}); the rows before it are safe: make room, and "
                f"start the same command again"
            ) from error

    def mend(self) -> None:
        """Cut off a last row that a crash cut short, so that the next begins a line; for who holds the lock."""
        if not self.file.exists():
            return
        with self.file.open("rb+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                log.warning("the last row of %s was cut short by a crash; its run is done anew", self.file.name)
                file.truncate(whole)

    def note(self, state: Mapping[str, Any]) -> None:
        """Say what is being done, for `calibrune study status`."""
        write_whole(self.folder / "state.json", to_json({"pid": os.getpid(), **state}).encode())

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
