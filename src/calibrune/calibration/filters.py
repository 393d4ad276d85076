"""Filters take documents and yield those that stay, in the order they came; what goes is counted, with its reason."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from math import isnan
from typing import Protocol, runtime_checkable

from pydantic import Field

from calibrune.corpora.document import Document
from calibrune.errors import CalibrationError, ConfigError
from calibrune.settings import settings


@runtime_checkable
class Filter(Protocol):
    """Lets some documents through. Implementations are frozen dataclasses: fields are settings, and are recorded."""

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield the documents that stay, in their order; count the others in `dropped`, by reason."""


@settings
class PerplexityFilter:
    """Drop the documents that the model itself finds least likely, by the perplexity recorded as they were written.

    Documents are compared in groups of `among` consecutive ones. Of a group of n, exactly `int(drop_highest * n)` go at
    the top and `int(drop_lowest * n)` at the bottom; of equal perplexities the later document goes first. So a group is
    never emptied, ties or not. inf is the highest perplexity; nan is no perplexity: such a document goes for a reason
    of its own and is compared with none.
    """

    drop_highest: float = Field(default=0.2, ge=0, lt=1)
    """Fraction of each group that goes for its high perplexity."""
    drop_lowest: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of each group that goes for its low perplexity: text that repeats itself is very likely text."""
    among: int | None = Field(default=64, ge=1)
    """Documents in a group; the last may be smaller. None: all at once, which an endless corpus never finishes."""

    def __post_init__(self) -> None:
        if self.drop_highest + self.drop_lowest >= 1:
            raise ConfigError(
                f"drop_highest={self.drop_highest:g} and drop_lowest={self.drop_lowest:g} leave nothing; "
                "together they must be below 1"
            )

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield each group's documents once the group is full.

        Raises:
            CalibrationError: a document has no recorded perplexity.
        """
        scored = _with_perplexity(documents, dropped)
        while group := list(islice(scored, self.among)):
            n_highest, n_lowest = int(self.drop_highest * len(group)), int(self.drop_lowest * len(group))
            perplexities = [perplexity for _, perplexity in group]
            # a stable sort leaves equal ones in their order, so the cut takes the later ones
            rising = sorted(range(len(group)), key=lambda i: perplexities[i])
            goes = set(rising[len(group) - n_highest :])
            falling = sorted((i for i in rising if i not in goes), key=lambda i: -perplexities[i])
            goes.update(falling[len(falling) - n_lowest :])
            dropped.update(_reasons(self, n_highest, n_lowest))
            yield from (document for i, (document, _) in enumerate(group) if i not in goes)


@settings
class LengthFilter:
    """Drop short documents."""

    min_chars: int = Field(default=200, ge=1)
    """Documents with fewer characters go."""

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield the documents that are long enough."""
        for document in documents:
            if len(document.text) >= self.min_chars:
                yield document
            else:
                dropped[f"fewer than {self.min_chars} characters"] += 1


FILTERS: dict[str, type[Filter]] = {"perplexity": PerplexityFilter, "length": LengthFilter}


def _with_perplexity(documents: Iterable[Document], dropped: Counter[str]) -> Iterator[tuple[Document, float]]:
    for document in documents:
        if document.perplexity is None:
            raise CalibrationError(
                f"the perplexity filter needs documents with a recorded perplexity, but {document.id!r} has none: "
                "calibrate on self-generated text, which records it, or leave the filter out"
            )
        if isnan(document.perplexity):
            dropped["perplexity is not a number"] += 1
        else:
            yield document, document.perplexity


def _reasons(of: PerplexityFilter, n_highest: int, n_lowest: int) -> Counter[str]:
    highest = f"perplexity among the highest {of.drop_highest:.10g}"
    lowest = f"perplexity among the lowest {of.drop_lowest:.10g}"
    return +Counter({highest: n_highest, lowest: n_lowest})
