"""What sparsity is asked for: a fraction anywhere (`Unstructured`), or N of every M (`SemiStructured`).

The field's code disagrees about whether N:M counts the weights that stay or those that go. Here N counts what **stays**.
"""

import re
from dataclasses import dataclass

from calibrune.errors import ConfigError


@dataclass(frozen=True)
class Unstructured:
    """A fraction of the weights goes, anywhere inside a comparison group."""

    sparsity: float
    """Fraction of weights set to zero, in [0, 1)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise ConfigError(f"sparsity must be in [0, 1), got {self.sparsity:g}; for one half write 50% or 0.5")

    def __str__(self) -> str:
        return f"{self.sparsity:.10g}"

    def n_pruned(self, group_size: int) -> int:
        """How many of `group_size` weights go: rounded down, as everywhere in the field."""
        return int(self.sparsity * group_size)


@dataclass(frozen=True)
class SemiStructured:
    """N:M sparsity: `n` weights stay in every `m` consecutive input features."""

    n: int
    """Weights that stay in a block (not the number removed)."""
    m: int
    """Length of a block along the input features."""

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ConfigError(
                f"N:M sparsity needs 0 < N < M (N weights stay in every M), got {self.n}:{self.m}; try 2:4 or 4:8"
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        return 1.0 - self.n / self.m


SparsityPattern = Unstructured | SemiStructured


def parse_pattern(text: str | float | SparsityPattern) -> SparsityPattern:
    """Read "60%", "0.6", 0.6 or "2:4".

    >>> parse_pattern("60%"), parse_pattern("2:4")
    (Unstructured(sparsity=0.6), SemiStructured(n=2, m=4))
    """
    if isinstance(text, Unstructured | SemiStructured):
        return text
    text = str(text).strip()
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        return SemiStructured(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(-?\d+(?:\.\d*)?|-?\.\d+)(%?)", text):
        # through the decimal text, so that 29% is the same float as 0.29
        return Unstructured(float(f"{match[1]}e-2") if match[2] else float(match[1]))
    raise ConfigError(f"cannot read {text!r} as a sparsity; write a percentage (60%), a fraction (0.6) or N:M (2:4)")
