"""Print the tables of the docs and of the README from the code, between `<!-- generated: NAME -->` and `<!-- end -->`.

`python docs/generate.py` writes them; with `--check` nothing is written, and a page that is out of date is an error.
Nothing is passed over: a page without its markers, a marker that no table answers to, a method without a summary.
"""

import argparse
import difflib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

PAGES = {
    "methods": "docs/methods.md",
    "methods measured": "docs/methods.md",
    "fidelity": "docs/methods.md",
    "allocators": "docs/allocations.md",
    "allocations measured": "docs/allocations.md",
    "sources": "docs/calibration.md",
    "filters": "docs/filters.md",
    "proxies": "docs/set-quality.md",
    "commands": "docs/commands.md",
    "python": "docs/python.md",
    "speed measured": "docs/speed.md",
    "growth measured": "docs/speed.md",
    "architectures": "README.md",
    "known models": "examples/known_pretraining/README.md",
    "known claims": "docs/evidence.md",
    "known sources": "docs/evidence.md",
    "known details": "docs/evidence-claims.md",
    "known ablations": "docs/evidence.md",
    "known proxies": "docs/evidence.md",
    "known best": "docs/evidence.md",
    "real claims": "docs/evidence.md",
    "real costs": "docs/evidence.md",
    "real sources": "docs/evidence.md",
    "real details": "docs/evidence-claims.md",
    "fresh": "docs/evidence.md",
    "spreads": "docs/evidence.md",
    "growth": "docs/evidence.md",
    "growth details": "docs/evidence-claims.md",
    "study pages": "docs/evidence.md",
    "evidence": "README.md",
}
"""The page that each table is printed into, from the root of the repository."""

TEST_MODELS = REPOSITORY / "tests" / "tiny_models.py"
"""The architectures that every method is tested on: those that the README may name."""

MEASURED = REPOSITORY / "docs" / "measured.py"
"""The tables of what was measured."""

SPEED = REPOSITORY / "docs" / "speed.py"
"""Those of speed and memory, against their targets."""

EVIDENCE = REPOSITORY / "docs" / "evidence.py"
"""Those of what the studies show."""


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


def sources_table(named: Mapping[str, Any]) -> str:
    """A table of the named sources of the hub, as Markdown."""
    lines = ["| name | dataset | what to know | licence |", "| --- | --- | --- | --- |"]
    for name, source in named.items():
        corpus = source.corpus
        dataset = f"`{corpus.dataset}`" + (f", {corpus.config}" if corpus.config else "")
        lines.append(f"| `{name}` | {dataset} | {_cell(source.note)} | {_cell(corpus.licence)} |")
    return "\n".join(lines)


