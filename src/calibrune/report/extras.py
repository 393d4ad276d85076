"""The libraries that draw and fill in reports: an extra, wanted only where a report is made."""

from importlib import import_module
from typing import Any

from calibrune.errors import ConfigError


def import_extra(name: str) -> Any:
    """The module `name`, or an error that says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigError(f"reports need {name}, which is not installed: pip install 'calibrune[report]'") from None
