"""Print the tables of the docs from the code, between `<!-- generated: NAME -->` and `<!-- end -->`.

`python docs/generate.py` writes them; with `--check` nothing is written, and a page that is out of date is an error.
Nothing is passed over: a page without its markers, a marker that no table answers to, a method without a summary.
"""

import argparse
import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent

PAGES = {
    "methods": "methods.md",
    "allocators": "allocations.md",
    "filters": "filters.md",
    "proxies": "set-quality.md",
    "commands": "commands.md",
}
"""The page that each table is printed into."""


class DocsError(Exception):
    """The docs cannot be printed: what is missing, and where."""


def settings_table(kinds: Mapping[str, type]) -> str:
    """A table of settings classes, as Markdown: name, what it is, its settings and their defaults."""
    lines = ["| name | what it is | settings |", "| --- | --- | --- |"]
    for name, kind in kinds.items():
        if not is_dataclass(kind):
            raise DocsError(f"{name!r} is no dataclass, so its settings are not known: {kind!r}")
        said = ", ".join(f"`{setting}`" for setting in _settings(kind)) or "none"
        lines.append(f"| `{name}` | {_cell(_summary(name, kind))} | {_cell(said)} |")
    return "\n".join(lines)


def proxies_table(kinds: Mapping[str, Any]) -> str:
    """A table of proxies, as Markdown: what each is, its settings, which way it is thought to point, and why."""
    lines = ["| name | what it is | settings | better | what that rests on |", "| --- | --- | --- | --- | --- |"]
    for name, kind in kinds.items():
        said = ", ".join(f"`{setting}`" for setting in _settings(kind)) or "none"
        cells = (_summary(name, kind), said, kind.better, kind.founded)
        lines.append(f"| `{name}` | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def commands_text(name: str, command: Any) -> str:
    """Every command under `command` (a click command): what it does, and its arguments and options."""
    return "\n\n".join(_commands(name, command))


def fill(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of `name`, and nothing else changed."""
    begin, end = f"<!-- generated: {name} -->", "<!-- end -->"
    if (times := page.count(begin)) != 1:
        raise DocsError(f"needs the line {begin} once, and has it {times} times")
    head, rest = page.split(begin)
    old, found, tail = rest.partition(end)
    if not found or "<!-- generated:" in old:
        raise DocsError(f"{begin} is not closed by {end}")
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"


def pages(texts: Mapping[str, str], docs: Path = DOCS, names: Mapping[str, str] = PAGES) -> Iterator[tuple[Path, str]]:
    """Each page's path, and what should be in it."""
    if texts.keys() != names.keys():
        raise DocsError(f"there are texts for {sorted(texts)} and pages for {sorted(names)}")
    for path in dict.fromkeys(docs / page for page in names.values()):
        if not path.exists():
            raise DocsError(f"{path.name}: there is no such page")
        due = [name for name in names if docs / names[name] == path]
        page = path.read_text(encoding="utf-8")
        if unknown := set(re.findall(r"<!-- generated: (.*?) -->", page)) - set(due):
            raise DocsError(f"{path.name}: nothing is printed for the markers {sorted(unknown)}")
        for name in due:
            try:
                page = fill(page, name, texts[name])
            except DocsError as error:
                raise DocsError(f"{path.name}: {error}") from None
        yield path, page


def texts_from_code() -> dict[str, str]:
    """What the code says of itself today."""
    import typer

    from calibrune.allocators import ALLOCATORS
    from calibrune.calibration.filters import FILTERS
    from calibrune.cli import app
    from calibrune.proxies import PROXIES
    from calibrune.pruners import PRUNERS

    return {
        "methods": settings_table(PRUNERS),
        "allocators": settings_table(ALLOCATORS),
        "filters": settings_table(FILTERS),
        "proxies": proxies_table(PROXIES),
        "commands": commands_text("calibrune", typer.main.get_command(app)),
    }


def main(arguments: Sequence[str], texts: Mapping[str, str] | None = None, docs: Path = DOCS) -> int:
    """Write the pages, or check them; the exit status."""
    parser = argparse.ArgumentParser(description="Print the tables of the docs from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    check = parser.parse_args(arguments).check
    try:
        due = list(pages(texts_from_code() if texts is None else texts, docs))
    except DocsError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 1
    stale = [(path, new) for path, new in due if path.read_text(encoding="utf-8") != new]
    for path, new in stale:
        if check:
            old = path.read_text(encoding="utf-8")
            diff = difflib.unified_diff(old.splitlines(), new.splitlines(), path.name, "as the code says", lineterm="")
            print("\n".join(diff), file=sys.stderr)
        else:
            path.write_text(new, encoding="utf-8")
            print(f"docs/{path.name} written")
    if check and stale:
        names = ", ".join(path.name for path, _ in stale)
        print(f"docs: out of date: {names}; run: make docs", file=sys.stderr)
    return int(check and bool(stale))


def _summary(name: str, kind: type) -> str:
    # a dataclass without a docstring is given its signature for one
    if not kind.__doc__ or kind.__doc__.startswith(f"{kind.__name__}("):
        raise DocsError(f"{name!r} has no summary: {kind.__name__} needs a docstring")
    return inspect.cleandoc(kind.__doc__).splitlines()[0]


def _settings(kind: type) -> Iterator[str]:
    known_to_pydantic = getattr(kind, "__pydantic_fields__", {})
    for field in fields(kind):
        if not field.init:
            continue
        if info := known_to_pydantic.get(field.name):
            yield field.name if info.is_required() else f"{field.name}={info.get_default(call_default_factory=True)!r}"
        elif field.default_factory is not MISSING:
            yield f"{field.name}={field.default_factory()!r}"
        else:
            yield field.name if field.default is MISSING else f"{field.name}={field.default!r}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _commands(name: str, command: Any) -> Iterator[str]:
    if not command.help:
        raise DocsError(f"the command {name!r} has no help")
    nested = getattr(command, "commands", {})
    text = [f"### `{name}`", "", inspect.cleandoc(command.help.replace("\f", "\n").replace("\b", ""))]
    rows = [_parameter(name, parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        text += ["", "| argument or option | default | what it is |", "| --- | --- | --- |", *rows]
    yield "\n".join(text)
    for inner, subcommand in nested.items():
        if not subcommand.hidden:
            yield from _commands(f"{name} {inner}", subcommand)


def _parameter(command: str, parameter: Any) -> str:
    said = getattr(parameter, "help", None)
    if not said:
        raise DocsError(f"{parameter.name!r} of {command!r} has no help")
    if parameter.param_type_name == "argument":
        shown = parameter.metavar or str(parameter.name).upper()
    else:
        shown = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.required:
        default = "required"
    elif parameter.default in (None, False, (), []) or callable(parameter.default):
        default = ""
    else:
        default = f"`{parameter.default}`"
    return f"| `{_cell(shown)}` | {_cell(default)} | {_cell(said)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
