"""What `calibrune inspect` shows: text for the terminal and, on request, a picture of the layers in a file."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from calibrune import __version__
from calibrune.durable import write_whole
from calibrune.errors import CalibruneError, ConfigError
from calibrune.patterns import percent
from calibrune.report import terminal
from calibrune.report.extras import DRAWING, PAGE, import_extra
from calibrune.report.layers import Layer, by_kind, kind, one_by_one, remarks
from calibrune.report.page import Grid, Heading, Page, Paragraph, Picture
from calibrune.report.plots import LayerPanel, layer_charts

T = TypeVar("T")

PICTURES = (".svg", ".png", ".html")


def text(what: str, found: Mapping[str, Any], *, every_layer: bool = False) -> str:
    """What was found, for a terminal; `what` and `found` are what `verbs.inspect` returns.

    Raises:
        ConfigError: every layer of a calibration set was asked for.
    """
    if what == "calibration set":
        if every_layer:
            raise ConfigError("a calibration set has no layers to list; give a pruned checkpoint or a model")
        return _shown(what, lambda: terminal.set_text(found))
    if what == "pruned checkpoint":
        return _shown(what, lambda: terminal.checkpoint_text(found, every_layer=every_layer))
    return terminal.model_text(found, every_layer=every_layer)


def _shown(what: str, show: Callable[[], T]) -> T:
    """What is to be seen of a record; one that somebody else wrote may lack what is shown of it."""
    try:
        return show()
    except CalibruneError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(
            f"the manifest of this {what} lacks what is to be shown of it ({type(error).__name__}: "
            f"{reprlib.repr(str(error))}): it was not written by this program; --json shows it as it is"
        ) from None


def check_asked(
    *, model: str | None, layers: bool, picture: Path | None, samples: int | None, seq_len: int | None
) -> None:
    """Raise `ConfigError` where options of `inspect` were given that have no effect, or need what is not installed."""
    if model is not None and (layers or picture is not None):
        given = "--layers" if layers else "--picture"
        raise ConfigError(f"{given} shows a checkpoint or a model, but --model measures a set, which has no layers")
    if model is None and (samples is not None or seq_len is not None):
        given = "--samples" if samples is not None else "--seq-len"
        raise ConfigError(f"{given} is for a set that is measured: name the model with --model, or leave {given} out")
    if picture is not None:
        check_picture(picture)
        for name in PAGE if picture.suffix == ".html" else DRAWING:
            import_extra(name)


def check_picture(path: Path) -> None:
    """Raise `ConfigError` unless the name says which kind of picture it is to be."""
    if path.suffix not in PICTURES:
        raise ConfigError(
            f"the picture {str(path)!r} cannot be drawn: its name must end in {', '.join(PICTURES)}, to say what it is"
        )


def draw(what: str, found: Mapping[str, Any], path: Path) -> str:
    """Draw the layers into a file, in the format that its name ends in; an older one is replaced.

    A strip for every kind of layer, its blocks from left to right: the share of zeros and, where a report says it, the
    output error. The HTML page has the tables too.

    Returns:
        What the picture shows, to be said to who asked for it.

    Raises:
        ConfigError: there is nothing to draw, or the libraries that draw are not installed.
        OutputError: the file cannot be written.
    """
    check_picture(path)
    if what == "calibration set":
        raise ConfigError("a calibration set has no layers to draw; give a pruned checkpoint or a model to --picture")
    layers: Sequence[Layer] = found["report"]["layers"] if what == "pruned checkpoint" else found["layers"]
    if what == "pruned checkpoint":
        request = found["request"]
        title = f"{request['model']['name']}, pruned to {percent(request['pattern'])} with {request['pruner']['name']}"
        if request["allocation"]["name"] != "uniform":
            title += f" and {request['allocation']['name']}"
        missing = ", and no output error: the method sees no inputs to measure one on"
    else:
        title = str(found["source"]["name"])
        missing = ", and no output error: this is a model and not a checkpoint that calibrune pruned"
    panels = [LayerPanel("share of zeros", [(one["block"], kind(one), one["sparsity"]) for one in layers])]
    errors = [(one["block"], kind(one), one["output_error"]) for one in layers if one.get("output_error") is not None]
    if errors:
        panels.append(LayerPanel("relative output error", errors, format=".3f"))
    shows = (
        f"{' and '.join(panel.title for panel in panels)} of {len(layers)} layers by block{'' if errors else missing}"
    )
    if path.suffix == ".html":
        _page(title, shows, panels, layers).write(path)
        return shows
    svg = layer_charts(panels, title=title)
    write_whole(path, import_extra("vl_convert").svg_to_png(svg, scale=2) if path.suffix == ".png" else svg.encode())
    return shows


def _page(title: str, shows: str, panels: Sequence[LayerPanel], layers: Sequence[Layer]) -> Page:
    """The panels one above the other, and the tables."""
    caption = "Zeros are counted in the weights; error: squared change of a layer's output over the squared output."
    return Page(
        title=title,
        lede=f"The {shows}. A point is a layer, a line goes through the mean of a block.",
        sections=[
            *(Picture(layer_charts([panel]), alt=f"{panel.title} of every layer, by block") for panel in panels),
            *(Paragraph(f"{about}: {said}.") for about, said in remarks(layers).items()),
            Heading("Kinds of layers"),
            Grid(by_kind(layers), caption),
            Heading("Layers"),
            Grid(one_by_one(layers)),
        ],
        footer=f"calibrune {__version__}, `calibrune inspect --picture`.",
    )
