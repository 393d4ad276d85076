"""What the verbs say: results on stdout, all else on stderr; of what a terminal obeys, our own colours alone."""

import json
import logging
import os
import re
import sys
import traceback
from types import TracebackType
from typing import Any

import typer

from calibrune.errors import plain, without_secrets

_PLAIN_SIGNS = {"─": "-", "–": "-", "−": "-", "±": "+/-", "×": "x", "…": "...", "→": "->"}
"""What our tables are drawn with, for terminals that have no more than ASCII."""

_HEAD = re.compile(r"^(?=.*\S)(.*)\n([─-]{2,}(?: +[─-]+)*)$", re.MULTILINE)
"""The head of a table, and the rule under it."""


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text, whoever wrote it: tables in colour where somebody looks (not with NO_COLOR), in any encoding."""
    stream = sys.stderr if err else sys.stdout
    said = _HEAD.sub(_coloured_head, _encodable(without_secrets(plain(text)), stream))
    # what goes into a file or a pipe loses its colours in `echo`
    typer.echo(said, err=err, nl=nl, color=False if os.environ.get("NO_COLOR") or _is_dumb() else None)


def print_json(value: Any) -> None:
    """One JSON document on stdout: what a terminal might obey, or its encoding lacks, is written as \\uXXXX."""
    from calibrune.durable import to_json

    text = to_json(value)
    for character in {c for c in text if c != "\n" and (plain(c) != c or not _fits(c, sys.stdout))}:
        text = text.replace(character, json.dumps(character)[1:-1] if ord(character) > 127 else "\\u007f")
    typer.echo(text)


def complain(error: BaseException | str, status: int) -> int:
    """Say on stderr what is wrong, with its notes, and with `--verbose` where; returns the exit status."""
    if "tqdm" in sys.modules:
        from calibrune.progress import close_bars

        close_bars()
    say(f"calibrune: error: {error}", err=True)
    for note in getattr(error, "__notes__", []):
        say(f"  {note}", err=True)
    if isinstance(error, BaseException) and logging.getLogger("calibrune").isEnabledFor(logging.DEBUG):
        say("".join(traceback.format_exception(error)), err=True)
    return status


def unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: the traceback of a mistake of ours, without secrets."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip(), err=True)


def listen(*, quiet: bool, verbose: bool) -> None:
    """Log and progress on stderr.

    Args:
        quiet: warnings and errors alone, and no progress.
        verbose: also what is of use to few, with the time; and what transformers tells of itself.

    Raises:
        CalibruneError: both.
    """
    from transformers.utils import logging as transformers_logging

    from calibrune.errors import ConfigError
    from calibrune.progress import AboveBars, show_progress

    if quiet and verbose:
        raise ConfigError("--quiet and --verbose were both given; choose one")
    transformers_logging.disable_progress_bar()
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    for name in ("calibrune", "transformers"):
        handler = AboveBars()
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s {name}: %(message)s" if verbose else f"{name}: %(message)s")
        )
        log = logging.getLogger(name)
        # transformers' own handler would print whatever a model's files say
        log.handlers, log.propagate = [handler], False
    logging.getLogger("calibrune").setLevel(level)
    if verbose:
        transformers_logging.set_verbosity_info()
    show_progress(not quiet)


def _coloured_head(found: "re.Match[str]") -> str:
    return f"{typer.style(found[1], bold=True)}\n{typer.style(found[2], dim=True)}"


def _is_dumb() -> bool:
    return os.environ.get("TERM") == "dumb"


def _encodable(text: str, stream: Any) -> str:
    if _fits(text, stream):
        return text
    for sign, instead in _PLAIN_SIGNS.items():
        text = text if _fits(sign, stream) else text.replace(sign, instead)
    encoding = getattr(stream, "encoding", None) or "ascii"
    return text.encode(encoding, errors="replace").decode(encoding)


def _fits(text: str, stream: Any) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8", getattr(stream, "errors", None) or "strict")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
