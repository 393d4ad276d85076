"""The first ten minutes: a real model pruned three ways, what each did to it, and a page to look at.

What is compared is the calibration data: none (magnitude), random tokens, and text that the model wrote itself.
"""

import logging
import shutil
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from calibrune import __version__
from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.filters import PerplexityFilter
from calibrune.checkpoint import check_free, save_pruned
from calibrune.corpora.document import Corpus
from calibrune.corpora.generated import SelfGeneration
from calibrune.corpora.random_tokens import RandomTokens
from calibrune.errors import CorpusError, OutputError
from calibrune.evaluation.perplexity import WindowPerplexity
from calibrune.evaluation.score import Score
from calibrune.evaluation.texts import EvaluationTexts, evaluation_texts
from calibrune.lm.generation import Sampling, end_token_ids, generate
from calibrune.lm.loading import LanguageModel, load_model, weights_fingerprint
from calibrune.lm.record import read_manifest
from calibrune.patterns import parse_pattern
from calibrune.prune import PruneReport, prune_model
from calibrune.pruners import Magnitude, Pruner, Wanda
from calibrune.report.extras import check_page_extras
from calibrune.report.page import Grid, Heading, Page, Paragraph, Picture, Preformatted, Sample, Samples
from calibrune.report.plots import bar_chart, layer_chart
from calibrune.report.tables import Table
from calibrune.verbs import request_for

log = logging.getLogger(__name__)

PATTERN = "50%"
PROMPTS = ("The capital of France is", "Water boils at", "Once upon a time, a fox")
PAGE, MODEL = "report.html", "model"


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much the demo does: so little that two cores are done in minutes (the study took 128 x 2048 tokens)."""

    samples: int = 24
    """Calibration sequences."""
    seq_len: int = 256
    """Tokens in a calibration sequence."""
    texts_at_once: int = 48
    """Texts that the model writes side by side, and among which the perplexity filter chooses."""
    windows: int = 16
    """Windows to measure perplexity on, where a text is measured in windows."""
    window_length: int = 512
    texts: int = 32
    """Texts to measure perplexity on, where each is measured by itself."""
    new_tokens: int = 32
    """Tokens that each model adds to a prompt."""


@dataclass(frozen=True)
class Outcome:
    """One row of the demo's table: a model and what was measured on it."""

    name: str
    scores: dict[str, Score]
    continuations: tuple[str, ...]
    sparsity: float = 0.0
    seconds: float = 0.0
    """To load and prune; measuring is not counted."""


def run_demo(
    out: Path,
    *,
    model: str,
    data: Path | None = None,
    size: DemoSize = DemoSize(),
) -> dict[str, Any]:
    """Prune `model` to 50% with magnitude, Wanda on random tokens, and Wanda on self-generated text.

    Writes `out/report.html` and the last of the three as a checkpoint, `out/model`; those of an earlier demo are
    replaced. Perplexity is measured on WikiText-2 and Alpaca, from the folder `data` or else from the hub; where the
    hub is out of reach, on Python's documentation.

    Raises:
        CalibruneError: the model cannot be had, or `out` holds something that no demo wrote.
    """
    start = time.perf_counter()
    _check_room(out)
    check_page_extras()
    texts = [_short(text, size) for text in _texts(data)]
    lm = load_model(model)
    fingerprint = weights_fingerprint(lm.model)
    outcomes = [_measured("dense", lm, texts, size)]
    generated = SelfGeneration(model=lm, max_new_tokens=size.seq_len, batch_size=size.texts_at_once)
    own_text = _calibration(generated, lm, size)
    used = {name for names in own_text.manifest["document_ids"] for name in names}
    shown = [document.text for document in islice((d for d in generated.documents() if d.id in used), 3)]
    noise = _calibration(RandomTokens(tokenizer=lm.tokenizer, length=size.seq_len), lm, size)

    def pruned(name: str, pruner: Pruner, calibration: CalibrationSet | None) -> tuple[LanguageModel, PruneReport]:
        began = time.perf_counter()
        lm = load_model(model)  # from the cache: each method starts from the dense weights
        report = prune_model(lm.model, calibration, pruner, PATTERN)
        seconds = time.perf_counter() - began
        outcomes.append(_measured(name, lm, texts, size, sparsity=report.sparsity, seconds=seconds))
        return lm, report

    pruned("magnitude", Magnitude(), None)
    pruned("Wanda, random tokens", Wanda(), noise)
    lm, report = pruned("Wanda, self-generated", Wanda(), own_text)

    table, conclusion = _table(outcomes), _conclusion(outcomes)
    seconds = time.perf_counter() - start
    page = _page(lm, outcomes, report, own_text, shown, table, conclusion, size, seconds)
    shutil.rmtree(out / MODEL, ignore_errors=True)
    page.write(out / PAGE)  # before the model: it is by the page that the next demo knows the model for its own
    request = request_for(lm, fingerprint, "wanda", Wanda(), parse_pattern(PATTERN), own_text)
    save_pruned(lm, report, request, out / MODEL)
    return {
        "columns": list(table.columns),
        "rows": [list(row) for row in table.rows],
        "conclusion": conclusion,
        "page": str(out / PAGE),
        "model": str(out / MODEL),
        "seconds": seconds,
        "calibration": own_text.fingerprint,
    }


