"""What the files of a checkpoint may not do, whoever made them: run code, or name files that are not the checkpoint's.

transformers reads a shard that is not called `.safetensors` as a pickle, wherever its index says that it lies, and an
adapter beside a model may name other files still. So names are looked at before it reads anything.
"""

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from calibrune.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of weights that are pickles."""

INDEX = "model.safetensors.index.json"


def check_names(name: str, files: Collection[str], fetch: Callable[[str], Path]) -> None:
    """Raise `ModelError` unless a checkpoint's weights are safetensors files of its own.

    Args:
        name: of the model, for errors.
        files: the names of the checkpoint's files.
        fetch: file -> where it lies on this machine.
    """
    config = _object(fetch("config.json"))
    if kernel := next(_kernels(config), None):
        raise ModelError(
            f"the config of the model {name!r} names compiled code to be fetched and run ({kernel!r}); take "
            f"{', '.join(_KERNELS)} out of its config.json"
        )
    if "adapter_config.json" in files:
        raise ModelError(
            f"the model {name!r} comes with an adapter, which may name other models and pickled weights; merge it into "
            f"its model first (peft: merge_and_unload), save that, and give the new folder"
        )
    pickled = sorted(file for file in files if file.endswith(PICKLES))
    if pickled and not any(file.endswith(".safetensors") for file in files):
        raise ModelError(
            f"the model {name!r} has its weights in pickles alone ({pickled[0]}), which can run any code when they are "
            f"opened, so they are not; get it as safetensors, or convert it where you trust its author: "
            f"docs/security.md says how"
        )
    said = str(config.get("transformers_weights") or INDEX)
    if not said.endswith((".safetensors", ".safetensors.index.json")):
        raise ModelError(
            f"the config of the model {name!r} names its weights {said!r}, which are no safetensors; get them as such"
        )
    for index in {INDEX, said}:
        if index.endswith(".json") and (index in files or "/" in index):
            check_index(name, fetch(index))


def check_index(name: str, index: Path) -> None:
    """Raise `ModelError` where an index of shards names anything but safetensors files that lie beside it."""
    shards = _object(index).get("weight_map")
    for shard in shards.values() if isinstance(shards, dict) else ():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{index.name} of the model {name!r} names the weights {shard!r}, and may only name .safetensors files "
                f"in its own folder; get the model from someone you trust"
            )


_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""What in a config may name compiled code of the hub: as a text, or for each part of the model."""


def _kernels(value: Any, *, of_a_kernel: bool = False) -> Iterator[str]:
    """What is named so anywhere in a config that could be a repository."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _kernels(one, of_a_kernel=of_a_kernel or key in _KERNELS)
            if of_a_kernel:
                yield from _kernels(key, of_a_kernel=True)
    elif isinstance(value, list):
        for one in value:
            yield from _kernels(one, of_a_kernel=of_a_kernel)
    elif of_a_kernel and isinstance(value, str) and "/" in value:
        yield value


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; nothing where there is none, which its reader will say."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
