"""The verbs of the command line as Python calls: names in, records out. Everything is checked before work begins."""

from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, cast

from calibrune.activations.stream import BATCH_TOKENS
from calibrune.allocators import ALLOCATORS, Allocator, Uniform
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import SOURCES, build_calibration, parse_spec, source_options
from calibrune.checkpoint import PruneRequest, check_free, read_manifest, save_pruned
from calibrune.errors import ConfigError
from calibrune.evaluation.perplexity import WindowPerplexity
from calibrune.evaluation.score import Score
from calibrune.evaluation.texts import DATASETS, evaluation_texts
from calibrune.lm.layout import decoder_blocks, n_parameters
from calibrune.lm.loading import PACKAGES, LanguageModel, load_model, weights_fingerprint
from calibrune.patterns import SparsityPattern, parse_pattern
from calibrune.prune import check_allocatable, prune_model
from calibrune.pruners import PRUNERS, Pruner
from calibrune.settings import choose, nearest


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
    if propagate not in ("pruned", "dense"):
        raise ConfigError(f"--propagate must be pruned or dense, got {propagate!r}")
    lm = load_model(model, **loading)
    check_allocatable(lm.model, pattern)
    data = (
        build_calibration(calibration, lm, n_samples=samples, seq_len=seq_len, seed=seed) if pruner.requires else None
    )
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
        pruner={"name": method} | _settings_of(pruner),
        pattern=str(pattern),
        allocation={"name": allocation} | _settings_of(allocator or Uniform()),
        propagate=propagate,
        batch_tokens=batch_tokens,
        calibration=calibration.manifest if calibration else None,
    )


def calibrate(
    spec: str, *, model: str, out: Path, samples: int | None, seq_len: int | None, seed: int, **loading: Any
) -> CalibrationSet:
    """Make a calibration set for a model and save it."""
    check_free(out)
    parse_spec(spec)
    lm = load_model(model, **loading)
    made = build_calibration(spec, lm, n_samples=samples, seq_len=seq_len, seed=seed)
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
    **loading: Any,
) -> list[Score]:
    """Perplexities of a model on named texts or files."""
    texts = [evaluation_texts(name, data) for name in names]
    lm = load_model(model, **loading)
    return [score for text in texts for score in _measured(text, lm, limit, seq_len, bos)]


def _measured(text: Any, lm: LanguageModel, limit: int | None, seq_len: int | None, bos: str) -> tuple[Score, ...]:
    from dataclasses import replace

    if isinstance(text.protocol, WindowPerplexity):
        length = seq_len or min(text.protocol.seq_len, lm.context_length or text.protocol.seq_len)
        text = replace(text, protocol=WindowPerplexity(seq_len=length, join=text.protocol.join, bos=cast(Any, bos)))
    return cast(tuple[Score, ...], text.scores(lm, limit))


def inspect(path: str) -> tuple[str, dict[str, Any]]:
    """What lies at a path: its kind, and its record."""
    folder = Path(path).expanduser()
    if manifest := read_manifest(folder):
        return "pruned checkpoint", manifest
    if (folder / "calibration.safetensors").is_file():
        return "calibration set", CalibrationSet.load(folder).manifest
    if folder.suffix == ".safetensors" and folder.is_file():
        return "calibration set", CalibrationSet.from_safetensors(folder).manifest
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
    total = n_parameters(lm.model)
    return "model", {
        "source": lm.source,
        "architecture": type(lm.model).__name__,
        "parameters": total,
        "dtype": lm.source["dtype"],
        "context_length": lm.context_length,
        "vocab_size": lm.vocab_size,
        "blocks": len(blocks),
        "coverage": sum(layer.weight.numel() for block in blocks for layer in block.layers) / total,
        "layers": layers,
    }


def known(what: str) -> dict[str, dict[str, Any]]:
    """Names, summaries and options of what there is to choose from."""
    if what in ("methods", "allocators"):
        table: dict[str, type] = dict(PRUNERS) if what == "methods" else dict(ALLOCATORS)
        return {name: {"summary": _summary(kind), "options": _options(kind)} for name, kind in table.items()}
    if what == "sources":
        options = source_options()
        named: dict[str, dict[str, Any]] = {
            name: {"summary": summary, "options": options[name]} for name, summary in SOURCES.items()
        }
        own: dict[str, dict[str, Any]] = {
            "FILE": {
                "summary": "documents: .txt, .jsonl or .json (also .gz, .zst), .parquet",
                "options": options["FILE"],
            },
            "FOLDER": {"summary": "a set made by `calibrune calibrate`"},
            "FILE.safetensors": {"summary": "your own tokens: integer input_ids [n, seq]"},
        }
        return named | own
    if what in ("texts", "tasks"):
        return {name: {"summary": dataset.note} for name, dataset in DATASETS.items()}
    if what == "models":
        return {f"package:{name}": {"summary": how} for name, how in PACKAGES.items()}
    raise ConfigError(
        f"there is no list of {what!r}{nearest(what, ['methods', 'allocators', 'sources', 'texts', 'models'])}"
    )


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _options(kind: type) -> list[str]:
    return [f"{f.name}={f.default}" for f in fields(kind) if f.default is not MISSING]


def _settings_of(setting: Any) -> dict[str, Any]:
    return asdict(setting)
