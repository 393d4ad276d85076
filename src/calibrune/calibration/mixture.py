"""Several corpora in one calibration set, each with its share of the samples."""

from bisect import bisect
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate
from math import ceil, floor, inf
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from calibrune.calibration.filters import Filter, describe_filter
from calibrune.corpora.document import Corpus, Document
from calibrune.seeds import seed_for
from calibrune.settings import class_record, settings


def turns_of(weights: Sequence[float], n: int) -> list[int]:
    """Which part of a mixture with these weights each of the first `n` samples is of.

    Of a part with share s, sample number c belongs to the turns from c / s to (c + 1) / s; of those that may have
    the turn, the part with the earliest end has it (earliest deadline first, which keeps all ends there can be).
    """
    shares, counts, turns = _shares(weights), [0] * len(weights), []
    for i in range(n):
        may = [p for p, share in enumerate(shares) if floor(counts[p] / share) <= i]
        turn = min(may, key=lambda p: (ceil((counts[p] + 1) / shares[p]), p))
        counts[turn] += 1
        turns.append(turn)
    return turns


def _shares(weights: Sequence[float]) -> tuple[Fraction, ...]:
    for weight in weights:  # those of a manifest were written by anyone
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < inf:
            raise ValueError(f"a weight is a number above 0, not {str(weight)[:40]}")
    exact = [Fraction(str(weight)) for weight in weights]  # as it is written: 0.1 is a tenth
    return tuple(weight / sum(exact) for weight in exact)


@settings
class Part:
    """One corpus of a mixture."""

    corpus: Corpus
    weight: float = Field(default=1.0, gt=0)
    """Its share of the samples is this over the sum of all weights."""
    filters: tuple[Filter, ...] = ()
    """What only its own documents meet, before the filters of the recipe."""


def _as_part(given: Any) -> Any:
    return Part(corpus=given[0], weight=given[1]) if isinstance(given, tuple) and len(given) == 2 else given


@settings
class Mixture:
    """Corpora that are cut into windows each by itself; the samples are dealt out by weight.

    Every sample is of one part. Samples all have the same length, so a share of samples is a share of tokens (but for
    padding). Among the first n samples, for every n, the number of a part differs from its share by less than 1: so a
    smaller set is a part of a larger one, and has the same shares. Parts of one source (the same record, but for
    filters) share out its documents, so that none is used twice.
    """

    parts: tuple[Annotated[Part, BeforeValidator(_as_part)], ...] = Field(min_length=1)
    """In Python also as pairs: `Mixture(parts=((c4, 0.5), (wikipedia, 0.5)))`."""

    @property
    def name(self) -> str:
        shares = zip(self.shares, self.names, strict=True)
        return " + ".join(f"{float(share):.4g} {name}" for share, name in shares)

    @property
    def names(self) -> tuple[str, ...]:
        """What each part is called; of two with one name, the second is "name 2"."""
        own = [part.corpus.name for part in self.parts]
        return tuple(f"{name} {n}" if (n := own[: i + 1].count(name)) > 1 else name for i, name in enumerate(own))

    @property
    def shares(self) -> tuple[Fraction, ...]:
        return _shares([part.weight for part in self.parts])

    def turns(self, n: int) -> list[int]:
        """Which part each of the first `n` samples is of."""
        return turns_of([part.weight for part in self.parts], n)

    def owning(self, part: int, same: Sequence[int], seed: int) -> Callable[[Document], bool]:
        """Which documents are this part's, where several parts, `same`, are of one source.

        Each document is one part's alone, by a keyed hash and the weights: however many samples are asked for.
        """
        ends = list(accumulate(self.shares[one] for one in same))

        def is_own(document: Document) -> bool:
            place = Fraction(seed_for(seed, "part", document.id), 2**56) * ends[-1]
            return same[bisect(ends, place)] == part

        return is_own

    def describe(self) -> dict[str, Any]:
        """The parts with their shares, as JSON."""
        return {
            "kind": "mixture",
            "name": self.name,
            "shares_of": "samples",
            "parts": [
                {
                    "name": name,
                    "weight": part.weight,
                    "source": class_record(part.corpus) | part.corpus.describe(),
                    "filters": [describe_filter(one) for one in part.filters],
                }
                for name, part in zip(self.names, self.parts, strict=True)
            ],
        }
