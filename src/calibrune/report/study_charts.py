"""The pictures of a study: bars with intervals, lines with shaded deviation, seeds as strips or violins, proxies."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from calibrune.patterns import Unstructured, parse_pattern
from calibrune.report.extras import import_extra
from calibrune.report.page import Chart
from calibrune.report.plots import HEIGHT, WIDTH
from calibrune.report.tables import shown
from calibrune.report.vega import MUTED
from calibrune.study.judgement import Judgement, Summary
from calibrune.study.scores import Measure, method, pattern, variant
from calibrune.study.spec import RunSpec
from calibrune.uncertainty.estimate import scipy

VIOLIN = 10
"""From so many seeds on a shape is drawn over them: of fewer it would be made up."""
MOST_SOURCES, MOST_SETTINGS, MOST_ROWS = 10, 16, 24
"""More than these side by side are no picture; what is varied so often has lines, and all stand in the table."""


class _Made(NamedTuple):
    chart: Any
    alt: str
    caption: str


def study_charts(found: Judgement) -> list[Chart]:
    """The pictures of each main measure that the study has the numbers for."""
    made: list[Chart] = []
    for measure in found.scores.main:
        mine = [one for one in found.summaries if one.measure == measure and one.arm.calibration]
        for draw in (_by_source, _lines, _seeds, _proxies):
            for one in draw(found, measure, mine):
                spec = {k: v for k, v in one.chart.to_dict().items() if k not in ("config", "$schema")}
                spec = {"height": HEIGHT, "width": WIDTH, **_rounded(spec)}
                # the name is an address in the page, and a file
                made.append(Chart(f"{draw.__name__.strip('_')}-{len(made) + 1}", spec, one.alt, one.caption))
    return made


def scaled(measure: Measure, value: float) -> float:
    """A value as it is shown: an accuracy in percent."""
    return 100 * value if measure.is_share else value


def axis_title(measure: Measure) -> str:
    """The measure with its unit, and which way is better."""
    better = "higher" if measure.higher_is_better else "lower"
    return f"{measure.name}{', %' if measure.is_share else ''} ({better} is better)"


def setting(found: Judgement, arm: RunSpec) -> str:
    """How an arm is pruned, in as few words as tell it from the others: "wanda 60%"."""
    model = f"{arm.model.name.rpartition('/')[2]}: " if len(found.scores.plan.models) > 1 else ""
    return model + " ".join(filter(None, (method(arm), pattern(arm))))


def calibration(arm: RunSpec) -> str:
    """The name of an arm's calibration, or "none"."""
    return arm.calibration.name if arm.calibration else "none"


