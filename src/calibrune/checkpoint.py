"""A pruned model on disk: a plain Hugging Face folder, with a card for people and a manifest for machines.

The folder is written under another name, read back, compared, and only then given its own: half a checkpoint is never
taken for a whole one. The manifest is the last file in it.
"""

import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from calibrune import __version__
from calibrune.calibration.calibration_set import TOKENS_FILE
from calibrune.durable import is_running, let_go, make_readable, name_folder, sealed_json
from calibrune.errors import OutputError, RunError, plain, without_secrets
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import LanguageModel, weights_fingerprint
from calibrune.lm.record import MANIFEST, MASKED, UNFINISHED, files_in, read_manifest
from calibrune.lm.weights import loaded_blocks
from calibrune.patterns import percent
from calibrune.proxies.compare import RECORD
from calibrune.prune import MIN_EXPERT_TOKENS, PruneReport

MASKS = "masks/masks.safetensors"
"""In a folder of their own: vLLM takes every safetensors file beside the weights for weights."""


@dataclass(frozen=True)
class PruneRequest:
    """Everything that can change a pruned model; its hash is the run's name."""

    model: dict[str, Any]
    """Where the dense model came from, with the fingerprint of its weights."""
    pruner: dict[str, Any]
    pattern: str
    allocation: dict[str, Any]
    propagate: str
    batch_tokens: int
    compute: dict[str, Any]
    """Device, threads, attention kernel: what can change rounding."""
    calibration: dict[str, Any] | None
    """The manifest of the calibration set; None where the method needs none."""
    min_expert_tokens: int = MIN_EXPERT_TOKENS

    @property
    def key(self) -> str:
        """Twelve hex digits of the request and of the versions that carry it out."""
        record = {
            "model": self.model.get("weights"),
            "pruner": self.pruner,
            "pattern": self.pattern,
            "allocation": self.allocation,
            "propagate": self.propagate,
            "batch_tokens": self.batch_tokens,
            "compute": self.compute,
            "min_expert_tokens": self.min_expert_tokens,
            "calibration": self.calibration and self.calibration["fingerprint"],
            "versions": versions(),
        }
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of what can change a number."""
    installed = {name: version(name) for name in ("torch", "transformers")}
    return {"calibrune": __version__, **installed, "python": platform.python_version()}


def check_free(out: Path) -> None:
    """Raise `OutputError` unless `out` can be written: absent or an empty folder, in a place that takes files."""
    place = out.resolve()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not there.is_dir():
        raise OutputError(f"{str(there)!r} is a file, a folder was expected; choose another --out")
    if not os.access(there, os.W_OK) or not os.access(there if there != place else there.parent, os.W_OK):
        raise OutputError(f"nothing can be written to {str(there)!r} (no permission); choose another --out")
    try:
        # asked of the file system itself: permissions alone do not tell (root, read-only mounts, /proc)
        tempfile.TemporaryFile(dir=there).close()  # without a name, so that no kill leaves it there
    except OSError as error:
        raise OutputError(
            f"nothing can be written to {str(there)!r} ({error.strerror}); choose another --out"
        ) from None
    if place == Path.cwd():
        raise OutputError(f"{str(out)!r} is the folder that you are in; choose a new folder in it as --out")
    if there != place or not any(place.iterdir()):
        return
    let_go(place)
    if (place / TOKENS_FILE).is_file():
        raise OutputError(f"the folder {str(out)!r} already holds a calibration set; choose another --out or remove it")
    if (place / RECORD).is_file():
        raise OutputError(f"the folder {str(out)!r} already holds a comparison; choose another --out or remove it")
    if (place / MASKED).is_file():
        raise OutputError(f"the folder {str(out)!r} already holds a masked model; choose another --out or remove it")
    manifest = read_manifest(out)
    if manifest is not None:
        raise OutputError(
            f"the folder {str(out)!r} already holds another run ({_title(manifest)}); choose another --out or remove it"
        )
    raise OutputError(f"the folder {str(out)!r} is not empty and is no finished run of calibrune; choose another --out")


def save_pruned(
    lm: LanguageModel, report: PruneReport, request: PruneRequest, out: Path, *, masks: bool = False
) -> dict[str, Any]:
    """Write the pruned model to the new folder `out`; return its manifest.

    The folder loads with `AutoModelForCausalLM.from_pretrained` as it is. It holds the weights (zeros in place), the
    tokenizer, `README.md` (card), `calibrune.json` (manifest) and, if asked for, `masks/masks.safetensors`: for every
    layer a bit-packed mask, True where a weight stays.

    Raises:
        OutputError: `out` is not free.
        RunError: it cannot be written, or what was written does not read back as the model in memory; it is left
            beside `out` to be looked at.
    """
    check_free(out)
    out = out.resolve()
    sweep(out)
    unfinished = out.with_name(f".{out.name}.unfinished-{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        (unfinished / UNFINISHED).write_text(str(os.getpid()))
        save_model(lm.model, unfinished)
        lm.tokenizer.save_pretrained(unfinished)
        if masks:
            save_masks(lm.model, unfinished)
        _check_reload(lm.model, report, unfinished)
        manifest = write_records(lm, report, request, unfinished)
        give_name(unfinished, out)
    except (OSError, ValueError, SafetensorError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise RunError(
            f"the pruned model cannot be written to {str(out)!r}: {said}; what there is of it was left in "
            f"{str(unfinished)!r}"
        ) from error
    return manifest


def sweep(out: Path) -> None:
    """Remove what earlier runs to the same place, killed or failed, left beside it."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.unfinished-*"):
        # a kill may have come before the first file was in it, or when all was there but the name
        ours = any((left / file).is_file() for file in (UNFINISHED, MANIFEST, MASKED)) or not os.listdir(left)
        if ours and not is_running(left.name.rpartition("-")[2]):
            shutil.rmtree(left)


