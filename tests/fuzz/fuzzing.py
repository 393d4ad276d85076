"""Bad input by the thousand: real files damaged and rearranged, values that nobody meant; and what may come of it.

`CALIBRUNE_FUZZ=10` tries ten times as many, other ones at every run; else CI finds the same cases every time.
"""

import copy
import json
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from calibrune.errors import CalibruneError

TIMES = int(os.environ.get("CALIBRUNE_FUZZ", "1"))
LONGEST, LARGEST = 300, 4 << 30
"""Seconds after which a case hangs, and bytes that the process may take on top of what it has."""


class Cases:
    """So many cases of a strategy, counted; each is either taken or refused with an error of ours."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted * TIMES
        self.done, self.taken = 0, 0

    def run(
        self, strategy: st.SearchStrategy[Any], check: Callable[[Any], object], record: Callable[..., None]
    ) -> None:
        """Try all; `check` does with the input what a user would, and returns where it was taken."""

        @settings(
            max_examples=self.wanted,
            deadline=None,
            derandomize=TIMES == 1,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def case(value: Any) -> None:
            self.done += 1
            with bounded():
                said = None
                try:
                    check(value)
                except CalibruneError as error:
                    said = str(error)
            self.taken += said is None
            assert said is None or 0 < len(said) < 5000, "an error is a sentence"

        case()
        record("fuzz_cases", self.done)


@contextmanager
def bounded() -> Iterator[None]:
    """Neither endless time nor endless memory."""

    def hangs(number: int, frame: Any) -> None:
        raise AssertionError(f"it hangs: no answer in {LONGEST} s")

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (size + LARGEST, hard))
    signal.alarm(LONGEST)
    logging.disable(logging.CRITICAL)  # thousands of warnings, each rightly given
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([-1, 2**31, 2**53 + 1, 2**63, 10**18, 10**30]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "nan", "-inf", "../../etc/passwd", "\x1b[31m", "\ud800", "a" * 300, "0.5", "2:4", "1e999"]),
)

values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """The bytes of a real file with one to four accidents."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["flip", "flip", "byte", "cut", "gap", "twice", "insert", "zeros"]))
        length = draw(st.integers(1, 40))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and content:
            content[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[place:]
        elif kind == "gap":
            del content[place : place + length]
        elif kind == "twice":
            content[place:place] = content[place : place + length]
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=length))
        elif kind == "zeros":
            content[place : place + length] = bytes(length)
    return bytes(content)


@st.composite
def rearranged(draw: Any, whole: Any) -> Any:
    """A real record with one to three values exchanged, left out, renamed, or made into something else."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        holder, key = draw(st.sampled_from(places)) if places else (None, None)
        if holder is None:
            return draw(values)
        kind = draw(st.sampled_from(["other", "other", "out", "swap", "rename", "nest"]))
        if kind == "other":
            holder[key] = draw(values)
        elif kind == "out":
            del holder[key]
        elif kind == "swap":
            other, name = draw(st.sampled_from(places))
            holder[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(holder[key])
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = holder.pop(key)
        elif kind == "nest":
            holder[key] = [holder[key]]
    return value


def as_json(value: Any) -> bytes:
    """JSON as others may write it: half pairs and infinite numbers too."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)
