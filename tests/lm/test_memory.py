"""Of a vocabulary of 131,072 at 2,048 tokens, which is 1 GB of logits, 200 MB are never there: measured by process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import calibrune

pytest.importorskip("resource", reason="the peak of a process's memory is asked of Unix")

LIMIT = 200_000_000

MEASURE = """
import json, resource, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from calibrune.evaluation.agreement import kl_and_top1
from calibrune.lm.continuations import ContinuationScorer
from calibrune.lm.likelihood import compare_logits, text_log_likelihoods

dtype, *paths = sys.argv[1:]
torch.manual_seed(0)
torch.set_num_threads(1)
config = LlamaConfig(
    vocab_size=131072, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=2048, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)
model, other = (LlamaForCausalLM(config).to(getattr(torch, dtype)).eval() for _ in range(2))
ids = torch.randint(131072, (1, 2048))
long, short = ids[0].tolist(), [([i, i + 1, i + 2], [5]) for i in range(800)]
ways = {
    "plain": lambda: model(ids).logits,
    "texts": lambda: text_log_likelihoods(model, [long]),
    "one long continuation": lambda: ContinuationScorer(model).score([(long[:1], long[1:])]),
    "many short contexts": lambda: ContinuationScorer(model, share=False).score(short),
    "two models": lambda: compare_logits(model, other, ids, kl_and_top1),
}
with torch.no_grad():  # what the body itself takes does not count
    model.model(ids), model.model(torch.zeros(800, 3, dtype=torch.long)), model(ids[:, :2])


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


before, found = peak(), {}
for path in paths:
    ways[path]()
    found[path] = peak() - before
print(json.dumps(found))
"""


def taken(dtype: str, *paths: str) -> dict[str, int]:
    """By how many bytes the peak of a process's memory has risen when a model was scored in these ways, in turn."""
    room = {**os.environ, "PYTHONPATH": str(Path(calibrune.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, dtype, *paths], env=room, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_a_large_vocabulary_stay_small(dtype):
    found = taken(dtype, "texts", "one long continuation", "many short contexts", "two models")
    assert len(found) == 4
    assert max(found.values()) < LIMIT, found


def test_the_measure_sees_logits_that_are_made_at_once():
    assert taken("float32", "plain")["plain"] > 1_000_000_000
