"""Settings are frozen dataclasses that cannot be wrong: checked when made, an unknown name is an error.

What is chosen by name is in a table, or a class of anybody's: `my_package.my_module:Class`.
"""

import difflib
import importlib
import inspect
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform, get_args, get_origin

import yaml
from pydantic import ConfigDict, ValidationError, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs

from calibrune.errors import ConfigError

T = TypeVar("T")

MOST = 100_000
"""Values in a text that somebody wrote: with anchors, a few lines of YAML are billions."""

UNREADABLE_YAML: tuple[type[Exception], ...] = (
    *(yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
)
"""What the YAML library raises on a text that is none; a date without such a day is a bare ValueError."""

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'wanda'?", all that are equally near; or, where nothing is, "; choose one of: ..."."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        near = {one: difflib.SequenceMatcher(None, one, name).ratio() for one in close}
        best = [repr(one) for one in sorted(near) if near[one] == max(near.values())]
        return f"; did you mean {' or '.join(best)}?"
    return f"; choose one of: {', '.join(names)}" if names else "; there is none to choose from"


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(kind: type[T]) -> type[T]:
    """Make a class of annotated fields a frozen, keyword-only dataclass that checks its values.

    A value of the wrong type or out of its range, and a name that is not a field, raise `ConfigError` in one sentence.
    Text is read as a number where a number is wanted, for the command line has only text; True and False are no
    numbers, and neither inf nor nan is a setting: write None for "no limit".
    """
    kind._check_given = model_validator(mode="before")(classmethod(_check_given))  # type: ignore[attr-defined,arg-type]
    made = pydantic_dataclass(frozen=True, kw_only=True, config=_CONFIG)(kind)
    check = made.__init__

    @wraps(check)
    def init(self: Any, /, *args: Any, **values: Any) -> None:
        if args:
            raise ConfigError(
                f"{type(self).__name__} takes its settings by name, got {reprlib.repr(args[0])} without one"
            )
        try:
            check(self, **values)
        except ValidationError as error:
            raise ConfigError(_one_sentence(type(self).__name__, values, error)) from None

    made.__init__ = init  # type: ignore[method-assign,assignment]
    return made  # type: ignore[return-value]


def yaml_value(text: str) -> Any:
    """The value that a short text has in YAML: an option's.

    Raises:
        ConfigError: it has none.
    """
    try:
        value = yaml.safe_load(text)
    except UNREADABLE_YAML as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{reprlib.repr(text)} cannot be read ({said}); write :key=value, the value as in YAML"
        ) from None
    check_size(value, _inside, "a value")
    return value


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return (*value, *value.values())
    return value if isinstance(value, list | tuple | set) else ()


def check_size(whole: Any, inside: Callable[[Any], Iterable[Any]], what: str) -> None:
    """Raise `ConfigError` if there are more values in a value than anybody writes; `inside` gives those in one."""
    left, n = [whole], 0
    while left:
        n += 1
        if n > MOST:
            raise ConfigError(f"{what} holds more than {MOST:,} values, or itself: write less, and without anchors")
        left += inside(left.pop())


def home_path(name: str | Path) -> Path:
    """A path as it was written, "~" for the user's home; of somebody whom the system does not know, as it stands."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def choose(table: Mapping[str, type[T]], kind: str, name: str, options: Mapping[str, Any], fits: type[T]) -> T:
    """Make what is called `name`: an entry of a table of settings classes, or `module:Class`.

    Args:
        table: by name.
        kind: what is chosen, for errors: "method".
        name: of the table, or where a class of one's own is.
        options: its settings.
        fits: the protocol that a class of one's own must fulfil.

    Raises:
        ConfigError: there is no such name, module or class, the class does not fit, or a setting is wrong.
    """
    found = class_named(table, kind, name)
    given = {str(key): value for key, value in options.items()}
    if name in table:
        return found(**given)
    try:
        made = found(**given)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  (its own checks may raise anything)
        raise ConfigError(f"the {kind} {name!r} cannot be made with the settings {given}: {error}") from None
    wanted = {*inspect.get_annotations(fits), *vars(fits)}
    missing = sorted(one for one in wanted if not one.startswith("_") and not hasattr(made, one))
    if missing:
        raise ConfigError(f"{name!r} is no {kind}: it has no {' and no '.join(missing)} (see docs/extending.md)")
    return made


def class_named(table: Mapping[str, type[T]], kind: str, name: str) -> type[T]:
    """The class of the table that is called `name`, or the one that `module:Class` says; see `choose`."""
    if name in table:
        return table[name]
    if not is_outside(name):
        raise ConfigError(f"there is no {kind} {name!r}{nearest(str(name), table)}")
    module, _, path = name.partition(":")
    try:
        holder = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  (a module of anybody's may break in any way)
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            said = f"there is no module {error.name!r}; is its folder on PYTHONPATH?"
        else:
            said = f"its module cannot be imported ({type(error).__name__}: {error}); mend it"
        raise ConfigError(f"the {kind} {name!r} was asked for, and {said}") from None
    try:
        found = attrgetter(path)(holder)
    except AttributeError:
        own = [name for name, one in inspect.getmembers(holder, inspect.isclass) if one.__module__ == module]
        raise ConfigError(f"the module {module!r} has no class {path!r}{nearest(path, own)}") from None
    if not isinstance(found, type) or not is_dataclass(found):
        raise ConfigError(
            f"the {kind} {name!r} must be a dataclass, so that its settings are known and recorded, got {found!r}"
        )
    return cast(type[T], found)


def is_outside(name: object) -> bool:
    """Whether a name says where a class of one's own is.

    >>> is_outside("my_package.my_module:Mine"), is_outside("wanda"), is_outside("C:/texts")
    (True, False, False)
    """
    return isinstance(name, str) and re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", name) is not None


def class_record(value: object) -> dict[str, str]:
    """For records: what a class of one's own is called; nothing of those in this package, whose records name them.

    What the class does is not in it: edited under the same name, it is taken for the same.
    """
    kind = type(value)
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return {}
    return {"class": f"{kind.__module__}:{kind.__qualname__}"}


def setting_names(kind: type) -> set[str]:
    """The names of the settings of a settings class, or of a dataclass of one's own."""
    return {f.name for f in fields(kind) if f.init}


