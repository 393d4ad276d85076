"""What every filter is: documents in, those that stay out, in their order; what goes is counted, with its reason."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, runtime_checkable

from calibrune.corpora.document import Document
from calibrune.errors import ConfigError
from calibrune.settings import class_record


@runtime_checkable
class Filter(Protocol):
    """Lets some documents through. Implementations are frozen dataclasses: fields are settings, and are recorded.

    One with more to record than its fields (the hash of a file that it reads, the weights of a model) has a method
    `describe` that gives its record as JSON.
    """

    def keep(self, documents: Iterable[Document], dropped: Counter[str]) -> Iterator[Document]:
        """Yield the documents that stay, in their order; count the others in `dropped`, by reason."""


@runtime_checkable
class Remark(Protocol):
    """What a filter has besides, when there is something to say of documents that stay."""

    remark_name: str
    """The field of the manifest that holds the remarks."""

    def remark(self, document: Document) -> Any:
        """What the manifest should say of this document, as JSON; None: nothing."""


@runtime_checkable
class ByGroup(Protocol):
    """What a filter has besides, when it compares documents in groups: so it is known how many must be written."""

    @property
    def share_kept(self) -> float:
        """Of the documents that come."""

    @property
    def group(self) -> int | None:
        """Documents that are compared with each other; None: all."""


def describe_filter(one: Filter) -> dict[str, Any]:
    """A filter's own record where it has one, else its kind and its settings."""
    if hasattr(one, "describe"):
        own: dict[str, Any] = one.describe()
        return class_record(one) | own
    return {"kind": type(one).__name__, **class_record(one), **asdict(one)}  # type: ignore[call-overload]


def import_filter_library(module: str, package: str, extra: str = "filters") -> Any:
    """A library of an extra, or `ConfigError` that says how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise _not_installed(package, extra) from None


def library(package: str, extra: str = "filters") -> str:
    """Name and version of a library whose version can change what is filtered; `ConfigError` where it is missing."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        raise _not_installed(package, extra) from None


def _not_installed(package: str, extra: str) -> ConfigError:
    return ConfigError(f"this filter needs {package}, which is not installed: pip install 'calibrune[{extra}]'")
