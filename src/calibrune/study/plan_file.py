"""A plan as a file: YAML in which no key stands twice, and of which every value knows its line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from calibrune.errors import ConfigError
from calibrune.settings import UNREADABLE_YAML, check_size, nearest

Place = tuple[str | int, ...]
"""Where in a plan: ("calibration", 0, "source")."""


@dataclass(frozen=True)
class PlanFile:
    """What a file says, and where it says it."""

    values: dict[str, Any]
    lines: dict[Place, str] = field(default_factory=dict)
    """File and line of every value."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key of the first level."""
        return self.values.get(name, default)

    @contextmanager
    def at(self, *place: str | int) -> Iterator[None]:
        """Add to a `ConfigError` of what is read inside which file and line it is about."""
        try:
            yield
        except ConfigError as error:
            raise placed(self.where(*place), error) from None

    def where(self, *place: str | int) -> str:
        """ "plan.yaml, line 7 (calibration)", of the nearest value around that stands in the file."""
        around = next((place[:n] for n in range(len(place), -1, -1) if place[:n] in self.lines), ())
        name = next((part for part in reversed(place) if isinstance(part, str)), "")
        return f"{self.lines.get(around, 'the plan')}{f' ({name})' if name else ''}"

    def check_keys(self, given: Mapping[str, Any], known: Sequence[str], what: str, *place: str | int) -> None:
        """Raise `ConfigError` for a key that is not known, with the nearest that is."""
        for key in given:
            if key not in known:
                with self.at(*place, key):
                    raise ConfigError(f"{what} has no key {key!r}{nearest(str(key), known)}")

    def sequence(self, given: Any, *place: str | int) -> list[Any]:
        """The value as a list: what stands alone is a list of one.

        Raises:
            ConfigError: there is nothing in it.
        """
        with self.at(*place):
            if given is None or given == []:
                raise ConfigError("nothing is listed; name one or more, or leave the key out")
        return list(given) if isinstance(given, list) else [given]


def placed(where: str, error: ConfigError) -> ConfigError:
    """The error with its file and line, if it has none yet."""
    if getattr(error, "is_placed", False):
        return error
    found = ConfigError(f"{where}: {error}")
    found.is_placed = True  # type: ignore[attr-defined]
    return found


def read_plan_file(path: Path) -> PlanFile:
    """Read a plan and those that it extends, whose keys of the first level it replaces.

    Raises:
        ConfigError: there is no such file, it is no YAML, a key stands twice, or plans extend each other in a circle.
    """
    return _read(path, ())


def overridden(plan: PlanFile, settings: Sequence[str]) -> PlanFile:
    """The plan with keys of the first level said anew, as `KEY=VALUE`, the value in YAML.

    Raises:
        ConfigError: no such form, or no YAML.
    """
    values, lines = dict(plan.values), dict(plan.lines)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--set {setting!r} is not of the form KEY=VALUE; write for example --set samples=8")
        lines = {place: line for place, line in lines.items() if place[:1] != (name,)}
        values[name], own = _parsed(text, f"--set {name}", of_a_file=False)
        lines |= {(name, *place): line for place, line in own.items()}
    return PlanFile(values, lines)


def _read(path: Path, readers: tuple[Path, ...]) -> PlanFile:
    try:
        if path.resolve() in readers:
            raise ConfigError(f"the plan {path} extends itself, by way of {' and '.join(p.name for p in readers)}")
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        text = path.read_text(encoding="utf-8")
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"there is no plan {str(path)!r} to be read ({error}); name a YAML file") from None
    values, lines = _parsed(text, path.name)
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no plan: it needs keys with values, as in `models: [...]`")
    plan = PlanFile(values, lines)
    base = values.pop("extends", None)
    if base is None:
        return plan
    with plan.at("extends"):
        below = _read(path.parent / str(base), (*readers, path.resolve()))
    inherited = {place: line for place, line in below.lines.items() if place[:1] and place[0] not in values}
    return PlanFile(below.values | values, inherited | lines)


class _Loader(yaml.SafeLoader):
    """YAML's safe types; a key that stands twice in one mapping is an error, where the later one would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in first and key.tag != "tag:yaml.org,2002:merge":
                raise ConfigError(f"the key {key.value!r} stands twice, in line {first[key.value]} and in line {line}")
            first[str(key.value)] = line
        return super().construct_mapping(node, deep)


def _parsed(text: str, name: str, *, of_a_file: bool = True) -> tuple[Any, dict[Place, str]]:
    try:
        loader = _Loader(text)  # which looks at the characters
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} cannot be read as YAML: {' '.join(str(error).split())}") from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        check_size(node, _inside, name)
        lines = {place: f"{name}, line {line}" if of_a_file else name for place, line in _lines(node)}
        return loader.construct_document(node), lines
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    except UNREADABLE_YAML as error:
        raise ConfigError(f"{name} cannot be read as YAML: {' '.join(str(error).split())[:1000]}") from None
    finally:
        loader.dispose()


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _lines(node: yaml.Node, place: Place = (), line: int | None = None) -> Iterator[tuple[Place, int]]:
    """Every value's line; of a mapping's values, that of the key."""
    yield place, node.start_mark.line + 1 if line is None else line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines(value, (*place, str(key.value)), key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for i, one in enumerate(node.value):
            yield from _lines(one, (*place, i))
