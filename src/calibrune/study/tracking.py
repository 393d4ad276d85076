"""A study in a tracker: each of its rows is a run there, once. The rows stay the truth, whatever a tracker does."""

import importlib
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol, runtime_checkable

from calibrune.calibration.spec import parse_spec
from calibrune.durable import to_json, write_whole
from calibrune.errors import ConfigError
from calibrune.patterns import percent
from calibrune.settings import choose, class_record
from calibrune.study.results import Results
from calibrune.study.scores import names_of

log = logging.getLogger(__name__)

TRACKED = "tracked.json"
"""In a study's folder: how many of its first rows each tracker has."""


@runtime_checkable
class Tracker(Protocol):
    """Keeps the runs of studies, for somebody to look at. What goes wrong may raise anything: the study goes on."""

    def start(self, study: str, id: str, name: str, config: Mapping[str, Any]) -> None:
        """Begin a run of a study, or go on with the one of this id, which a kill may have left half told."""

    def log(self, values: Mapping[str, float]) -> None:
        """What was measured in the run that was started last, by name; finite numbers."""

    def finish(self, error: str | None) -> None:
        """End the run; `error` says why it failed."""


@dataclass
class Trackio:
    """In a local database, without a network; `trackio show` draws it."""

    def __post_init__(self) -> None:
        self._trackio = _imported("trackio", "'calibrune[track]'")

    def start(self, study: str, id: str, name: str, config: Mapping[str, Any]) -> None:
        """A run is known by its name, so that the id is in it."""
        self._run = self._trackio.init(
            project=study,
            name=f"{name} ({id})",
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: Mapping[str, float]) -> None:
        """All at step 0."""
        self._run.log(dict(values), step=0)

    def finish(self, error: str | None) -> None:
        """It knows no failed runs: the error is in the config."""
        self._trackio.finish()


@dataclass
class Wandb:
    """At Weights & Biases, or where its own settings say (WANDB_MODE=offline)."""

    def __post_init__(self) -> None:
        self._wandb = _imported("wandb", "wandb")

    def start(self, study: str, id: str, name: str, config: Mapping[str, Any]) -> None:
        """The project is called as the study."""
        still = self._wandb.Settings(silent=True, console="off")
        self._run = self._wandb.init(
            project=study, id=id, name=name, config=dict(config), resume="allow", settings=still
        )

    def log(self, values: Mapping[str, float]) -> None:
        """As they are."""
        self._run.log(dict(values))

    def finish(self, error: str | None) -> None:
        """A failed run is one that did not exit with 0."""
        self._run.finish(exit_code=int(error is not None))


@dataclass
class MLflow:
    """In MLflow, wherever MLFLOW_TRACKING_URI says."""

    def __post_init__(self) -> None:
        self._mlflow = _imported("mlflow", "mlflow")

    def start(self, study: str, id: str, name: str, config: Mapping[str, Any]) -> None:
        """The experiment is called as the study."""
        self._client = self._mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(study)
        experiment = found.experiment_id if found else self._client.create_experiment(study)
        runs = self._client.search_runs([experiment], f"tags.calibrune = '{id}'")
        run = runs[0] if runs else self._client.create_run(experiment, run_name=name, tags={"calibrune": id})
        self._id = run.info.run_id
        for key, value in config.items():
            self._client.log_param(self._id, key, value)

    def log(self, values: Mapping[str, float]) -> None:
        """What its names may not hold is "_" there."""
        for name, value in values.items():
            self._client.log_metric(self._id, re.sub(r"[^\w./: -]", "_", name), value)

    def finish(self, error: str | None) -> None:
        """As finished, or as failed."""
        self._client.set_terminated(self._id, "FINISHED" if error is None else "FAILED")


TRACKERS: dict[str, type[Tracker]] = {"trackio": Trackio, "wandb": Wandb, "mlflow": MLflow}


def tracker_of(text: str) -> Tracker:
    """The tracker of this name, or `module:Class[:key=value]`.

    Raises:
        ConfigError: there is none, or its package is not installed.
    """
    return choose(TRACKERS, "tracker", *parse_spec(text), Tracker)


class Tracking:
    """Tells a tracker of a study's rows in their order; of those that it was told before, nothing.

    The first error of the tracker is a warning, and the last that it is told in this process: the next takes up the
    rows from there.
    """

    def __init__(self, tracker: Tracker, study: str, results: Results) -> None:
        self._tracker, self._study, self._file = tracker, study, results.folder / TRACKED
        self._who = class_record(tracker).get("class", type(tracker).__name__)
        self._rows: Counter[str] = Counter()
        self._broken = False
        before = results.rows()
        told = _read(self._file).get(self._who, 0)
        self._told = told if told <= len(before) else 0  # the study was begun anew
        for row in before:
            self.note(row)

    def note(self, row: Mapping[str, Any]) -> None:
        """The study's next row."""
        self._rows[row["key"]] += 1
        if self._broken or self._rows.total() <= self._told:
            return
        n = self._rows[row["key"]]  # a failed run that was done again has two rows
        try:
            with redirect_stdout(sys.stderr):  # stdout is for results
                self._tracker.start(self._study, row["key"] + f"-{n}" * (n > 1), _name(row), _config(row))
                self._tracker.log(_values(row))
                self._tracker.finish(row.get("error"))
        except Exception as error:  # noqa: BLE001  (whatever breaks a tracker must not break the study)
            self._broken = True
            log.warning(
                "%s failed (%s: %s); the study goes on, and the rows from here on are tracked when it is started again",
                *(self._who, type(error).__name__, " ".join(str(error).split())),
            )
            return
        self._told += 1
        write_whole(self._file, to_json(_read(self._file) | {self._who: self._told}).encode())


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ConfigError(f"--track {module} needs a package that is not installed: pip install {package}") from None


def _read(file: Any) -> dict[str, int]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _name(row: Mapping[str, Any]) -> str:
    run = row["run"]
    calibration = run["calibration"] and run["calibration"]["name"]
    if run["pruner"] is None:
        return "dense"
    allocator = None if run["allocator"] == "uniform" else run["allocator"]
    seed = None if run["seed"] is None else f"seed {run['seed']}"
    return ", ".join(filter(None, [run["pruner"], percent(run["pattern"]), allocator, calibration, seed]))


def _config(row: Mapping[str, Any]) -> dict[str, Any]:
    """All that was asked for, flat (`calibration.samples`), and what became of it."""
    flat: dict[str, Any] = {}
    for name, value in row["run"].items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    told = {name: row.get(name) for name in ("key", "status", "error", "compute", "versions")}
    return {name: value for name, value in (flat | told).items() if value is not None}


def _values(row: Mapping[str, Any]) -> dict[str, float]:
    """What was measured: scores with their errors over items, proxies, sparsity, seconds."""
    values: dict[str, Any] = {"seconds": row.get("seconds", {}).get("all")}
    values |= {f"pruning/{name}": value for name, value in (row.get("pruning") or {}).items()}
    values |= {f"proxies/{name}": value for name, value in (row.get("proxies") or {}).items()}
    for score in row.get("scores", ()):
        name = "/".join(names_of(score, row["scores"]))
        values |= {name: score["value"], f"{name}_stderr": score["stderr"]}
    return {name: value for name, value in values.items() if isinstance(value, int | float) and isfinite(value)}
