"""What of a tokenizer decides how text becomes tokens, as a record."""

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from calibrune.calibration.windows import Frame


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A hash of all that decides how text becomes tokens, and what the tokenizer puts around a text."""
    frame = Frame.of(tokenizer)
    return {
        "sha256": _tokenizer_hash(tokenizer),
        "bos_token_id": frame.bos,
        "eos_token_id": frame.eos,
        "adds_before": list(frame.before),
        "adds_after": list(frame.after),
    }


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    if hasattr(tokenizer, "backend_tokenizer"):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # left over from whoever called the tokenizer last; they decide nothing here
        state.pop("truncation", None)
        state.pop("padding", None)
    else:
        state = {"kind": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
