"""Finished texts on disk, one line of JSON each: appended durably, never changed, found again by their key."""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from calibrune.durable import append, keeping, parsed, sealed, unsealed
from calibrune.lm.generation import GeneratedText

log = logging.getLogger(__name__)

HEAD = '{"key": '
"""How a line begins, so that a key is found without reading the rest of its line."""

BYTES_PER_TOKEN = 28
"""About what a token and its score take in a line: six digits of id, twenty of log-probability, commas."""


class Journal:
    """The texts in one file. Threads and processes may share it: whoever is first to finish a text is kept."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._places: dict[str, tuple[int, int]] = {}  # key -> offset and length of its line
        self._scanned = 0
        self._thread = threading.RLock()
        self._scan()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, key: str, prompt: tuple[int, ...]) -> GeneratedText | None:
        """The text of this key; None where there is none, or its line is damaged or begins with another prompt."""
        with self._thread:
            if key not in self._places:
                return None
            offset, length = self._places[key]
            try:
                with self.file.open("rb") as file:
                    file.seek(offset)
                    text = _text(file.read(length))
                if text.token_ids[: text.prompt_length] == prompt:
                    return text
                why: object = "it begins with another prompt"
            except (ValueError, TypeError, KeyError, OSError) as error:
                why = error
            log.warning("the line of %s in %s is damaged (%s); it is written anew", key, self.file.name, why)
            del self._places[key]
            return None

    def append(self, texts: Mapping[str, GeneratedText]) -> None:
        """Add the texts that are not there yet; when this returns, they survive a crash of the machine.

        Raises:
            RunError: they cannot be written, for example because the disk is full; what was there before stays.
        """
        with self._thread, keeping(f"{len(texts)} texts", self.file, f"the {len(self):,} before them are safe"):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):
                self._scan()
                new = [_line(key, text) for key, text in texts.items() if key not in self._places]
                append(self.file, b"".join(new))
                self._scan()

    def _scan(self) -> None:
        """Take note of the whole lines that came since the last look, of other processes too."""
        try:
            file = self.file.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self._scanned)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn, or being written right now
                if (key := _key(line)) is None:
                    log.warning("%s has a line that is damaged; its text is written anew", self.file.name)
                else:
                    self._places[key] = (self._scanned, len(line))
                self._scanned += len(line)


def _line(key: str, text: GeneratedText) -> bytes:
    return (json.dumps(sealed({"key": key} | asdict(text))) + "\n").encode()


def _key(line: bytes) -> str | None:
    try:
        key, _ = json.JSONDecoder().raw_decode(line[:4096].decode(errors="replace"), len(HEAD))
    except ValueError:
        return None
    return key if isinstance(key, str) and line.startswith(HEAD.encode()) and line.endswith(b"}\n") else None


def _text(line: bytes) -> GeneratedText:
    row = unsealed(parsed(line))
    text = GeneratedText(tuple(row["token_ids"]), row["prompt_length"], tuple(row["log_probs"]), row["finished"])
    if len(text.token_ids) != text.prompt_length + len(text.log_probs):
        raise ValueError("a token has no score")
    return text
