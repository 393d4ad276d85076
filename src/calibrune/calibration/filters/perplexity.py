"""Documents by how likely a model finds them: the least likely, the most likely, or those beyond fixed bounds."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from math import isnan
from typing import Any

from pydantic import Field

from calibrune.calibration.scores import DocumentScorer
from calibrune.corpora.document import Document
from calibrune.errors import CalibrationError, ConfigError
from calibrune.settings import settings

SCORED_AT_ONCE = 64
"""Documents that the scorer is given at once."""


@settings
class PerplexityFilter:
    """Drop the documents that a model finds least likely, or most likely, or both; by rank, by fixed bounds, or both.

    The perplexity is the one recorded as a model wrote the text (of what it wrote: the prompt does not count), else
    what `scorer` says. inf is the highest perplexity; nan is no perplexity: such a document goes for a reason of its
    own and is compared with none.

    Documents beyond the fixed bounds go first; the others are compared in groups of `among` consecutive ones. Of a
    group of n, exactly `int(drop_highest * n)` go at the top and `int(drop_lowest * n)` at the bottom; of equal
    perplexities the later document goes first. So a group is never emptied, ties or not.
    """

    drop_highest: float = Field(default=0.2, ge=0, lt=1)
    """Fraction of each group that goes for its high perplexity."""
    drop_lowest: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of each group that goes for its low perplexity: text that repeats itself is very likely text."""
    among: int | None = Field(default=64, ge=1)
    """Documents in a group; the last may be smaller. None: all at once, which an endless corpus never finishes."""
    min_perplexity: float | None = Field(default=None, gt=0)
    """Documents below it go; None: no bound."""
    max_perplexity: float | None = Field(default=None, gt=0)
    """Documents above it go; None: no bound."""
    scorer: DocumentScorer | None = None
    """Scores the documents that have no perplexity recorded; None: such a document is an error."""
    rescore: bool = False
    """Let the scorer score all documents, whatever is recorded."""

    def __post_init__(self) -> None:
        if self.drop_highest + self.drop_lowest >= 1:
            raise ConfigError(
                f"drop_highest={self.drop_highest:g} and drop_lowest={self.drop_lowest:g} leave nothing; "
                "together they must be below 1"
            )
        low, high = self.min_perplexity, self.max_perplexity
        if low is not None and high is not None and low > high:
            raise ConfigError(
                f"min_perplexity={low:g} and max_perplexity={high:g} leave nothing; "
                "the first must not be above the second"
            )
        if self.rescore and self.scorer is None:
            raise ConfigError("rescore=True needs a scorer: give one, or use the recorded perplexities")

    @property
    def share_kept(self) -> float:
        """Of the documents that come, but for fixed bounds, which nobody knows beforehand."""
        return 1 - self.drop_highest - self.drop_lowest

    @property
    def group(self) -> int | None:
        """Documents that are compared with each other: where none goes by its rank, none waits for others."""
        return self.among if self.drop_highest or self.drop_lowest else 1

    def describe(self) -> dict[str, Any]:
        """The settings as JSON; bounds and the scorer only where there are such."""
        said = {
            "drop_highest": self.drop_highest,
            "drop_lowest": self.drop_lowest,
            "among": self.among,
            **({} if self.min_perplexity is None else {"min_perplexity": self.min_perplexity}),
            **({} if self.max_perplexity is None else {"max_perplexity": self.max_perplexity}),
        }
        by = {} if self.scorer is None else {"scorer": self.scorer.describe(), "rescore": self.rescore}
        return {"kind": type(self).__name__, **said, **by}

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield each group's documents once the group is full.

        Raises:
            CalibrationError: a document has no recorded perplexity, and there is no scorer.
        """
        scored = self._comparable(documents, dropped)
        while group := list(islice(scored, self.group)):
            n_highest, n_lowest = int(self.drop_highest * len(group)), int(self.drop_lowest * len(group))
            perplexities = [perplexity for _, perplexity in group]
            # a stable sort leaves equal ones in their order, so the cut takes the later ones
            rising = sorted(range(len(group)), key=lambda i: perplexities[i])
            goes = set(rising[len(group) - n_highest :])
            falling = sorted((i for i in rising if i not in goes), key=lambda i: -perplexities[i])
            goes.update(falling[len(falling) - n_lowest :])
            dropped.update(_reasons(self, n_highest, n_lowest))
            yield from (document for i, (document, _) in enumerate(group) if i not in goes)

    def _comparable(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[tuple[Document, float]]:
        for document, perplexity in self._scored(documents):
            if isnan(perplexity):
                dropped["perplexity is not a number"] += 1
            elif self.min_perplexity is not None and perplexity < self.min_perplexity:
                dropped[f"perplexity below {self.min_perplexity:g}"] += 1
            elif self.max_perplexity is not None and perplexity > self.max_perplexity:
                dropped[f"perplexity above {self.max_perplexity:g}"] += 1
            else:
                yield document, perplexity

    def _scored(self, documents: Iterable[Document]) -> Iterator[tuple[Document, float]]:
        coming = iter(documents)
        # side by side, for that is faster; one by one where there is nothing to compute, so that none is read in vain
        at_once = SCORED_AT_ONCE if self.scorer else 1
        while batch := list(islice(coming, min(at_once, self.among or at_once))):
            unknown = [document for document in batch if self.rescore or document.perplexity is None]
            if unknown and self.scorer is None:
                raise CalibrationError(
                    f"the perplexity filter needs the perplexity of every document, but {unknown[0].id!r} has none: "
                    "calibrate on self-generated text, which records it, give the filter a scorer, or leave it out"
                )
            scores = iter(self.scorer.score(unknown) if self.scorer else ())
            for document in batch:
                known = None if self.rescore else document.perplexity
                yield document, next(scores) if known is None else known


def _reasons(of: PerplexityFilter, n_highest: int, n_lowest: int) -> Counter[str]:
    highest = f"perplexity among the highest {of.drop_highest:.10g}"
    lowest = f"perplexity among the lowest {of.drop_lowest:.10g}"
    return +Counter({highest: n_highest, lowest: n_lowest})
