"""How long one waits before anything is seen: the import, the help page, and the first sign of a prune at work.

Each is a process of its own, as a user starts it, with the files of the packages in the system's cache (a run before
does not count). Of the prune, the model is converted already, and the clock stops at the first bar of the pruning
itself: imports, loading, hashing the weights and drawing the calibration set are over by then.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.methods import SMOLLM2
from benchmarks.turns import in_turns, spread

REPEATS, PRUNES = 11, 5
SAMPLES, LENGTH = 32, 512
BAR = b"pruning ("
"""How the bar of a prune begins."""


def measure(repeats: int = REPEATS, prunes: int = PRUNES) -> Iterator[dict[str, Any]]:
    """Seconds of each; the interpreter's own start is in all of them, and stands in the setting."""
    sides = {
        "python -c pass": lambda: _wait(["-c", "pass"]),
        "import calibrune": lambda: _wait(["-c", "import calibrune"]),
        "calibrune --help": lambda: _wait(["-m", "calibrune", "--help"]),
        "import torch, transformers": lambda: _wait(["-c", "import torch, transformers"]),
    }
    seconds = in_turns(sides, repeats)
    alone = {f"{name}, seconds": spread(times)["median"] for name, times in seconds.items()}
    for name, limit in (("import calibrune", 0.4), ("calibrune --help", 0.4)):
        yield {
            "name": f"start: {name}",
            "setting": {"beside it": alone, "limit_seconds": limit},
            "seconds": spread(seconds[name]),
            "repeats": repeats,
        }
    first: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pruned"
        data = ["--calibration", "random", "--samples", str(SAMPLES), "--seq-len", str(LENGTH)]
        for _ in range(1 + prunes):
            first.append(_until_seen(["-m", "calibrune", "prune", SMOLLM2, *data, "--out", str(out)]))
    for i, what in enumerate(("the first line", "the first progress bar of the pruning")):
        yield {
            "name": f"start: calibrune prune {SMOLLM2} to {what} on stderr",
            "setting": {"model": SMOLLM2, "calibration": f"random tokens, {SAMPLES} x {LENGTH}", "limit_seconds": 5}
            | {"import torch, transformers, seconds": alone["import torch, transformers, seconds"]},
            "seconds": spread([times[i] for times in first[1:]]),
            "repeats": prunes,
        }


def _wait(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def _until_seen(arguments: list[str]) -> tuple[float, float]:
    """Start a command, and end it when the bar is there; seconds to the first output on stderr, and to the bar."""
    clock: Callable[[], float] = time.perf_counter
    start, said, any_line = clock(), b"", 0.0
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while BAR not in said:
            part = os.read(process.stderr.fileno(), 1 << 16)
            if not part:
                raise RuntimeError(f"{arguments} ended before its bar: {said[-2000:].decode(errors='replace')}")
            any_line = any_line or clock() - start
            said += part
        seen = clock() - start
        process.terminate()
    return any_line, seen
