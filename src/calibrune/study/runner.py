"""A study from its plan to its rows: what is missing is done, what is there is not done again."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from calibrune.durable import write_whole
from calibrune.errors import CalibruneError, ConfigError, OutputError
from calibrune.settings import UNREADABLE_YAML
from calibrune.study.execution import Executor, InProcess
from calibrune.study.plan import Selection, StudyPlan, as_yaml
from calibrune.study.results import Results
from calibrune.study.spec import RunSpec
from calibrune.study.tracking import Tracker, Tracking
from calibrune.study.workbench import failed

log = logging.getLogger(__name__)

PLAN = "plan.yaml"


def run_study(
    plan: StudyPlan,
    out: Path,
    *,
    only: Selection | None = None,
    data: Path | None = None,
    device: str = "auto",
    retry_failed: bool = False,
    executor: Executor | None = None,
    tracker: Tracker | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Do all runs of a plan that have no row yet, and return how the study stands, as `status` does.

    Killed at any point, the same call goes on where it was. A run that fails is a row with its error, and the others
    go on; it is not tried again unless `retry_failed`.

    Args:
        plan: what to do; a plan that grew since (more seeds, more sources) does what is new.
        out: the study's folder.
        only: do these of its runs, and the dense ones; None: all.
        data: the folder with the files that the plan names.
        device: as for `load_model`.
        retry_failed: do the runs again whose last row is an error.
        executor: who does the runs; this process, unless told otherwise.
        tracker: is told of every row that it was not told of before.
        trust_remote_code: as for `load_model`, for all models, and this process alone; a plan cannot say it.

    Raises:
        ConfigError: the plan cannot be carried out.
        OutputError: another process is at work there, or another study has the folder.
        CalibruneError: a model, a source or a text cannot be read; nothing was done with that model.
    """
    plan.check(data, fetch=True)
    chosen = plan.chosen(only)
    results = Results(out)
    with results.lock():
        _check_folder(plan, out)
        write_whole(out / PLAN, _signed(as_yaml(plan)))
        executor = executor or InProcess(data, device, trust_remote_code)
        latest = results.latest()
        tracking = None if tracker is None else Tracking(tracker, plan.name, results)
        clock = _TimeLeft(chosen, latest)

        def keep(row: Mapping[str, Any], record: Mapping[str, Any] | None) -> None:
            results.append(row, record)
            if tracking is not None:
                tracking.note(row)

        for model in plan.models:
            mine = [spec for spec in chosen if spec.model == model]
            if not mine:
                continue
            try:
                pinned = executor.pin(mine)
            except CalibruneError as error:
                if len(plan.models) == 1:
                    if not results.file.exists():
                        (out / PLAN).unlink()  # it did not begin
                    raise
                log.warning("%s cannot be read, so its %d runs are left out: %s", model.name, len(mine), error)
                for spec in mine:
                    if spec.key not in latest:
                        keep(*failed(spec, str(error)))
                continue
            wanted = [spec for spec in pinned if _is_wanted(latest.get(spec.key), retry_failed)]
            clock.begin(len(pinned) - len(wanted))
            _note(results, clock, wanted[0] if wanted else None)
            for i, (spec, (row, record)) in enumerate(executor.outcomes(wanted), 1):
                keep(row, record)
                clock.done(spec, row)
                log.info("%s %s: %s", clock, spec, row.get("error") or f"{row['seconds']['all']:.0f} s")
                _note(results, clock, wanted[i] if i < len(wanted) else None)
    return status(plan, results)


def status(plan: StudyPlan, results: Results) -> dict[str, Any]:
    """How a study stands: counts of runs, what is running, what failed and why, seconds left."""
    ids = {spec.id: spec for spec in plan.runs}
    last: dict[str, dict[str, Any]] = {}
    for row in results.rows():
        last[row["id"]] = row
    counted = [last[id]["status"] for id in ids if id in last]
    failed = [(str(ids[id]), last[id]["error"]) for id in ids if id in last and last[id]["status"] == "failed"]
    is_running = results.is_running
    clock = _TimeLeft(plan.runs, {row["key"]: row for row in last.values()})
    return {
        "study": plan.name,
        "out": str(results.folder),
        "runs": len(ids),
        "done": counted.count("done"),
        "failed": len(failed),
        "left": len(ids) - len(counted),
        "running": results.state().get("running") if is_running else None,
        "process": results.state().get("pid") if is_running else None,
        "seconds_left": clock.seconds_left([spec for id, spec in ids.items() if id not in last]),
        "errors": [{"run": run, "error": error} for run, error in failed],
    }


def check_kept_plan(file: Path) -> None:
    """Raise `ConfigError` if the plan in a study's folder is not as it was written there: `status` would lie."""
    content = file.read_bytes()
    *_, last = content.splitlines() or [b""]
    is_signed = last.startswith(b"#") or re.search(rb"[0-9a-f]{60}", last)
    if is_signed and content != _signed(content.removesuffix(last + b"\n").decode(errors="replace")):
        raise ConfigError(
            f"{str(file)!r} was changed or damaged after it was written; `calibrune study run` of the study's own plan "
            f"writes it anew"
        )


def _signed(text: str) -> bytes:
    return f"{text}# {hashlib.sha256(text.encode()).hexdigest()}\n".encode()


def _is_wanted(row: Mapping[str, Any] | None, retry_failed: bool) -> bool:
    return row is None or (retry_failed and row["status"] == "failed")


def _check_folder(plan: StudyPlan, out: Path) -> None:
    try:
        there = yaml.safe_load((out / PLAN).read_text(encoding="utf-8"))
    except OSError:
        return
    except UNREADABLE_YAML:
        return
    name = there.get("name") if isinstance(there, dict) else None
    if name not in (None, plan.name):
        raise OutputError(
            f"{out} holds the study {name!r}, and this is {plan.name!r}: give it another --out (a plan that grew keeps "
            f"its name, and goes on)"
        )


def _note(results: Results, clock: "_TimeLeft", spec: RunSpec | None) -> None:
    results.note({"running": None if spec is None else str(spec), "done": clock.n_done, "runs": clock.n})


class _TimeLeft:
    """What is left, judged by the runs that are done: dense ones and pruned ones apart."""

    def __init__(self, specs: Sequence[RunSpec], latest: Mapping[str, Mapping[str, Any]]) -> None:
        self.n, self.n_done = len(specs), 0
        self._left = {spec.id: spec for spec in specs}
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        for row in latest.values():
            if row["status"] == "done":
                self._seconds[row["run"]["pruner"] is None].append(row["seconds"]["all"])
                self._left.pop(row["id"], None)

    def begin(self, n_done: int) -> None:
        self.n_done += n_done

    def done(self, spec: RunSpec, row: Mapping[str, Any]) -> None:
        self.n_done += 1
        self._left.pop(spec.id, None)
        if row["status"] == "done":
            self._seconds[spec.pruner is None].append(row["seconds"]["all"])

    def seconds_left(self, specs: Sequence[RunSpec]) -> float | None:
        """None: no run of the kind is done yet."""
        known = {kind: sum(times) / len(times) for kind, times in self._seconds.items() if times}
        kinds = [spec.pruner is None for spec in specs]
        return sum(known[kind] for kind in kinds) if known.keys() >= set(kinds) else None

    def __str__(self) -> str:
        left = self.seconds_left(list(self._left.values()))
        return f"[{self.n_done}/{self.n}{'' if left is None else f', {left / 60:.0f} min left'}]"
