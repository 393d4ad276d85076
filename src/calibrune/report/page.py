"""A report as one HTML file: it opens offline, asks nobody for anything, and prints well."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from calibrune.durable import write_whole
from calibrune.errors import ConfigError
from calibrune.report.extras import import_extra
from calibrune.report.tables import Table
from calibrune.report.vega import THEMES, vega_script


@dataclass(frozen=True)
class Heading:
    """Begins a part of the page."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Paragraph:
    """A few sentences."""

    text: str
    weight: str = ""
    """Of a finding: "strong", where something is shown, or "weak"."""
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Grid:
    """A table, with a line under it that says what the numbers are."""

    table: Table
    caption: str = ""
    links: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of a column, where each of its cells leads to; "" for nowhere."""
    kind: ClassVar[str] = "grid"


@dataclass(frozen=True)
class Folded:
    """A table that is hidden until its title is clicked: what few readers ask for, and those must find."""

    title: str
    table: Table
    links: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """As of `Grid`."""
    anchor: str = ""
    """What a link to it names, after the #."""
    note: str = ""
    """Stands under the table, as it is."""
    kind: ClassVar[str] = "folded"


@dataclass(frozen=True)
class Chart:
    """A picture that answers to the pointer, drawn in the reader's colours; from `report.study_charts`."""

    name: str
    """Unlike that of any other on the page: letters, digits and hyphens."""
    spec: Mapping[str, Any]
    """In Vega-Lite, of a fixed width; in the page it is as wide as there is room."""
    alt: str
    caption: str = ""
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Explorer:
    """A table that filters and sorts; where no script runs, a table."""

    table: Table
    choices: Sequence[str] = ()
    """Columns whose values are offered in a list."""
    chosen: Mapping[str, str] = field(default_factory=dict)
    """What of those lists is chosen at first."""
    links: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """As of `Grid`."""
    caption: str = ""
    kind: ClassVar[str] = "explorer"

    def values(self, column: str) -> list[str]:
        """What there is in a column, as it is shown."""
        i = list(self.table.columns).index(column)
        return list(dict.fromkeys(row[i] for row in self.table.cells))


@dataclass(frozen=True)
class Picture:
    """An SVG from `report.plots`: it goes into the page as it is, so it must come from nowhere else."""

    svg: str
    alt: str
    """What the picture shows, for those who cannot see it."""
    caption: str = ""
    kind: ClassVar[str] = "picture"

    def __post_init__(self) -> None:
        if not self.svg.lstrip().startswith("<svg") or "<script" in self.svg.lower():
            raise ConfigError(f"a picture is an SVG element without scripts, got {self.svg[:40]!r}")


@dataclass(frozen=True)
class Preformatted:
    """Text whose lines and blanks matter: a command, a recipe, a log."""

    text: str
    caption: str = ""
    kind: ClassVar[str] = "preformatted"


@dataclass(frozen=True)
class Sample:
    """What a model wrote to one prompt, before and after."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Samples:
    """Texts side by side; one above the other where there is no room."""

    samples: Sequence[Sample]
    before: str = "dense"
    """What the left one is called."""
    after: str = "pruned"
    kind: ClassVar[str] = "samples"


Section = Heading | Paragraph | Grid | Folded | Chart | Explorer | Picture | Preformatted | Samples


@dataclass(frozen=True)
class Page:
    """A title, a few words under it, facts in a strip, and sections from top to bottom."""

    title: str
    sections: Sequence[Section]
    lede: str = ""
    facts: Sequence[tuple[str, str]] = ()
    """Pairs of a label and a value: model, method, seed."""
    footer: str = ""
    """Where the numbers come from: version, command, date."""

    def html(self) -> str:
        """The page; all text is escaped, whoever wrote it.

        Raises:
            ConfigError: jinja2 is not installed.
        """
        jinja2 = import_extra("jinja2")
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("calibrune", "report"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        kinds = {section.kind for section in self.sections}
        scripts = [_own_script()] if kinds & {"chart", "explorer"} else []
        if "chart" in kinds:
            scripts.insert(0, vega_script())
        html: str = environment.get_template("page.html.jinja").render(
            page=self,
            # a script that got into a text all the same would not run: only these may, by their hashes
            policy=f"; img-src data:; script-src {' '.join(map(_hash, scripts))}" if scripts else "",
            scripts=scripts,
            theme=THEMES if "chart" in kinds else None,
        )
        return html

    def write(self, path: Path) -> None:
        """Write the page to a file, whole or not at all; an older one is replaced.

        Raises:
            OutputError: the file cannot be written.
        """
        # half a pair of surrogates is no character, and cannot be written
        write_whole(path, self.html().encode("utf-8", "backslashreplace"))


def _own_script() -> str:
    return (files("calibrune.report") / "page.js").read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
