"""Ctrl-C and SIGTERM: both end in order what is going on, tell so in a line, and are not lost on the way."""

import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from calibrune.cli.output import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def interruptions() -> Iterator[None]:
    """While it lasts, SIGINT and SIGTERM raise `KeyboardInterrupt`; after it, they end the process at once."""
    sys.unraisablehook = _unraisable
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` leaves it
                signal.signal(number, _raise)
        yield
    finally:  # all is written: who ends it now need not be told of what was going on
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


def interrupted(how: BaseException) -> int:
    """Say what came; the exit status."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    terminated = isinstance(how, Terminated)
    say(f"calibrune: {'terminated' if terminated else 'interrupted'}", err=True)
    return 128 + signal.SIGTERM if terminated else 130


def _raise(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code is _unraisable.__code__:  # what is raised there is dropped, too
            return _send_again(number)
        frame = frame.f_back
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _unraisable(what: Any) -> None:
    """An interruption that came while Python was in a finalizer, where it is dropped, comes again a moment later."""
    if isinstance(what.exc_value, KeyboardInterrupt):
        _send_again(signal.SIGTERM if isinstance(what.exc_value, Terminated) else signal.SIGINT)
    else:
        sys.__unraisablehook__(what)


def _send_again(number: int) -> None:
    # where it is sent as a signal, what waits in the system is woken too
    here = threading.main_thread().ident
    how = (signal.pthread_kill, (here, number)) if hasattr(signal, "pthread_kill") else (interrupt_main, (number,))
    timer = threading.Timer(0.01, *how)
    timer.daemon = True
    timer.start()
