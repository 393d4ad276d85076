"""What was finished, on disk, so that an evaluation that was interrupted goes on where it was."""

import hashlib
import json
from pathlib import Path
from typing import Any

from calibrune.calibration.tokenizers import describe_tokenizer
from calibrune.durable import keeping, parsed, sealed, unsealed, write_whole
from calibrune.lm.loading import LanguageModel, cache_folder, weights_fingerprint


def finished_folder() -> Path:
    """Where results of single tasks and texts are kept."""
    return cache_folder() / "evaluations"


def finished_key(asked: dict[str, Any]) -> str:
    """The name of a result: a hash of all that can change it."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:24]


def read_finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The record that was finished under this key; None where there is none, or one that is damaged."""
    try:
        record = unsealed(parsed((folder / f"{key}.json").read_bytes()))
    except (OSError, ValueError):
        return None
    return record if record.get("key") == key else None


def write_finished(folder: Path, key: str, what: str, record: dict[str, Any]) -> None:
    """Keep a record, whole or not at all; `RunError` where there is no room for `what` it is."""
    with keeping(f"the results of {what}", folder):
        plain = json.loads(json.dumps({"key": key} | record, default=str))
        write_whole(folder / f"{key}.json", json.dumps(sealed(plain)).encode())


def describe_model(lm: LanguageModel) -> dict[str, Any]:
    """What of a model can change a result: weights, configuration, tokenizer, number format."""
    config = {key: value for key, value in lm.model.config.to_dict().items() if key not in _NO_MATTER}
    return {
        "weights": weights_fingerprint(lm.model),
        "config": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "tokenizer": describe_tokenizer(lm.tokenizer),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
    }


_NO_MATTER = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