def _by_source(found: Judgement, measure: Measure, mine: Sequence[Summary]) -> Iterator[_Made]:
    """Means by source and setting; bars where an axis from zero shows anything, else points."""
    rows, runs = [_row(found, one) for one in mine], _runs(found, mine)
    settings = {row["setting"] for row in rows}
    if not rows or len({row["calibration"] for row in rows}) > MOST_SOURCES or len(settings) > MOST_SETTINGS:
        return
    alt = import_extra("altair")
    means = [row["value"] for row in rows]
    # an interval of two seeds may be as wide as the room: it does not set the axis, and is cut
    reach = max(max(means) - min(means), max(map(abs, means)) / 6)
    ends = [row[end] for row in rows for end in ("low", "high") if row[end] is not None]
    near = [x for x in ends if min(means) - reach <= x <= max(means) + reach]
    low, high = (f([*means, *near, *(run["value"] for run in runs)]) for f in (min, max))
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    from_zero = low >= 0 and min(means) <= 0.6 * max(means)
    domain, notes, references = [0.0 if from_zero else low - room, high + room], [], []
    for one in found.summaries:
        if one.measure == measure and not one.arm.calibration:
            value, name = scaled(measure, one.t.value), setting(found, one.arm)
            inside = low - 4 * room <= value <= high + 4 * room
            notes.append(f"{name}: {shown(value)}{'' if inside else ', beyond the axis'}")
            if inside:
                domain = [min(domain[0], value - room), max(domain[1], value + room)]
                references.append({"name": name, "value": value})
    scale = alt.Scale(domain=domain, nice=False)
    place: dict[str, Any] = {
        "x": alt.X(
            "setting:N",
            sort=None,
            title=None,
            axis=alt.Axis(labelAngle=-35 if len(settings) > 4 else 0, labelLimit=240),
        ),
        "xOffset": alt.XOffset("calibration:N", sort=None),
    }
    y = alt.Y("value:Q", title=axis_title(measure), scale=scale)
    base = _of(rows).encode(**place)
    marks = base.mark_bar(opacity=0.8) if from_zero else base.mark_point(filled=True, size=90, opacity=1)
    marks = marks.encode(y=y, color=_coloured(found), tooltip=_tips(*rows[0]))
    interval = base.mark_rule(clip=True, strokeWidth=1.5).transform_filter("isValid(datum.low)")
    interval = interval.encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    dots = _of(runs).mark_point(size=18, opacity=0.7, strokeWidth=1, color=MUTED)
    dots = dots.encode(**place, y=alt.Y("value:Q", scale=scale), tooltip=_tips(*runs[0]))
    lines = _of(references).mark_rule(strokeDash=[5, 4], strokeWidth=1.2).encode(y="value:Q")
    names = _of(references).mark_text(align="right", dy=-6, fontSize=11)
    names = names.encode(y="value:Q", x=alt.value("width"), text="name:N")
    layers = [
        *([marks, interval, dots] if from_zero else [dots, interval, marks]),
        *([lines, names] * bool(references)),
    ]
    said = ["Means with 95% intervals (Student's t) over the seeds; each small point is a run."]
    said += [f"{'; '.join(notes)}."] if 0 < len(notes) < 4 else []
    said += [] if from_zero else ["The axis does not begin at zero."]
    said += ["Intervals are cut where they leave the picture."] if len(near) < len(ends) else []
    yield _Made(alt.layer(*layers), f"{measure.name} by source and method, with intervals", " ".join(said))


def _lines(found: Judgement, measure: Measure, mine: Sequence[Summary]) -> Iterator[_Made]:
    """Means against what a plan varies in three steps or more, with a deviation of the seeds to either side."""
    alt = import_extra("altair")
    for (title, where), points in _varied(found, measure).items():
        places = sorted({x for _, _, x in points})
        rows = []
        for one, series, x in points:
            row, spread = _row(found, one), scaled(measure, one.deviation or 0.0)
            low, high = row["value"] - spread, row["value"] + spread
            rows.append({**row, "line": series, title: x, "deviation": spread, "x": x, "low": low, "high": high})
        log_x = places[0] > 0 and places[-1] >= 8 * places[0]
        log_y = min(r["low"] for r in rows) > 0 and max(r["high"] for r in rows) > 20 * min(r["low"] for r in rows)
        across = alt.Scale(type="log", base=2, nice=False) if log_x else alt.Scale(zero=False, nice=False)
        up = alt.Scale(type="log", nice=False) if log_y else alt.Scale(zero=False)
        base = _of(rows).encode(
            x=alt.X("x:Q", title=title, axis=alt.Axis(format=".4~r", values=places), scale=across),
            color=alt.Color("line:N", sort=None, title=None, legend=_legend(len({row["line"] for row in rows}))),
        )
        y = alt.Y("value:Q", title=axis_title(measure), scale=up)
        layers = [
            base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", scale=up), y2="high:Q"),
            base.mark_line(strokeWidth=2).encode(y=y),
            base.mark_point(filled=True, size=50, opacity=1).encode(
                y=y, tooltip=_tips("line", "x", "value", "deviation")
            ),
        ]
        said = f"{where}. Shaded: one standard deviation over the seeds to either side."
        yield _Made(alt.layer(*layers), f"{measure.name} against {title}, {where}", said)


