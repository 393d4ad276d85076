"""The first ten minutes: a real model pruned three ways, what each did to it, and a page to look at.

What is compared is the calibration data: none (magnitude), random tokens, and text that the model wrote itself.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrune import __version__
from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.filters import PerplexityFilter
from calibrune.checkpoint import MANIFEST, check_free, read_manifest, save_pruned
from calibrune.corpora.document import Corpus
from calibrune.corpora.generated import SelfGeneration
from calibrune.corpora.random_tokens import RandomTokens
from calibrune.errors import OutputError
from calibrune.evaluation.perplexity import WindowPerplexity
from calibrune.evaluation.score import Score
from calibrune.evaluation.texts import EvaluationTexts, evaluation_texts
from calibrune.lm.generation import Sampling, end_token_ids, generate
from calibrune.lm.loading import LanguageModel, load_model, weights_fingerprint
from calibrune.patterns import parse_pattern
from calibrune.prune import PruneReport, prune_model
from calibrune.pruners import Magnitude, Wanda
from calibrune.report.page import Grid, Heading, Page, Paragraph, Picture, Preformatted, Sample, Samples
from calibrune.report.plots import bar_chart, layer_chart
from calibrune.report.tables import Table
from calibrune.verbs import request_for

PATTERN = "50%"
N_SAMPLES, SEQ_LEN = 24, 256
"""Small, so that two cores are done in minutes; the study takes 128 sequences of 2048 tokens."""
TEXTS_AT_ONCE = 48
EVALUATION_WINDOWS, EVALUATION_LENGTH, EVALUATION_TEXTS = 16, 512, 32
PROMPTS = ("The capital of France is", "Water boils at", "Once upon a time, a fox")
PAGE, MODEL = "report.html", "model"


@dataclass(frozen=True)
class Outcome:
    """One row of the demo's table."""

    name: str
    calibration: str
    scores: dict[str, Score]
    sparsity: float
    seconds: float
    continuations: tuple[str, ...]
    report: PruneReport | None = None


def run_demo(out: Path, *, model: str, data: Path | None = None) -> dict[str, Any]:
    """Prune `model` to 50% with magnitude, Wanda on random tokens, and Wanda on self-generated text.

    Writes `out/report.html` and the last of the three as a checkpoint, `out/model`; those of an earlier demo are
    replaced. Perplexity is measured on WikiText-2 and Alpaca where `data` has them, else on Python's documentation.

    Raises:
        CalibruneError: the model cannot be had, or `out` holds something that no demo wrote.
    """
    start = time.perf_counter()
    _make_room(out)
    texts = [_short(evaluation_texts(name, data)) for name in (("wikitext2", "alpaca") if data else ("python-docs",))]
    lm = load_model(model)
    fingerprint = weights_fingerprint(lm.model)
    outcomes = [_outcome("dense", "none", lm, texts, None, time.perf_counter())]

    generated = SelfGeneration(model=lm, max_new_tokens=SEQ_LEN, batch_size=TEXTS_AT_ONCE)
    own_text = _calibration(generated, lm)
    shown = [document.text for _, document in zip(range(3), generated.documents(), strict=False)]
    noise = _calibration(RandomTokens(tokenizer=lm.tokenizer, length=SEQ_LEN), lm)
    for name, pruner, calibration in (
        ("magnitude", Magnitude(), None),
        ("Wanda, random tokens", Wanda(), noise),
        ("Wanda, self-generated", Wanda(), own_text),
    ):
        began = time.perf_counter()
        lm = load_model(model)  # from the cache: each method starts from the dense weights
        report = prune_model(lm.model, calibration, pruner, PATTERN)
        data_name = "none" if calibration is None else str(calibration.manifest["source"]["name"])
        outcomes.append(_outcome(name, data_name, lm, texts, report, began))
    request = request_for(lm, fingerprint, "wanda", pruner, parse_pattern(PATTERN), own_text)
    assert report is not None
    save_pruned(lm, report, request, out / MODEL)
    columns, rows = _table(outcomes)
    conclusion = _conclusion(outcomes)
    seconds = time.perf_counter() - start
    _page(lm, outcomes, own_text, shown, Table(columns, rows), conclusion, seconds).write(out / PAGE)
    return {
        "columns": columns,
        "rows": rows,
        "conclusion": conclusion,
        "page": str(out / PAGE),
        "model": str(out / MODEL),
        "seconds": seconds,
        "calibration": own_text.fingerprint,
    }


def _make_room(out: Path) -> None:
    """Remove what an earlier demo wrote, and nothing else."""
    if out.is_file():
        raise OutputError(f"{str(out)!r} is a file, a folder was expected; choose another --out")
    if read_manifest(out / MODEL) is not None:
        (out / MODEL / MANIFEST).unlink()  # first: a folder without it is unfinished
        shutil.rmtree(out / MODEL)
    check_free(out / MODEL)


def _short(texts: EvaluationTexts) -> EvaluationTexts:
    """The dataset's own protocol on shorter windows."""
    if not isinstance(texts.protocol, WindowPerplexity):
        return texts
    protocol = WindowPerplexity(seq_len=EVALUATION_LENGTH, join=texts.protocol.join, bos=texts.protocol.bos)
    return EvaluationTexts(name=texts.name, texts=texts.texts, protocol=protocol, source=texts.source)


def _calibration(corpus: Corpus, lm: LanguageModel) -> CalibrationSet:
    filters = (PerplexityFilter(among=TEXTS_AT_ONCE),) if isinstance(corpus, SelfGeneration) else ()
    recipe = CalibrationRecipe(corpus=corpus, filters=filters, n_samples=N_SAMPLES, seq_len=SEQ_LEN)
    return build(recipe, lm.tokenizer, vocab_size=lm.vocab_size, context_length=lm.context_length)


