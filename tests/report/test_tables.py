"""Tables: what is lined up, what is escaped, and how numbers look."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrune.errors import ConfigError
from calibrune.report.tables import Table, display_width, shown

TABLE = Table(
    ("data", "perplexity", "accuracy", "weights"),
    [("none", 18.6, "45.1 ± 0.3", 134_515_008), ("剪枝 | wiki", None, "40.0 ± 0.4", 7)],
)


def test_text_lines_up_names_left_and_numbers_right():
    assert TABLE.text() == "\n".join(
        [
            "data         perplexity    accuracy      weights",
            "───────────  ──────────  ──────────  ───────────",
            "none              18.60  45.1 ± 0.3  134,515,008",
            "剪枝 | wiki           –  40.0 ± 0.4            7",
        ]
    )


def test_markdown_says_the_same_and_escapes_its_bars():
    assert TABLE.markdown() == "\n".join(
        [
            "| data         | perplexity |   accuracy |     weights |",
            "| ------------ | ---------: | ---------: | ----------: |",
            "| none         |      18.60 | 45.1 ± 0.3 | 134,515,008 |",
            r"| 剪枝 \| wiki |          – | 40.0 ± 0.4 |           7 |",
        ]
    )


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (0.5, "0.5000"), (9.23456, "9.235"), (999.96, "1000."), (20422.4, "20,422"), (1e-5, "1.000e-05"),
        (float("inf"), "inf"), (float("nan"), "nan"), (-1234.5, "-1,234"), (0, "0"), (True, "yes"), (None, "–"),
        ("as it is", "as it is"),
    ],
)  # fmt: skip
def test_numbers_look_the_same_everywhere(cell, expected):
    assert shown(cell) == expected


def test_a_column_is_numeric_when_all_it_has_are_numbers():
    rows = [("7B", "12.1 ± 0.4", 1.0, None), ("13B", "9.9%", None, None), ("x", "-3 ± 1e-3", float("inf"), None)]
    assert Table(("model", "score", "value", "empty"), rows).numeric == [False, True, True, False]


def test_what_a_model_wrote_cannot_break_a_table_or_command_a_terminal():
    text = Table(("text",), [("a\nb\x1b[31mred\r\t",)])
    assert text.text().splitlines()[2:] == ["a bred"]
    assert len(text.markdown().splitlines()) == 3
    markup = Table(("<b>", "n"), [("a | <script>alert(1)</script>", 1)]).markdown()
    assert "<" not in markup
    assert r"a \| &lt;script>" in markup


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ConfigError, match="a row of 1 cells in a table of 2 columns"):
        Table(("a", "b"), [("x",)])


def test_a_table_without_rows_is_its_head():
    assert Table(("a", "long name"), []).text().splitlines()[0] == "a  long name"


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.floats())), max_size=5))
def test_all_lines_of_a_markdown_table_are_equally_wide(rows):
    widths = {display_width(line) for line in Table(("name", "value"), rows).markdown().split("\n")}
    assert len(widths) == 1
