"""Tables: aligned text for terminals, Markdown for files, and the cells that the page shows."""

import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from calibrune.errors import ConfigError, plain

Cell = str | int | float | None

NOTHING = "–"
"""What stands where there is no value."""

_NUMBER = re.compile(r"[-−+]?(\d[\d,.]*(e[-+]?\d+)?|inf|nan)\s?%?(\s?±\s?[\d.,]+(e[-+]?\d+)?\s?%?)?")


@dataclass(frozen=True)
class Table:
    """Rows under named columns. Columns of numbers, also of numbers written as "9.23 ± 0.04", stand to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ConfigError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}")

    @property
    def cells(self) -> list[list[str]]:
        """The rows as they are shown, without the head."""
        return [[shown(cell) for cell in row] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers and nothing else; False for a column without a value."""
        return [_is_numeric([row[i] for row in self.rows]) for i in range(len(self.columns))]

    def text(self) -> str:
        """The table for a terminal or a log: columns two blanks apart, a rule under the head, no end of line."""
        lines = [list(map(_one_line, row)) for row in (self.columns, *self.cells)]
        widths = [max(display_width(line[i]) for line in lines) for i in range(len(self.columns))]
        lines.insert(1, ["─" * width for width in widths])
        return "\n".join("  ".join(map(_padded, line, widths, self.numeric)).rstrip() for line in lines)

    def markdown(self) -> str:
        """The table in Markdown, with its columns aligned in the source too; no end of line, and no cell is markup."""
        lines = [list(map(_markdown, row)) for row in (self.columns, *self.cells)]
        widths = [max(3, *(display_width(line[i]) for line in lines)) for i in range(len(self.columns))]
        rule = ["-" * (w - 1) + (":" if right else "-") for w, right in zip(widths, self.numeric, strict=True)]
        lines.insert(1, rule)
        return "\n".join("| " + " | ".join(map(_padded, line, widths, self.numeric)) + " |" for line in lines)

    def csv(self) -> str:
        """The table as CSV with all digits; an empty cell where there is nothing."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([self.columns, *self.rows])
        return file.getvalue()

    def latex(self, caption: str = "") -> str:
        """The table for LaTeX with booktabs, as it is shown."""
        sides = "".join("r" if right else "l" for right in self.numeric)
        lines = [" & ".join(map(_tex, line)) + r" \\" for line in (self.columns, *self.cells)]
        head = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{sides}}}", r"\toprule", lines[0], r"\midrule"]
        tail = [
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\caption{{{_tex(caption)}}}"] if caption else []),
            r"\end{table}",
        ]
        return "\n".join([*head, *lines[1:], *tail])


def shown(cell: Cell) -> str:
    """A cell as text: four significant digits, commas in whole numbers, a dash for None.

    >>> shown(9.23456), shown(135_000_000), shown(None)
    ('9.235', '135,000,000', '–')
    """
    if cell is None:
        return NOTHING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        # whole from 1,000 on: 20,422 and not 2.042e+04
        return f"{cell:,.0f}" if 1000 <= abs(cell) < 1e9 else f"{cell:#.4g}"
    return cell


def display_width(text: str) -> int:
    """Columns that a terminal gives the text: two for East Asian wide characters, none for combining marks.

    >>> display_width("naïve"), display_width("剪枝"), display_width("e\u0301")
    (5, 4, 1)
    """
    return sum(
        0 if unicodedata.combining(c) or unicodedata.category(c) in ("Mn", "Me", "Cf") else
        2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )  # fmt: skip


def _is_numeric(cells: Sequence[Cell]) -> bool:
    values = [cell for cell in cells if cell is not None and cell != NOTHING]
    return bool(values) and all(_NUMBER.fullmatch(shown(cell)) for cell in values)


def _padded(cell: str, width: int, right: bool) -> str:
    blanks = " " * (width - display_width(cell))
    return blanks + cell if right else cell + blanks


def _one_line(cell: str) -> str:
    # a model may have written it: no line breaks, and nothing that a terminal would obey
    return plain(cell).replace("\n", " ").replace("\t", " ")


_TEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def _markdown(text: str) -> str:
    return _one_line(text).replace("|", r"\|").replace("<", "&lt;")


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in _one_line(text))