def _varied(found: Judgement, measure: Measure) -> dict[tuple[str, str], list[tuple[Summary, str, float]]]:
    """By what is varied and where: a summary, the name of its line, its place on the axis."""
    groups: dict[tuple[str, str], list[tuple[Summary, str, float]]] = {}
    for one in (one for one in found.summaries if one.measure == measure and one.arm.pattern):
        arm, parsed = one.arm, parse_pattern(str(one.arm.pattern))
        if isinstance(parsed, Unstructured):
            # what takes no data stands beside all methods
            for other in found.scores.arms if arm.calibration is None else [arm]:
                if other.calibration and other.model == arm.model:
                    line = arm.calibration.name if arm.calibration else method(arm)
                    where = setting(found, other).removesuffix(f" {pattern(other)}")
                    point = (one, line, 100 * parsed.sparsity)
                    if point not in (group := groups.setdefault(("sparsity, %", where), [])):
                        group.append(point)
        pieces = variant(arm).split(":")[1:]
        for name, _, text in (piece.partition("=") for piece in pieces):
            if arm.calibration and text.replace(".", "", 1).isdigit():
                rest = [piece for piece in pieces if piece != f"{name}={text}"]
                line = ":".join([arm.calibration.source, *rest])
                groups.setdefault((name, setting(found, arm)), []).append((one, line, float(text)))
    return {key: points for key, points in groups.items() if len({x for _, _, x in points}) > 2}


def _seeds(found: Judgement, measure: Measure, mine: Sequence[Summary]) -> Iterator[_Made]:
    """Every run; over ten and more a violin, as the paper draws them."""
    mine = [one for one in mine if len(one.values) > 1]
    if not 0 < len(mine) <= MOST_ROWS:
        return
    alt = import_extra("altair")
    where = {one: f"{setting(found, one.arm)}, {calibration(one.arm)}" for one in mine}
    axis = alt.Axis(labelLimit=260, domain=False, ticks=False, grid=True)
    y = alt.Y("row:N", sort=list(dict.fromkeys(where.values())), title=None, axis=axis)
    x = alt.X("value:Q", title=axis_title(measure), scale=alt.Scale(zero=False, nice=False, padding=10))
    colour = _coloured(found, legend=False)
    rows = [{**row, "row": where[one]} for one in mine for row in _runs(found, [one])]
    dots = _of(rows).mark_point(filled=True, size=46, opacity=0.8)
    middle = _of(rows).mark_tick(thickness=2, size=16).encode(x="mean(value):Q", y=y)
    layers = [
        dots.encode(x=x, y=y, color=colour, tooltip=_tips("setting", "calibration", "seed", "run", "value")),
        middle,
    ]
    outlines = [
        {"row": where[one], **_names(found, one.arm), "value": x, "place": place, "order": i}
        for one in mine
        if len(one.values) >= VIOLIN and one.deviation
        for i, (x, place) in enumerate(_violin([scaled(measure, value) for value in one.values]))
    ]
    if outlines:
        shapes = _of(outlines).mark_line(filled=True, fillOpacity=0.25, strokeWidth=1)
        off = alt.YOffset("place:Q", scale=alt.Scale(domain=[-1.1, 1.1]))
        fill = alt.Fill("calibration:N", scale=alt.Scale(domain=_calibrations(found)), legend=None)
        shapes = shapes.encode(x=x, y=y, yOffset=off, color=colour, fill=fill, order="order:Q", detail="row:N")
        layers.insert(0, shapes)
    chart = alt.layer(*layers).properties(height=alt.Step(40 if outlines else 26))
    said = "Each point is a run, the line their mean." + " Shapes: a Gaussian kernel density." * bool(outlines)
    yield _Made(chart, f"{measure.name} of every run", said)


