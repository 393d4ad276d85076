"""Named tensors in a cache file that carries its own hash: what is damaged is not there, and is made again."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from calibrune.durable import HASHED, SEAL, write_whole


def write_tensors(file: Path, tensors: Mapping[str, Tensor], said: str = "") -> None:
    """Write the tensors, each contiguous, on the CPU and with memory of its own, and a text beside them, whole.

    Raises:
        OutputError: the file cannot be written.
    """
    held = dict(tensors)
    write_whole(file, save(held, metadata={"said": said, SEAL: _seal(held, said)}))


def read_tensors(file: Path) -> tuple[dict[str, Tensor], str] | None:
    """What was written; None where there is nothing, or it is not that any more."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            about = opened.metadata() or {}
    except (OSError, SafetensorError):
        return None
    said = about.get("said", "")
    return (tensors, said) if about.get(SEAL) == _seal(tensors, said) else None


def _seal(tensors: Mapping[str, Tensor], said: str) -> str:
    digest = hashlib.sha256(said.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return HASHED + digest.hexdigest()
