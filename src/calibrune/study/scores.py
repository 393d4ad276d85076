"""The scores of a study as a table: a line for every finished run and everything that was measured of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from math import isfinite, sqrt
from typing import Any

from calibrune.errors import ConfigError
from calibrune.patterns import percent
from calibrune.study.plan import StudyPlan
from calibrune.study.results import Results
from calibrune.study.spec import RunSpec

MEAN = "mean accuracy"
MEANS = (MEAN, "study")
"""Numbers that stand for several tasks; the second is the evaluation's own, over all seven of the paper."""
ACCURACY = "acc"


@dataclass(frozen=True)
class Measure:
    """One number that is measured of every model."""

    dataset: str
    metric: str
    higher_is_better: bool
    is_share: bool
    """In [0, 1], and shown in percent: an accuracy."""

    @property
    def name(self) -> str:
        """ "alpaca perplexity"; the mean over tasks is "mean accuracy"."""
        return f"{self.dataset} {self.metric}".strip()

    @property
    def is_logarithmic(self) -> bool:
        """Whether two values are compared by their ratio: a perplexity."""
        return "perplexity" in self.metric


@dataclass(frozen=True)
class Scores:
    """What is finished of a study."""

    plan: StudyPlan
    rows: Mapping[str, Mapping[str, Any]]
    """The row that counts of every run of the plan that has one, done or failed, by the run's id."""
    measures: tuple[Measure, ...]
    table: Any
    """A polars frame: `arm` (id of the run without its seed), `seed`, `key`, `measure`, `value`, `stderr`, `items`;
    values that are not finite are left out."""
    n_others: int = 0
    """Runs in the folder that the plan does not have: of an earlier plan, or of an earlier version."""

    @cached_property
    def arms(self) -> list[RunSpec]:
        """What is compared: the plan's runs without their seeds, each once, in the order of the plan."""
        return list(dict.fromkeys(replace(spec, seed=None) for spec in self.plan.runs))

    @property
    def main(self) -> list[Measure]:
        """What the headline and the pictures are about: the mean accuracy or that of the only task, perplexities."""
        averaged = any(one.dataset in MEANS for one in self.measures)
        parts = {one.dataset for one in self.measures if averaged and one.metric == ACCURACY and one.dataset != MEAN}
        found = []
        for dataset in dict.fromkeys(one.dataset for one in self.measures if one.dataset not in parts):
            mine = [one for one in self.measures if one.dataset == dataset]
            found.append(next((one for one in mine if one.metric in (ACCURACY, "perplexity")), mine[0]))
        return found

    def values(self, arm: RunSpec, measure: Measure) -> dict[int | None, float]:
        """The finished values of an arm by seed; a run that takes no seed has None."""
        found = self.of(arm, measure)
        return dict(zip(found["seed"], found["value"], strict=True))

    def of(self, arm: RunSpec, measure: Measure) -> Any:
        """The lines of an arm and a measure, by seed."""
        return self._parts.get((arm.id, measure.name), self.table.clear())

    def planned(self, arm: RunSpec) -> int:
        """How many runs of an arm the plan has."""
        return self._planned[arm]

    @cached_property
    def _parts(self) -> dict[tuple[Any, ...], Any]:
        parts: dict[tuple[Any, ...], Any] = self.table.sort("seed").partition_by("arm", "measure", as_dict=True)
        return parts

    @cached_property
    def _planned(self) -> Counter[RunSpec]:
        return Counter(replace(spec, seed=None) for spec in self.plan.runs)


def read_scores(plan: StudyPlan, results: Results) -> Scores:
    """What a study's rows say of the runs of its plan; rows of a plan that it had before are passed over.

    The mean accuracy is the plain mean over tasks of their `acc`, where the evaluation has no average of its own; its
    standard error over items takes the tasks for independent.

    Raises:
        ConfigError: polars is not installed.
    """
    ids = {spec.id for spec in plan.runs}
    every = {row["id"]: row for row in results.rows()}
    rows = {id: row for id, row in every.items() if id in ids}
    specs = {spec.id: spec for spec in plan.runs}
    known: dict[tuple[str, str], Measure] = {}
    lines: list[dict[str, Any]] = []
    for id, row in rows.items():
        if row["status"] != "done":
            continue
        head = {"arm": replace(specs[id], seed=None).id, "seed": specs[id].seed, "key": row["key"]}
        items = results.items(row)
        for score, own in zip([*row["scores"], *_mean(row["scores"])], [*items, []], strict=False):
            dataset, metric = names_of(score, row["scores"])
            value = score["value"]
            is_share = score["higher_is_better"] and value is not None and 0 <= value <= 1
            known.setdefault((dataset, metric), Measure(dataset, metric, score["higher_is_better"], is_share))
            if value is not None and isfinite(value):
                error = None if score["stderr"] is None else float(score["stderr"])
                line = {"measure": known[dataset, metric].name, "value": float(value), "stderr": error}
                lines.append({**head, **line, "items": [] if None in own else list(map(float, own))})
    pl = polars()
    types = {"arm": pl.String, "seed": pl.Int64, "key": pl.String, "measure": pl.String}
    types |= {"value": pl.Float64, "stderr": pl.Float64, "items": pl.List(pl.Float64)}
    measures = sorted(known.values(), key=lambda one: one.dataset not in MEANS)
    return Scores(plan, rows, tuple(measures), pl.DataFrame(lines, schema=types), len(every) - len(rows))


def method(arm: RunSpec) -> str:
    """How an arm prunes, without the pattern: "wanda", "wanda + owl", "wanda, dense propagation"."""
    if arm.pruner is None:
        return "dense"
    parts = [arm.pruner] + ([arm.allocator] if arm.allocator not in (None, "uniform") else [])
    return " + ".join(parts) + (", dense propagation" if arm.propagation == "dense" else "")


def pattern(arm: RunSpec) -> str | None:
    """ "60%", "2:4"; None of the dense model."""
    return None if arm.pattern is None else percent(arm.pattern)


def variant(arm: RunSpec) -> str:
    """What tells an arm's calibration from others of the same source: ":samples=64", or nothing."""
    return arm.calibration.name.removeprefix(arm.calibration.source) if arm.calibration else ""


def _mean(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mean accuracy over two tasks or more."""
    mine = [score for score in scores if score["metric"] == ACCURACY]
    if len(mine) < 2 or any(score["dataset"] in MEANS for score in scores):
        return []
    values, errors = ([score[name] for score in mine] for name in ("value", "stderr"))
    if None in values:
        return []
    error = None if None in errors else sqrt(sum(e**2 for e in errors)) / len(mine)
    value = sum(values) / len(mine)
    return [{"dataset": MEAN, "metric": "", "value": value, "stderr": error, "higher_is_better": True}]


def names_of(score: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Dataset and metric of a score, numbered where a row has two of one name: a text by two protocols."""
    twins = [one for one in scores if (one["dataset"], one["metric"]) == (score["dataset"], score["metric"])]
    place = next((i for i, one in enumerate(twins, 1) if one is score), 1)
    return score["dataset"], score["metric"] + (f" ({place})" if place > 1 else "")


def polars() -> Any:
    """The library, or an error that says how to install it."""
    try:
        return import_module("polars")
    except ModuleNotFoundError as error:
        if error.name != "polars":
            raise
        raise ConfigError(
            "the tables of a study need polars, which is not installed: pip install 'calibrune[study]'"
        ) from None