def _proxies(found: Judgement, measure: Measure, mine: Sequence[Summary]) -> Iterator[_Made]:
    """Each proxy against the outcome; one at a time, by choice."""
    related = [one for one in found.correlations if one.measure == measure]
    if not related:
        return
    alt = import_extra("altair")
    rows = [
        {"proxy": one.proxy, **_names(found, arm), "x": x, "value": scaled(measure, y)}
        for one in related for arm, x, y in zip(one.arms, one.x, one.y, strict=True)
    ]  # fmt: skip
    names = list(dict.fromkeys(row["proxy"] for row in rows))
    chosen = alt.param(name="proxy", value=names[0], bind=alt.binding_select(options=names, name="proxy "))
    settings = len({row["setting"] for row in rows})
    points = _of(rows).mark_point(filled=True, size=80, opacity=1).transform_filter("datum.proxy == proxy")
    points = points.encode(
        x=alt.X("x:Q", title="the proxy, mean over seeds", scale=alt.Scale(zero=False)),
        y=alt.Y("value:Q", title=axis_title(measure), scale=alt.Scale(zero=False)),
        color=_coloured(found), shape=alt.Shape("setting:N", sort=None, title=None, legend=_legend(settings)),
        tooltip=_tips(*rows[0]),
    )  # fmt: skip
    said = f"A point is a calibration, mean over its seeds. In files: {names[0]}."
    yield _Made(points.add_params(chosen), f"Proxies against {measure.name}", said)


def _of(rows: Sequence[Any]) -> Any:
    alt = import_extra("altair")
    return alt.Chart(alt.Data(values=list(rows)))


def _tips(*names: str) -> list[Any]:
    alt, numbers = import_extra("altair"), ("value", "low", "high", "x", "deviation")
    return [alt.Tooltip(f"{n}:Q", format=".4~g") if n in numbers else alt.Tooltip(f"{n}:N") for n in names]


def _row(found: Judgement, one: Summary) -> dict[str, Any]:
    t = {name: None if x is None else scaled(one.measure, x) for name, x in (("low", one.t.low), ("high", one.t.high))}
    value = scaled(one.measure, one.t.value)
    return {**_names(found, one.arm), "runs": f"{one.t.n}", "value": value, **t}


def _runs(found: Judgement, some: Sequence[Summary]) -> list[dict[str, Any]]:
    return [
        {**_names(found, one.arm), "seed": str(seed), "run": key, "value": scaled(one.measure, value)}
        for one in some for seed, key, value in zip(one.seeds, one.keys, one.values, strict=True)
    ]  # fmt: skip


def _coloured(found: Judgement, *, legend: bool = True) -> Any:
    """A calibration's colour, the same in all pictures."""
    alt, names = import_extra("altair"), _calibrations(found)
    shown = _legend(len(names)) if legend else None
    return alt.Color("calibration:N", scale=alt.Scale(domain=names), title=None, legend=shown)


def _legend(n: int) -> Any:
    return import_extra("altair").Legend(orient="top", columns=min(n, 4), symbolOpacity=1) if n > 1 else None


def _calibrations(found: Judgement) -> list[str]:
    return list(dict.fromkeys(_names(found, arm)["calibration"] for arm in found.scores.arms if arm.calibration))


def _names(found: Judgement, arm: RunSpec) -> dict[str, str]:
    """What tells an arm in a picture: its setting and its calibration; of sources in variants, these are settings."""
    recipes = [one.calibration for one in found.scores.arms if one.calibration]
    if arm.calibration is None or len({one.source for one in recipes}) in (1, len(set(recipes))):
        return {"setting": setting(found, arm), "calibration": calibration(arm)}
    settings = f"{setting(found, arm)} {variant(arm).replace(':', ' ').strip()}".strip()
    return {"setting": settings, "calibration": arm.calibration.source}


def _rounded(value: Any) -> Any:
    """Six digits: more cannot be seen, and half the page would be digits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _violin(values: Sequence[float]) -> list[tuple[float, float]]:
    """The outline of the density: along it, and back."""
    density = scipy("stats").gaussian_kde(values)
    spread = 3 * float(np.sqrt(density.covariance[0, 0]))
    x = np.linspace(min(values) - spread, max(values) + spread, 40)
    there = list(zip(x.tolist(), (density(x) / density(x).max()).tolist(), strict=True))
    return there + [(x, -y) for x, y in reversed(there)]
