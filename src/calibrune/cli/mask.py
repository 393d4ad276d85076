"""The verbs of `mask`: a pruned model's zeros, looked for and put back."""

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from calibrune.cli import Json, Model, Out, app, command
from calibrune.cli.output import print_json, say
from calibrune.errors import ConfigError

mask = typer.Typer(
    name="mask",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Zeros that survive fine-tuning and merging: look for them in any checkpoint, and put them back.",
)
app.add_typer(mask)


@command(
    """
calibrune mask apply my-fine-tuned --mask out/smollm2 --out out/fine-tuned
""",
    group=mask,
)
def apply(
    model: Model,
    mask: Annotated[str, typer.Option("--mask", metavar="PRUNED", help="The checkpoint that has the zeros.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Write a checkpoint anew, with zeros wherever a pruned one of the same shape has them."""
    from calibrune.sparsity import apply_mask

    made = apply_mask(model, mask, out)
    if as_json:
        return print_json({"out": str(out), **made})
    say(f"{made['zeros']:,} weights of {made['tensors']:,} tensors are zero; {made['came_back']:,} of them were not.")
    return say(f"Saved to {out}; calibrune mask check {out} --mask {mask} looks at it again.")


@command(
    """
calibrune mask check out/smollm2
calibrune mask check my-fine-tuned --mask out/smollm2
calibrune mask check RedHatAI/Sparse-Llama-3.1-8B-2of4 --sparsity 2:4
""",
    group=mask,
)
def check(
    model: Model,
    mask: Annotated[
        str | None, typer.Option("--mask", metavar="PRUNED", help="A checkpoint whose zeros must be zeros here.")
    ] = None,
    sparsity: Annotated[
        str | None, typer.Option(help="What every layer must have.  [default: what a record beside it says]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the zeros of every layer, and say what deviates; ends with 1 where anything does."""
    from calibrune.report.tables import Table
    from calibrune.sparsity import check_sparsity

    found = check_sparsity(model, pattern=sparsity, mask=mask)
    wrong = [one for one in found if one.deviates]
    if as_json:
        print_json({"model": model, "deviate": len(wrong), "layers": list(map(asdict, found))})
    else:
        kinds = Counter((", ".join(one.holds) or "none", f"{one.sparsity:.2%}") for one in found)
        say(Table(("N:M that holds", "zeros", "layers"), [(*kind, n) for kind, n in kinds.items()]).text())
        say("\n".join([f"{len(wrong)} of {len(found)} layers deviate", *(f"  {x.name}: {x.deviates}" for x in wrong)]))
    if wrong:
        raise typer.Exit(1)
    if not any(one.is_asked for one in found):
        raise ConfigError(f"nothing says what the layers of {model!r} should have; give --sparsity or --mask")
