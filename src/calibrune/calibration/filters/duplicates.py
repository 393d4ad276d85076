"""Documents that are nearly the same as an earlier one, by MinHash (Broder, 1997), as the library datasketch has it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from pydantic import Field

from calibrune.calibration.filters.filter import import_filter_library, library
from calibrune.calibration.filters.repetition import words
from calibrune.corpora.document import Document
from calibrune.settings import settings


@settings
class DuplicateFilter:
    """Drop documents that are nearly the same as one that stayed before; the first of them stays.

    Two documents are compared by the Jaccard similarity of their sets of runs of words, estimated by MinHash: with 128
    permutations the standard error is at most 0.045.
    """

    dedup: float = Field(default=0.8, gt=0, le=1)
    """Documents go that are at least so similar to an earlier one."""
    shingle_words: int = Field(default=5, ge=1)
    """Words in a run; a document with fewer is one run."""
    permutations: int = Field(default=128, ge=16)
    """Hashes of a document: more are more exact, and slower."""

    def describe(self) -> dict[str, Any]:
        """The settings, and the version of the library: another one may hash in another way."""
        return {"kind": type(self).__name__, **asdict(self), "library": library("datasketch")}

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield the first of all documents that are nearly the same.

        Raises:
            ConfigError: datasketch is not installed.
        """
        datasketch = import_filter_library("datasketch", "datasketch")
        # the index proposes all that agree in one band of hashes, and the estimate decides; with bands of 4 it misses
        # one pair of 80 at a similarity of 0.6, and one of 20 million at 0.8
        rows = 4 if self.dedup >= 0.6 else 2
        bands = (self.permutations // rows, rows)
        near = datasketch.MinHashLSH(num_perm=self.permutations, params=bands)
        seen: list[Any] = []
        for document in documents:
            signature = datasketch.MinHash(num_perm=self.permutations, seed=1)
            signature.update_batch([run.encode("utf-8", "surrogatepass") for run in self._runs(document.text)])
            if any(signature.jaccard(seen[index]) >= self.dedup for index in near.query(signature)):
                dropped[f"similar to an earlier one by {self.dedup:g} or more"] += 1
            else:
                near.insert(len(seen), signature)
                seen.append(signature)
                yield document

    def _runs(self, text: str) -> set[str]:
        found = words(text) or [text]
        starts = range(max(1, len(found) - self.shingle_words + 1))
        return {" ".join(found[start : start + self.shingle_words]) for start in starts}
