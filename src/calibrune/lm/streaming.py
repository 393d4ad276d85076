"""Loading a model that need not fit in memory, and telling whether it would."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from calibrune.lm.loading import DtypeName, LanguageModel, check_config, device_of, dtype_of, explained, locate
from calibrune.lm.record import check_files
from calibrune.lm.weights import Shards, empty_parameters, read_blocks_from

NEEDED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py"]
"""What of a hub repository is needed to read a model's blocks."""

HEADROOM = 1.3
"""A model fits where this many times its weights are free: activations and statistics want room too."""


def load_streamed(
    name: str | Path,
    *,
    dtype: DtypeName = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    as_written: bool = True,
) -> LanguageModel:
    """Load a model of which a single block at a time is in memory: each reads its weights when it is called.

    Arguments and errors are those of `load_model`.

    Raises:
        ModelError: the checkpoint is quantized, is no safetensors, or holds its weights in another form than the model.
    """
    where, kind = device_of(device), dtype_of(dtype)
    place, source = local_checkpoint(str(name), revision)
    if as_written:
        check_files(place)
    shards = Shards.of(place)
    with explained(str(name)):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        tokenizer("a text")  # one that was made, and cannot
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
        check_config(config)
        if getattr(config, "quantization_config", None):
            raise ValueError("it is quantized, and only plain weights are read block by block")
        if not isinstance(kind, torch.dtype):
            kind = config.dtype or next(head.dtype for head in shards.headers.values() if head.dtype.is_floating_point)
        with empty_parameters():
            model = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=trust_remote_code)
        if (place / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(place)
    read_blocks_from(model, shards, where)
    return LanguageModel(model.eval(), tokenizer, source | {"dtype": str(kind).removeprefix("torch.")})


def local_checkpoint(name: str, revision: str | None = None) -> tuple[Path, dict[str, Any]]:
    """The folder of a checkpoint on this machine, fetched from the hub if it is there; and the record of what it is.

    Raises:
        ModelError, ConfigError: as `load_model`.
    """
    place, source = locate(name, revision)
    if not Path(place).is_dir():
        place = snapshot_download(
            place, revision=source["revision"], local_files_only=source.pop("offline", False), allow_patterns=NEEDED
        )
    return Path(place), source


def fits_in_memory(name: str, *, dtype: DtypeName = "auto", device: str = "auto", revision: str | None = None) -> bool:
    """Whether the model's weights, and room to work, are free now; True where it cannot be told.

    Raises:
        ModelError, ConfigError: as `load_model`.
    """
    where, kind = device_of(device), dtype_of(dtype)
    place, source = locate(name, revision)
    size = _stored_bytes(place, source.get("revision"))
    free = available_memory(where)
    if size is None or free is None:
        return True
    if kind == torch.float32 and size[1] == 2:
        size = (2 * size[0], 4)
    return HEADROOM * size[0] <= free


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be taken without pushing others out; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        try:
            return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        except (ValueError, OSError, AttributeError):
            return None
    try:  # a container may have less
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):
        return free
    return min(free, max(limit - used, 0))


def _stored_bytes(place: str, revision: str | None) -> tuple[int, int] | None:
    """The bytes of the checkpoint's safetensors, and of one weight."""
    if Path(place).is_dir():
        files = sorted(Path(place).glob("*.safetensors"))
        if not files:
            return None
        heads = Shards.single(files[0]).headers.values()
        return sum(file.stat().st_size for file in files), max((head.dtype.itemsize for head in heads), default=4)
    try:
        siblings = HfApi().model_info(place, revision=revision, files_metadata=True).siblings or []
    except (HfHubHTTPError, OSError):
        return None
    sizes = [file.size or 0 for file in siblings if file.rfilename.endswith(".safetensors")]
    return (sum(sizes), 2) if sizes else None
