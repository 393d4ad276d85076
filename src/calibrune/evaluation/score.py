"""A measured number, with its uncertainty and the protocol that it was measured by."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Score:
    """One measured number: its uncertainty, its items, and how it was measured."""

    metric: str
    """What was measured: "perplexity", ..."""
    value: float
    stderr: float | None
    """Standard error of `value`; None where the items are too few to tell. How it was come by is in `protocol`."""
    n: int
    """Items that `value` is a mean of: windows, texts."""
    higher_is_better: bool
    items: tuple[float, ...]
    """One number an item, in the order of the data, for paired comparisons."""
    protocol: dict[str, Any]
    """How it was measured: everything that can change the number."""

    def __str__(self) -> str:
        spread = "no standard error" if self.stderr is None else f"± {self.stderr:.2g}"
        return f"{self.value:.4g} ({spread})"