def _texts(data: Path | None) -> list[EvaluationTexts]:
    """The real sets where they can be had, else English that every Python brings along."""
    try:
        return [evaluation_texts(name, data) for name in ("wikitext2", "alpaca")]
    except CorpusError as error:
        if data is not None:
            raise
        log.info("no evaluation data at hand (%s); measuring on Python's documentation", error)
        return [evaluation_texts("python-docs")]


def _check_room(out: Path) -> None:
    """Raise `OutputError` unless `out` is free, or holds what an earlier demo wrote and may be replaced."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{str(out)!r} is a file, a folder was expected; choose another --out")
    manifest = read_manifest(out / MODEL)
    if manifest is None:
        return check_free(out / MODEL)
    page = out / PAGE
    if not page.is_file() or str(manifest.get("weights")) not in page.read_text(encoding="utf-8", errors="replace"):
        raise OutputError(f"{str(out / MODEL)!r} holds a pruned model that no demo wrote; choose another --out")
    return None


def _short(texts: EvaluationTexts, size: DemoSize) -> EvaluationTexts:
    """The dataset's own protocol on shorter windows."""
    if not isinstance(texts.protocol, WindowPerplexity):
        return texts
    return replace(texts, protocol=replace(texts.protocol, seq_len=size.window_length))


def _calibration(corpus: Corpus, lm: LanguageModel, size: DemoSize) -> CalibrationSet:
    filters = (PerplexityFilter(among=size.texts_at_once),) if isinstance(corpus, SelfGeneration) else ()
    recipe = CalibrationRecipe(corpus=corpus, filters=filters, n_samples=size.samples, seq_len=size.seq_len)
    return build(recipe, lm.tokenizer, vocab_size=lm.vocab_size, context_length=lm.context_length)


def _measured(name: str, lm: LanguageModel, texts: list[EvaluationTexts], size: DemoSize, **known: float) -> Outcome:
    """Measure a model on the texts, and let it go on with the prompts."""
    scores: dict[str, Score] = {}
    for text in texts:
        windows = isinstance(text.protocol, WindowPerplexity)
        for score in text.scores(lm, size.windows if windows else size.texts):
            # of texts that are measured one by one there are two averages
            scores[f"{text.name} (mean)" if "mean" in score.metric else text.name] = score
    prompts = [lm.tokenizer(prompt).input_ids for prompt in PROMPTS]
    written = generate(
        lm.model,
        prompts,
        seeds=list(range(len(prompts))),
        max_new_tokens=size.new_tokens,
        sampling=Sampling(top_k=1),  # the most probable token every time
        end_ids=end_token_ids(lm.model, lm.tokenizer.eos_token_id),
        pad_id=lm.tokenizer.pad_token_id or 0,
    )
    continuations = [
        lm.tokenizer.decode(one.token_ids[one.prompt_length :], skip_special_tokens=True) for one in written
    ]
    return Outcome(name, scores, tuple(map(str, continuations)), **known)


