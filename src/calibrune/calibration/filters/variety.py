"""Documents that together say the most different things: of many that say the same, a few stay."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from pydantic import Field

from calibrune.calibration.filters.repetition import words
from calibrune.corpora.document import Document
from calibrune.settings import settings


@settings
class VarietyFilter:
    """Keep, of each group of documents, those that together have the most different words.

    One after the other the document is taken that has the most words that none taken before has, those of earlier
    groups included; of equal ones the first. That is at least 1 - 1/e of what the best choice from a group could add
    (Nemhauser, Wolsey and Fisher, 1978). A free choice among generated texts costs their writing: half dropped is
    twice as much to write.

    That calibration data should be lexically varied is ZipCal's idea (2026, arXiv 2603.16105), whose choice is another
    one.
    """

    drop_alike: float = Field(default=0.5, ge=0, lt=1)
    """Fraction of each group that goes: exactly `int(drop_alike * n)` of n documents."""
    variety_among: int = Field(default=64, ge=1)
    """Documents in a group; the last may be smaller."""
    first_words: int | None = Field(default=1000, ge=1)
    """Only the first so many words of a document count, so that a long one does not win by its length; None: all."""

    @property
    def share_kept(self) -> float:
        """Of the documents that come."""
        return 1 - self.drop_alike

    @property
    def group(self) -> int | None:
        """Documents that are compared with each other."""
        return self.variety_among

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield each group's documents once the group is full, in the order they came."""
        coming, seen = iter(documents), set[str]()
        while group := list(islice(coming, self.variety_among)):
            n_dropped = int(self.drop_alike * len(group))
            stays = _most_varied([self._words(one) for one in group], len(group) - n_dropped, seen)
            dropped.update(+Counter({f"fewest new words, of {self.drop_alike:.10g}": n_dropped}))
            yield from (group[i] for i in sorted(stays))

    def _words(self, document: Document) -> set[str]:
        return set(words(document.text)[: self.first_words])


def _most_varied(sets: Sequence[set[str]], n: int, seen: set[str]) -> list[int]:
    """Which `n` sets add the most to `seen`, chosen greedily; what they have is added to it."""
    left, chosen = set(range(len(sets))), list[int]()
    while len(chosen) < n:
        best = max(sorted(left), key=lambda i: len(sets[i] - seen))
        left.remove(best)
        chosen.append(best)
        seen |= sets[best]
    return chosen
