"""Settings are frozen dataclasses that cannot be wrong: checked when made, an unknown name is an error."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from calibrune.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'wanda'?", or, where nothing is near, "; choose one of ..."."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of: {', '.join(names)}"


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(kind: type[T]) -> type[T]:
    """Make a class of annotated fields a frozen, keyword-only dataclass that checks its values.

    A value of the wrong type or out of its range, and a name that is not a field, raise `ConfigError` in one sentence.
    """
    made = pydantic_dataclass(
        frozen=True, kw_only=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    )(kind)
    check = made.__init__

    @wraps(check)
    def init(self: Any, *args: Any, **values: Any) -> None:
        known = [f.name for f in fields(made)]  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                hint = nearest(name, known) if known else "; it has no settings"
                raise ConfigError(f"{kind.__name__} has no setting {name!r}{hint}")
        try:
            check(self, *args, **values)
        except ValidationError as error:
            raise ConfigError(_one_sentence(kind.__name__, error)) from None

    made.__init__ = init  # type: ignore[assignment,method-assign]
    return made  # type: ignore[return-value]


def _one_sentence(kind: str, error: ValidationError) -> str:
    first = error.errors()[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), ConfigError):
        return str(cause)
    where = ".".join(str(part) for part in first["loc"])
    said = first["msg"][:1].lower() + first["msg"][1:]
    return f"{kind}: {where} cannot be {first['input']!r}: {said}"


def choose(table: Mapping[str, Callable[..., T]], kind: str, name: str, options: Mapping[str, Any]) -> T:
    """Make the entry `name` of a table of settings classes, or say which name is nearest."""
    if name not in table:
        raise ConfigError(f"there is no {kind} {name!r}{nearest(name, table)}")
    return table[name](**options)