def _table(outcomes: list[Outcome]) -> Table:
    measures = list(outcomes[0].scores)
    return Table(
        ["model", "sparsity", *measures, "seconds"],
        [
            [o.name, f"{o.sparsity:.2%}", *(o.scores[measure].value for measure in measures), f"{o.seconds:.0f}"]
            for o in outcomes
        ],
    )


def _conclusion(outcomes: list[Outcome]) -> str:
    """What the table shows, in a sentence that holds whoever won."""
    dense, *pruned = outcomes
    best = [min(pruned, key=lambda o: o.scores[measure].value) for measure in dense.scores]
    measure = next(iter(dense.scores))
    values = "; ".join(
        f"{o.name} {o.scores[measure].value:.4g}" for o in sorted(pruned, key=lambda o: o.scores[measure].value)
    )
    numbers = f"perplexity on {measure}: dense {dense.scores[measure].value:.4g}; {values}"
    if all(one is best[0] for one in best):
        return f"At {PATTERN}, {best[0].name} does the least harm by every measure here ({numbers})."
    winners = ", ".join(f"{one.name} on {name}" for one, name in zip(best, dense.scores, strict=True))
    return f"At {PATTERN}, which method does the least harm depends on the measure: {winners} ({numbers})."


def _page(
    lm: LanguageModel,
    outcomes: list[Outcome],
    report: PruneReport,
    calibration: CalibrationSet,
    shown: list[str],
    table: Table,
    conclusion: str,
    size: DemoSize,
    seconds: float,
) -> Page:
    measure = next(iter(outcomes[0].scores))
    score = outcomes[0].scores[measure]
    bars = [{"model": o.name, "value": o.scores[measure].value, "error": o.scores[measure].stderr} for o in outcomes]
    layers = [(layer.block, layer.name.rsplit(".", 1)[-1], layer.sparsity) for layer in report.layers]
    means = "; (mean): the mean of the texts' perplexities, else exp of the mean loss" if len(table.columns) > 4 else ""
    return Page(
        title=f"{lm.source['name']}, pruned to {PATTERN} three ways",
        lede=conclusion,
        facts=[
            ("model", f"{type(lm.model).__name__}, {report.parameters:,} parameters"),
            ("pruned", f"{report.coverage:.1%} of the parameters"),
            ("calibration", f"{size.samples} sequences of {size.seq_len} tokens"),
            ("took", f"{seconds / 60:.1f} minutes"),
        ],
        sections=[
            Heading("What each did to the model"),
            Grid(
                table,
                f"Perplexity: lower is better{means}. Seconds: to load and prune. One draw, one seed: a difference "
                f"of a few percent means nothing.",
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
                caption=f"Whiskers: one standard error. {_protocol(score)}",
            ),
            Heading("What the model wrote to calibrate itself"),
            Paragraph(
                f"Each text begins with a random token and is drawn with the study's settings. Of every "
                f"{size.texts_at_once}, the 20% with the highest perplexity were dropped "
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
                for outcome in (outcomes[1], outcomes[-1])
            ),
            Heading("Sparsity by layer"),
            Picture(
                layer_chart(layers, title=outcomes[-1].name),
                alt="measured sparsity of every layer",
                caption="Share of exact zeros, counted in the weights.",
            ),
        ],
        footer=f"calibrune {__version__}, `calibrune demo`; pruned weights {weights_fingerprint(lm.model)}.",
    )


def _protocol(score: Score) -> str:
    """How the perplexity was measured, in words; the whole record is in `calibrune evaluate --json`."""
    known = score.protocol
    if "windows" in known:
        how = f"{known['windows']} windows of {known['seq_len']} tokens that do not overlap"
    else:
        how = f"{known['texts']} texts one by one, cut at {known['max_tokens']} tokens"
    note = known["source"].get("note", "")
    return f"Measured on {how}, in {known['dtype']}. {note}"
