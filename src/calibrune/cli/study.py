"""The verbs of `study`: a grid of calibration and pruning choices, run, resumed, and looked at."""

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from calibrune.cli import Device, Json, Trust, app, command
from calibrune.cli.output import print_json, say

study = typer.Typer(
    name="study",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Many runs from one plan: every choice with every seed, and what they have in common done once.",
)
app.add_typer(study)

Plan = Annotated[Path, typer.Argument(metavar="PLAN", help="YAML file; see docs/studies.md and plans/.")]
Files = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder with the corpora and evaluation sets of the plan.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A key of the plan said anew, the value in YAML; repeatable."),
]
Place = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder of the study.  [default: studies/NAME]")
]


@command(
    """
calibrune study run plans/two-core/quickstart.yaml --data my-data
calibrune study run plans/two-core/quickstart.yaml --data my-data --dry-run
calibrune study run my-plan.yaml --only pruner=wanda,sparsegpt --only seed=0,1
calibrune study run my-plan.yaml --ray auto --per-run cpus=4,gpus=1
calibrune study run my-plan.yaml --track trackio
calibrune study run my-plan.yaml --set seeds=20 --out studies/mine --retry-failed
""",
    group=study,
)
def run(
    plan: Plan,
    out: Place = None,
    data: Files = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs, what they share and what they take; do nothing.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,...", help="Do the runs alone of which this is true; repeatable."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do the runs again that ended in an error.")
    ] = False,
    settings: Settings = None,
    device: Device = "auto",
    ray: Annotated[
        str | None,
        typer.Option(metavar="local|auto|ADDRESS", help="Run on a Ray cluster (pip install 'calibrune[ray]')."),
    ] = None,
    per_run: Annotated[
        str,
        typer.Option(metavar="KEY=VALUE,...", help="With --ray, what a run is given: cpus, gpus, memory_gb, retries."),
    ] = "",
    track: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Tell a tracker of every run: trackio, wandb, mlflow, or module:Class."),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Do the runs of a plan that are not done yet; killed, the same command goes on where it was."""
    from calibrune.study.estimate import outlook
    from calibrune.study.judgement import outlook_text
    from calibrune.study.reading import read_plan, read_selection
    from calibrune.study.runner import run_study
    from calibrune.study.tracking import tracker_of

    read = read_plan(plan, settings or ())
    selection = read_selection(read, only or ())
    tracker = None if track is None else tracker_of(track)
    if dry_run:
        read.check(data)
        found = outlook(read, read.chosen(selection)) | {"seeds": outlook_text(read)}
        return print_json(found) if as_json else say(_outlook_text(found))
    executor = _executor(ray, per_run, data, device, trust_remote_code)
    found = run_study(
        read,
        _folder(read, out),
        only=selection,
        data=data,
        device=device,
        retry_failed=retry_failed,
        executor=executor,
        tracker=tracker,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(found)
    else:
        say(_status_text(found))
    if found["failed"]:
        raise typer.Exit(1)
    return None


@command(
    """
calibrune study status plans/two-core/quickstart.yaml
calibrune study status studies/quickstart --json
""",
    group=study,
)
def status(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan, or the folder of the study.")],
    out: Place = None,
    as_json: Json = False,
) -> None:
    """Say what of a study is done, running, failed and left."""
    from calibrune.study.runner import status

    found = status(*_opened(plan, out))
    return print_json(found) if as_json else say(_status_text(found))


@command(
    """
calibrune study report studies/quickstart
calibrune study report studies/quickstart --page quickstart.html
calibrune study report studies/quickstart --format latex > tables.tex
""",
    group=study,
)
def report(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan, or the folder of the study.")],
    out: Place = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page alone, here.  [default: report/ in the study's folder]"),
    ] = None,
    format: Annotated[
        str | None, typer.Option(metavar="md|csv|latex", help="Print the tables in this form, and write nothing.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a study, finished or not, and write its page with tables and pictures beside it."""
    from calibrune.errors import ConfigError
    from calibrune.report.study import headlines, tables_text, write_report
    from calibrune.study.judgement import judge
    from calibrune.study.scores import read_scores

    if format not in (None, "md", "csv", "latex"):
        raise ConfigError(f"--format cannot be {format!r}: choose md, csv or latex")
    read, results = _opened(plan, out)
    scores = read_scores(read, results)
    if not scores.rows:
        raise ConfigError(f"no run of the study in {str(results.folder)!r} is done: `calibrune study run` begins it")
    found = judge(scores)
    if format is not None:
        return say(tables_text(found, format), nl=False)
    name = read.name
    again = f"calibrune study run {name}.yaml --data DIR --out {name}\ncalibrune study report {name}"
    where = write_report(found, results, page=page, command=again)
    said = [one.text for one in headlines(found)]
    if as_json:
        return print_json({"study": name, "page": str(where), "headlines": said})
    return say("\n".join([*said, f"the page: {where}"]))


def _opened(plan: Path, out: Path | None) -> tuple[Any, Any]:
    """A study's plan (of its own folder, with all that was said on the command line, if there is one); its results."""
    from calibrune.errors import ConfigError
    from calibrune.study.reading import read_plan
    from calibrune.study.results import Results
    from calibrune.study.runner import PLAN, check_kept_plan

    own = (plan if plan.is_dir() else _folder(read_plan(plan), out)) / PLAN
    if plan.is_dir() and not own.is_file():
        raise ConfigError(f"the folder {str(plan)!r} holds no study (there is no {PLAN} in it); name a plan")
    if own.is_file():
        check_kept_plan(own)
    return read_plan(own if own.is_file() else plan), Results(own.parent)


def _executor(ray: str | None, per_run: str, data: Path | None, device: str, trust: bool) -> Any:
    from calibrune.errors import ConfigError
    from calibrune.study.on_ray import OnRay, Resources

    pairs: dict[str, Any] = dict(pair.partition("=")[::2] for pair in per_run.split(",") if pair)
    resources = Resources(**pairs)
    if ray is None and pairs:
        raise ConfigError("--per-run is for a cluster, and none was named: add --ray local")
    return None if ray is None else OnRay(ray, data, device, resources, trust)


def _folder(plan: Any, out: Path | None) -> Path:
    return out or Path("studies") / str(plan.name)


def _outlook_text(found: dict[str, Any]) -> str:
    estimate = found["estimate"]
    n = len(found["runs"])
    lines = [f"{found['study']}: {n} run{'s' * (n > 1)}", *(f"  {one['id']}  {one['run']}" for one in found["runs"])]
    lines += ["shared:", *(f"  {said}" for said in found["shared"])]
    memory = _unknown if estimate["memory_bytes"] is None else f"{estimate['memory_bytes'] / 1e9:.1f} GB"
    lines += [
        f"time:    {_duration(estimate['seconds'])}",
        f"memory:  {memory}",
        f"disk:    {estimate['disk_bytes'] / 1e6:,.0f} MB, without the models",
        f"({estimate['basis']})",
        *textwrap.wrap(found["seeds"], 110),
    ]
    return "\n".join(lines)


def _status_text(found: dict[str, Any]) -> str:
    lines = [
        f"{found['study']} in {found['out']}: {found['done']} of {found['runs']} runs done, {found['failed']} failed, "
        f"{found['left']} left"
    ]
    if found["process"]:
        lines.append(f"process {found['process']} is at work on: {found['running'] or 'the beginning'}")
    if found["left"]:
        lines.append(f"time left: {_duration(found['seconds_left'])}")
    lines += [f"failed: {one['run']}: {one['error']}" for one in found["errors"]]
    if found["failed"]:
        lines.append("do them again with --retry-failed")
    return "\n".join(lines)


_unknown = "unknown: the model's configuration is not at hand"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
