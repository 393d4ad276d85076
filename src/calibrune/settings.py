"""Settings are frozen dataclasses that cannot be wrong: checked when made, an unknown name is an error."""

import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, ValidationError, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs

from calibrune.errors import ConfigError

T = TypeVar("T")

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
    def init(self: Any, *args: Any, **values: Any) -> None:
        if args:
            raise ConfigError(
                f"{type(self).__name__} takes its settings by name, got {reprlib.repr(args[0])} without one"
            )
        try:
            check(self, **values)
        except ValidationError as error:
            raise ConfigError(_one_sentence(type(self).__name__, values, error)) from None

    made.__init__ = init  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


def choose(table: Mapping[str, Callable[..., T]], kind: str, name: str, options: Mapping[str, Any]) -> T:
    """Make the entry `name` of a table of settings classes, or say which name is nearest."""
    if name not in table:
        raise ConfigError(f"there is no {kind} {name!r}{nearest(str(name), table)}")
    return table[name](**{str(key): value for key, value in options.items()})


def defaults(kind: type, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a settings class by name, with their defaults; without those that have none, or a made one.

    A default that is itself a settings object is given by its class's name in small letters, as it is asked for.
    """
    known: Mapping[str, Any] = kind.__pydantic_fields__  # type: ignore[attr-defined]
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
    names = {f.name for f in fields(kind) if f.name not in without and f.name not in rename.values()} | rename.keys()
    return {rename.get(name, name): options.pop(name) for name in names & options.keys()}


def record(setting: Any) -> dict[str, Any]:
    """The values of a settings object as JSON; settings inside it say what they are as well."""
    return {
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
