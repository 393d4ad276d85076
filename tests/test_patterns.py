"""Sparsity patterns: what can be asked for, how it is read and written, and how many weights go."""

from fractions import Fraction

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from calibrune.errors import ConfigError
from calibrune.patterns import SemiStructured, Unstructured, parse_pattern

FRACTIONS = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("60%", Unstructured(0.6)),
        ("29%", Unstructured(0.29)),
        ("66.7 %", Unstructured(0.667)),
        ("0.6", Unstructured(0.6)),
        (".6", Unstructured(0.6)),
        ("+0.6", Unstructured(0.6)),
        (" 1e-3\n", Unstructured(0.001)),
        ("0%", Unstructured(0.0)),
        (0.6, Unstructured(0.6)),
        (1e-5, Unstructured(0.00001)),
        (0, Unstructured(0.0)),
        ("2:4", SemiStructured(2, 4)),
        ("1:64", SemiStructured(1, 64)),
        (Unstructured(0.1), Unstructured(0.1)),
        (SemiStructured(4, 8), SemiStructured(4, 8)),
    ],
)
def test_what_is_said_is_what_is_meant(said, meant):
    assert parse_pattern(said) == meant


@pytest.mark.parametrize(
    "said",
    [
        *(
            "",
            "half",
            "nan",
            "inf",
            "-inf",
            "1e999",
            "60%%",
            "%",
            ".",
            "0x1",
            "0_5",
            "٣",
            "０.5",
            "2:4:8",
            ":4",
            "2 : 4",
        ),
        *("2:4.0", "-1%", "100%", "1", "1.2", "60", "0:4", "4:4", "5:4", "-2:4", "99999999999:999999999999"),
        *(1.0, -0.1, 124, float("nan"), float("inf")),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(said):
    with pytest.raises(ConfigError, match=r"sparsity.*(write|try|quotes)") as caught:
        parse_pattern(said)
    assert "\n" not in str(caught.value)


def test_a_refusal_names_what_was_asked():
    with pytest.raises(ConfigError, match=r"got 5:4; try 2:4"):
        parse_pattern("5:4")
    with pytest.raises(ConfigError, match=r"got 1\.2; for one half write 50% or 0\.5"):
        parse_pattern("1.2")
    with pytest.raises(ConfigError, match="cannot read 'half'"):
        parse_pattern("half")


def test_the_trap_of_yaml_is_named():
    asked = yaml.safe_load("sparsity: 2:4")["sparsity"]
    assert asked == 124  # two minutes and four seconds
    with pytest.raises(ConfigError, match=r"in YAML it needs quotes, '2:4'"):
        parse_pattern(asked)


@pytest.mark.parametrize("wrong", [True, "0.5", None, 1 + 0j])
def test_a_sparsity_is_a_number(wrong):
    with pytest.raises(ConfigError, match="must be a number"):
        Unstructured(wrong)


@pytest.mark.parametrize("wrong", [(2.0, 4), (2.5, 4), (True, 4), ("2", 4), (2, None), (0, 4), (4, 4), (-2, 4)])
def test_n_and_m_are_whole_and_in_order(wrong):
    with pytest.raises(ConfigError, match="whole numbers 0 < N < M"):
        SemiStructured(*wrong)


def test_equal_patterns_are_written_alike():
    halves = [Unstructured(0.5), Unstructured(Fraction(1, 2)), Unstructured(np.float32(0.5))]
    zeros = [Unstructured(0), Unstructured(-0.0), Unstructured(0.0)]
    twos = [SemiStructured(2, 4), SemiStructured(np.int64(2), np.int64(4))]
    for same in (halves, zeros, twos):
        assert (
            len({repr(pattern) for pattern in same}) == len({str(pattern) for pattern in same}) == len(set(same)) == 1
        )


@given(FRACTIONS)
def test_an_unstructured_pattern_reads_back_as_itself(sparsity):
    pattern = Unstructured(sparsity)
    assert parse_pattern(str(pattern)) == parse_pattern(sparsity) == pattern
    assert pattern.sparsity == sparsity


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_semi_structured_pattern_reads_back_as_itself(n, more):
    pattern = SemiStructured(n, n + more)
    assert parse_pattern(str(pattern)) == pattern
    assert 0 < pattern.sparsity < 1


@given(st.integers(0, 99))
def test_a_percentage_is_the_same_number_as_its_fraction(percent):
    assert parse_pattern(f"{percent}%") == parse_pattern(f"0.{percent:02}") == Unstructured(percent / 100)


@given(st.text(max_size=12))
def test_no_text_makes_the_reader_stumble(text):
    try:
        pattern = parse_pattern(text)
    except ConfigError:
        return
    assert parse_pattern(str(pattern)) == pattern


def test_how_many_weights_go_by_hand():
    assert Unstructured(0.5).n_pruned(7) == 3
    assert Unstructured(0.6).n_pruned(10) == 6
    assert Unstructured(0.0).n_pruned(10) == 0
    assert Unstructured(0.99).n_pruned(1) == 0
    assert Unstructured(0.29).n_pruned(100) == 28  # as everywhere in the field: 0.29 * 100 = 28.999999999999996


@given(FRACTIONS, st.integers(0, 2**31))
def test_never_more_weights_go_than_asked_and_at_most_one_fewer(sparsity, group_size):
    asked = Fraction(sparsity) * group_size
    rounding = Fraction(group_size, 2**52)
    assert asked - 1 - rounding <= Unstructured(sparsity).n_pruned(group_size) <= asked + rounding


def test_two_of_four_is_one_half():
    assert SemiStructured(2, 4).sparsity == 0.5
    assert SemiStructured(1, 4).sparsity == 0.75  # one stays
