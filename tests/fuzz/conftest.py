"""Real files of every kind, small, and each in bytes, to be damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_gguf import write_tiny_gguf
from tiny_models import random_ids, tiny_lm, tiny_model, tiny_tokenizer

from calibrune import verbs
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.checkpoint import save_pruned
from calibrune.durable import sealed, unsealed
from calibrune.patterns import parse_pattern
from calibrune.prune import prune_model
from calibrune.pruners import Wanda


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model/`, `sharded/`, `model.gguf`, `set/`, `tokens.safetensors` and `pruned/`."""
    place = tmp_path_factory.mktemp("real")
    for name, size in (("model", "5GB"), ("sharded", "40KB")):
        tiny_model().save_pretrained(place / name, max_shard_size=size)
        tiny_tokenizer().save_pretrained(place / name)
    write_tiny_gguf(place / "model.gguf")
    ids = random_ids(4, 16)
    save_file({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, place / "tokens.safetensors")
    data = CalibrationSet.from_ids(ids)
    data.save(place / "set")
    lm = tiny_lm()
    report = prune_model(lm.model, data, Wanda(), "50%")
    request = verbs.request_for(lm, "0" * 12, "wanda", Wanda(), parse_pattern("50%"), data)
    save_pruned(lm, report, request, place / "pruned")
    return place


def record_of(file: Path) -> dict[str, object]:
    """A sealed record, without its seal."""
    return unsealed(json.loads(file.read_bytes()))


def resealed(record: object) -> bytes:
    """A record as somebody would write it who knows of seals."""
    return json.dumps(sealed(record) if isinstance(record, dict) else record).encode("utf-8", "surrogatepass")
