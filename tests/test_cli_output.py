"""What every verb says beside its result: as much as was asked for, in colour, and complete in a shell."""

import logging
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from tiny_models import tiny_model, tiny_tokenizer
from typer.main import get_command
from typer.testing import CliRunner

from calibrune.cli import app
from calibrune.cli.output import say
from calibrune.progress import show_progress
from calibrune.report.tables import Table

SOURCE = Path(__file__).resolve().parents[1] / "src"


@pytest.fixture
def here(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    show_progress(None)
    logging.getLogger("calibrune").setLevel(logging.INFO)


def verbs(command, path=()):
    """Every verb under a command, with its path."""
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from verbs(inner, (*path, name))
        else:
            yield (*path, name), inner


VERBS = dict(verbs(get_command(app)))


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_verb_has_help_with_examples_and_both_options(path):
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert f"calibrune {' '.join(path)} " in result.stdout.partition("Examples:")[2]
    assert "-q, --quiet" in result.stdout
    assert "-v, --verbose" in result.stdout
    assert all(parameter.help for parameter in VERBS[path].params if parameter.name != "help")


PRUNE = ("prune", "model", "--method", "magnitude", "--sparsity", "50%", "--out", "out")


def test_quiet_leaves_the_result_and_nothing_else(here):
    loud = CliRunner().invoke(app, [*PRUNE[:-1], "loud"])
    quiet = CliRunner().invoke(app, [*PRUNE, "--quiet"])
    assert (loud.exit_code, quiet.exit_code) == (0, 0)
    assert "pruning" in loud.stderr
    assert quiet.stderr == ""
    assert "Saved to out" in quiet.stdout


def test_verbose_says_when_and_where_an_error_was(here):
    short = CliRunner().invoke(app, ["inspect", "nowhere"])
    long = CliRunner().invoke(app, ["inspect", "nowhere", "-v"])
    assert "Traceback" not in short.stderr
    assert "calibrune: error: " in long.stderr
    assert "Traceback" in long.stderr
    assert CliRunner().invoke(app, ["list", "-q", "-v"]).exit_code == 2


class Stream(StringIO):
    encoding = "utf-8"
    errors = "strict"

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "variables", "coloured"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False), (False, {}, False)],
)
def test_heads_of_tables_are_in_colour_where_somebody_looks(terminal, variables, coloured, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Stream(terminal))
    table = Table(("name", "zeros"), [("layer", 0.5)]).text()
    say(f"what was done\n\n{table}")
    written = sys.stdout.getvalue()
    assert ("\x1b[1mname" in written) is coloured
    assert ("\x1b" in written) is coloured
    for sign in ("\x1b[1m", "\x1b[2m", "\x1b[0m"):
        written = written.replace(sign, "")
    assert written == f"what was done\n\n{table}\n"


@pytest.mark.parametrize(("typed", "offered"), [("calibrune mas", "mask"), ("calibrune prune --all", "--allocation")])
def test_a_shell_completes_verbs_and_options(typed, offered):
    environment = os.environ | {
        "PYTHONPATH": str(SOURCE),
        "_CALIBRUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    program = "import sys; sys.argv = ['calibrune']; from calibrune.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert offered in done.stdout.split(), done.stderr
