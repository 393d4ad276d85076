"""Text that says the same again and again: what a model writes when it is caught in a loop, and what templates give."""

import re
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

from pydantic import Field

from calibrune.corpora.document import Document
from calibrune.errors import ConfigError
from calibrune.settings import settings


def repeated_share(items: Sequence[Hashable], n: int) -> float:
    """Of all runs of `n` items, the share that stood there before.

    Rae et al. (2021, arXiv 2112.11446) count otherwise: the characters in the most frequent run (of 2 to 4 words) and
    in repeated runs (of 5 to 10); their bounds are none for this share.

    0 where there are fewer than two runs.

    >>> repeated_share("abcabc", n=3)
    0.25
    """
    runs = [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def compression_ratio(text: str) -> float:
    """Bytes of the text in UTF-8 for every byte that zlib makes of them; prose is near 2, a loop far above.

    Longer text compresses better: compare texts of like length.
    """
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw) / len(zlib.compress(raw, 6))


def words(text: str) -> list[str]:
    """The runs of letters and digits, in small letters."""
    return re.findall(r"\w+", text.lower())


@settings
class RepetitionFilter:
    """Drop documents that repeat themselves: by their repeated runs of words, by how well they compress, or both."""

    max_repeated: float | None = Field(default=0.3, ge=0, le=1)
    """Documents go where more than this share of the runs of words stood there before; None: not looked at."""
    run_words: int = Field(default=4, ge=1)
    """Words in a run."""
    max_compression: float | None = Field(default=None, gt=0)
    """Documents go that zlib makes smaller by more than this factor; None: not looked at."""

    def __post_init__(self) -> None:
        if self.max_repeated is None and self.max_compression is None:
            raise ConfigError("the repetition filter looks at nothing: give max_repeated, or max_compression")

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield the documents within both bounds."""
        for document in documents:
            share = 0.0 if self.max_repeated is None else repeated_share(words(document.text), self.run_words)
            if self.max_repeated is not None and share > self.max_repeated:
                dropped[f"more than {self.max_repeated:g} of its runs of {self.run_words} words repeated"] += 1
            elif self.max_compression is not None and compression_ratio(document.text) > self.max_compression:
                dropped[f"compresses by more than {self.max_compression:g}"] += 1
            else:
                yield document
