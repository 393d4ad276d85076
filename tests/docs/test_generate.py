"""The generator of the docs' tables: what it prints, and that it passes over nothing."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from pydantic import Field
from tiny_models import ARCHITECTURES, from_config, tiny_model
from transformers import CodeGenConfig

from calibrune.settings import settings

spec = importlib.util.spec_from_file_location("generate", Path(__file__).resolve().parents[2] / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)

TABLES = {name: f"| all {name} |" for name in generate.PAGES} | {"methods": "| wanda |", "commands": "### prune"}


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
def root(tmp_path):
    for page in set(generate.PAGES.values()):
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        names = [name for name, its_page in generate.PAGES.items() if its_page == page]
        markers = "\n\n".join(f"<!-- generated: {name} -->\n<!-- end -->" for name in names)
        (tmp_path / page).write_text(f"# {names[0]}\n\nBefore.\n\n{markers}\n\nAfter.\n")
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


def test_writing_makes_the_check_pass_and_leaves_the_prose_alone(root, capsys):
    assert generate.main(["--check"], TABLES, root) == 1
    err = capsys.readouterr().err
    pages = ", ".join(dict.fromkeys(generate.PAGES.values()))
    assert f"out of date: {pages}; run: make docs" in err
    assert "wanda" not in (root / "docs/methods.md").read_text()
    assert generate.main([], TABLES, root) == 0
    assert (root / "docs/commands.md").read_text() == (
        "# commands\n\nBefore.\n\n<!-- generated: commands -->\n\n### prune\n\n<!-- end -->\n\nAfter.\n"
    )
    assert generate.main(["--check"], TABLES, root) == 0
    assert generate.main([], TABLES, root) == 0


def test_the_table_of_sources_has_the_licence_of_each():
    from calibrune.corpora.named import NAMED

    rows = generate.sources_table(NAMED).splitlines()[2:]
    assert len(rows) == len(NAMED)
    assert rows[0].startswith("| `c4` | `allenai/c4`, en | ")
    assert all(source.corpus.licence in row for source, row in zip(NAMED.values(), rows, strict=True))


def test_a_changed_default_is_shown_as_a_difference(root, capsys):
    generate.main([], TABLES, root)
    assert generate.main(["--check"], {**TABLES, "methods": "| wanda, power=1 |"}, root) == 1
    err = capsys.readouterr().err
    assert "-| wanda |\n+| wanda, power=1 |" in err
    assert "out of date: docs/methods.md;" in err


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
def test_what_is_wrong_with_a_page_is_an_error_and_nothing_is_written(root, capsys, page, complaint, arguments):
    before = (root / "docs/commands.md").read_text()
    if page is None:
        (root / "docs/methods.md").unlink()
    else:
        (root / "docs/methods.md").write_text(page)
    assert generate.main(arguments, TABLES, root) == 1
    assert complaint in capsys.readouterr().err
    assert (root / "docs/commands.md").read_text() == before


def test_a_table_without_a_page_is_an_error(root, capsys):
    assert generate.main([], {**TABLES, "models": "| llama |"}, root) == 1
    assert "there are texts for" in capsys.readouterr().err


def test_our_pages_have_their_markers():
    assert [path for path, _ in generate.pages(TABLES)] == list(dict.fromkeys(generate.PAGES.values()))


# -- the table of architectures ---------------------------------------------------------------------------------------


def rows(*kinds: str) -> list[str]:
    return generate.architectures_table(tiny_model(kind) for kind in kinds).splitlines()[2:]


def test_an_architecture_says_what_is_special_about_it_and_what_is_left_alone():
    assert rows("llama", "gemma3", "gpt2", "openlm", "qwen2-moe") == [
        "| `llama` | `LlamaForCausalLM` |  |  |",
        "| `gemma3_text` | `Gemma3ForCausalLM` | sliding and full attention in turn |  |",
        "| `gpt2` | `GPT2LMHeadModel` | `c_attn` as q, k, v; stored [in, out] |  |",
        "| `openlm` | `OpenLMForCausalLM` | `in_proj` as q, k, v; `w12` as gate, up |  |",
        "| `qwen2_moe` | `Qwen2MoeForCausalLM` | experts one by one, gate and up apart; blocks with experts and without"
        " | `gate`: chooses between experts; `shared_expert_gate`: scales the shared expert |",
    ]


def test_a_family_has_one_row_however_many_of_it_are_tested():
    assert rows("falcon", "falcon-rw", "falcon-new") == [
        "| `falcon` | `FalconForCausalLM` | `query_key_value` as q, k, v |  |"
    ]


def test_a_matrix_that_is_not_pruned_apart_is_admitted():
    codegen = from_config(CodeGenConfig(vocab_size=96, n_embd=32, n_head=4, n_layer=2, n_positions=128, rotary_dim=4))
    assert generate.architectures_table([codegen]).splitlines()[2:] == [
        "| `codegen` | `CodeGenForCausalLM` |  | `qkv_proj` is pruned as one: where its parts lie is not known |"
    ]


def test_every_architecture_of_the_tests_is_in_the_readme_and_one_more_or_less_makes_it_stale(tmp_path, capsys):
    for page in set(generate.PAGES.values()):
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text((generate.REPOSITORY / page).read_text(encoding="utf-8"), encoding="utf-8")
    texts = generate.texts_from_code()
    assert generate.main(["--check"], texts, tmp_path) == 0, capsys.readouterr().err
    table = texts["architectures"].splitlines()
    assert len(table) == 2 + len({config.model_type for config in ARCHITECTURES.values()})
    for changed in (table[:-1], [*table, "| `new` | `NewForCausalLM` |  |  |"]):
        assert generate.main(["--check"], texts | {"architectures": "\n".join(changed)}, tmp_path) == 1
        assert "out of date: README.md; run: make docs" in capsys.readouterr().err
