"""The verbs of the command line as Python calls: names in, records out. Everything is checked before work begins."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import torch
import transformers

from calibrune import __version__
from calibrune.activations.stream import BATCH_TOKENS, Propagate, fitting_batch_tokens
from calibrune.allocators import ALLOCATORS, Allocator, Uniform
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import (
    build_calibration,
    is_finished,
    parse_spec,
    parts_of,
    prepare_calibration,
    short_name,
)
from calibrune.checkpoint import PruneRequest, check_free, save_pruned
from calibrune.durable import claimed, to_json, write_whole
from calibrune.errors import ConfigError, OutputError
from calibrune.evaluation.agreement import check_comparable, check_compares
from calibrune.evaluation.harness import evaluate_tasks
from calibrune.evaluation.perplexity import Bos
from calibrune.evaluation.score import Score
from calibrune.evaluation.tasks import harness_version, parse_tasks
from calibrune.evaluation.text_scores import evaluate_texts
from calibrune.evaluation.texts import evaluation_texts
from calibrune.lm.inference import runs_well
from calibrune.lm.layout import Coverage, decoder_blocks, n_parameters
from calibrune.lm.loading import DtypeName, LanguageModel, compute, load_model, weights_fingerprint
from calibrune.lm.record import read_manifest
from calibrune.lm.streaming import fits_in_memory, load_streamed
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
    proxies_with,
    rank,
)
from calibrune.prune import MIN_EXPERT_TOKENS, check_allocatable, check_pattern, needs_data, prune_model
from calibrune.pruners import PRUNERS, Pruner
from calibrune.report.comparison import comparison_page
from calibrune.report.extras import check_page_extras
from calibrune.seeds import seed_for
from calibrune.settings import choose, home_path, nearest, record
from calibrune.streamed import prune_streamed

log = logging.getLogger(__name__)


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
    batch_tokens: int | None = None,
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
    masks: bool = False,
    stream: bool | None = None,
    **loading: Any,
) -> dict[str, Any]:
    """Load, calibrate, prune, save; returns the manifest of the checkpoint. `loading` goes to `load_model`.

    `stream`: block by block from disk (`calibrune.streamed`); None: where the model would not fit in memory.
    `batch_tokens`: through a block at once; None: `fitting_batch_tokens`.
    """
    check_free(out)
    pattern = parse_target(sparsity)
    method_name, method_options = parse_spec(method)
    if method_name in ALLOCATORS:
        raise ConfigError(f"{method_name!r} is no method but shares the sparsity out: use --allocation {method_name}")
    pruner = choose(PRUNERS, "method", method_name, method_options, Pruner)
    allocator_name, allocator_options = parse_spec(allocation)
    allocator = choose(ALLOCATORS, "allocator", allocator_name, allocator_options, Allocator)
    check_pattern(pruner, pattern, allocator)
    _check_choice("propagate", propagate, get_args(Propagate))
    _check_choice("dtype", loading.get("dtype", "auto"), get_args(DtypeName))
    calibrated = prepare_calibration(calibration, n_samples=samples, seq_len=seq_len, seed=seed)
    if stream is None:
        stream = not _fits(model, loading)
    if stream and needs_data(pruner, allocator) and _writes(calibration):
        raise ConfigError(
            f"{calibration!r} is written by the model, which would be read from disk again for every token where it is "
            f"pruned block by block; make the set with `calibrune calibrate` where the model fits, and give its folder"
        )

    with nullcontext() if stream else claimed(out):  # a streamed run claims it itself
        lm = (load_streamed if stream else load_model)(model, **loading)
        check_allocatable(lm.model, pattern)
        data = calibrated(lm) if needs_data(pruner, allocator) else None
        weights = weights_fingerprint(lm.model)
        batch_tokens = batch_tokens or fitting_batch_tokens(lm.model)
        request = request_for(
            lm, weights, method_name, pruner, pattern, data, allocator_name, allocator, propagate, batch_tokens,
            min_expert_tokens,
        )  # fmt: skip
        if stream:
            return prune_streamed(lm, data, pruner, request, out, allocation=allocator, masks=masks)
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


def _fits(model: str, loading: Mapping[str, Any]) -> bool:
    return fits_in_memory(model, **{key: value for key, value in loading.items() if key != "trust_remote_code"})


def _writes(spec: str) -> bool:
    """Whether the model writes texts of this set here, and not on a server."""
    found = (parse_spec(part) for part in parts_of(spec))
    return any(source == "selfgen" and options.get("engine") != "server" for source, options in found)


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
    # texts need the tokenizer alone; of a model that would not fit, its blocks stay on disk
    fits = _fits(model, loading)
    if not fits and _writes(spec):
        raise ConfigError(
            f"{spec!r} is written by the model, which does not fit in memory; make the set where it does, or on a "
            f"server (selfgen:engine=server:url=...)"
        )
    with claimed(out):
        made = calibrated((load_model if fits else load_streamed)(model, **loading))
        made.save(out)
    return made


def evaluate(
    model: str,
    *,
    names: list[str],
    limit: int | None,
    data: Path | None,
    seq_len: int | None,
    bos: str | None = None,
    tasks: str | None = None,
    against: str | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    **loading: Any,
) -> list[Score]:
    """Perplexities of a model on named texts or files, and then its scores on tasks of lm-evaluation-harness.

    With `against`, a dense model, also how far the model's distributions are from its, next to each perplexity.
    """
    if bos is not None:
        _check_choice("bos", bos, get_args(Bos))
    _check_choice("dtype", loading.get("dtype", "auto"), get_args(DtypeName))
    texts = [evaluation_texts(name, data) for name in names]
    requests = parse_tasks(tasks) if tasks is not None else ()
    if requests:
        harness_version()
    if against is not None:
        for text in texts:
            check_compares(text.protocol)
    lm = _to_measure(model, **loading)
    dense = None if against is None else _to_measure(against, **loading | {"revision": None})
    if dense is not None:
        check_comparable(lm, dense)
    fitted = [one.fitted(lm, seq_len, cast(Bos | None, bos)) for one in texts]
    scores = evaluate_texts(lm, fitted, dense=dense, limit=limit) if fitted else []
    if requests:
        scores += evaluate_tasks(lm, requests, data=data, limit=limit, seed=seed, batch_tokens=batch_tokens)
    return scores


def _check_choice(option: str, given: Any, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ConfigError(f"{option} cannot be {given!r}{nearest(str(given), choices)}")


def inspect(path: str) -> tuple[str, dict[str, Any]]:
    """What lies at a path: its kind, and its record."""
    folder = home_path(path)
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
    page = comparison_page(found)
    write_whole(out / RECORD, f"{to_json(found)}\n".encode())
    try:
        page.write(out / "compare.html")
    except OutputError:  # both or none: half a comparison would stand in the way of the next
        (out / RECORD).unlink()
        raise
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
        spec = f"{OWN_SAMPLES}:batch_size={min(64, n)}"
        # other texts than those of a set `selfgen` with this seed, which would be compared with itself
        return build_calibration(spec, lm, n_samples=n, seq_len=length, seed=seed_for(seed, "own samples"))

    context = Context(lm, own_samples)
    names = _names(specs)
    proxies = proxies_with(by)
    measured = [measure(name, one, context, proxies) for name, one in zip(names, sets, strict=True)]
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


def _to_measure(model: str, **loading: Any) -> LanguageModel:
    """The model, in float32 where no dtype was asked for and the machine does not compute with its own."""
    lm = load_model(model, **loading)
    if loading.get("dtype", "auto") == "auto" and not runs_well(lm.model.dtype, lm.model.device):
        log.info("%s is slow on this %s: measured in float32", lm.source["dtype"], lm.model.device.type)
        lm.model.float()
    return lm
