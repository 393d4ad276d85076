"""A class of one's own for everything that can be chosen by name: `of_ones_own:Class`, as a user would write it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from calibrune.allocators import SparsityAllocation
from calibrune.corpora.document import Document
from calibrune.lm.generation import GeneratedText
from calibrune.lm.layout import decoder_blocks
from calibrune.patterns import Unstructured
from calibrune.pruners import PrunedWeight, keep_highest
from calibrune.settings import settings


@dataclass(frozen=True)
class Powered:
    """A method: weights by their size, on a scale that does not matter."""

    power: float = 1.0
    requires: ClassVar[tuple[type, ...]] = ()

    def prune(self, weight, stats, pattern):
        mask = keep_highest(weight.abs().float().pow(self.power), pattern)
        return PrunedWeight(weight.masked_fill(~mask, 0), mask)


@settings
class Tilted:
    """An allocator: the first half of the blocks a little denser than the second."""

    tilt: float = 0.1
    requires: ClassVar[tuple[type, ...]] = ()

    def allocate(self, model, calibration, target, *, batch_tokens=0):
        blocks = list(decoder_blocks(model))
        layers = [layer for block in blocks for layer in block.layers]
        signs = {layer.name: 2 * (2 * block.index >= len(blocks)) - 1 for block in blocks for layer in block.layers}
        patterns = {name: Unstructured(sparsity=target.sparsity + self.tilt * sign) for name, sign in signs.items()}
        return SparsityAllocation.of(layers, patterns, target, tolerance=self.tilt)


@dataclass(frozen=True)
class Wordy:
    """A filter: documents with few words go."""

    min_words: int = 1

    def keep(self, documents, dropped: Counter[str]) -> Iterator[Document]:
        for document in documents:
            if len(document.text.split()) >= self.min_words:
                yield document
            else:
                dropped["few words"] += 1


@dataclass(frozen=True)
class Different:
    """A proxy: how many different tokens a set has."""

    least: int = 0
    better: ClassVar[str] = "higher"
    founded: ClassVar[str] = "nothing"

    def measure(self, data, context) -> float:
        return float(
            (data.input_ids >= self.least).sum() and data.input_ids[data.input_ids >= self.least].unique().numel()
        )


@dataclass(frozen=True)
class Counting:
    """A corpus: numbers in words of one letter."""

    n: int = 50
    name: ClassVar[str] = "counting"
    in_random_order: ClassVar[bool] = False

    def documents(self) -> Iterator[Document]:
        for i in range(self.n):
            yield Document(f"{i} " + "the cat sat on a mat and saw no dog " * (1 + i % 3), f"counting/{i}")

    def describe(self) -> dict[str, Any]:
        return {"kind": "counting", "name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Parrot:
    """An engine: says one token again and again."""

    token: int = 7

    def open(self, model):
        return _Parrots(self.token)


@dataclass(frozen=True)
class _Parrots:
    token: int
    in_flight: ClassVar[int | None] = None

    def describe(self) -> dict[str, Any]:
        return {"engine": "parrot", "token": self.token}

    def complete(self, prompts, seeds, *, max_new_tokens, sampling, end_ids):
        said = [self.token] * max_new_tokens
        return [GeneratedText((*prompt, *said), len(prompt), (-1.0,) * len(said), False) for prompt in prompts]


KEPT: list[dict[str, Any]] = []
"""What `Keeper` was told in this process."""


@dataclass
class Keeper:
    """A tracker: a list."""

    fails_at: int | None = None
    """The run, counted from 0, at which it raises."""
    run: dict[str, Any] = field(init=False, default_factory=dict)

    def start(self, study: str, id: str, name: str, config: Mapping[str, Any]) -> None:
        if self.fails_at == len(KEPT):
            raise OSError("the disk is full")
        print("a tracker talks")  # noqa: T201
        self.run = {"study": study, "id": id, "name": name, "config": dict(config)}

    def log(self, values: Mapping[str, float]) -> None:
        self.run["values"] = dict(values)

    def finish(self, error: str | None) -> None:
        KEPT.append(self.run | {"error": error})


class NoDataclass:
    """Without known settings."""


@dataclass(frozen=True)
class Nothing:
    """Without anything that it needs."""


@dataclass(frozen=True)
class Choosy:
    """With a check of its own."""

    n: int = 1

    def __post_init__(self) -> None:
        if self.n > 1:
            raise ValueError("n is too large")


a_function = len
