"""The shape of the house is a test: the order of the rooms, their size, and what every part of it says of itself.

When one of these fails, the right answer is nearly always to move code, not the number.
"""

import ast
import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "calibrune"
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = ("errors", "seeds", "patterns", "settings", "durable", "progress")
"""The ground that all rooms stand on: of ours, a module of it imports `errors` at most."""

ROOMS = (
    *GROUND, "lm", "corpora", "calibration", "activations", "proxies", "pruners", "allocators", "prune", "checkpoint",
    "sparsity", "streamed", "uncertainty", "evaluation", "study", "report", "choices", "verbs", "demo", "cli",
)  # fmt: skip


def module_of(path: Path, package: Path = PACKAGE) -> str:
    """`pruners/wanda.py` -> "calibrune.pruners.wanda"."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """All that a module imports, wherever in it, as "calibrune.lm.layout"; names from the package itself too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"calibrune.{alias.name}" for alias in node.names) if origin == "calibrune" else (origin,)


def imports_out_of_order(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of ours that `module` may not have: a room above its own, no room, or, on the ground, any."""
    if module in ("calibrune", "calibrune.__main__"):
        return []  # the front doors open every room
    room = module.split(".")[1]
    wrong = []
    for name in imported_modules(source, module, is_package):
        top, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if top != "calibrune" or other in (room, "__version__"):
            continue
        on_the_ground = room in GROUND and not (other == "errors" and room != "errors")
        if other not in ROOMS or on_the_ground or ROOMS.index(other) > ROOMS.index(room):
            wrong.append(other or name)
    return wrong


@pytest.mark.parametrize(
    ("source", "module", "wrong"),
    [
        ("from calibrune.errors import ConfigError", "calibrune.pruners.wanda", []),
        ("from calibrune.pruners.masks import keep", "calibrune.pruners.wanda", []),
        ("from calibrune.study.plan import StudyPlan", "calibrune.pruners.wanda", ["study"]),
        ("import calibrune.study.plan as plan", "calibrune.pruners.wanda", ["study"]),
        ("from calibrune import cli, lm", "calibrune.pruners.wanda", ["cli"]),
        (
            "def f():\n    if True:\n        from calibrune.prune import prune_model",
            "calibrune.pruners.wanda",
            ["prune"],
        ),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import calibrune.cli", "calibrune.lm", ["cli"]),
        ("from .masks import keep", "calibrune.pruners.wanda", []),
        ("from ..study.plan import StudyPlan", "calibrune.pruners.wanda", ["study"]),
        ("from .. import study", "calibrune.pruners.wanda", ["study"]),
        ("from calibrune import anything", "calibrune.pruners.wanda", ["anything"]),
        ("import calibrune", "calibrune.pruners.wanda", ["calibrune"]),
        ("from calibrune import __version__", "calibrune.checkpoint", []),
        ("from calibrune.errors import ConfigError", "calibrune.patterns", []),
        ("from calibrune.errors import ConfigError", "calibrune.seeds", []),
        ("from calibrune.seeds import seed_for", "calibrune.settings", ["seeds"]),
        ("from calibrune.lm import loading", "calibrune.errors", ["lm"]),
        ("import torch, calibrune_extras", "calibrune.seeds", []),
        ("from calibrune.cli import app", "calibrune", []),
    ],
)
def test_an_import_out_of_order_is_found(source, module, wrong):
    assert imports_out_of_order(source, module) == wrong


def test_a_relative_import_of_a_room_itself_is_understood():
    assert imports_out_of_order("from .wanda import Wanda", "calibrune.pruners", is_package=True) == []
    assert imports_out_of_order("from ..cli import app", "calibrune.pruners", is_package=True) == ["cli"]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_only_go_down(path):
    assert imports_out_of_order(path.read_text(), module_of(path), path.name == "__init__.py") == []


def test_every_room_is_in_the_order_of_rooms():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} - {"__pycache__"}
    assert rooms - {"__init__", "__main__"} <= set(ROOMS)


def test_the_house_is_small():
    lines = {module_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {module: n for module, n in lines.items() if n > 400} == {}
    assert sum(lines.values()) <= 24_000


def test_no_room_is_a_lumber_room():
    names = {part for path in FILES for part in module_of(path).split(".")}
    assert names & {"utils", "util", "common", "helpers", "misc"} == set()


def prints(source: str) -> list[int]:
    """The lines that call `print`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_the_command_line_prints(path):
    assert module_of(path).startswith("calibrune.cli") or prints(path.read_text()) == []


def undocumented(source: str, module: str) -> list[str]:
    """The module, and its public classes and functions, as far as they have no docstring."""
    tree = ast.parse(source)
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    missing = [node.name for node in public if not ast.get_docstring(node)]
    return missing if ast.get_docstring(tree) or not tree.body else [module, *missing]


def test_what_says_nothing_of_itself_is_found():
    source = 'class A:\n    """An A."""\n\nclass B: ...\n\ndef f(): ...\n\ndef _g(): ...\n'
    assert undocumented(source, "calibrune.x") == ["calibrune.x", "B", "f"]
    assert prints("def f():\n    '''print(1)'''\n    print(2)") == [3]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_everything_public_says_what_it_is(path):
    assert undocumented(path.read_text(), module_of(path)) == []


@pytest.mark.parametrize("path", [path for path in FILES if ">>> " in path.read_text()], ids=module_of)
def test_the_examples_in_the_docstrings_run(path):
    # parsed from the source: doctest itself does not see a function that the import hook of the tests has wrapped
    module = importlib.import_module(module_of(path))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [
        ast.get_docstring(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)
    ]
    runner, parser = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), doctest.DocTestParser()
    for docstring in filter(None, docstrings):
        runner.run(parser.get_doctest(docstring, dict(vars(module)), module_of(path), str(path), 0))
    assert runner.summarize(verbose=False).attempted > 0
    assert runner.failures == 0


def test_no_file_knows_the_machine_it_was_written_on():
    folders = ("src", "tests", "docs", "plans", "benchmarks", "examples", "results", ".ci")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    files += [path for path in REPOSITORY.iterdir() if path.is_file()]
    texts = {".py", ".md", ".toml", ".txt", ".jsonl", ".json", ".yaml", ".yml", ".html", ""}
    machine = re.compile(r"(?<![\w.}*])/(?:work|root|home|Users)/\w")
    read = [path for path in files if path.suffix in texts and path.name != ".git"]
    assert [path for path in read if machine.search(path.read_text(encoding="utf-8"))] == []


def test_every_method_has_a_section_in_the_docs():
    from calibrune.pruners import PRUNERS

    headings = re.findall(r"^## `(.+)`", (REPOSITORY / "docs" / "methods.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(PRUNERS)
