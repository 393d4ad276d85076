"""Charts as SVG: sober, legible without colour, and with their text as text.

The two colours are Okabe and Ito's, which people with any kind of colour vision can tell apart; what differs in kind
differs in place as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean
from textwrap import wrap
from typing import Any

from calibrune.errors import ConfigError
from calibrune.report.extras import import_extra
from calibrune.report.tables import display_width, shown

BLUE, VERMILION = "#0072B2", "#D55E00"
INK, MUTED, GRID = "#1F2933", "#5F6B7A", "#E4E7EB"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
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
    width = max(WIDTH, 64 * len(data))
    for row in data:
        row["x"] = "\n".join(wrap(row["x"], max(8, width // len(data) // 7))) or " "
    if log:
        scale = alt.Scale(
            type="log", domain=[low * (low / high) ** 0.1 * 0.9, high * (high / low) ** 0.1 * 1.1], nice=False
        )
        grid: dict[str, Any] = {
            "values": [m * 10.0**e for e in range(-9, 13) for m in (1, 2, 5)][:: 1 if high < 50 * low else 3]
        }
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


def histogram(
    values: Sequence[float], *, title: str = "", x_title: str = "", y_title: str = "texts", bins: int = 30
) -> str:
    """How the values are spread, as SVG: counts in at most `bins` bins of a round width, and a rule at the median.

    Values that are not finite are left out, and the x axis says how many.
    """
    alt = import_extra("altair")
    finite = [value for value in values if isfinite(value)]
    if not finite:
        raise ConfigError(f"none of the {len(values)} values is finite: there is nothing to draw")
    if left_out := len(values) - len(finite):
        x_title = f"{x_title} ({left_out} not finite, left out)".strip()
    data = alt.Data(values=[{"value": value} for value in finite])
    bars = (
        alt.Chart(data)
        .mark_bar(color=BLUE, binSpacing=1)
        .encode(
            x=alt.X("value:Q", bin=alt.Bin(maxbins=bins), title=x_title, axis=alt.Axis(tickCount=10)),
            y=alt.Y("count():Q", title=y_title),
        )
    )
    median = alt.Chart(data).transform_aggregate(median="median(value)")
    rule = median.mark_rule(color=VERMILION, strokeWidth=2).encode(x="median:Q")
    label = median.mark_text(color=VERMILION, align="left", dx=6, dy=8, fontSize=12).encode(
        x="median:Q", y=alt.value(0), text="label:N"
    )
    label = label.transform_calculate(label="'median ' + format(datum.median, '.4')")
    return _svg(alt.layer(bars, rule, label).properties(width=WIDTH, height=HEIGHT), title)


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


def _theme(ink: str, muted: str, grid: str, paper: str | None, colours: Sequence[str]) -> dict[str, Any]:
    axis = {
        "labelColor": muted, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
        "gridColor": grid, "domainColor": muted, "tickColor": muted, "titlePadding": 10, "labelPadding": 4,
    }  # fmt: skip
    return {
        "background": paper,
        "padding": {"left": 0, "right": 8, "top": 4, "bottom": 4},
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis,
        "axisX": {"grid": False},
        "axisY": {"domain": False, "ticks": False},
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "symbolSize": 60, "labelLimit": 200},
        "title": {"anchor": "start", "color": ink, "fontSize": 14, "fontWeight": 600, "offset": 12},
        "range": {"category": list(colours)},
        "text": {"fill": ink},
        "rule": {"stroke": ink},
        "tick": {"color": ink},
    }


COLOURS = (BLUE, "#E69F00", "#009E73", "#CC79A7", VERMILION, "#56B4E9", "#8A7A00", "#5F6B7A", "#7A5195", "#A05A2C")
"""Okabe and Ito's, the yellow darkened, and three more for those who compare many."""

THEMES = {
    "light": _theme(INK, MUTED, GRID, "white", COLOURS),
    "dark": _theme("#DFE4EA", "#95A1B0", "#2B333D", "transparent", ("#4AA3DF", *COLOURS[1:4], "#F0793A", *COLOURS[5:])),
}
"""How charts look, by the reader's choice; pictures in files are light."""


def vega_script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script without imports."""
    script: str = import_extra("vl_convert").javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_version())
    return script.replace("</script", r"<\/script")  # in a string the same, and no end of the page's script


def drawn(spec: Mapping[str, Any], kind: str) -> bytes:
    """A Vega-Lite specification as a light "svg" or "png" (twice as fine)."""
    vl_convert = import_extra("vl_convert")
    if kind == "png":
        png: bytes = vl_convert.vegalite_to_png(dict(spec), vl_version=_version(), config=THEMES["light"], scale=2)
        return png
    svg: str = vl_convert.vegalite_to_svg(dict(spec), vl_version=_version(), config=THEMES["light"])
    return svg.encode()


def _svg(chart: Any, title: str) -> str:
    if title:
        chart = chart.properties(title=title)
    return drawn(chart.to_dict(), "svg").decode()


def _version() -> str:
    return ".".join(import_extra("altair").SCHEMA_VERSION.lstrip("v").split(".")[:2])
