"""Progress bars with the time left, on stderr; quiet where stderr is not a terminal, unless asked for."""

import logging
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Never, TypeVar

from tqdm import tqdm

from calibrune.errors import plain, without_secrets

T = TypeVar("T")

_wanted: bool | None = None


def show_progress(wanted: bool | None) -> None:
    """True: always; False: never; None (the default): where stderr is a terminal."""
    global _wanted
    _wanted = wanted


def track(items: Iterable[T], description: str, *, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield the items under a progress bar."""
    with progress_bar(description, total=total if total is not None else _length(items), unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar that can be interrupted at any time, while it is made too."""

    # tqdm sets it last of what closing needs: collected before that, a bar would print a traceback of its own
    pos = 0


def progress_bar(description: str, *, total: int | None = None, unit: str = "it") -> "tqdm[Never]":
    """A bar to be updated by hand: `bar.update(n)`."""
    terminal = sys.stderr.isatty()
    shown = terminal if _wanted is None else _wanted
    # a log file gets a line every ten seconds, not ten a second
    pace = 0.1 if terminal else 10.0
    # a bar inside another one is gone when it is done: one batch after the other would fill the screen with them
    return _Bar(
        desc=plain(description),
        total=total,
        unit=unit,
        disable=not shown,
        mininterval=pace,
        file=sys.stderr,
        leave=None,
    )


def close_bars() -> None:
    """End the bars that an error left open, so that what is said of it begins a line."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


class AboveBars(logging.Handler):
    """Writes log lines to stderr above the bars that are open, and not into the middle of one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        tqdm.write(without_secrets(plain(self.format(record))), file=sys.stderr)


def _length(items: Iterable[T]) -> int | None:
    return len(items) if isinstance(items, Sized) else None
