"""What a generation run will write, told before it starts; how fast it is and how long it will take, while it runs."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrune.corpora.journal import BYTES_PER_TOKEN, Journal
from calibrune.errors import OutputError

log = logging.getLogger(__name__)

FIRST, EVERY = 5.0, 60.0
"""Seconds before the first line about the pace, and between two of them."""


@dataclass(frozen=True)
class Reader:
    """Who reads the texts, as far as it matters for how many will be needed."""

    tokens: int
    """Tokens of windows to fill."""
    kept: float = 1.0
    """Share of the texts that filters leave."""
    group: int = 1
    """Texts that are compared with each other: so many are always written before one of them is used."""

    def texts(self, tokens_each: float) -> int:
        """How many texts of so many tokens it takes."""
        return self.group * max(1, math.ceil(self.tokens / (self.kept * tokens_each) / self.group))


class Pace:
    """Counts tokens and seconds of one run."""

    def __init__(
        self, reader: Reader | None, n_texts: int | None, longest: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reader, self._n_texts, self._longest, self._clock = reader, n_texts, longest, clock
        self._texts = self._tokens = self._new_tokens = 0
        self._started = self._said = clock()
        self._told = False

    def needed(self, tokens_each: float) -> int | None:
        """How many texts there will be, if each has so many tokens; None: nobody knows."""
        if self._reader is None:
            return self._n_texts
        wanted = self._reader.texts(tokens_each)
        return wanted if self._n_texts is None else min(wanted, self._n_texts)

    def plan(self, journal: Journal) -> None:
        """Say what will be written, and check that there is room for it.

        Raises:
            OutputError: the disk has less room than the plan needs.
        """
        n = self.needed(self._longest)
        there = len(journal)
        if n is None or there >= n:
            return
        tokens = (n - there) * self._longest
        size = tokens * BYTES_PER_TOKEN
        least = "" if self._n_texts == n else "at least "
        log.info(
            "writing %s%s texts of up to %s tokens (%s are there): up to %s tokens and %s in %s%s",
            *(least, f"{n:,}", f"{self._longest:,}", f"{there:,}", f"{tokens:,}", _bytes(size), journal.file),
            "; more texts where the model ends them early" if least else "",
        )
        if (free := _free(journal.file)) < size:
            raise OutputError(
                f"up to {_bytes(size)} of texts are to be kept in {journal.file.parent}, and {_bytes(free)} are free; "
                f"make room, or set CALIBRUNE_CACHE to a folder elsewhere"
            )

    def note(self, tokens: Sequence[int], new: bool) -> None:
        """Texts of so many written tokens are finished; `new` where they were written now."""
        self._texts, self._tokens = self._texts + len(tokens), self._tokens + sum(tokens)
        if not new:
            return
        self._new_tokens += sum(tokens)
        now = self._clock()
        if now - self._said >= (EVERY if self._told else FIRST):
            self._said, self._told = now, True
            log.info("%s", self._line(now - self._started))

    def _line(self, seconds: float) -> str:
        rate = self._new_tokens / seconds
        said = f"{self._texts:,} texts, {rate:,.0f} tokens/s"
        each = max(1.0, self._tokens / self._texts)
        n = self.needed(each)
        if n is None or not rate:
            return said
        about = "" if n == self._n_texts else "about "
        left = max(0, n - self._texts) * each / rate
        return f"{said}; of {about}{n:,} texts, some {_duration(left)} left"


def _free(file: Path) -> int:
    folder = next(folder for folder in file.parents if folder.exists())
    return shutil.disk_usage(folder).free


def _bytes(n: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