def give_name(unfinished: Path, out: Path) -> None:
    """Let a folder in which all is written have the name that it is for."""
    make_readable(unfinished)
    (unfinished / UNFINISHED).unlink()
    name_folder(unfinished, out)


def write_records(
    lm: LanguageModel, report: PruneReport, request: PruneRequest, folder: Path, hashes: dict[str, str] | None = None
) -> dict[str, Any]:
    """Write the card and, last, the manifest of the pruned model whose other files are there; returns the manifest.

    Args:
        hashes: SHA-256 of files, as far as they are known.
    """
    manifest = {
        "format": 2,
        "key": request.key,
        "request": {"model": request.model, "pruner": request.pruner, "pattern": request.pattern}
        | {"allocation": request.allocation, "propagate": request.propagate, "batch_tokens": request.batch_tokens}
        | {"compute": request.compute, "min_expert_tokens": request.min_expert_tokens},
        "calibration": request.calibration,
        "report": report.to_json(),
        "weights": weights_fingerprint(lm.model),
        "files": files_in(folder, hashes),
        "versions": versions(),
    }
    carries_code = "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(_card(manifest, carries_code=carries_code), encoding="utf-8")
    (folder / MANIFEST).write_text(sealed_json(manifest), encoding="utf-8")
    return manifest


def save_model(model: PreTrainedModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """`save_pretrained`, also where transformers would not save the generation config that it loaded.

    Args:
        weights: those to save; None: all.
    """
    config = model.generation_config
    try:
        config.validate(strict=True)
    except ValueError:  # a temperature without sampling, say, as checkpoints on the hub have it
        try:
            model.generation_config = GenerationConfig()
            model.save_pretrained(folder, state_dict=weights)
        finally:
            model.generation_config = config
        config.to_json_file(folder / "generation_config.json")
    else:
        model.save_pretrained(folder, state_dict=weights)


def save_masks(model: PreTrainedModel, folder: Path) -> None:
    """Write `MASKS` into a checkpoint's folder."""
    (folder / MASKS).parent.mkdir(exist_ok=True)
    save_file(packed_masks(model), folder / MASKS)


def packed_masks(model: PreTrainedModel) -> dict[str, UInt8[Tensor, "..."]]:
    """For every prunable layer, which weights are not zero: [out, ceil(in / 8)], the first input in the highest bit."""
    packed = {}
    for block in loaded_blocks(model):
        for layer in block.layers:
            kept = (layer.weight != 0).cpu()
            padded = torch.nn.functional.pad(kept, (0, -kept.shape[1] % 8)).reshape(len(kept), -1, 8)
            bits = 2 ** torch.arange(7, -1, -1, dtype=torch.int64)
            packed[layer.name] = (padded * bits).sum(dim=-1).to(torch.uint8)
    return packed


def _check_reload(model: PreTrainedModel, report: PruneReport, folder: Path) -> None:
    """Load the folder as any user would and compare every weight."""
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, local_files_only=True)
    expected, found = model.state_dict(), again.state_dict()
    different = [
        name
        for name in expected.keys() | found.keys()
        if name not in expected or name not in found or not torch.equal(expected[name].cpu(), found[name].cpu())
    ]
    if different:
        raise RunError(
            f"the checkpoint written to {str(folder)!r} does not read back as the pruned model: "
            f"{len(different)} weights differ, for example {sorted(different)[0]}; it was left there to be looked at"
        )
    sparsity = {layer.name: layer.sparsity for layer in report.layers}
    for block in decoder_blocks(again):
        for layer in block.layers:
            measured = float((layer.weight == 0).sum()) / layer.weight.numel()
            if layer.name in sparsity and measured != sparsity[layer.name]:
                raise RunError(f"{layer.name} has sparsity {measured} on disk, {sparsity[layer.name]} in memory")


