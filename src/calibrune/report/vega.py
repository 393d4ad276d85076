"""How charts look, light and dark, and who draws them: Vega, in files and in the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrune.report.extras import import_extra

BLUE, VERMILION = "#0072B2", "#D55E00"
INK, MUTED, GRID = "#1F2933", "#5F6B7A", "#E4E7EB"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


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


def _version() -> str:
    return ".".join(import_extra("altair").SCHEMA_VERSION.lstrip("v").split(".")[:2])
