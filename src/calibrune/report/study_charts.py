"""The pictures of a study: bars with intervals, lines with shaded deviation, seeds as strips or violins, proxies."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from calibrune.patterns import Unstructured, parse_pattern
from calibrune.report.extras import import_extra
from calibrune.report.page import Chart
from calibrune.report.plots import HEIGHT, WIDTH
from calibrune.report.tables import shown
from calibrune.report.vega import MUTED, drawn
from calibrune.study.judgement import Judgement, Summary
from calibrune.study.scores import Measure, method, pattern, variant
from calibrune.study.spec import RunSpec
from calibrune.uncertainty.estimate import scipy

VIOLIN = 10
"""From so many seeds on a shape is drawn over them: of fewer it would be made up."""
MOST_SOURCES, MOST_ROWS = 10, 24
"""More than these side by side are no picture; what is varied so often has lines, and all stand in the table."""
FEW_SEEDS = "95% intervals (Student's t) over the seeds; each small point is a run."


def study_charts(found: Judgement) -> list[Chart]:
    """The pictures of each main measure that the study has the numbers for."""
    made: list[Chart] = []
    for measure in found.scores.main:
        makers: tuple[Callable[[Judgement, Measure], Iterator[tuple[str, Any, str, str]]], ...]
        makers = (_by_source, _lines, _seeds, _proxies)
        for maker in makers:
            for name, chart, alt, caption in maker(found, measure):
                # a name is an address in the page and a file
                name = f"{name}-{found.scores.main.index(measure) + 1}-{len(made) + 1}"
                made.append(_chart(name, chart, alt, caption))
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
    several = len(found.scores.plan.models) > 1
    model = f"{arm.model.name.rpartition('/')[2]}: " if several else ""
    return model + " ".join(filter(None, (method(arm), pattern(arm))))


def _by_source(found: Judgement, measure: Measure) -> Iterator[tuple[str, Any, str, str]]:
    """Means by source and setting; bars where an axis from zero shows anything, else points."""
    alt = import_extra("altair")
    mine = _with_data(found, measure)
    if not mine or len({one.arm.calibration for one in mine}) > MOST_SOURCES:
        return
    rows = [
        _row(found, one) | {"low": _end(one, one.t.low), "high": _end(one, one.t.high), "n": f"{one.t.n}"}
        for one in mine
    ]
    means = [row["mean"] for row in rows]
    dots = [row["mean"] for row in _runs(found, mine)]
    runs = [value for row in rows for value in (row["low"], row["high"]) if _near(value, means)]
    low, high = min(means + runs + dots), max(means + runs + dots)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    from_zero = 0 <= min(means) <= 0.6 * max(means) and (low >= 0 or measure.is_share)
    domain = [0.0 if from_zero else low - room, high + room]
    references, notes = [], []
    for one in found.summaries:
        if one.measure == measure and one.arm.calibration is None:
            value, name = scaled(measure, one.t.value), setting(found, one.arm)
            inside = low - 4 * room <= value <= high + 4 * room
            notes.append(f"{name}: {shown(value)}{'' if inside else ', beyond the axis'}")
            if inside:
                domain = [min(domain[0], value - room), max(domain[1], value + room)]
                references.append({"name": name, "value": value})
    x = alt.X(
        "setting:N",
        sort=None,
        title=None,
        axis=alt.Axis(labelAngle=0 if len({row["setting"] for row in rows}) < 5 else -35, labelLimit=200),
    )
    side = alt.XOffset("calibration:N", sort=None)
    scale = alt.Scale(domain=domain, nice=False)
    up = alt.Y("mean:Q", title=axis_title(measure), scale=scale)
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, xOffset=side)
    tips = [alt.Tooltip(f"{name}:N") for name in ("setting", "calibration", "n")]
    tips += [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("mean", "low", "high")]
    named = _coloured(found, legend=True)
    if from_zero:
        marks = base.mark_bar(opacity=0.8).encode(y=up, color=named, tooltip=tips)
    else:
        marks = base.mark_point(filled=True, size=90, opacity=1).encode(y=up, color=named, tooltip=tips)
    interval = base.mark_rule(clip=True, strokeWidth=1.5).transform_filter("isValid(datum.low)")
    interval = interval.encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    dots = _dots(found, mine).encode(x=x, xOffset=side, y=alt.Y("mean:Q", scale=scale), tooltip=_TIPS(alt))
    over = [marks, interval, dots] if from_zero else [dots, interval, marks]
    layers = [*over, *(_reference(alt, one) for one in references)]
    cut = any(not _near(row[end], means) for row in rows for end in ("low", "high") if row[end] is not None)
    said = f"Means over the seeds with {FEW_SEEDS}" + (f" {'; '.join(notes)}." if len(notes) < 4 else "")
    said += "" if from_zero else " The axis does not begin at zero."
    said += " Intervals are cut where they leave the picture." if cut else ""
    yield "by-source", alt.layer(*layers), f"{measure.name} by source and method, with intervals", said


def _lines(found: Judgement, measure: Measure) -> Iterator[tuple[str, Any, str, str]]:
    """Means against what a plan varies in three steps or more, with a deviation of the seeds to either side."""
    alt = import_extra("altair")
    for axis in _axes(found, measure):
        values = [x for _, _, x in axis.points]
        log = min(values) > 0 and max(values) >= 8 * min(values)
        rows = []
        for one, series, x in axis.points:
            spread = scaled(measure, one.deviation or 0.0)
            row = {**_row(found, one), "x": x, "series": series, "n": f"{one.t.n}", "deviation": spread}
            rows.append({**row, "low": row["mean"] - spread, "high": row["mean"] + spread})
        base = alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X("x:Q", title=axis.title, axis=alt.Axis(format=".4~r", values=sorted(set(values))),
                    scale=alt.Scale(type="log", base=2, nice=False) if log else alt.Scale(zero=False, nice=False)),
            color=alt.Color("series:N", sort=None, title=None, legend=_legend(len({row["series"] for row in rows}))),
        )  # fmt: skip
        positive = all(row["low"] > 0 for row in rows)
        wide = not measure.is_share and positive and max(r["high"] for r in rows) > 20 * min(r["low"] for r in rows)
        scale = alt.Scale(type="log", nice=False) if wide else alt.Scale(zero=False)
        tips = [alt.Tooltip("series:N"), alt.Tooltip("x:Q", title=axis.title), alt.Tooltip("n:N")]
        tips += [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("mean", "deviation")]
        y = alt.Y("mean:Q", title=axis_title(measure), scale=scale)
        layers = [
            base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"),
            base.mark_line(strokeWidth=2).encode(y=y),
            base.mark_point(filled=True, size=50, opacity=1).encode(y=y, tooltip=tips),
        ]
        said = f"{axis.where}. Shaded: one standard deviation over the seeds to either side."
        yield "line", alt.layer(*layers), f"{measure.name} against {axis.title}, {axis.where}", said


@dataclass(frozen=True)
class _Axis:
    title: str
    where: str
    points: Sequence[tuple[Summary, str, float]]
    """Summary, name of its line, place."""


def _axes(found: Judgement, measure: Measure) -> Iterator[_Axis]:
    groups: dict[tuple[str, str], list[tuple[Summary, str, float]]] = {}
    for one in found.summaries:
        arm = one.arm
        if one.measure != measure or arm.pattern is None:
            continue
        parsed = parse_pattern(arm.pattern)
        model = arm.model.name if len(found.scores.plan.models) > 1 else ""
        calibration = arm.calibration.name if arm.calibration else ""
        if isinstance(parsed, Unstructured):
            key = ("sparsity, %", ", ".join(filter(None, [method(arm), model])) if calibration else model)
            groups.setdefault(key, []).append((one, calibration or method(arm), 100 * parsed.sparsity))
        pieces = [piece for piece in variant(arm).split(":") if piece]
        for piece in pieces:
            name, _, text = piece.partition("=")
            if (place := _number(text)) is not None and arm.calibration:
                rest = ":".join([arm.calibration.source, *(other for other in pieces if other != piece)])
                groups.setdefault((name, setting(found, arm)), []).append((one, rest, place))
    for (title, where), points in groups.items():
        own = points
        if title.startswith("sparsity") and where:  # what takes no data stands beside all
            own = points + groups.get((title, ""), [])
        if len({x for _, _, x in points}) > 2 and (where or len(groups) == 1):
            yield _Axis(title, where, own)


def _seeds(found: Judgement, measure: Measure) -> Iterator[tuple[str, Any, str, str]]:
    """Every run; over ten and more a violin, as the paper draws them."""
    alt = import_extra("altair")
    mine = [one for one in _with_data(found, measure) if len(one.values) > 1]
    if not 0 < len(mine) <= MOST_ROWS:
        return
    where = {one: f"{setting(found, one.arm)}, {_calibration(one.arm)}" for one in mine}
    order = list(dict.fromkeys(where.values()))
    y = alt.Y("row:N", sort=order, title=None, axis=alt.Axis(labelLimit=260, domain=False, ticks=False, grid=True))
    x = alt.X("mean:Q", title=axis_title(measure), scale=alt.Scale(zero=False, nice=False, padding=10))
    colour = _coloured(found, legend=False)
    rows = [row | {"row": where[one]} for one in mine for row in _runs(found, [one])]
    layers = []
    outlines = [
        {"row": where[one], "calibration": _calibration(one.arm), "mean": x, "place": place, "order": i}
        for one in mine
        if len(one.values) >= VIOLIN and one.deviation
        for i, (x, place) in enumerate(_violin([scaled(measure, value) for value in one.values]))
    ]
    if outlines:
        shapes = alt.Chart(alt.Data(values=outlines)).mark_line(filled=True, fillOpacity=0.25, strokeWidth=1)
        off = alt.YOffset("place:Q", scale=alt.Scale(domain=[-1.1, 1.1]))
        fill = alt.Fill("calibration:N", scale=alt.Scale(domain=_calibrations(found)), legend=None)
        layers.append(shapes.encode(x=x, y=y, yOffset=off, color=colour, fill=fill, order="order:Q", detail="row:N"))
    dots = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=46, opacity=0.8)
    middle = alt.Chart(alt.Data(values=rows)).mark_tick(thickness=2, size=16).encode(x=alt.X("mean(mean):Q"), y=y)
    layers += [dots.encode(x=x, y=y, color=colour, tooltip=_TIPS(alt)), middle]
    chart = alt.layer(*layers).properties(height=alt.Step(26 if not outlines else 40))
    said = "Each point is a run, the line their mean." + (" Shapes: a Gaussian kernel density." if outlines else "")
    yield "seeds", chart, f"{measure.name} of every run", said


def _proxies(found: Judgement, measure: Measure) -> Iterator[tuple[str, Any, str, str]]:
    """Each proxy against the outcome; one at a time, by choice."""
    alt = import_extra("altair")
    rows = [
        {"proxy": one.proxy, "setting": setting(found, arm), "calibration": _calibration(arm), "x": x,
         "mean": scaled(measure, y)}
        for one in found.correlations
        if one.measure == measure
        for arm, x, y in zip(one.arms, one.x, one.y, strict=True)
        if isfinite(x)
    ]  # fmt: skip
    if not rows:
        return
    names = list(dict.fromkeys(row["proxy"] for row in rows))
    chosen = alt.param(name="proxy", value=names[0], bind=alt.binding_select(options=names, name="proxy "))
    base = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter("datum.proxy == proxy")
        .encode(
            x=alt.X("x:Q", title="the proxy, mean over seeds", scale=alt.Scale(zero=False)),
            y=alt.Y("mean:Q", title=axis_title(measure), scale=alt.Scale(zero=False)),
        )
    )
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        color=_coloured(found, legend=True),
        shape=alt.Shape("setting:N", sort=None, title=None, legend=_legend(len({row["setting"] for row in rows}))),
        tooltip=["proxy:N", "setting:N", "calibration:N", alt.Tooltip("x:Q"), alt.Tooltip("mean:Q", format=".4~g")],
    )
    said = f"A point is a calibration, mean over its seeds. In files: {names[0]}."
    yield "proxies", points.add_params(chosen), f"Proxies against {measure.name}", said


def _chart(name: str, chart: Any, alt: str, caption: str) -> Chart:
    spec = _rounded({key: value for key, value in chart.to_dict().items() if key not in ("config", "$schema")})
    spec.setdefault("height", HEIGHT)
    svg = drawn({**spec, "width": WIDTH}, "svg").decode()
    live = {**spec, "width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return Chart(name, live, svg, alt, caption)


def as_png(chart: Chart) -> bytes:
    """The picture as a file."""
    return drawn({**{k: v for k, v in chart.spec.items() if k != "autosize"}, "width": WIDTH}, "png")


def _with_data(found: Judgement, measure: Measure) -> list[Summary]:
    return [one for one in found.summaries if one.measure == measure and one.arm.calibration]


def _row(found: Judgement, one: Summary) -> dict[str, Any]:
    mean = scaled(one.measure, one.t.value)
    return {"setting": setting(found, one.arm), "calibration": _calibration(one.arm), "mean": mean}


def _runs(found: Judgement, some: Sequence[Summary]) -> list[dict[str, Any]]:
    return [
        {**_row(found, one), "mean": scaled(one.measure, value), "seed": str(seed), "run": key}
        for one in some
        for seed, key, value in zip(one.seeds, one.keys, one.values, strict=True)
    ]


def _dots(found: Judgement, some: Sequence[Summary]) -> Any:
    alt = import_extra("altair")
    rows = [row for one in some if len(one.values) > 1 for row in _runs(found, [one])]
    return alt.Chart(alt.Data(values=rows)).mark_point(size=18, opacity=0.7, strokeWidth=1, color=MUTED)


def _TIPS(alt: Any) -> list[Any]:  # noqa: N802
    tips = [alt.Tooltip(f"{name}:N") for name in ("setting", "calibration", "seed", "run")]
    return [*tips, alt.Tooltip("mean:Q", title="value", format=".4~g")]


def _reference(alt: Any, one: Mapping[str, Any]) -> Any:
    base = alt.Chart(alt.Data(values=[dict(one)]))
    rule = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.2).encode(y="value:Q")
    said = base.mark_text(align="right", dy=-6, fontSize=11).encode(y="value:Q", x=alt.value("width"), text="name:N")
    return rule + said


def _legend(n: int) -> Any:
    alt = import_extra("altair")
    return alt.Legend(orient="top", columns=min(n, 4), symbolOpacity=1) if n > 1 else None


def _coloured(found: Judgement, *, legend: bool) -> Any:
    """A calibration's colour, the same in all pictures."""
    alt, names = import_extra("altair"), _calibrations(found)
    shown = _legend(len(names)) if legend else None
    return alt.Color("calibration:N", scale=alt.Scale(domain=names), title=None, legend=shown)


def _calibrations(found: Judgement) -> list[str]:
    return list(dict.fromkeys(arm.calibration.name for arm in found.scores.arms if arm.calibration))


def _calibration(arm: RunSpec) -> str:
    return arm.calibration.name if arm.calibration else "none"


def _end(one: Summary, value: float | None) -> float | None:
    return None if value is None else scaled(one.measure, value)


def _near(value: float | None, means: Sequence[float]) -> bool:
    """Whether the end of an interval may widen the picture: by as much as the means take, or a sixth of them."""
    reach = max(max(means) - min(means), max(map(abs, means)) / 6)
    return value is not None and min(means) - reach <= value <= max(means) + reach


def _rounded(value: Any) -> Any:
    """Six digits: more cannot be seen, and half the page would be digits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _violin(values: Sequence[float]) -> list[tuple[float, float]]:
    """The outline of the density: along it, and back."""
    density = scipy("stats").gaussian_kde(values)
    spread = 3 * float(np.sqrt(density.covariance[0, 0]))
    x = np.linspace(min(values) - spread, max(values) + spread, 40)
    y = density(x) / density(x).max()
    there = list(zip(x.tolist(), y.tolist(), strict=True))
    return there + [(x, -y) for x, y in reversed(there)]
