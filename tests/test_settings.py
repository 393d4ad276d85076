"""Settings: what they take, what they refuse, and in which words."""

import copy
import dataclasses
import math
import pickle
from typing import Annotated, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from calibrune.errors import ConfigError
from calibrune.settings import choose, nearest, settings


@settings
class Method:
    """A method with settings of every kind."""

    power: float = 0.5
    steps: Annotated[int, Field(ge=1)] = 3
    strict: bool = True
    group: Literal["row", "layer"] = "row"
    sizes: tuple[int, ...] = ()
    limit: int | Literal["none"] | None = None
    counts: dict[str, int] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.power > 9:
            raise ConfigError(f"a power over 9 overflows, got {self.power:g}")
        if self.power < 0:
            raise ValueError("a power below 0 turns the order round")


@settings
class Outer:
    """Settings inside settings, and one that must be given."""

    name: str
    method: Method = Method()
    methods: tuple[Method, ...] = ()


@settings
class Empty:
    """No settings at all."""

    requires = ()


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ({"power": 1}, {"power": 1.0}),
        ({"power": "0.25", "steps": "4", "strict": "no"}, {"power": 0.25, "steps": 4, "strict": False}),
        ({"sizes": [1, 2]}, {"sizes": (1, 2)}),
        ({"limit": "none"}, {"limit": "none"}),
        ({"strict": False}, {"strict": False}),
    ],
)
def test_values_as_yaml_and_the_command_line_give_them(given_, kept):
    made = Method(**given_)
    for name, value in kept.items():
        assert getattr(made, name) == value
        assert type(getattr(made, name)) is type(value)


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (Method, {"powr": 1}, "Method has no setting 'powr'; did you mean 'power'?"),
        (Empty, {"a": 1}, "Empty has no setting 'a'; it has no settings"),
        (Method, {"steps": 0}, "Method: steps cannot be 0: input should be greater than or equal to 1"),
        (Method, {"power": True}, "Method: power cannot be True: True and False are no numbers"),
        (Method, {"steps": False}, "Method: steps cannot be False: True and False are no numbers"),
        (Method, {"limit": True}, None),
        (Method, {"sizes": [1, True]}, "Method: sizes cannot be [1, True]: True and False are no numbers"),
        (Method, {"sizes": (1, "x")}, None),
        (Method, {"power": math.nan}, "Method: power cannot be nan: input should be a finite number"),
        (Method, {"power": "inf"}, "Method: power cannot be 'inf': input should be a finite number"),
        (Method, {"group": "rows"}, "Method: group cannot be 'rows': input should be 'row' or 'layer'"),
        (Method, {"power": 10}, "a power over 9 overflows, got 10"),
        (Method, {"power": -1}, "Method: a power below 0 turns the order round"),
        (Method, {"counts": {"x": "y"}}, None),
        (Outer, {}, "Outer needs a value for name"),
        (Outer, {"name": "x", "method": {"stepz": 1}}, "Method has no setting 'stepz'; did you mean 'steps'?"),
        (
            Outer,
            {"name": "x", "method": {"power": True}},
            "Method: power cannot be True: True and False are no numbers",
        ),
        (Outer, {"name": "x", "method": {"power": 10}}, "a power over 9 overflows, got 10"),
        (
            Outer,
            {"name": "x", "methods": [{}, {"steps": 0}]},
            "Outer: methods.1.steps cannot be 0: input should be greater than or equal to 1",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(kind, values, sentence):
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert sentence is None or str(caught.value) == sentence


def test_an_unknown_name_with_nothing_near_lists_the_known_ones():
    with pytest.raises(ConfigError, match="choose one of: counts, group, limit, power, sizes, steps, strict"):
        Method(zzz=1)


def test_all_that_a_choice_takes_is_said_and_not_pydantics_name_for_it():
    with pytest.raises(ConfigError) as caught:
        Method(limit="some")
    assert str(caught.value).startswith("Method: limit cannot be 'some': input should be a valid integer")
    assert str(caught.value).endswith(", or input should be 'none'")


def test_a_long_value_is_cut_short_in_the_sentence():
    with pytest.raises(ConfigError) as caught:
        Method(power=list(range(1000)))
    assert len(str(caught.value)) < 120


def test_settings_are_given_by_name():
    with pytest.raises(ConfigError, match=r"Method takes its settings by name, got 0\.5"):
        Method(0.5)


def test_settings_are_values():
    made = Method(power=0.25, sizes=(1,))
    assert made == Method(power=0.25, sizes=(1,)) != Method(power=0.25)
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
    assert dataclasses.asdict(Empty()) == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.power = 1.0
    with pytest.raises(ConfigError, match="steps cannot be 0"):
        dataclasses.replace(made, steps=0)


def test_a_class_that_inherits_says_its_own_name():
    class Mine(Method):
        """Somebody's method, from outside the package."""

    with pytest.raises(ConfigError, match="Mine: steps cannot be 0"):
        Mine(steps=0)


def test_the_json_schema_comes_for_free():
    schema = TypeAdapter(Method).json_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["steps"] == {"default": 3, "minimum": 1, "title": "Steps", "type": "integer"}


@example({"self": None})
@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.floats() | st.text()))
def test_whatever_is_in_a_plan_the_answer_is_settings_or_a_sentence(values):
    try:
        made = choose({"method": Method}, "method", "method", values, Method)
    except ConfigError:
        return
    assert made == Method(**values)


@given(
    st.sampled_from(["power", "steps", "strict", "group", "sizes", "limit"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda v: st.lists(v, max_size=3)
    ),
)
def test_whatever_a_setting_is_given_it_takes_or_refuses(name, value):
    try:
        made = Method(**{name: value})
    except ConfigError:
        return
    assert not isinstance(value, bool) or isinstance(getattr(made, name), bool)


def test_a_table_gives_its_entry_or_the_nearest_name():
    table = {"wanda": Method, "ria": Method}
    assert choose(table, "method", "wanda", {"power": 1}, Method) == Method(power=1)
    with pytest.raises(ConfigError, match="there is no method 'wnada'; did you mean 'wanda'"):
        choose(table, "method", "wnada", {}, Method)
    with pytest.raises(ConfigError, match="there is no method 'x'; choose one of: ria, wanda"):
        choose(table, "method", "x", {}, Method)
    with pytest.raises(ConfigError, match="there is no method 'x'; there is none to choose from"):
        choose({}, "method", "x", {}, Method)


def test_a_key_that_is_no_text_is_an_unknown_setting():
    with pytest.raises(ConfigError, match="Method has no setting '1'"):
        choose({"method": Method}, "method", "method", {1: 2}, Method)


@given(st.text(), st.lists(st.text()))
def test_a_hint_follows_a_semicolon(name, known):
    assert nearest(name, known).startswith("; ")
