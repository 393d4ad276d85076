"""Charts: what they say as text, and what they refuse to draw."""

import math
import sys
from xml.etree import ElementTree

import pytest

from calibrune.errors import ConfigError
from calibrune.report.plots import (
    Interval,
    LayerPanel,
    bar_chart,
    histograms,
    interval_chart,
    layer_chart,
    layer_charts,
)

ROWS = [
    {"data": "dense", "ppl": 18.6, "stderr": 0.12},
    {"data": "self-generated & <b>", "ppl": 31.2, "stderr": 0.8},
    {"data": "wikipedia", "ppl": 36.9, "stderr": None},
]


def words(svg: str) -> list[str]:
    """All text of an SVG, which must be well-formed and ask for nothing from outside."""
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "href" not in svg
    assert "@import" not in svg
    return [text for node in root.iter() if node.tag.endswith("}text") for text in node.itertext()]


def test_a_bar_chart_writes_its_names_and_values_as_text():
    found = words(bar_chart(ROWS, "data", "ppl", error="stderr", title="What it costs", y_title="perplexity"))
    for text in ("What it costs", "perplexity", "dense", "18.60", "31.20", "36.90", "self-generated & <b>"):
        assert text in found


def test_a_logarithmic_axis_shows_its_powers():
    rows = [{"data": "a", "ppl": 20.0}, {"data": "b", "ppl": 20_000.0}]
    assert {"100", "1,000", "10,000", "20,000"} <= set(words(bar_chart(rows, "data", "ppl", log=True)))


def test_what_cannot_be_drawn_is_written():
    rows = [*ROWS, {"data": "inf", "ppl": math.inf, "stderr": None}, {"data": "none", "ppl": None, "stderr": None}]
    for log in (False, True):
        found = words(bar_chart(rows, "data", "ppl", error="stderr", log=log))
        assert {"inf", "no value", "18.60"} <= set(found)
        assert "no value" in words(bar_chart(rows[-1:], "data", "ppl", log=log))


def test_values_below_zero_hang_from_the_line():
    rows = [{"method": "up", "gain": 0.5, "se": 0.2}, {"method": "down", "gain": -1.5, "se": 0.3}]
    assert {"0.5000", "-1.500"} <= set(words(bar_chart(rows, "method", "gain", error="se")))


def test_a_chart_that_would_mislead_is_refused():
    with pytest.raises(ConfigError, match="values over 0"):
        bar_chart([{"a": "x", "b": 0.0}], "a", "b", log=True)
    with pytest.raises(ConfigError, match="two rows have the same a"):
        bar_chart([{"a": "x", "b": 1.0}, {"a": "x", "b": 2.0}], "a", "b")
    with pytest.raises(ConfigError, match="at least one layer"):
        layer_chart([])
    with pytest.raises(ConfigError, match="none of the values of 1 groups is finite"):
        histograms([("a", [math.nan])])


def test_equal_sparsities_are_told_apart_by_their_strips():
    svg = layer_chart([(block, kind, 0.5) for block in range(4) for kind in ("q_proj", "down_proj")], title="layers")
    found = words(svg)
    assert found.count("50.0%") == 2
    assert {"q_proj", "down_proj", "layers", "block", "0", "3"} <= set(found)
    assert found.index("q_proj") < found.index("down_proj")


def test_panels_stand_side_by_side_over_the_same_strips():
    rows = [(block, kind, 0.5 + block / 10) for block in range(4) for kind in ("q_proj", "down_proj")]
    errors = [(block, kind, value / 1000) for block, kind, value in rows]
    found = words(layer_charts([LayerPanel("zeros", rows), LayerPanel("error", errors, format=".2~g")], title="layers"))
    assert {"zeros", "error", "50.0%", "80.0%", "0.0005", "0.0008"} <= set(found)
    assert found.count("q_proj") == 1


def test_experts_of_one_block_are_points_on_one_strip():
    svg = layer_charts([LayerPanel("zeros", [(block, "experts.up", 0.5) for block in (0, 0, 0, 1, 1, 1)])])
    assert words(svg).count("experts.up") == 1
    assert svg.count('role="graphics-symbol"') >= 6 or svg.count("<path") >= 6


def test_histograms_share_an_axis_and_say_what_they_left_out():
    groups = [("one", [1.0, 2.0, 2.0, 3.0, math.inf]), ("two", [40.0, 50.0]), ("none", [math.nan])]
    for log in (False, True):
        found = words(histograms(groups, x_title="perplexity", log=log))
        assert {"one (1 not finite, left out)", "two", "median 2.000", "median 45.00", "perplexity"} <= set(found)
        assert "none" not in found
        assert found.count("20") == 1  # one axis for both
        counts = {"0", "2" if log else "3"}  # 2 and 3 are in one of 40 bins of equal width
        assert counts <= set(found)


def test_values_that_are_all_one_are_a_bar():
    found = words(histograms([("a", [3.0, 3.0])], log=True))
    assert "median 3.000" in found


def test_a_narrow_logarithmic_axis_has_numbers_too():
    rows = [{"data": "a", "ppl": 15.0}, {"data": "b", "ppl": 38.0}]
    assert {"15", "20", "25", "30"} <= set(words(bar_chart(rows, "data", "ppl", log=True)))


def test_names_are_broken_where_their_parts_end():
    rows = [{"data": name, "ppl": 1.0} for name in ("own-pile_wikipedia_en:dedup=0.8", *"abcdefghi")]
    found = words(bar_chart(rows, "data", "ppl"))
    assert [text for text in found if len(text) > 2][:4] == ["own-pile_", "wikipedia_", "en:", "dedup=0.8"]


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(ConfigError, match=r"need altair.*pip install 'calibrune\[report\]'"):
        histograms([("a", [1.0])])


def test_a_chart_of_intervals_names_its_rows_and_has_a_zero():
    rows = [
        Interval("piqa <acc>", -0.03, -0.05, -0.01, stands_out=True),
        Interval("one item", 0.02, None, None, stands_out=False),
    ]
    svg = interval_chart(rows, x_title="difference of accuracy", format="+~%")
    assert {"piqa <acc>", "one item", "difference of accuracy", "+0%"} <= set(words(svg))
    # what stands out is filled, what does not is hollow
    assert svg.count('fill="#D55E00"') == svg.count('fill="white" stroke="#5F6B7A"') == 1
    with pytest.raises(ConfigError, match="same name"):
        interval_chart([rows[0], rows[0]])
    with pytest.raises(ConfigError, match="at least one"):
        interval_chart([])
