"""Charts as SVG: sober, legible without colour, and with their text as text.

The two colours are Okabe and Ito's, which people with any kind of colour vision can tell apart; what differs in kind
differs in place as well.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, median
from textwrap import wrap
from typing import Any

import numpy as np

from calibrune.errors import ConfigError
from calibrune.report.extras import import_extra
from calibrune.report.tables import display_width, shown
from calibrune.report.vega import BLUE, INK, MUTED, VERMILION, drawn

WIDTH, HEIGHT = 720, 270


def bar_chart(
    rows: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    *,
    error: str | None = None,
    title: str = "",
    y_title: str | None = None,
    log: bool = False,
) -> str:
    """One bar a row, with its value above it, as SVG.

    Args:
        rows: what to show, in the order to show it; `x` names a row and is different in each.
        x, y: keys of the name and of the value. A value that is None or not finite is written and not drawn.
        error: key of the standard error, drawn to either side; None in a row means that it has none.
        log: a logarithmic axis, for values over 0. It has no zero for bars to stand on, so points are drawn instead.
    """
    alt = import_extra("altair")
    data = [_bar(row[x], row[y], row.get(error) if error else None) for row in rows]
    drawn = [row for row in data if row["y"] is not None]
    if log and any(row["low"] <= 0 for row in drawn):
        raise ConfigError(f"a logarithmic axis takes only values over 0, their errors included; {y} has others")
    if len({row["x"] for row in data}) < len(data):
        raise ConfigError(f"two rows have the same {x}, so they would be drawn as one bar")
    low = min((row["low"] for row in drawn), default=1.0)
    high = max((row["high"] for row in drawn), default=1.0)
    width = max(WIDTH, 72 * len(data))
    for row in data:
        row["x"] = _broken(row["x"], max(8, width // len(data) // 7))
    if log:
        scale = alt.Scale(
            type="log", domain=[low * (low / high) ** 0.1 * 0.9, high * (high / low) ** 0.1 * 1.1], nice=False
        )
        grid: dict[str, Any] = {"values": _log_ticks(low, high)}
    else:
        scale = alt.Scale(domain=[min(low * 1.15, 0.0), max(high * 1.12, 0.0) or 1.0], nice=False)
        grid = {"tickCount": 6}
    names = alt.X("x:N", sort=None, title=None, axis=alt.Axis(labelAngle=0, labelExpr="split(datum.label, '\\n')"))
    values = alt.Y("y:Q", title=y if y_title is None else y_title, scale=scale, axis=alt.Axis(**grid))
    base = alt.Chart(alt.Data(values=data)).encode(x=names)
    if log:
        marks = base.mark_point(color=BLUE, filled=True, size=90, opacity=1)
    else:
        marks = base.mark_bar(color=BLUE, width=alt.RelativeBandSize(0.55))
    # in the language of Vega, where an invalid number is one that is missing
    has_value, has_error = "isValid(datum.y)", "isValid(datum.error)"
    above, below = "isValid(datum.y) && datum.y >= 0", "isValid(datum.y) && datum.y < 0"
    layers = [
        marks.encode(y=values).transform_filter(has_value),
        base.mark_rule(color=INK, strokeWidth=1.5).encode(y="low:Q", y2="high:Q").transform_filter(has_error),
        base.mark_tick(color=INK, width=10, thickness=1.5).encode(y="low:Q").transform_filter(has_error),
        base.mark_tick(color=INK, width=10, thickness=1.5).encode(y="high:Q").transform_filter(has_error),
        base.mark_text(color=INK, dy=-11, fontSize=12).encode(y="high:Q", text="label:N")
        .transform_filter(above),
        base.mark_text(color=INK, dy=12, fontSize=12).encode(y="low:Q", text="label:N")
        .transform_filter(below),
        base.mark_text(color=MUTED, dy=-8, fontSize=12).encode(y=alt.value(HEIGHT), text="label:N")
        .transform_filter("!isValid(datum.y)"),
    ]  # fmt: skip
    if not log and low < 0:
        layers.append(alt.Chart(alt.Data(values=[{}])).mark_rule(color=MUTED).encode(y=alt.datum(0)))
    return _svg(alt.layer(*layers).properties(width=width, height=HEIGHT), title)


def layer_chart(rows: Sequence[tuple[int, str, float]], *, title: str = "", y_title: str = "sparsity") -> str:
    """The measured sparsity of every layer as SVG: a strip for each kind of layer, its blocks from left to right.

    Strips and not colours: seven kinds at the same 50% would hide each other in one panel.

    Args:
        rows: index of the block, kind of the layer ("q_proj"), its sparsity in [0, 1]; strips stand in the order in
            which their kinds first appear.
    """
    return layer_charts([LayerPanel(y_title, rows)], title=title)


@dataclass(frozen=True)
class LayerPanel:
    """A number of every layer, to be drawn beside others."""

    title: str
    rows: Sequence[tuple[int, str, float]]
    """As for `layer_chart`: index of the block, kind of the layer, a number of 0 or more."""
    format: str = ".1%"
    """Of the numbers on the axis, as D3 writes them."""


def layer_charts(panels: Sequence[LayerPanel], *, title: str = "") -> str:
    """Several numbers of every layer as SVG: panels side by side, each as in `layer_chart`.

    A point is a layer. Where a kind has several in one block (experts), the line goes through their mean.
    """
    if not panels or not all(panel.rows for panel in panels):
        raise ConfigError("a chart of layers needs at least one layer")
    alt, width = import_extra("altair"), WIDTH if len(panels) == 1 else WIDTH * 3 // 5
    charts = [_strips(panel, width, named=panel is panels[0]) for panel in panels]
    return _svg(charts[0] if len(charts) == 1 else alt.hconcat(*charts, spacing=28), title)


def _strips(panel: LayerPanel, width: int, *, named: bool) -> Any:
    alt = import_extra("altair")
    blocks, kinds, values = zip(*panel.rows, strict=True)
    # room for half a label above and below; where all are nearly the same, no noise is blown up to fill the strip
    least, most = min(values), max(values)
    differ = most - least > 0.04 * most
    room = 0.25 * (most - least) if differ else 0.1 * most or 0.05
    axis = alt.Axis(format=panel.format, values=[least, most] if differ else [mean(values)])
    strip_names = {
        "labelAngle": 0, "labelAlign": "left", "labelPadding": 14, "labelColor": INK, "labelFontSize": 12,
        "titleColor": INK, "titleFontSize": 12, "titleFontWeight": "normal", "labels": named,
    }  # fmt: skip
    base = alt.Chart(width=width, height=38).encode(
        x=alt.X("block:Q", title="block", scale=alt.Scale(domain=[min(blocks) - 0.6, max(blocks) + 0.6], nice=False))
        .axis(tickMinStep=1, format="d", tickCount=min(16, max(blocks) - min(blocks) + 1)),
    )  # fmt: skip
    scale = {"scale": alt.Scale(domain=[least - room, most + room], nice=False), "axis": axis, "title": None}
    return (
        alt.layer(
            base.mark_line(color=BLUE, strokeWidth=1, opacity=0.35).encode(y=alt.Y("mean(value):Q", **scale)),
            base.mark_point(color=BLUE, filled=True, size=26, opacity=1).encode(y=alt.Y("value:Q", **scale)),
            data=alt.Data(values=[{"block": b, "kind": k, "value": v} for b, k, v in panel.rows]),
        )
        .facet(
            row=alt.Row("kind:N", sort=list(dict.fromkeys(kinds)), title=panel.title, header=alt.Header(**strip_names)),
            spacing=10,
        )
    )  # fmt: skip


def histograms(
    groups: Sequence[tuple[str, Sequence[float]]],
    *,
    title: str = "",
    x_title: str = "",
    y_title: str = "texts",
    bins: int = 40,
    log: bool = False,
) -> str:
    """How the values of each group are spread, as SVG: a strip for a group, all of them over one axis.

    Args:
        groups: name, which is different in each, and values. Those that are not finite are left out, and the strip
            says how many; a group of which none is left has no strip.
        bins: of equal width over the values of all groups.
        log: a logarithmic axis, if all values are over 0.
    """
    alt = import_extra("altair")
    finite = {name: [value for value in values if isfinite(value)] for name, values in groups}
    every = [value for values in finite.values() for value in values]
    if not every:
        raise ConfigError(f"none of the values of {len(groups)} groups is finite: there is nothing to draw")
    log = log and min(every) > 0
    edges = _edges(min(every), max(every), bins, log=log)
    rows: list[dict[str, Any]] = []
    for name, values in groups:
        if not (of := finite[name]):
            continue
        left_out = len(values) - len(of)
        strip = f"{name} ({left_out} not finite, left out)" if left_out else name
        rows.append({"strip": strip, "median": median(of), "label": f"median {shown(float(median(of)))}"})
        counts, _ = np.histogram(of, edges)
        rows += [
            {"strip": strip, "from": float(edges[i]), "to": float(edges[i + 1]), "count": int(n)}
            for i, n in enumerate(counts)
            if n
        ]
    most = max(row.get("count", 0) for row in rows)
    scale: dict[str, Any] = {"domain": [float(edges[0]), float(edges[-1])], "nice": False}
    axis = {"values": _log_ticks(edges[0], edges[-1])} if log else {"tickCount": 10}
    x = alt.X(
        "from:Q", title=x_title, scale=alt.Scale(**scale, **({"type": "log"} if log else {})), axis=alt.Axis(**axis)
    )
    y = alt.Y("count:Q", title=None, scale=alt.Scale(domain=[0, most], nice=False))
    base = alt.Chart(width=WIDTH, height=40)
    bars = base.mark_bar(color=BLUE).encode(x=x, x2="to:Q", y=y.axis(values=[0, most], format="d"), y2=alt.datum(0))
    rule = base.mark_rule(color=VERMILION, strokeWidth=2).encode(x=alt.X("median:Q"))
    label = base.mark_text(color=VERMILION, align="right", fontSize=12).encode(
        x=alt.value(WIDTH), y=alt.value(-8), text="label:N"
    )
    names = list(dict.fromkeys(row["strip"] for row in rows))
    header = alt.Header(labelOrient="top", labelAnchor="start", labelFontSize=12, labelColor=INK, labelPadding=2,
                        titleFontSize=12, titleFontWeight="normal", titleColor=INK)  # fmt: skip
    return _svg(
        alt.layer(
            bars.transform_filter("isValid(datum.count)"),
            rule.transform_filter("isValid(datum.median)"),
            label.transform_filter("isValid(datum.median)"),
            data=alt.Data(values=rows),
        ).facet(row=alt.Row("strip:N", sort=names, title=y_title, header=header), spacing=12),
        title,
    )


def _edges(low: float, high: float, bins: int, *, log: bool) -> Any:
    """The bounds of the bins, numbers in rising order; where all values are one, it has room around it."""
    if high - low <= 1e-9 * abs(high):
        low, high = low - 0.05 * abs(low) - 1e-6, high + 0.05 * abs(high) + 1e-6
        log = log and low > 0
    return np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis from `low` to `high`, some three to ten of them."""
    steps: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    for most, fewer in ((4, steps), (20, (1.0, 2.0, 3.0, 5.0, 7.0)), (500, (1.0, 2.0, 5.0)), (1e30, (1.0,))):
        steps = fewer
        if high < most * low:
            break
    return [m * 10.0**e for e in range(-9, 13) for m in steps]


