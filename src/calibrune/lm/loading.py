"""A language model from where users keep them: a hub id, a folder, a .gguf file, or an installed Python package."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in memory, with its tokenizer and where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: dict[str, Any]
    """`name` as asked for, and what pins it: revision, SHA-256 of the GGUF, ..."""