def _outcome(
    name: str,
    calibration: str,
    lm: LanguageModel,
    texts: list[EvaluationTexts],
    report: PruneReport | None,
    began: float,
) -> Outcome:
    pruned_in = time.perf_counter() - began
    scores: dict[str, Score] = {}
    for text in texts:
        windows = isinstance(text.protocol, WindowPerplexity)
        for score in text.scores(lm, EVALUATION_WINDOWS if windows else EVALUATION_TEXTS):
            scores[f"{text.name} ({score.metric})" if "mean" in score.metric else text.name] = score
    prompts = [lm.tokenizer(prompt).input_ids for prompt in PROMPTS]
    written = generate(
        lm.model,
        prompts,
        seeds=list(range(len(prompts))),
        max_new_tokens=32,
        sampling=Sampling(top_k=1),  # the most probable token every time
        end_ids=end_token_ids(lm.model, lm.tokenizer.eos_token_id),
        pad_id=lm.tokenizer.pad_token_id or 0,
    )
    continuations = tuple(
        str(lm.tokenizer.decode(text.token_ids[text.prompt_length :], skip_special_tokens=True)) for text in written
    )
    return Outcome(name, calibration, scores, report.sparsity if report else 0.0, pruned_in, continuations, report)


def _table(outcomes: list[Outcome]) -> tuple[list[str], list[list[str | float]]]:
    measures = list(outcomes[0].scores)
    columns = ["model", "sparsity", *measures, "seconds"]
    rows: list[list[str | float]] = [
        [o.name, f"{o.sparsity:.2%}", *(o.scores[m].value for m in measures), f"{o.seconds:.0f}"] for o in outcomes
    ]
    return columns, rows


def _conclusion(outcomes: list[Outcome]) -> str:
    """What the table shows, in a sentence that holds whoever won."""
    dense, *pruned = outcomes
    best = [min(pruned, key=lambda o: o.scores[measure].value) for measure in dense.scores]
    measure = next(iter(dense.scores))
    values = ", ".join(
        f"{o.name} {o.scores[measure].value:.4g}" for o in sorted(pruned, key=lambda o: o.scores[measure].value)
    )
    numbers = f"perplexity on {measure}: dense {dense.scores[measure].value:.4g}, {values}"
    if all(one is best[0] for one in best):
        return f"At {PATTERN}, {best[0].name} does the least harm by every measure here ({numbers})."
    winners = ", ".join(f"{one.name} on {name}" for one, name in zip(best, dense.scores, strict=True))
    return f"At {PATTERN}, which method does the least harm depends on the measure: {winners} ({numbers})."


def _page(
    lm: LanguageModel,
    outcomes: list[Outcome],
    calibration: CalibrationSet,
    shown: list[str],
    table: Table,
    conclusion: str,
    seconds: float,
) -> Page:
    measure = next(iter(outcomes[0].scores))
    score = outcomes[0].scores[measure]
    bars = [{"model": o.name, "value": o.scores[measure].value, "error": o.scores[measure].stderr} for o in outcomes]
    last = outcomes[-1]
    assert last.report is not None
    layers = [(layer.block, layer.name.rsplit(".", 1)[-1], layer.sparsity) for layer in last.report.layers]
    protocol = {key: value for key, value in score.protocol.items() if isinstance(value, str | int | float)}
    return Page(
        title=f"{lm.source['name']}, pruned to {PATTERN} three ways",
        lede=conclusion,
        facts=[
            ("model", f"{type(lm.model).__name__}, {last.report.parameters:,} parameters"),
            ("pruned", f"{last.report.coverage:.1%} of the parameters"),
            ("calibration", f"{N_SAMPLES} sequences of {SEQ_LEN} tokens"),
            ("took", f"{seconds / 60:.1f} minutes"),
        ],
        sections=[
            Heading("What each did to the model"),
            Grid(
                table, "Perplexity: lower is better. One draw, one seed: a difference of a few percent means nothing."
            ),
            Picture(
                bar_chart(
                    bars,
                    "model",
                    "value",
                    error="error",
                    title=f"perplexity on {measure}",
                    y_title="perplexity (log scale)",
                    log=True,
                ),
                alt=f"{measure} of the dense and the pruned models",
                caption=f"Bars: one standard error over {score.n} windows. Protocol: "
                + ", ".join(f"{key}={value!r}" for key, value in protocol.items()),
            ),
            Heading("What the model wrote to calibrate itself"),
            Paragraph(
                f"Each text begins with a random token and is drawn with the study's settings. Of every "
                f"{TEXTS_AT_ONCE}, the 20% with the highest perplexity were dropped "
                f"({sum(calibration.dropped.values())} in all); fingerprint {calibration.fingerprint}."
            ),
            *(Preformatted(text[:700]) for text in shown),
            Heading("Before and after"),
            *(
                Samples(
                    [
                        Sample(prompt, outcomes[0].continuations[i], outcome.continuations[i])
                        for i, prompt in enumerate(PROMPTS)
                    ],
                    before="dense",
                    after=outcome.name,
                )
                for outcome in (outcomes[1], last)
            ),
            Heading("Sparsity by layer"),
            Picture(
                layer_chart(layers, title=last.name),
                alt="measured sparsity of every layer",
                caption="Share of exact zeros, counted in the weights.",
            ),
        ],
        footer=f"calibrune {__version__}, `calibrune demo`; run {weights_fingerprint(lm.model)}.",
    )
