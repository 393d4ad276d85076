"""A study as a page, and the same tables for other files: what was found, with intervals, and where it comes from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from calibrune.durable import write_whole
from calibrune.errors import OutputError
from calibrune.report.page import Chart, Explorer, Folded, Grid, Heading, Page, Paragraph, Preformatted, Section
from calibrune.report.study_charts import axis_title, calibration, scaled, setting, study_charts
from calibrune.report.tables import Cell, Table
from calibrune.report.vega import drawn
from calibrune.study.judgement import Comparison, Judgement, Kind, Summary, shown_change
from calibrune.study.results import Results
from calibrune.study.scores import Measure
from calibrune.study.spec import RunSpec

HOW = (
    "An interval is Student's, of 95%, over the seeds: what other draws of the calibration data would change, with "
    "these evaluation items. Comparisons are paired: the same seed on both sides, the paired t test, Holm's "
    "correction over all comparisons of a kind and a measure. What takes no data (dense, magnitude) is one number that "
    "stands beside every seed. A difference is shown where the corrected p is below 0.05 and the interval leaves out "
    "zero; two are the same where two one-sided tests, corrected too, put the difference within the plan's margin. No "
    "difference shown is neither. Perplexities are compared by their ratio. A bootstrap of fewer than twenty seeds is "
    "too narrow; it stands in the tables beside the other. The error over items is what other questions or texts "
    "would change."
)
KINDS: Mapping[Kind, str] = {"source": "calibrations", "method": "methods"}
CONFIGURATIONS = ("measure", "pruned by", "calibration", "mean", "sd", "low", "high", "runs", "planned", "beside dense",
                  "bootstrap low", "bootstrap high", "error: seeds", "error: items", "error: both")  # fmt: skip
COMPARISONS = ("measure", "of", "this", "beside", "difference", "low", "high", "unit", "verdict", "pairs", "p",
               "p (Holm)", "p same (Holm)", "bootstrap low", "bootstrap high")  # fmt: skip


class TitledTable(NamedTuple):
    """A table under its heading, with a line that says what the numbers are."""

    heading: str
    note: str
    table: Table


def study_tables(found: Judgement) -> dict[str, TitledTable]:
    """By the name of its file; none that is empty."""
    ranges: list[list[Cell]] = [
        [one.measure.name, setting(found, one.arms[0]), ", ".join(map(calibration, one.arms)),
         *_changes(one.measure, one.range.value, one.range.low, one.range.high), _unit(one.measure), one.p_value]
        for one in found.ranges
    ]  # fmt: skip
    proxies: list[list[Cell]] = [
        [one.proxy, one.measure.name, setting(found, one.arms[0]), len(one.arms),
         *((one.rank.value, one.rank.low, one.rank.high) if one.rank else (None, None, None))]
        for one in found.correlations
    ]  # fmt: skip
    least: list[list[Cell]] = [
        [m.name, KINDS[kind], shown_change(m, x), _unit(m)]
        for m in found.scores.main for kind in KINDS if (x := found.detectable(kind, m)) is not None
    ]  # fmt: skip
    specs = {spec.id: spec for spec in found.scores.plan.runs}
    rows = found.scores.rows.items()
    failed: list[list[Cell]] = [[str(specs[id]), row["error"]] for id, row in rows if row["status"] == "failed"]
    tables = {
        "configurations": TitledTable(
            "Every configuration", "Over its seeds; accuracies in percent; low and high: the 95% interval.",
            Table(CONFIGURATIONS, [_configuration(found, one) for one in found.summaries])),
        "comparisons": TitledTable(
            "Side by side", "Paired by seed; points of accuracy, percent of perplexity. A verdict goes by p (Holm).",
            Table(COMPARISONS, [_comparison(found, one) for one in found.comparisons])),
        "ranges": TitledTable(
            "Range over sources", "The highest mean less the lowest, with a bootstrap interval, too narrow for few "
            "seeds; p says whether the source matters at all.",
            Table(("measure", "pruned by", "sources", "range", "low", "high", "unit", "p"), ranges)),
        "smallest": TitledTable(
            "What the seeds can show", "The smallest true difference that the plan's seeds find four times of five, "
            "without correction, by the spread that is seen.", Table(("measure", "of", "difference", "unit"), least)),
        "proxies": TitledTable(
            "What was known before", "Spearman's correlation of proxy and outcome; its interval is rough below ten.",
            Table(("proxy", "measure", "pruned by", "calibrations", "Spearman", "low", "high"), proxies)),
        "failed": TitledTable("What failed", "", Table(("run", "error"), failed)),
    }  # fmt: skip
    return {name: one for name, one in tables.items() if one.table.rows}


def headlines(found: Judgement) -> list[Paragraph]:
    """What is shown and what is not, in sentences: for every main measure, of calibrations and of methods."""
    said = [one for m in found.scores.main for kind in KINDS for one in _headline(found, kind, m)]
    nothing = "Nothing can be told from chance: no two configurations share two finished seeds."
    return said or [Paragraph(nothing, "weak")]


def study_page(found: Judgement, results: Results, charts: Sequence[Chart], *, command: str, linked: bool) -> Page:
    """The page.

    Args:
        found: what the study says.
        results: where its rows and records are.
        charts: of `study_charts`.
        command: what makes the study, and the page, again.
        linked: the page lies in the study's folder, so that records have an address from there.
    """
    scores, plan, tables = found.scores, found.scores.plan, study_tables(found)
    done = sum(row["status"] == "done" for row in scores.rows.values())
    sections: list[Section] = [Heading("What it shows"), *headlines(found)]
    if done < len(plan.runs):
        failed = f", {len(scores.rows) - done} failed" if len(scores.rows) > done else ""
        said = f"The study is not finished: {done} of {len(plan.runs)} runs done{failed}. This may change."
        sections.append(Paragraph(said))
    if scores.n_others:
        sections.append(Paragraph(f"{scores.n_others} more rows are of another plan or version, and left out."))
    sections += [Heading("Pictures"), *charts] if charts else []
    links = {
        "configurations": {"mean": [_anchor(one.arm) for one in found.summaries]},
        "comparisons": {"this": [_anchor(one.arm) for one in found.comparisons],
                        "beside": [_anchor(one.reference) for one in found.comparisons]},
    }  # fmt: skip
    chosen = {"measure": scores.main[0].name} if scores.main else {}
    for name, (heading, note, table) in tables.items():
        sections.append(Heading(heading))
        choices = [column for column in table.columns if column in _CHOICES]
        linked_to = links.get(name, {})
        is_long = len(table.rows) > 12
        sections.append(Explorer(table, choices, chosen, linked_to, note) if is_long else Grid(table, note, linked_to))
    sections += [Heading("Runs and their records"), *_runs(found, results, linked)]
    sections += [Heading("How it was judged"), Paragraph(HOW), Heading("To make it again"), Preformatted(command)]
    sections.append(Preformatted((results.folder / "plan.yaml").read_text(encoding="utf-8"), "The plan."))
    facts = [
        ("model", ", ".join(model.name.rpartition("/")[2] for model in plan.models)),
        ("runs", f"{done} of {len(plan.runs)}"),
        ("seeds", str(max(map(scores.planned, scores.arms)))),
        ("configurations", str(len(scores.arms))),
        ("measured on", ", ".join(dict.fromkeys(one.dataset for one in scores.measures if one.metric))),
    ]
    return Page(plan.title or plan.name, sections, " ".join(plan.about.split()), facts, _versions(found))


def write_report(found: Judgement, results: Results, *, page: Path | None, command: str) -> Path:
    """Write the page; without `page` into the study's folder, with its tables and pictures beside it.

    Returns:
        where the page is.

    Raises:
        OutputError: it cannot be written.
        ConfigError: what draws pages is not installed.
    """
    charts, folder = study_charts(found), results.folder / "report"
    made = study_page(found, results, charts, command=command, linked=page is None)
    made.write(page or folder / "index.html")
    if page is None:
        for kind, name in {"md": "tables.md", "latex": "tables.tex"}.items():
            write_whole(folder / name, tables_text(found, kind).encode())
        for name, one in study_tables(found).items():
            write_whole(folder / f"{name}.csv", one.table.csv().encode())
        for chart in charts:
            for kind in ("svg", "png"):
                write_whole(folder / f"{chart.name}.{kind}", drawn(chart.spec, kind))
    return page or folder / "index.html"


def tables_text(found: Judgement, kind: str) -> str:
    """The headline and all tables as "md", or the tables as "csv" (an empty line between two) or "latex"."""
    tables = study_tables(found).values()
    if kind == "csv":
        return "\n".join(one.table.csv() for one in tables)
    if kind == "latex":
        return "\n\n".join(one.table.latex(f"{one.heading}. {one.note}".strip()) for one in tables) + "\n"
    title = found.scores.plan.title or found.scores.plan.name
    said = "\n".join([f"# {title}", "", *(f"- {one.text}" for one in headlines(found))]).replace("<", "&lt;")
    return "\n\n".join([said, *(f"## {h}\n\n{note}\n\n{table.markdown()}" for h, note, table in tables)]) + "\n"


_CHOICES = ("measure", "pruned by", "calibration", "of", "verdict", "proxy")


def _configuration(found: Judgement, one: Summary) -> list[Cell]:
    dense = next(arm for arm in found.scores.arms if arm.pruner is None and arm.model == one.arm.model)
    reference = None if dense == one.arm else found.summary(dense, one.measure)
    beside = None if reference is None else one.t.value - reference.t.value
    numbers = (one.t.value, one.deviation, one.t.low, one.t.high, beside, one.bootstrap.low, one.bootstrap.high,
               one.over_seeds, one.over_items, one.both)  # fmt: skip
    cells: list[Cell] = [None if x is None else scaled(one.measure, x) for x in numbers]
    head: list[Cell] = [one.measure.name, setting(found, one.arm), calibration(one.arm)]
    return [*head, *cells[:4], one.t.n, found.scores.planned(one.arm), *cells[4:]]


def _comparison(found: Judgement, one: Comparison) -> list[Cell]:
    estimates = (one.difference, one.bootstrap)
    ends = [x for e in estimates for x in ((e.value, e.low, e.high) if e else (None, None, None))]
    cells = _changes(one.measure, *ends)
    head: list[Cell] = [one.measure.name, KINDS[one.kind], _named(found, one.arm), _named(found, one.reference)]
    tests: list[Cell] = [one.p_value, one.p_holm, one.same_p_holm]
    return [*head, *cells[:3], _unit(one.measure), one.verdict, one.n, *tests, *cells[4:]]


def _headline(found: Judgement, kind: Kind, measure: Measure) -> Iterator[Paragraph]:
    tested = [one for one in found.of(kind, measure) if one.p_holm is not None]
    if not tested:
        return
    shown = [one for one in tested if one.verdict in ("better", "worse")]
    n_same = sum(one.verdict == "the same" for one in tested)
    n = f"{len(tested)} comparison{'s' * (len(tested) > 1)} of {KINDS[kind]}"
    same = f"{'is' if n_same == 1 else 'are'} the same within {100 * found.scores.plan.margin:g}%"
    what = measure.name.capitalize()
    if shown:
        largest = max(shown, key=lambda one: abs(one.difference.value if one.difference else 0.0))
        more = f" {len(shown)} of {n} show{'s' * (len(shown) == 1)} a difference{f', {n_same} {same}' * bool(n_same)}."
        yield Paragraph(_sentence(found, largest) + more * (len(tested) > 1), "strong")
    elif n_same == len(tested):
        yield Paragraph(f"{what}: all {n} {same}.", "strong")
    else:
        least = found.detectable(kind, measure)
        could = "" if least is None else (
            f" By the spread that is seen, the plan's seeds find {_digits(shown_change(measure, least))}"
            f"{_of_unit(measure)} or more four times of five."
        )  # fmt: skip
        some = f", of which {n_same} {same}" if n_same else ""
        yield Paragraph(f"{what}: no difference shown in {n}{some}.{could}", "weak")


def _sentence(found: Judgement, one: Comparison) -> str:
    """ "wanda 60% on a beats wanda 60% on b in mean accuracy: 2.1 points [0.8, 3.4] higher over 5 paired seeds."."""
    assert one.difference is not None
    d = (one.difference.value, one.difference.low or 0.0, one.difference.high or 0.0)
    winner, loser = (one.arm, one.reference) if one.verdict == "better" else (one.reference, one.arm)
    by, *ends = (abs(shown_change(one.measure, x if one.verdict == "better" else -x)) for x in d)
    interval = ", ".join(map(_digits, sorted(ends)))
    how = f"{_digits(by)}{_of_unit(one.measure)} [{interval}] {'higher' if one.measure.higher_is_better else 'lower'}"
    what = f"{_named(found, winner)} beats {_named(found, loser)} in {one.measure.name}"
    return f"{what}: {how} over {one.n} paired seeds."


def _runs(found: Judgement, results: Results, linked: bool) -> Iterator[Folded]:
    """The runs of every configuration, and the manifest of one of its calibration sets."""
    specs = {spec.id: replace(spec, seed=None) for spec in found.scores.plan.runs}
    main = found.scores.main
    columns = ["seed", "run", *(axis_title(one).partition(" (")[0] for one in main), "set", "weights", "sparsity",
               "minutes", "device"]  # fmt: skip
    for arm in found.scores.arms:
        mine = [row for id, row in found.scores.rows.items() if specs[id] == arm]
        cells: list[list[Cell]] = []
        for row in mine:
            values = {m: dict(zip(one.keys, one.values, strict=True)) for m in main if (one := found.summary(arm, m))}
            shown = [values.get(m, {}).get(row["key"]) for m in main]
            seed, parts = row["run"]["seed"], [row.get(name) or {} for name in ("calibration", "pruning", "compute")]
            cells.append([
                "–" if seed is None else str(seed), row["key"],
                *(None if x is None else scaled(m, x) for m, x in zip(main, shown, strict=True)),
                parts[0].get("fingerprint"), row.get("weights"), parts[1].get("sparsity"),
                row.get("seconds", {}).get("all", 0.0) / 60, parts[2].get("device") or row["status"],
            ])  # fmt: skip
        addresses = [f"../runs/{row['key']}.json" if linked and row["status"] == "done" else "" for row in mine]
        title = f"{_named(found, arm)}: {len(mine)} of {found.scores.planned(arm)}"
        if mine:
            links = {"run": addresses}
            yield Folded(title, Table(columns, cells), links, _anchor(arm)[1:], _manifest(results, mine))


def _manifest(results: Results, rows: Sequence[Mapping[str, Any]]) -> str:
    """Of the first run, without what differs from seed to seed and is long."""
    first = next((row["key"] for row in rows if row["status"] == "done" and row["calibration"]), None)
    try:
        manifest = dict(results.record(first)["calibration"] or {}) if first else {}
    except (OutputError, LookupError, TypeError, ValueError):
        return f"The record of {first} is not at hand."
    long = ("document_ids", "text_sha256", "versions")
    kept = {name: value for name, value in manifest.items() if name not in long}
    return f"The calibration set of run {first}:\n{json.dumps(kept, indent=1, ensure_ascii=False)}" if kept else ""


def _versions(found: Judgement) -> str:
    every = [item for row in found.scores.rows.values() for item in (row.get("versions") or {}).items()]
    return "; ".join(f"{name} {version}" for name, version in dict.fromkeys(every))


def _named(found: Judgement, arm: RunSpec) -> str:
    return setting(found, arm) + (f" on {arm.calibration.name}" if arm.calibration else "")


def _anchor(arm: RunSpec) -> str:
    return f"#arm-{arm.id}"


def _changes(measure: Measure, *values: float | None) -> list[Cell]:
    return [None if value is None else shown_change(measure, value) for value in values]


def _unit(measure: Measure) -> str:
    return "%" if measure.is_logarithmic else "points" if measure.is_share else ""


def _of_unit(measure: Measure) -> str:
    return "%" if measure.is_logarithmic else f" {_unit(measure)}".rstrip()


def _digits(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 1 else 2}f}"
