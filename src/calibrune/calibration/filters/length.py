"""Documents by their length in characters."""

from collections import Counter
from collections.abc import Iterable, Iterator

from pydantic import Field

from calibrune.corpora.document import Document
from calibrune.errors import ConfigError
from calibrune.settings import settings


@settings
class LengthFilter:
    """Drop short documents, and long ones."""

    min_chars: int | None = Field(default=200, ge=1)
    """Documents with fewer characters go; None: none is too short."""
    max_chars: int | None = Field(default=None, ge=1)
    """Documents with more characters go; None: none is too long."""

    def __post_init__(self) -> None:
        if self.min_chars is not None and self.max_chars is not None and self.max_chars < self.min_chars:
            raise ConfigError(
                f"min_chars={self.min_chars} and max_chars={self.max_chars} leave nothing; raise max_chars, or give a "
                "lower min_chars"
            )

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield the documents whose length is within the bounds, both included."""
        for document in documents:
            if self.min_chars is not None and len(document.text) < self.min_chars:
                dropped[f"fewer than {self.min_chars} characters"] += 1
            elif self.max_chars is not None and len(document.text) > self.max_chars:
                dropped[f"more than {self.max_chars} characters"] += 1
            else:
                yield document
