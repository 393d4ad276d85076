"""Self-generation at the scale of the study with a tiny random model: how much memory 5,000 texts take.

The model is nothing, so that what is measured is ours: schedule, journal, filter among all 5,000, windows.
"""

import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.filters import PerplexityFilter
from calibrune.corpora.generated import SelfGeneration
from calibrune.lm.loading import LanguageModel

TEXTS, LENGTH, BATCH = 5000, 2048, 500


def measure() -> Iterator[dict[str, Any]]:
    """Peak memory of the process, before and after; then of a second run, which reads all texts back."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=LENGTH + 8,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = 10**6  # is never drawn: every text has its full length
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, 64)}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    lm = LanguageModel(model, tokenizer, {"name": "tiny", "dtype": "float32"})
    corpus = SelfGeneration(model=lm, n_texts=TEXTS, max_new_tokens=LENGTH, batch_size=BATCH)
    recipe = CalibrationRecipe(corpus=corpus, filters=(PerplexityFilter(among=TEXTS),), n_samples=128, seq_len=LENGTH)
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, CALIBRUNE_CACHE=cache):
        before = _peak()
        for what in ("written", "read back"):
            start = time.perf_counter()
            made = build(recipe, tokenizer)
            seconds = time.perf_counter() - start
            (journal,) = Path(cache).rglob("*.jsonl")
            yield {
                "name": f"peak memory in MB, {TEXTS:,} texts of {LENGTH:,} tokens {what}",
                "setting": {"model": "random llama, 1 layer of width 8, vocabulary 64", "batch": BATCH, "among": TEXTS},
                "value": round(_peak()),
                "stderr": None,
                "before": round(before),
                "seconds": round(seconds, 1),
                "journal_mb": round(journal.stat().st_size / 1e6, 1),
                "fingerprint": made.fingerprint,
            }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