def _title(manifest: dict[str, Any]) -> str:
    """ "wanda at 0.5, 0123456789ab", as far as the manifest says."""
    request = manifest.get("request")
    request = request if isinstance(request, dict) else {}
    pruner = request.get("pruner")
    method = pruner.get("name") if isinstance(pruner, dict) else pruner
    return f"{method} at {request.get('pattern')}, {manifest.get('key')}"


def _card(manifest: dict[str, Any], *, carries_code: bool) -> str:
    """The model card: what was done, how to load it, what it does not give."""
    trust = ", trust_remote_code=True" if carries_code else ""
    own_code = [
        "transformers itself does not know this architecture: its code is in this folder, and `trust_remote_code=True` "
        "runs it. Where calibrune is installed, `calibrune.lm.loading.load_model` loads the folder without running "
        "anything from it.",
        "",
    ]
    request, report, calibration = manifest["request"], manifest["report"], manifest["calibration"]
    base = request["model"]["name"]
    data = "none (the method needs none)"
    if calibration:
        source = calibration["source"].get("name", calibration["source"]["kind"])
        data = (
            f"{calibration['n_samples']} sequences of {calibration['seq_len']} tokens, source `{_word(source)}`, "
            f"fingerprint `{calibration['fingerprint']}`"
        )
    made_with = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    settings = ", ".join(f"{k}={v}" for k, v in request["pruner"].items() if k != "name")
    front = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- pruned",
        "- sparse",
        "- calibrune",
    ]
    # only a hub id names a base model that others can find
    front += [f"base_model: {base}"] if "/" in base else []
    return "\n".join(
        [
            *front,
            "---",
            f"# {base}, pruned to {percent(request['pattern'])} with {request['pruner']['name']}",
            "",
            f"- **method**: {request['pruner']['name']}" + (f" ({settings})" if settings else ""),
            f"- **sparsity**: {report['sparsity']:.4%} of the weights of {len(report['layers'])} linear layers "
            f"({report['coverage']:.1%} of all parameters), asked for as `{percent(request['pattern'])}`",
            *_layers(report["layers"]),
            f"- **calibration data**: {data}",
            f"- **allocation**: {request['allocation']['name']}; **propagation**: {request['propagate']}",
            f"- **made with**: {made_with}; run `{manifest['key']}`",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"{trust})',
            "```",
            "",
            *(own_code if carries_code else []),
            "The weights are stored dense, zeros included: every engine loads them, none gets smaller or faster by it "
            "alone. Unstructured sparsity has no mainstream engine; 2:4 has kernels in PyTorch and TensorRT for some "
            "shapes. The whole record is in `calibrune.json`.",
            "",
        ]
    )


def _word(text: Any) -> str:
    """A name that others gave, as it may stand between backticks: in one line, and no end of them."""
    return " ".join(without_secrets(plain(str(text))).replace("`", "'").split())


def _layers(layers: list[dict[str, Any]]) -> list[str]:
    """A line of the card about how well the layers came through, where the method saw their inputs."""
    errors = {layer["name"]: layer["output_error"] for layer in layers if layer["output_error"] is not None}
    if not errors:
        return []
    worst = max(errors, key=errors.__getitem__)
    dead = sum(layer["dead_channels"] or 0 for layer in layers)
    fell_back = sum(layer["fallback"] is not None for layer in layers)
    said = f"relative error of a layer's output {median(errors.values()):.3f} in the median, at most "
    said += f"{errors[worst]:.3f} (`{worst}`)"
    said += f"; {dead:,} of their inputs were zero in every calibration token" if dead else ""
    said += f"; {fell_back:,} of experts that saw few tokens were pruned by magnitude" if fell_back else ""
    return [f"- **layers**: {said}"]