def proxies_table(kinds: Mapping[str, Any]) -> str:
    """A table of proxies, as Markdown: what each is, its settings, which way it is thought to point, and why."""
    lines = ["| name | what it is | settings | better | what that rests on |", "| --- | --- | --- | --- | --- |"]
    for name, kind in kinds.items():
        said = ", ".join(f"`{setting}`" for setting in _settings(kind)) or "none"
        cells = (_summary(name, kind), said, kind.better, kind.founded)
        lines.append(f"| `{name}` | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def python_text(package: Any) -> str:
    """Everything that a package exports: how it is called, and what it says of itself."""
    entries = []
    for name in package.__all__:
        thing = getattr(package, name)
        said = inspect.getdoc(thing) or ""
        if not said or said.startswith(f"{name}("):
            raise DocsError(f"{name!r} of {package.__name__} has no docstring")
        is_error = isinstance(thing, type) and issubclass(thing, Exception)
        head = "" if is_error or isinstance(thing, types.UnionType) else _called(name, thing)
        # a docstring's own blocks are for readers of the code; here, the text up to the first of them
        entries.append(f"### `{name}`\n{head}\n{_outline(said)}")
    return "\n\n".join(entries)


def commands_text(name: str, command: Any) -> str:
    """Every command under `command` (a click command): what it does, and its arguments and options."""
    return "\n\n".join(_commands(name, command))


def architectures_table(models: Iterable[Any]) -> str:
    """A table of models (of transformers), a row for each `model_type`: what is special, and what is left alone."""
    from calibrune.lm.layout import Coverage, decoder_blocks

    special: dict[tuple[str, str], list[str]] = {}
    left: dict[tuple[str, str], list[str]] = {}
    for model in models:
        family, blocks = (model.config.model_type, type(model).__name__), decoder_blocks(model)
        special.setdefault(family, []).extend(_special(model.config, blocks))
        left.setdefault(family, []).extend(_left_alone(Coverage.of(blocks)))
    lines = ["| `model_type` | model class | what is special | left alone |", "| --- | --- | --- | --- |"]
    for kind, name in special:
        said = (_cell("; ".join(dict.fromkeys(notes[kind, name]))) for notes in (special, left))
        lines.append(f"| `{kind}` | `{name}` | {' | '.join(said)} |")
    return "\n".join(lines)


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


def pages(
    texts: Mapping[str, str], root: Path = REPOSITORY, names: Mapping[str, str] = PAGES
) -> Iterator[tuple[str, str]]:
    """Each page's path from the root, and what should be in it."""
    if texts.keys() != names.keys():
        raise DocsError(f"there are texts for {sorted(texts)} and pages for {sorted(names)}")
    for path in dict.fromkeys(names.values()):
        if not (root / path).exists():
            raise DocsError(f"{path}: there is no such page")
        due = [name for name in names if names[name] == path]
        page = (root / path).read_text(encoding="utf-8")
        if unknown := set(re.findall(r"<!-- generated: (.*?) -->", page)) - set(due):
            raise DocsError(f"{path}: nothing is printed for the markers {sorted(unknown)}")
        for name in due:
            try:
                page = fill(page, name, texts[name])
            except DocsError as error:
                raise DocsError(f"{path}: {error}") from None
        yield path, page


def texts_from_code() -> dict[str, str]:
    """What the code says of itself today."""
    import typer

    import calibrune
    from calibrune.allocators import ALLOCATORS
    from calibrune.calibration.filters import FILTERS
    from calibrune.cli import app
    from calibrune.corpora.named import NAMED
    from calibrune.proxies import PROXIES
    from calibrune.pruners import PRUNERS

    measured, speed, evidence = _loaded(MEASURED), _loaded(SPEED), _loaded(EVIDENCE)
    return {
        "methods": settings_table(PRUNERS),
        "methods measured": measured.methods_tables(),
        "fidelity": measured.fidelity_table(),
        "allocators": settings_table(ALLOCATORS),
        "allocations measured": measured.allocations_table(),
        "sources": sources_table(NAMED),
        "filters": settings_table(FILTERS),
        "proxies": proxies_table(PROXIES),
        "commands": commands_text("calibrune", typer.main.get_command(app)),
        "python": python_text(calibrune),
        "speed measured": speed.targets_table(),
        "growth measured": speed.growth_table(),
        "architectures": architectures_table(_test_models()),
        "known models": evidence.models_table(),
        "known claims": evidence.claims_table(evidence.known_claims()),
        "known sources": evidence.sources_table(),
        "known details": evidence.details(evidence.known_claims()),
        "known ablations": evidence.ablations_table(),
        "known proxies": evidence.proxies_table(),
        "known best": evidence.best_text(),
        "real claims": evidence.claims_table(evidence.real_claims()),
        "real costs": evidence.costs_table(),
        "real sources": evidence.real_table(),
        "real details": evidence.details(evidence.real_claims()),
        "fresh": evidence.details(evidence.fresh_claims()),
        "spreads": evidence.spreads_table(),
        "growth": evidence.claims_table(evidence.growth_claims()),
        "growth details": evidence.details(evidence.growth_claims()),
        "study pages": evidence.pages_list(),
        "evidence": evidence.headline_table(),
    }


def main(arguments: Sequence[str], texts: Mapping[str, str] | None = None, root: Path = REPOSITORY) -> int:
    """Write the pages, or check them; the exit status."""
    parser = argparse.ArgumentParser(description="Print the tables of the docs from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    check = parser.parse_args(arguments).check
    try:
        due = list(pages(texts_from_code() if texts is None else texts, root))
    except DocsError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 1
    stale = [(path, old, new) for path, new in due if (old := (root / path).read_text(encoding="utf-8")) != new]
    for path, old, new in stale:
        if check:
            diff = difflib.unified_diff(old.splitlines(), new.splitlines(), path, "as the code says", lineterm="")
            print("\n".join(diff), file=sys.stderr)
        else:
            (root / path).write_text(new, encoding="utf-8")
            print(f"{path} written")
    if check and stale:
        names = ", ".join(path for path, _, _ in stale)
        print(f"docs: out of date: {names}; run: make docs", file=sys.stderr)
    return int(check and bool(stale))


def _called(name: str, thing: Any) -> str:
    """The names of its arguments, with those defaults that are short."""
    shown = []
    for parameter in inspect.signature(thing).parameters.values():
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        long = len(default) > 24 or "<" in default or "object at" in default
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        shown.append(f"{prefix}{parameter.name}{'=...' if long else default}")
    line = f"{name}({', '.join(shown)})"
    if len(line) > 100:
        line = f"{name}(\n    " + ",\n    ".join(shown) + ",\n)"
    return f"\n```text\n{line}\n```\n"


def _outline(docstring: str) -> str:
    """A docstring as Markdown: its sections as lists."""
    lines: list[str] = []
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            lines += [f"**{line[:-1]}**", ""]
        elif found := re.match(r"    (\w[\w, ]*): (.*)", line):
            lines.append(f"- `{found[1]}`: {found[2]}")
        elif line.startswith("        ") and lines and lines[-1].startswith(("- ", "  ")):
            lines.append(f"  {line.strip()}")
        elif line.startswith(">>>"):
            break
        else:
            lines.append(line.strip())
    return "\n".join(lines).rstrip()


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


def _test_models() -> Iterator[Any]:
    """The tiny model of every architecture of the tests."""
    matrix = _loaded(TEST_MODELS)
    return map(matrix.tiny_model, matrix.ARCHITECTURES)


def _loaded(path: Path) -> Any:
    """A module from its file: neither the docs nor the tests are a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise DocsError(f"{path.relative_to(REPOSITORY)} is not where it should be")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _special(config: Any, blocks: Sequence[Any]) -> Iterator[str]:
    """What of an architecture needs more than a plain matrix in a plain block."""
    layers = [layer for block in blocks for layer in block.layers]
    parts: dict[str, list[str]] = {}
    for layer in layers:
        whole, _, part = layer.name.rpartition(".")[2].partition("[")
        if part and layer.expert is None and layer.name.startswith(f"{blocks[0].name}."):
            parts.setdefault(whole, []).append(part.strip("]"))
    for whole, names in parts.items():
        yield f"`{whole}` as {', '.join(names)}"
    if any(layer.expert is not None for layer in layers):
        yield "experts one by one, gate and up apart"
    if len({tuple(layer.name.removeprefix(block.name) for layer in block.layers) for block in blocks}) > 1:
        yield "blocks with experts and without"
    if any(layer.is_transposed and layer.expert is None for layer in layers):
        yield "stored [in, out]"
    attention = {kind.partition("_")[0]: None for kind in getattr(config, "layer_types", None) or ()}
    if len(attention) > 1:
        yield f"{' and '.join(attention)} attention in turn"
    elif not attention and getattr(config, "sliding_window", None):
        yield "sliding attention"


def _left_alone(coverage: Any) -> Iterator[str]:
    """The matrices that are not pruned, and those that are not pruned as they should be; the numbers are no news."""
    for weight in coverage.skipped:
        yield f"`{weight.key.split('.')[-2]}`: {re.sub(r'[0-9]+ ', '', weight.reason)}"
    for name in coverage.unsplit:
        yield f"`{name.rpartition('.')[2]}` is pruned as one: where its parts lie is not known"


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
