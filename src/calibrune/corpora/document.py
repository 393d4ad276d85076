"""A text with a name of its own, and anything that yields such texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Document:
    """A text and its stable name; where a model wrote it, also its tokens and how likely they were."""

    text: str
    id: str
    """Stable across runs: the file and line, the hub row, or the prompt and draw."""
    token_ids: tuple[int, ...] | None = None
    """The exact tokens, where a model wrote them; None: the tokenizer decides."""
    perplexity: float | None = None
    """exp of the mean negative log-likelihood per token, where the writer recorded it; nan where it has none."""
    framed: bool = False
    """Whether `token_ids` begin and end with what belongs there, as a chat's template says: nothing is put around them,
    and nothing is taken off."""


@runtime_checkable
class Corpus(Protocol):
    """Where calibration text comes from."""

    @property
    def name(self) -> str:
        """What the corpus is called in tables and errors."""

    @property
    def in_random_order(self) -> bool:
        """True where the order of the documents is already drawn from a seed (as a model writes them).

        False for a file: its documents are ranked by a keyed hash of seed and id before any is used.
        """

    def documents(self) -> Iterator[Document]:
        """Yield the documents in a fixed order, from the start at every call; may go on for ever."""

    def describe(self) -> dict[str, Any]:
        """All that can change what `documents` yields, as JSON: paths by name, hashes, settings, licence."""