@dataclass(frozen=True)
class Interval:
    """A difference with the ends of its interval; without them a point alone is drawn."""

    row: str
    value: float
    low: float | None
    high: float | None
    stands_out: bool
    """Drawn filled, and in the stronger colour."""


def interval_chart(
    intervals: Sequence[Interval], *, title: str = "", x_title: str = "difference", format: str = "~g"
) -> str:
    """Differences with their intervals as SVG, one under the other, and a rule at zero.

    Args:
        intervals: in the order to show them, all under names of their own.
        format: of the numbers on the axis, as D3 writes them.
    """
    alt = import_extra("altair")
    if not intervals:
        raise ConfigError("a chart of intervals needs at least one")
    if len({one.row for one in intervals}) < len(intervals):
        raise ConfigError("two intervals have the same name, so they would be drawn as one")
    ends = [end for one in intervals for end in (one.value, one.low, one.high, 0.0) if end is not None]
    room = 0.06 * (max(ends) - min(ends)) or 1.0
    data = [
        {
            "row": one.row,
            "value": one.value,
            "low": one.value if one.low is None else one.low,
            "high": one.value if one.high is None else one.high,
            "strong": one.stands_out,
        }
        for one in intervals
    ]
    # a reader's font may be wider than the one that this is measured with
    longest = min(380, 8 * max(display_width(one.row) for one in intervals))
    names = alt.Axis(minExtent=longest, labelLimit=longest, labelColor=INK, domain=False, ticks=False, grid=True)
    scale = alt.Scale(domain=[min(ends) - room, max(ends) + room], nice=False)
    across = alt.X("low:Q", title=x_title, scale=scale, axis=alt.Axis(format=format, tickCount=6, grid=True))
    colour, fill = (alt.condition("datum.strong", alt.value(VERMILION), alt.value(one)) for one in (MUTED, "white"))
    base = alt.Chart(alt.Data(values=data)).encode(y=alt.Y("row:N", sort=None, title=None, axis=names))
    layers = [
        base.mark_rule(strokeWidth=2).encode(x=across, x2="high:Q", color=colour),
        alt.Chart(alt.Data(values=[{}])).mark_rule(color=INK).encode(x=alt.datum(0)),
        base.mark_point(size=70, opacity=1, strokeWidth=2).encode(x="value:Q", stroke=colour, fill=fill),
    ]
    return _svg(alt.layer(*layers).properties(width=WIDTH - longest, height=26 * len(data)), title)


def _bar(name: Any, value: float | None, error: float | None) -> dict[str, Any]:
    label = shown(float(value)) if value is not None else "no value"
    if value is None or not isfinite(value):
        return {"x": str(name), "y": None, "error": None, "low": 0.0, "high": 0.0, "label": label}
    spread = error if error is not None and isfinite(error) else None
    bounds = {"low": value - (spread or 0.0), "high": value + (spread or 0.0)}
    return {"x": str(name), "y": value, "error": spread, "label": label, **bounds}


def _broken(name: str, most: int) -> str:
    """A name in lines of at most so many characters, broken at blanks, "_" and ":" where that can be."""
    lines = wrap(re.sub("([_:])", r"\1 ", name), most)
    return "\n".join(re.sub("([_:]) ", r"\1", line) for line in lines) or " "


def _svg(chart: Any, title: str) -> str:
    if title:
        chart = chart.properties(title=title)
    return drawn(chart.to_dict(), "svg").decode()
