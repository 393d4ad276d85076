"""`python -m benchmarks [NAME ...]`: measure, print, and add rows to results/; all of them without a name."""

import sys
from functools import partial

from benchmarks import (
    demo,
    engine,
    fidelity,
    generation,
    grid,
    harness,
    large,
    memory,
    methods,
    narrow,
    peers,
    rounding,
    scale,
    scaling,
    solve,
    startup,
    vocabulary,
    whole,
)
from benchmarks.rows import save

MEASUREMENTS = {
    "demo": demo.measure,
    "engine": engine.measure,
    "engine-study": engine.measure_study,
    "generation": generation.measure,
    "grid": grid.measure,
    "harness": harness.measure,
    "large": large.measure,
    "memory": memory.measure,
    "narrow": narrow.measure,
    "rounding": rounding.measure,
    "fidelity-masks": fidelity.measure,
    "peers": peers.measure,
    "scale": scale.measure,
    "scaling": scaling.measure,
    "solve": solve.measure,
    "startup": startup.measure,
    "vocabulary": vocabulary.measure,
    "whole": whole.measure,
    **{name: partial(methods.measure, name) for name in methods.PLANS},
}


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        print(f"there is no measurement {unknown[0]!r}; there are: {', '.join(MEASUREMENTS)}", file=sys.stderr)
        return 2
    for name in names or MEASUREMENTS:
        for row in MEASUREMENTS[name]():
            print(save(name, row))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
