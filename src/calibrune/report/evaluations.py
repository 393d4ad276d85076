"""Scores of a model, or of several beside a reference: a table for the terminal, and a page with pictures."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from calibrune.evaluation.paired import FEW_WINDOWS, Comparison, Evaluation, left_out
from calibrune.evaluation.score import Score
from calibrune.report.page import Folded, Grid, Heading, Page, Paragraph, Picture, Preformatted, Section
from calibrune.report.plots import Interval, bar_chart, interval_chart
from calibrune.report.tables import Cell, Table, shown
from calibrune.report.terminal import WIDEST, scores_text

HOW = (
    "Differences are of the same items, with 95% intervals: McNemar's test where an item is right or wrong, blocks of "
    "neighbours where items are windows of one text, else a bootstrap and sign flips. Perplexities are compared by "
    "their logarithms, their means over texts as they are, and the change is shown in percent. "
    "The p-values are Holm's, over all comparisons here; a difference is shown where p is below 0.05 and the interval "
    'leaves out zero. "No difference shown" does not mean that there is none: see docs/statistics.md.'
)
"""What a reader of a comparison must know."""


def comparison_text(evaluations: Sequence[Evaluation], found: Sequence[Comparison]) -> str:
    """The comparisons in a table for each model, what they come to, and how everything was measured."""
    reference, *others = evaluations
    parts = []
    for other in others:
        table = comparisons_table([one for one in found if one.model == other.model])
        parts += [f"{other.model} beside {reference.model}", "", table.text(), ""]
    said = [summary(found), HOW, *_few_windows(found), *_left_out(evaluations)]
    parts += [line for text in said for line in [*textwrap.wrap(text, WIDEST), ""]]
    return "\n".join([*parts, f"scores of {reference.model}", "", scores_text(reference.scores)])


def comparisons_table(found: Sequence[Comparison]) -> Table:
    """A row for each score: both values, the change with its interval, the corrected p-value, the verdict."""
    columns = ["of", "metric", "reference", "model", "change", "95% interval", "p (Holm)", "verdict"]
    rows: list[list[Cell]] = [
        [
            one.dataset, one.metric, _finite(one.reference_value), _finite(one.value), _change(one, one.change),
            None if one.interval is None else " to ".join(str(_change(one, end)) for end in one.interval),
            None if one.p_holm is None else _p_value(one.p_holm),
            one.verdict if one.verdict != "not compared" else f"not compared: {one.test}",
        ]
        for one in found
    ]  # fmt: skip
    return Table(columns, rows)


def summary(found: Sequence[Comparison]) -> str:
    """What the comparisons show, a sentence for every model."""
    tested = [one for one in found if one.p_holm is not None]
    if not tested:
        return "Nothing could be compared."
    said = []
    for model in dict.fromkeys(one.model for one in tested):
        mine = [one for one in tested if one.model == model]
        parts = [
            f"{verdict} in {', '.join(map(_row, some))}"
            for verdict in ("worse", "better")
            if (some := [one for one in mine if one.verdict == verdict])
        ]
        undecided = sum(one.verdict == "no difference shown" for one in mine)
        if undecided:
            parts.append(f"no difference shown in {undecided} of {len(mine)}" if parts else "no difference shown")
        said.append(f"{model}: {'; '.join(parts)}.")
    return " ".join(said)


def evaluation_page(evaluations: Sequence[Evaluation], found: Sequence[Comparison] = ()) -> Page:
    """The page about one model, or about several beside the first of them.

    Args:
        found: the comparisons; none for one model.
    """
    reference, *others = evaluations
    names = ", ".join(one.model for one in others)
    sections: list[Section] = []
    if others:
        sections += [Heading("What differs"), Paragraph(summary(found)), *_pictures(found)]
        sections += [Grid(comparisons_table([one for one in found if one.model == other.model]),
                          f"{other.model} beside {reference.model}")
                     for other in others]  # fmt: skip
        sections += [Paragraph(text) for text in (HOW, *_few_windows(found), *_left_out(evaluations))]
    sections += [
        Heading("Scores"),
        Grid(_scores_table(evaluations), "Behind a value, its standard error over the items."),
    ]
    if not others:
        sections += list(_bars(reference.scores))
    sections += [Heading("How it was measured"), *_protocols(evaluations)]
    if commands := dict.fromkeys(one.command for one in evaluations if one.command):
        sections += [Heading("The command" if len(commands) < 2 else "The commands"), Preformatted("\n".join(commands))]
    versions = {name: version for one in evaluations for name, version in one.versions.items()}
    facts = [("reference", reference.model), ("beside it", names)] if others else [("model", reference.model)]
    limits = {json.dumps(score.protocol.get("limit")) for one in evaluations for score in one.scores}
    return Page(
        title=f"{names} beside {reference.model}" if others else f"Scores of {reference.model}",
        lede="Measured by the same protocol, on the same items." if others else "Each number with how it was measured.",
        facts=[*facts, ("scores", str(len(reference.scores))), ("limit", "none" if limits == {"null"} else
               ", ".join(sorted(limits - {"null"})))],
        sections=sections,
        footer="; ".join(f"{name} {version}" for name, version in versions.items()),
    )  # fmt: skip


def _pictures(found: Sequence[Comparison]) -> list[Picture]:
    """A chart for every kind of number: they do not share an axis."""
    kinds: dict[tuple[str, bool], list[Comparison]] = {}
    for one in found:
        if one.difference is not None:
            accuracy = one.higher_is_better and 0 <= one.reference_value <= 1
            name = "accuracy" if accuracy else one.metric
            kinds.setdefault((name, one.scale != "value"), []).append(one)
    names = list(dict.fromkeys((one.dataset, one.metric) for one in found))
    pictures = []
    for (name, relative), some in kinds.items():
        several = len({one.model for one in some}) > 1
        if several:  # the models stand together under each score
            some = sorted(some, key=lambda one: names.index((one.dataset, one.metric)))
        rows = _apart([f"{_row(one)}: {one.model}" if several else _row(one) for one in some])
        intervals = [_drawn(one, row) for one, row in zip(some, rows, strict=True)]
        better = "right" if some[0].higher_is_better else "left"
        x_title = f"{'relative change' if relative else 'difference'} of {name}; {better} is better"
        svg = interval_chart(intervals, x_title=x_title, format="+~%" if relative else "+~g")
        caption = "Lines: 95% intervals of the paired differences. Filled: a difference is shown, after Holm."
        pictures.append(Picture(svg, alt=f"Paired differences of {name}, with intervals", caption=caption))
    return pictures


def _drawn(one: Comparison, row: str) -> Interval:
    low, high = one.interval or (None, None)
    return Interval(row, one.change or 0.0, low, high, stands_out=one.verdict in ("better", "worse"))


def _apart(names: Sequence[str]) -> list[str]:
    """The names, numbered where one is there twice: a task with two numbers of examples."""
    return [
        name if names.index(name) == i else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]


def _row(one: Comparison) -> str:
    return f"{one.dataset} {one.metric}"


def _scores_table(evaluations: Sequence[Evaluation]) -> Table:
    """A row for each score, a column for each model."""
    keys = dict.fromkeys((s.protocol["dataset"], s.metric, s.n) for one in evaluations for s in one.scores)
    rows: list[list[Cell]] = []
    for dataset, metric, n in keys:
        cells: list[Cell] = []
        for one in evaluations:
            said = [
                _with_error(s) for s in one.scores if (s.protocol["dataset"], s.metric, s.n) == (dataset, metric, n)
            ]
            cells.append("; ".join(said) or None)
        rows.append([dataset, metric, *cells, n])
    return Table(["of", "metric", *(one.model for one in evaluations), "n"], rows)


def _with_error(score: Score) -> str:
    if score.stderr is None:
        return shown(score.value)
    return f"{shown(score.value)} ± {score.stderr:.{'0f' if score.stderr >= 100 else '2g'}}"


def _bars(scores: Sequence[Score]) -> Iterator[Picture]:
    """The accuracies and the like of one model; perplexities of several texts share no axis."""
    accuracies = [score for score in scores if score.higher_is_better and 0 <= score.value <= 1]
    names = _apart([f"{score.protocol['dataset']} {score.metric}" for score in accuracies])
    rows = [
        {"name": name, "value": score.value, "error": score.stderr}
        for name, score in zip(names, accuracies, strict=True)
    ]
    if rows:
        svg = bar_chart(rows, "name", "value", error="error", y_title="higher is better")
        yield Picture(svg, alt="Scores of every task", caption="Lines: one standard error over the items.")


def _protocols(evaluations: Sequence[Evaluation]) -> Iterator[Section]:
    """The protocol of every number of the reference, and those of the others where they are not known from it."""
    known: list[Mapping[str, Any]] = []
    for one in evaluations:
        for score in one.scores:
            if score.protocol in known:
                continue
            known.append(score.protocol)
            title = f"{score.protocol['dataset']} {score.metric}" + (
                f", {one.model}" if one is not evaluations[0] else ""
            )
            rows: list[list[Cell]] = [[name, _said(value)] for name, value in _rows(score.protocol)]
            yield Folded(title, Table(["", "value"], rows))


def _rows(facts: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        leaf = not isinstance(value, Mapping) or not any(isinstance(part, Mapping) for part in value.values())
        if leaf:
            yield f"{under}{name}", value
        else:
            yield from _rows(value, f"{under}{name}: ")


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_said(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    return value if isinstance(value, str) and value.strip() == value else json.dumps(value, default=str)


def _left_out(evaluations: Sequence[Evaluation]) -> list[str]:
    missing = left_out(evaluations)
    return [f"Not of all models, and so not compared everywhere: {', '.join(missing)}."] if missing else []


def _few_windows(found: Sequence[Comparison]) -> list[str]:
    some = dict.fromkeys(_row(one) for one in found if one.test.endswith(FEW_WINDOWS))
    return [f"Of {', '.join(some)}: {FEW_WINDOWS}, and so the intervals may be too narrow."] if some else []


def _change(one: Comparison, value: float | None) -> str | None:
    if value is None:
        return None
    return f"{100 * value:+.3g}%" if one.scale != "value" else f"{value:+.3g}"


def _p_value(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
