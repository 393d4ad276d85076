"""What sparsity is asked for: a fraction anywhere (`Unstructured`), or N of every M (`SemiStructured`).

Published code disagrees about whether N:M counts the weights that stay or those that go. Here N counts what **stays**.
"""

import re
import reprlib
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from calibrune.errors import ConfigError


@dataclass(frozen=True)
class Unstructured:
    """A fraction of the weights goes, anywhere inside a comparison group."""

    sparsity: float
    """Fraction of weights set to zero, in [0, 1)."""

    def __post_init__(self) -> None:
        asked: Any = self.sparsity
        if not _is_number(asked):
            raise ConfigError(f"sparsity must be a number in [0, 1), got {reprlib.repr(asked)}")
        if not 0.0 <= asked < 1.0:
            hint = _as_yaml_meant(asked) or "for one half write 50% or 0.5"
            raise ConfigError(f"sparsity must be in [0, 1), got {_written(asked)}; {hint}")
        # one type, and no -0.0: equal patterns are written alike, so that they have the same key in a record
        object.__setattr__(self, "sparsity", float(asked) + 0.0)

    def __str__(self) -> str:
        """The shortest text that `parse_pattern` reads back as exactly this pattern."""
        return repr(self.sparsity).removesuffix(".0")

    def n_pruned(self, group_size: int) -> int:
        """How many of `group_size` weights go: `int(sparsity * group_size)`, rounded down, as everywhere in the field.

        The product is a floating-point one: of 100 weights, 29% is 28, for 0.29 * 100 is 28.999999999999996.
        """
        return int(self.sparsity * group_size)


@dataclass(frozen=True)
class SemiStructured:
    """N:M sparsity: `n` weights stay in every `m` consecutive input features."""

    n: int
    """Weights that stay in a block (not the number removed)."""
    m: int
    """Length of a block along the input features."""

    def __post_init__(self) -> None:
        n: Any = self.n
        m: Any = self.m
        if not (_is_whole(n) and _is_whole(m) and 0 < n < m):
            raise ConfigError(
                "N:M sparsity needs whole numbers 0 < N < M (N weights stay in every M), got "
                f"{_written(n)}:{_written(m)}; try 2:4 or 4:8"
            )
        object.__setattr__(self, "n", int(n))
        object.__setattr__(self, "m", int(m))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """Fraction of weights set to zero."""
        return 1.0 - self.n / self.m


SparsityPattern = Unstructured | SemiStructured


def parse_pattern(text: str | float | SparsityPattern) -> SparsityPattern:
    """Read "60%", "0.6", 0.6 or "2:4".

    >>> parse_pattern("60%"), parse_pattern("2:4")
    (Unstructured(sparsity=0.6), SemiStructured(n=2, m=4))
    """
    if isinstance(text, Unstructured | SemiStructured):
        return text
    if not isinstance(text, str):
        return Unstructured(text)
    said = text.strip()
    if match := re.fullmatch(r"(\d{1,6}):(\d{1,6})", said, re.ASCII):
        return SemiStructured(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+))((?:[eE][+-]?\d+)?|\s*%)", said, re.ASCII):
        # through the decimal text, so that 29% is the same float as 0.29
        return Unstructured(float(f"{match[1]}e-2" if match[2].endswith("%") else said))
    raise ConfigError(
        f"cannot read {reprlib.repr(text)} as a sparsity; write a percentage (60%), a fraction (0.6) or N:M (2:4)"
    )


def parse_target(text: str | float | SparsityPattern) -> SparsityPattern:
    """Read what is asked of a whole model: as `parse_pattern`, but to prune nothing is most likely a slip.

    A layer, or a block of an allocation, may well get 0.
    """
    target = parse_pattern(text)
    if target.sparsity == 0:
        raise ConfigError(f"a sparsity of {percent(target)} prunes nothing, got {text!r}; ask for more than 0%")
    return target


def percent(pattern: SparsityPattern | str) -> str:
    """As people say it: "60%" where a record has "0.6"; N:M as it is.

    >>> percent("0.6"), percent("2:4")
    ('60%', '2:4')
    """
    read = parse_pattern(pattern)
    return f"{100 * read.sparsity:.10g}%" if isinstance(read, Unstructured) else str(read)


def _written(given: Any) -> str:
    """A number as people write it, as far as it can be."""
    try:
        return f"{given:g}" if isinstance(given, float) else reprlib.repr(given)
    except ValueError:  # of thousands of digits
        return "a number of thousands of digits"


def _is_number(given: object) -> bool:
    return isinstance(given, Real) and not isinstance(given, bool)


def _is_whole(given: object) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool)


def _as_yaml_meant(number: Any) -> str | None:
    """YAML 1.1 reads an unquoted 2:4 as two minutes and four seconds, 124."""
    n, m = divmod(int(number), 60) if _is_whole(number) else (0, 0)
    return f"if {n}:{m} was meant: in YAML it needs quotes, '{n}:{m}'" if 0 < n < m else None
