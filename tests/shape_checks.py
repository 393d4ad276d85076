"""How the shapes in the signatures are checked in tests; the import hook of conftest.py wraps every function in it."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int goes where a float is wanted, as for mypy (PEP 484)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its hints checked at every call.

    One that is made inside another stays as it is: it is made anew at every call, and to wrap it each time took a third
    of the time of a test that prunes.
    """
    return function if "<locals>" in getattr(function, "__qualname__", "") else _check(function)
