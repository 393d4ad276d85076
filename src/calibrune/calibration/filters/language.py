"""Documents of one language, as the library lingua tells languages apart."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

from pydantic import Field

from calibrune.calibration.filters.filter import import_filter_library, library
from calibrune.corpora.document import Document
from calibrune.errors import ConfigError
from calibrune.settings import nearest, settings

PACKAGE = "lingua-language-detector"


@settings
class LanguageFilter:
    """Drop documents that are not in the language that is wanted; the detector knows 75."""

    language: str = "en"
    """ISO 639-1 code: en, de, zh, ..."""
    language_chars: int = Field(default=1000, ge=1)
    """Characters from the start of a document that are looked at."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z]{2}", self.language):
            raise ConfigError(f"a language is asked for by its ISO 639-1 code (en, de, zh, ...), got {self.language!r}")

    def describe(self) -> dict[str, Any]:
        """The settings, and the version of the library: another one may see another language."""
        return {"kind": type(self).__name__, **asdict(self), "library": library(PACKAGE, "language")}

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield the documents in the language.

        Raises:
            ConfigError: lingua is not installed, or does not know the language.
        """
        detector, known = _detector()
        if self.language not in known:
            raise ConfigError(
                f"the detector does not know the language {self.language!r}{nearest(self.language, known)}"
            )
        for document in documents:
            found = detector.detect_language_of(document.text[: self.language_chars])
            code = "unknown" if found is None else found.iso_code_639_1.name.lower()
            if code == self.language:
                yield document
            else:
                dropped[f"language {code}, not {self.language}"] += 1


@cache
def _detector() -> tuple[Any, frozenset[str]]:
    """The detector, made once (it reads its models as it meets languages), and the codes that it knows."""
    lingua = import_filter_library("lingua", PACKAGE, "language")
    codes = frozenset(language.iso_code_639_1.name.lower() for language in lingua.Language.all())
    return lingua.LanguageDetectorBuilder.from_all_languages().build(), codes
