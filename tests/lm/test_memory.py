"""Of a vocabulary of 131,072 at 2,048 tokens, which is 1 GB of logits, 200 MB are never there.

What counts is what torch's allocator has given out at a time, by its own account: also inside an operation.
"""

import json
from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from calibrune.evaluation.agreement import kl_and_top1
from calibrune.lm.continuations import ContinuationScorer
from calibrune.lm.likelihood import compare_logits, text_log_likelihoods

VOCAB, TOKENS = 131_072, 2048
LIMIT = 200_000_000


def tiny(dtype: torch.dtype) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=TOKENS, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def peak(work: Callable[[], object], folder) -> int:
    """The most bytes that tensors made by `work` took at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    recorded.export_chrome_trace(str(folder / "trace.json"))
    events = [e for e in json.loads((folder / "trace.json").read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


LONG = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
SHORT = [([i, i + 1, i + 2], [5]) for i in range(800)]

WAYS = {
    "texts": lambda model: text_log_likelihoods(model, [LONG]),
    "one long continuation": lambda model: ContinuationScorer(model).score([(LONG[:1], LONG[1:])]),
    "many short contexts": lambda model: ContinuationScorer(model, share=False).score(SHORT),
    "two models": lambda model: compare_logits(model, tiny(model.dtype), torch.tensor([LONG]), kl_and_top1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_logits_of_a_large_vocabulary_stay_small(way, dtype, tmp_path):
    model = tiny(dtype)
    taken = peak(lambda: WAYS[way](model), tmp_path)
    assert 30_000_000 < taken < LIMIT


@torch.no_grad()
def test_the_measure_sees_logits_that_are_made_at_once_and_what_is_taken_within_an_operation(tmp_path):
    model = tiny(torch.float32)
    logits = 4 * VOCAB * TOKENS
    assert logits < peak(lambda: model(torch.tensor([LONG])).logits, tmp_path) < 1.2 * logits
    assert peak(lambda: model(torch.tensor([LONG])).logits.logsumexp(-1), tmp_path) > 1.9 * logits
