"""The generator of the docs' tables: what it prints, and that it passes over nothing."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import typer
from pydantic import Field

from calibrune.settings import settings

spec = importlib.util.spec_from_file_location("generate", Path(__file__).resolve().parents[2] / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)

TABLES = {
    "methods": "| wanda |",
    "allocators": "| owl |",
    "filters": "| length |",
    "proxies": "| min_k |",
    "commands": "### prune",
}


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A method without pydantic.

    More about it.
    """

    power: float = 0.5
    sizes: list[int] = field(default_factory=list)
    requires = ()


@settings
class Checked:
    """Either this | or that."""

    initial: Plain
    steps: Annotated[int, Field(ge=1)] = 3
    names: tuple[str, ...] = Field(default_factory=tuple)


@pytest.fixture
def docs(tmp_path):
    for name, page in generate.PAGES.items():
        (tmp_path / page).write_text(f"# {name}\n\nBefore.\n\n<!-- generated: {name} -->\n<!-- end -->\n\nAfter.\n")
    return tmp_path


def test_a_table_says_name_summary_and_settings():
    assert generate.settings_table({"plain": Plain, "checked": Checked}).splitlines()[2:] == [
        "| `plain` | A method without pydantic. | `power=0.5`, `sizes=[]` |",
        "| `checked` | Either this \\| or that. | `initial`, `steps=3`, `names=()` |",
    ]


def test_a_method_without_a_summary_is_an_error():
    @dataclass(frozen=True)
    class Silent:
        power: float = 0.5

    with pytest.raises(generate.DocsError, match="'silent' has no summary: Silent needs a docstring"):
        generate.settings_table({"silent": Silent})
    with pytest.raises(generate.DocsError, match="'function' is no dataclass"):
        generate.settings_table({"function": print})


def test_a_proxy_is_printed_with_what_it_rests_on():
    @settings
    class Guess:
        """A guess."""

        better: ClassVar[str] = "higher"
        founded: ClassVar[str] = "nothing | at all"
        k: float = 0.5

    row = generate.proxies_table({"guess": Guess}).splitlines()[-1]
    assert row == "| `guess` | A guess. | `k=0.5` | higher | nothing \\| at all |"


def test_commands_are_printed_with_what_they_take():
    app = typer.Typer(add_completion=False)
    study = typer.Typer(help="Many runs.")

    @app.command()
    def prune(
        model: Annotated[str, typer.Argument(help="The model.")],
        out: Annotated[str, typer.Option(help="Where to write.")],
        method: Annotated[str, typer.Option(help="A | B.")] = "wanda",
        json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    ):
        """Prune a model.

        And save it.
        """

    @study.command("run")
    def run(plan: Annotated[str, typer.Argument(help="The plan.", metavar="PLAN.yaml")]):
        """Do what is missing."""

    @app.callback()
    def calibrune():
        """Prune."""

    app.add_typer(study, name="study")
    text = generate.commands_text("calibrune", typer.main.get_command(app))
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "### `calibrune`",
        "### `calibrune prune`",
        "### `calibrune study`",
        "### `calibrune study run`",
    ]
    assert "Prune a model.\n\nAnd save it.\n\n| argument" in text
    assert "| `MODEL` | required | The model. |\n| `--out` | required | Where to write. |" in text
    assert "| `--method` | `wanda` | A \\| B. |\n| `--json` |  | JSON on stdout. |" in text
    assert "| `PLAN.yaml` | required | The plan. |" in text


def test_an_option_or_a_command_without_help_is_an_error():
    def main(model: str):
        """Prune."""

    app = typer.Typer(add_completion=False)
    app.command()(main)
    with pytest.raises(generate.DocsError, match="'model' of 'calibrune' has no help"):
        generate.commands_text("calibrune", typer.main.get_command(app))
    silent = typer.Typer(add_completion=False)
    silent.command()(lambda: None)
    with pytest.raises(generate.DocsError, match="the command 'calibrune' has no help"):
        generate.commands_text("calibrune", typer.main.get_command(silent))


def test_writing_makes_the_check_pass_and_leaves_the_prose_alone(docs, capsys):
    assert generate.main(["--check"], TABLES, docs) == 1
    assert (
        "out of date: methods.md, allocations.md, filters.md, set-quality.md, commands.md; run: make docs"
        in capsys.readouterr().err
    )
    assert "wanda" not in (docs / "methods.md").read_text()
    assert generate.main([], TABLES, docs) == 0
    assert (docs / "methods.md").read_text() == (
        "# methods\n\nBefore.\n\n<!-- generated: methods -->\n\n| wanda |\n\n<!-- end -->\n\nAfter.\n"
    )
    assert generate.main(["--check"], TABLES, docs) == 0
    assert generate.main([], TABLES, docs) == 0


def test_a_changed_default_is_shown_as_a_difference(docs, capsys):
    generate.main([], TABLES, docs)
    assert generate.main(["--check"], {**TABLES, "methods": "| wanda, power=1 |"}, docs) == 1
    err = capsys.readouterr().err
    assert "-| wanda |\n+| wanda, power=1 |" in err
    assert "out of date: methods.md;" in err


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("no markers", "methods.md: needs the line <!-- generated: methods --> once, and has it 0 times"),
        ("<!-- generated: methods -->", "methods.md: <!-- generated: methods --> is not closed by <!-- end -->"),
        ("<!-- generated: methods -->\n<!-- end -->\n" * 2, "and has it 2 times"),
        (
            "<!-- generated: methods -->\n<!-- end -->\n<!-- generated: method -->\n<!-- end -->",
            "methods.md: nothing is printed for the markers ['method']",
        ),
        (None, "methods.md: there is no such page"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_what_is_wrong_with_a_page_is_an_error_and_nothing_is_written(docs, capsys, page, complaint, arguments):
    before = (docs / "commands.md").read_text()
    if page is None:
        (docs / "methods.md").unlink()
    else:
        (docs / "methods.md").write_text(page)
    assert generate.main(arguments, TABLES, docs) == 1
    assert complaint in capsys.readouterr().err
    assert (docs / "commands.md").read_text() == before


def test_a_table_without_a_page_is_an_error(docs, capsys):
    assert generate.main([], {**TABLES, "sources": "| c4 |"}, docs) == 1
    assert "there are texts for" in capsys.readouterr().err


def test_our_pages_have_their_markers():
    assert [path.name for path, _ in generate.pages(TABLES)] == list(generate.PAGES.values())
