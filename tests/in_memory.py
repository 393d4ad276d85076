"""A corpus of a few strings, and the fixture that hands it out."""

import pytest

from calibrune.corpora.document import Document


class InMemory:
    """A corpus of a few strings, as from a file."""

    in_random_order = False

    def __init__(self, *texts: str, name: str = "toy") -> None:
        self.name = name
        self.texts = texts
        self.read = 0

    def documents(self):
        for row, text in enumerate(self.texts):
            self.read += 1
            yield Document(text, f"{self.name}:{row}")

    def describe(self):
        return {"kind": "memory", "name": self.name, "rows": len(self.texts)}


@pytest.fixture(scope="session")
def in_memory() -> type[InMemory]:
    return InMemory
