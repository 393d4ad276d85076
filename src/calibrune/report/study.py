"""A study as a page, and the same tables for other files: what was found, with intervals, and where it comes from."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibrune.durable import write_whole
from calibrune.errors import OutputError
from calibrune.report.page import (
    Chart,
    Explorer,
    Finding,
    Findings,
    Folded,
    Grid,
    Heading,
    Page,
    Paragraph,
    Preformatted,
    Section,
)
from calibrune.report.study_charts import as_png, axis_title, scaled, setting, study_charts
from calibrune.report.tables import Cell, Table
from calibrune.study.judgement import Comparison, Judgement, Kind, Summary, shown_change
from calibrune.study.results import Results
from calibrune.study.scores import Measure
from calibrune.study.spec import RunSpec

HOW = (
    "An interval is Student's, of 95%, over the seeds: what other draws of the calibration data would change, with "
    "these evaluation items. Comparisons are paired: the same seed on both sides, the paired t test, Holm's "
    "correction over all comparisons of a kind and a measure. What takes no data (dense, magnitude) is one number "
    "that stands beside every seed. A difference is shown where the corrected p is below 0.05 and the interval "
    "leaves out zero; two are the same where two one-sided tests, corrected too, put the difference within the "
    "margin of the plan. No difference shown is neither. Perplexities are compared by their ratio. A bootstrap of "
    "fewer than twenty seeds is too narrow; it stands in the tables beside the other. The error over items is what "
    "other questions or texts would change."
)
KINDS: Mapping[Kind, str] = {"source": "calibrations", "method": "methods"}


@dataclass(frozen=True)
class StudyTables:
    """What a study says, in tables; the same in the page and in all files."""

    configurations: Table
    comparisons: Table
    ranges: Table
    proxies: Table
    failed: Table

    @property
    def named(self) -> dict[str, tuple[str, Table]]:
        """By the name of its file: a caption and the table, without those that are empty."""
        found = {
            "configurations": ("Every configuration, over its seeds", self.configurations),
            "comparisons": ("Differences, paired by seed", self.comparisons),
            "ranges": ("Range over sources: the highest mean less the lowest", self.ranges),
            "proxies": ("Rank correlation of each proxy with the outcome", self.proxies),
            "failed": ("Runs that failed", self.failed),
        }
        return {name: (caption, table) for name, (caption, table) in found.items() if table.rows}


def study_tables(found: Judgement) -> StudyTables:
    """The tables of a judgement; accuracies in percent."""
    configurations = [_configuration(found, one) for one in found.summaries]
    comparisons = [_comparison(found, one) for one in found.comparisons]
    ranges: list[list[Cell]] = [
        [one.measure.name, setting(found, one.arms[0]), ", ".join(map(_calibration, one.arms)),
         *(shown_change(one.measure, x) for x in (one.range.value, one.range.low or 0.0, one.range.high or 0.0)),
         _unit(one.measure), one.p_value]
        for one in found.ranges
    ]  # fmt: skip
    proxies: list[list[Cell]] = [
        [one.proxy, one.measure.name, setting(found, one.arms[0]), len(one.arms),
         *((None, None, None) if one.rank is None else (one.rank.value, one.rank.low, one.rank.high))]
        for one in found.correlations
    ]  # fmt: skip
    specs = {spec.id: spec for spec in found.scores.plan.runs}
    failed: list[list[Cell]] = [
        [str(specs[id]), str(row["error"])] for id, row in found.scores.rows.items() if row["status"] == "failed"
    ]
    return StudyTables(
        Table(["measure", "pruned by", "calibration", "mean", "sd", "low", "high", "runs", "of", "beside dense",
               "bootstrap low", "bootstrap high", "error: seeds", "error: items", "error: both"], configurations),
        Table(["measure", "of", "this", "beside", "difference", "low", "high", "unit", "pairs", "p", "p (Holm)",
               "p same (Holm)", "bootstrap low", "bootstrap high", "verdict"], comparisons),
        Table(["measure", "pruned by", "sources", "range", "low", "high", "unit", "p"], ranges),
        Table(["proxy", "measure", "pruned by", "calibrations", "Spearman", "low", "high"], proxies),
        Table(["run", "error"], failed),
    )  # fmt: skip


def headlines(found: Judgement) -> list[Finding]:
    """What is shown and what is not, in sentences: for every main measure, of calibrations and of methods."""
    said = [one for m in found.scores.main for kind in KINDS for one in _headline(found, kind, m)]
    return said or [Finding("Nothing can be told from chance: no two configurations share two finished seeds.", False)]


def study_page(found: Judgement, results: Results, *, command: str, linked: bool = True) -> tuple[Page, list[Chart]]:
    """The page, and its charts.

    Args:
        found: what the study says.
        results: where its rows and records are.
        command: what makes the study, and the page, again.
        linked: the page lies in the study's folder, so that records have an address from there.
    """
    scores, tables, charts = found.scores, study_tables(found), study_charts(found)
    plan, named = scores.plan, study_tables(found).named
    done = sum(row["status"] == "done" for row in scores.rows.values())
    state = f"{done} of {len(plan.runs)} runs done" + (
        f", {len(tables.failed.rows)} failed" if tables.failed.rows else ""
    )
    main = scores.main[0].name if scores.main else ""
    sections: list[Section] = [Heading("What it shows"), Findings(headlines(found))]
    if done < len(plan.runs):
        sections.append(Paragraph(f"The study is not finished: {state}. What follows is of those, and may change."))
    if scores.n_others:
        sections.append(Paragraph(f"{scores.n_others} more rows are of another plan or version, and left out."))
    sections += [Heading("Pictures"), *charts] if charts else []
    if "configurations" in named:
        links = [f"#arm-{one.arm.id}" for one in found.summaries]
        sections += [
            Heading("Every configuration"),
            Explorer(
                tables.configurations, ("measure", "pruned by", "calibration"), {"measure": main},
                {"mean": links, "runs": links},
                "Accuracies in percent; low and high: the 95% interval. A mean leads to its runs.",
            ),
        ]  # fmt: skip
    if "comparisons" in named:
        sections += [
            Heading("Side by side"),
            Explorer(
                tables.comparisons, ("measure", "of", "verdict"), {"measure": main}, _links(found),
                "Paired by seed; points of an accuracy, percent of a perplexity. A verdict follows p (Holm).",
            ),
        ]  # fmt: skip
    sections += _rest(found, named)
    if tables.failed.rows:
        sections += [Heading("What failed"), Grid(tables.failed)]
    sections += [Heading("Runs and their records"), *_runs(found, results, linked)]
    sections += [Heading("How it was judged"), Paragraph(HOW), Heading("To make it again"), Preformatted(command)]
    sections.append(Preformatted((results.folder / "plan.yaml").read_text(encoding="utf-8"), "The plan."))
    facts = [("runs", f"{done} of {len(plan.runs)}"), ("seeds", str(max(map(scores.planned, scores.arms), default=0)))]
    facts = [("model", ", ".join(_short(model.name) for model in plan.models)), *facts]
    measured = dict.fromkeys(one.dataset for one in scores.measures if one.metric)
    facts += [("configurations", str(len(scores.arms))), ("measured on", ", ".join(measured))]
    page = Page(
        plan.title or plan.name, sections, lede=" ".join(plan.about.split()), facts=facts, footer=_versions(found)
    )
    return page, charts


def write_report(found: Judgement, results: Results, *, page: Path | None, command: str) -> Path:
    """Write the page; without `page` into the study's folder, with its tables and pictures beside it.

    Returns:
        where the page is.

    Raises:
        OutputError: it cannot be written.
        ConfigError: what draws pages is not installed.
    """
    folder = results.folder / "report"
    made, charts = study_page(found, results, command=command, linked=page is None)
    if page is not None:
        made.write(page)
        return page
    made.write(folder / "index.html")
    named = study_tables(found).named
    for kind in ("md", "latex"):
        write_whole(folder / f"tables.{'tex' if kind == 'latex' else kind}", tables_text(found, kind).encode())
    for name, (_, table) in named.items():
        write_whole(folder / f"{name}.csv", table.csv().encode())
    for chart in charts:
        write_whole(folder / f"{chart.name}.svg", chart.svg.encode())
        write_whole(folder / f"{chart.name}.png", as_png(chart))
    return folder / "index.html"


def tables_text(found: Judgement, kind: str) -> str:
    """The headline and all tables as "md", "csv" (tables alone, an empty line between two) or "latex"."""
    named = study_tables(found).named
    if kind == "csv":
        return "\n".join(table.csv() for _, table in named.values())
    if kind == "latex":
        return "\n\n".join(table.latex(caption) for caption, table in named.values()) + "\n"
    said = "\n".join(f"- {_escaped(one.text)}" for one in headlines(found))
    parts = [f"## {caption}\n\n{table.markdown()}" for caption, table in named.values()]
    return "\n\n".join([f"# {_escaped(found.scores.plan.title or found.scores.plan.name)}\n\n{said}", *parts]) + "\n"


def _configuration(found: Judgement, one: Summary) -> list[Cell]:
    measure = one.measure
    dense = found.summary(next(arm for arm in found.scores.arms if _is_dense(arm, one.arm)), measure)
    beside = None if dense is None or dense.arm == one.arm else one.t.value - dense.t.value
    ends = (one.t.low, one.t.high)
    boots, errors = (one.bootstrap.low, one.bootstrap.high), (one.over_seeds, one.over_items, one.both)
    cells = [None if x is None else scaled(measure, x) for x in (one.deviation, *ends, beside, *boots, *errors)]
    head: list[Cell] = [measure.name, setting(found, one.arm), _calibration(one.arm), scaled(measure, one.t.value)]
    return [*head, *cells[:3], one.t.n, one.planned, *cells[3:]]


def _comparison(found: Judgement, one: Comparison) -> list[Cell]:
    estimate, boots = one.difference, one.bootstrap
    ends = [None] * 3 if estimate is None else [estimate.value, estimate.low, estimate.high]
    ends += [None] * 2 if boots is None else [boots.low, boots.high]
    cells = [None if x is None else shown_change(one.measure, x) for x in ends]
    names: list[Cell] = [one.measure.name, KINDS[one.kind], _named(found, one.arm), _named(found, one.reference)]
    tests = [one.p_value, one.p_holm, one.same_p_holm]
    return [*names, *cells[:3], _unit(one.measure), one.n, *tests, *cells[3:], one.verdict]


def _headline(found: Judgement, kind: Kind, measure: Measure) -> Iterator[Finding]:
    tested = [one for one in found.of(kind, measure) if one.p_holm is not None]
    if not tested:
        return
    shown = [one for one in tested if one.verdict in ("better", "worse")]
    n_same = sum(one.verdict == "the same" for one in tested)
    n = f"{len(tested)} comparison{'s' * (len(tested) > 1)} of {KINDS[kind]}"
    same = f"{n_same} {'is' if n_same == 1 else 'are'} the same within {100 * found.scores.plan.margin:g}%"
    if shown:
        largest = max(shown, key=lambda one: abs(one.difference.value if one.difference else 0.0))
        more = f" {len(shown)} of {n} show{'s' * (len(shown) == 1)} a difference" if len(tested) > 1 else ""
        yield Finding(f"{_sentence(found, largest)}{more}{f', {same}' if n_same else ''}{'.' * bool(more)}", True)
        return
    least = found.detectable(kind, measure)
    could = "" if least is None else (
        f" By the spread that is seen, the plan's seeds find {_amount(measure, least)} or more four times of five."
    )  # fmt: skip
    if n_same == len(tested):
        yield Finding(f"{measure.name.capitalize()}: {same.replace(str(n_same), f'all {n}', 1)}.", True)
        return
    what = f"no difference shown in {n}{f', of which {same}' if n_same else ''}"
    yield Finding(f"{measure.name.capitalize()}: {what}.{could}", bool(n_same))


def _sentence(found: Judgement, one: Comparison) -> str:
    """ "wanda 60% on selfgen beats wanda 60% on c4 in mean accuracy by 2.1 points [0.8, 3.4] over 5 paired seeds."."""
    assert one.difference is not None
    assert one.difference.low is not None
    assert one.difference.high is not None
    winner, loser, d = one.arm, one.reference, one.difference
    if one.verdict == "worse":
        winner, loser = loser, winner
        d = replace(d, value=-d.value, low=-(d.high or 0.0), high=-(d.low or 0.0))
    ends = sorted(abs(shown_change(one.measure, x or 0.0)) for x in (d.low, d.high))
    by = f"{_digits(abs(shown_change(one.measure, d.value)))}{_of_unit(one.measure)}"
    what = f"{one.measure.name} by {by} [{_digits(ends[0])}, {_digits(ends[1])}]"
    return f"{_named(found, winner)} beats {_named(found, loser)} in {what} over {one.n} paired seeds."


def _rest(found: Judgement, named: Mapping[str, tuple[str, Table]]) -> Iterator[Section]:
    scores = found.scores
    if "ranges" in named:
        yield Heading("How much the source matters")
        said = (
            "A range is never below 0: p says whether the source matters at all. Only of seeds that all sources have."
        )
        yield Grid(named["ranges"][1], said)
    least = [(kind, m, found.detectable(kind, m)) for m in scores.main for kind in KINDS]
    rows: list[list[Cell]] = [[m.name, KINDS[kind], _amount(m, x)] for kind, m, x in least if x is not None]
    if rows:
        yield Heading("What the seeds can show")
        said = "The smallest true difference that the plan's seeds find four times of five, without correction, by the "
        yield Grid(
            Table(["measure", "of", "smallest difference"], rows), said + "spread of the pairs that are seen here."
        )
    if "proxies" in named:
        yield Heading("What was known before pruning")
        choices = ("measure", "pruned by", "proxy")
        chosen = {"measure": scores.main[0].name}
        said = "Spearman's rank correlation over calibrations, with Bonett and Wright's interval: rough below ten."
        yield Explorer(named["proxies"][1], choices, chosen, caption=said)


def _runs(found: Judgement, results: Results, linked: bool) -> Iterator[Folded]:
    """The runs of every configuration, and the manifest of one of its calibration sets."""
    main = found.scores.main
    rows = list(found.scores.rows.values())
    specs = {spec.id: spec for spec in found.scores.plan.runs}
    for arm in found.scores.arms:
        mine = [row for row in rows if replace(specs[row["id"]], seed=None) == arm]
        if not mine:
            continue
        cells = [_run(found, arm, row, main) for row in mine]
        columns = ["seed", "run", *(axis_title(one).partition(" (")[0] for one in main), "calibration set", "weights",
                   "sparsity", "minutes", "device"]  # fmt: skip
        links = {"run": [f"../runs/{row['key']}.json" if linked and row["status"] == "done" else "" for row in mine]}
        title = f"{_named(found, arm)}: {len(mine)} of {found.scores.planned(arm)}"
        yield Folded(title, Table(columns, cells), links, f"arm-{arm.id}", _manifest(results, mine))


def _run(found: Judgement, arm: RunSpec, row: Mapping[str, Any], main: list[Measure]) -> list[Cell]:
    seed: Cell = "–" if row["run"]["seed"] is None else str(row["run"]["seed"])
    if row["status"] != "done":
        return [seed, row["key"], *([None] * len(main)), None, None, None, None, "failed"]
    values = []
    for measure in main:
        one = found.summary(arm, measure)
        at = one.keys.index(row["key"]) if one and row["key"] in one.keys else None
        values.append(None if one is None or at is None else scaled(measure, one.values[at]))
    pruning, calibration, compute = row["pruning"] or {}, row["calibration"] or {}, row.get("compute", {})
    device = ", ".join(str(compute[name]) for name in ("device", "instructions") if compute.get(name))
    return [seed, row["key"], *values, calibration.get("fingerprint"), row["weights"], pruning.get("sparsity"),
            round(row["seconds"]["all"] / 60, 2), device]  # fmt: skip


def _manifest(results: Results, rows: Sequence[Mapping[str, Any]]) -> str:
    """Of the first run, without what differs from seed to seed and is long."""
    first = next((row for row in rows if row["status"] == "done" and row["calibration"]), None)
    if first is None:
        return ""
    try:
        manifest = dict(results.record(first["key"])["calibration"])
    except (OutputError, KeyError, TypeError):
        return f"The record of {first['key']} is not at hand."
    for name in ("document_ids", "text_sha256", "versions"):
        manifest.pop(name, None)
    return f"The calibration set of run {first['key']}:\n{json.dumps(manifest, indent=1, ensure_ascii=False)}"


def _links(found: Judgement) -> dict[str, list[str]]:
    return {"this": [f"#arm-{one.arm.id}" for one in found.comparisons],
            "beside": [f"#arm-{one.reference.id}" for one in found.comparisons]}  # fmt: skip


def _versions(found: Judgement) -> str:
    kept: dict[str, dict[str, None]] = {}
    for row in found.scores.rows.values():
        for name, version in row.get("versions", {}).items():
            kept.setdefault(name, {})[version] = None
    return "; ".join(f"{name} {', '.join(versions)}" for name, versions in kept.items())


def _is_dense(arm: RunSpec, other: RunSpec) -> bool:
    return arm.pruner is None and arm.model == other.model


def _named(found: Judgement, arm: RunSpec) -> str:
    return setting(found, arm) + (f" on {arm.calibration.name}" if arm.calibration else "")


def _calibration(arm: RunSpec) -> str:
    return arm.calibration.name if arm.calibration else "none"


def _unit(measure: Measure) -> str:
    return "%" if measure.is_logarithmic else "points" if measure.is_share else ""


def _of_unit(measure: Measure) -> str:
    return "%" if measure.is_logarithmic else " points" if measure.is_share else ""


def _amount(measure: Measure, value: float) -> str:
    return f"{_digits(shown_change(measure, value))}{_of_unit(measure)}"


def _digits(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 1 else 2}f}"


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def _escaped(text: str) -> str:
    return textwrap.dedent(text).replace("<", "&lt;").replace("|", r"\|")
