"""Several sides of one comparison, in one process and in turns: what else runs on the machine meets them all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any


def in_turns(sides: Mapping[str, Callable[[], object]], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each side, `repeats` of them, after `warm` runs that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warm + repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if repeat >= warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, as they stand in a row; of a single one, that one."""
    low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (*seconds, None, *seconds)
    return {"median": median(seconds), "low": low, "high": high}


def compared(ours: Sequence[float], theirs: Sequence[float], baseline: str) -> dict[str, Any]:
    """The part of a row that says how long both took; over 1 where we are faster."""
    return {
        "seconds": spread(ours),
        "baseline": {f"{baseline}, seconds": spread(theirs)},
        "ratio": median(theirs) / median(ours),
        "repeats": len(ours),
    }