def defaults(kind: type, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a settings class by name, with their defaults; without those that have none, or a made one.

    A default that is itself a settings object is given by its class's name in small letters, as it is asked for.
    """
    known: Mapping[str, Any] | None = getattr(kind, "__pydantic_fields__", None)
    if known is None:  # a plain dataclass of one's own
        return {
            f.name: f.default for f in fields(kind) if f.init and f.name not in without and f.default is not MISSING
        }
    return {
        name: type(field.default).__name__.lower() if is_dataclass(field.default) else field.default
        for name, field in known.items()
        if name not in without and not field.is_required() and field.default_factory is None
    }


def taken(
    options: dict[str, Any], kind: type, *, rename: dict[str, str] | None = None, without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Take the options that are settings of this class out of `options`; `rename`: option -> name of the setting."""
    rename = rename or {}
    names = (setting_names(kind) - {*without, *rename.values()}) | rename.keys()
    return {rename.get(name, name): options.pop(name) for name in names & options.keys()}


def record(setting: Any) -> dict[str, Any]:
    """The values of a settings object as JSON, and what it is, where it is a class of one's own or inside another's."""
    return class_record(setting) | {
        field.name: {"kind": type(value).__name__, **record(value)} if is_dataclass(value) else value
        for field in fields(setting)
        for value in [getattr(setting, field.name)]
    }


def _check_given(cls: Any, given: Any) -> Any:
    """Before pydantic looks, also at settings inside settings: are the names known, and is no truth value a number?"""
    values = given.kwargs if isinstance(given, ArgsKwargs) else given
    if not isinstance(values, Mapping):
        return given
    known = {name: field for name, field in cls.__pydantic_fields__.items() if field.init is not False}
    for name, value in values.items():
        if name not in known:
            hint = nearest(str(name), known) if known else "; it has no settings"
            raise ConfigError(f"{cls.__name__} has no setting {name!r}{hint}")
        if _holds_bool(value) and not _takes_bool(known[name].annotation):
            raise ConfigError(f"{cls.__name__}: {name} cannot be {reprlib.repr(value)}: True and False are no numbers")
    return given


def _holds_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_bool, value)))


def _takes_bool(hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _holds_bool(parts)
    if origin is Annotated:
        return _takes_bool(parts[0])
    return any(map(_takes_bool, parts)) if parts else hint not in (int, float, type(None), Ellipsis)


def _one_sentence(kind: str, values: Mapping[str, Any], error: ValidationError) -> str:
    errors = error.errors()
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    where = _place(first["loc"], values)
    at = ".".join(where)
    if first["type"] == "missing":
        return f"{kind} needs a value for {'.'.join([*where, str(first['loc'][-1])])}"
    if cause is not None:
        return f"{kind}: {at}: {cause}" if at else f"{kind}: {cause}"
    # a field that takes this or that is wrong in several ways: say all of them
    said = dict.fromkeys(e["msg"][:1].lower() + e["msg"][1:] for e in errors if _place(e["loc"], values) == where)
    return f"{kind}: {at} cannot be {reprlib.repr(first['input'])}: {', or '.join(said)}"


def _place(loc: Sequence[int | str], values: Any) -> list[str]:
    """Where in the values an error is: pydantic's path less its names for the choices of a union."""
    place = []
    for part in loc:
        if isinstance(values, Mapping):
            found = part in values
        else:
            found = isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        if found:
            values = values[part]
            place.append(str(part))
    return place
