"""The libraries that draw and fill in reports: an extra, wanted only where a report is made."""

from importlib import import_module
from typing import Any

from calibrune.errors import ConfigError

DRAWING = ("altair", "vl_convert")
"""What a picture needs."""

PAGE = ("jinja2", *DRAWING)
"""What a page with pictures needs."""


def check_page_extras() -> None:
    """Raise `ConfigError` unless all is installed that a page needs: before hours of work, not after them."""
    for name in PAGE:
        import_extra(name)


def import_extra(name: str) -> Any:
    """The module `name`, or an error that says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigError(f"reports need {name}, which is not installed: pip install 'calibrune[report]'") from None
