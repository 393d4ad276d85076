"""However many texts there are, only a batch of them is held; the full scale: `python -m benchmarks scale`."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from tiny_models import tiny_lm

from calibrune.corpora.engines import Session
from calibrune.corpora.generated import SelfGeneration
from calibrune.lm.generation import GeneratedText

LENGTH = 256


@dataclass(frozen=True)
class Parrot:
    """An engine that writes at once: what is measured is all the rest."""

    in_flight: int | None = None

    def open(self, model: Any) -> Session:
        return self

    def describe(self) -> dict[str, Any]:
        return {"engine": "parrot", "in flight": self.in_flight}

    def complete(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], **options: Any) -> list[GeneratedText]:
        return [
            GeneratedText((*p, *[2 + s % 90] * LENGTH), len(p), (-1.0,) * LENGTH, False)
            for p, s in zip(prompts, seeds, strict=True)
        ]


@pytest.mark.parametrize("in_flight", [None, 4])
def test_four_times_the_texts_take_no_more_memory(in_flight, tmp_path, monkeypatch):
    lm = tiny_lm()
    peaks = []
    for n_texts in (40, 160):
        monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / str(n_texts)))
        corpus = SelfGeneration(model=lm, engine=Parrot(in_flight), n_texts=n_texts, max_new_tokens=100, batch_size=8)
        tracemalloc.start()
        assert sum(1 for _ in corpus.documents()) == n_texts
        assert sum(1 for _ in corpus.documents()) == n_texts  # read back
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000  # a place in the file for each, and no text
