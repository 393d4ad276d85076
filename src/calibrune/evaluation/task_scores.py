"""From the harness's numbers an item to scores: of a task, of a group of tasks, and the average of the study."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean
from typing import Any

from calibrune.evaluation.score import Score
from calibrune.evaluation.tasks import STUDY, LoadedTasks

BOOTSTRAPS = 1000
"""Draws for the standard errors of metrics that are no means; most are, and theirs are exact."""

_NORMALIZED = ("piqa", "hellaswag", "arc_easy", "arc_challenge")
STUDY_AVERAGES: dict[str, dict[str, str]] = {
    "acc": dict.fromkeys(STUDY, "acc,none"),
    "acc_norm": {task: "acc_norm,none" if task in _NORMALIZED else "acc,none" for task in STUDY},
}
"""Which metric of each task the study's average is the plain mean of. The study does not say; `acc_norm`, where a task
has it, is what its levels suggest."""


@dataclass(frozen=True)
class TaskItems:
    """What was measured on a task, item by item."""

    name: str
    task: Any
    """The harness's object: it knows how items become a number."""
    items: dict[str, list[Any]]
    """By metric key ("acc,none": metric, filter), in the order of the documents; mostly numbers, sometimes pairs."""
    protocol: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        """The record of the task as the harness has it: `acc,none`, `acc_stderr,none`, ..., `sample_len`."""
        found: dict[str, Any] = {"alias": self.name, "name": self.name}
        for key, items in self.items.items():
            metric, _, name = key.partition(",")
            found[key], stderr = _aggregated(self.task, metric, items)
            found[f"{metric}_stderr,{name}"] = "N/A" if stderr is None else stderr
        return found | {"sample_len": max(map(len, self.items.values()), default=0)}

    def higher_is_better(self, metric: str) -> bool:
        return bool(self.task.higher_is_better().get(metric, True))


def task_scores(found: TaskItems) -> list[Score]:
    """A score for each metric of a task."""
    metrics = found.metrics
    scores = []
    for key, items in found.items.items():
        metric, _, filtered = key.partition(",")
        stderr = metrics[f"{metric}_stderr,{filtered}"]
        scores.append(
            Score(
                metric=_shown(key),
                value=float(metrics[key]),
                stderr=None if stderr == "N/A" else float(stderr),
                n=len(items),
                higher_is_better=found.higher_is_better(metric),
                items=_numbers(items),
                protocol=found.protocol | {"metric_key": key},
            )
        )
    return scores


def group_scores(loaded: LoadedTasks, found: Sequence[TaskItems]) -> list[Score]:
    """A score for each metric that a group averages, by the harness's own rule; its tasks are in the protocol.

    The items are those of all tasks, one task after the other, weighed so that their mean is the score.
    """
    metrics = {one.name: one.metrics for one in found}
    total = loaded.group.aggregate(metrics)
    scores = []
    for rule in loaded.group.aggregate_metric_list:
        for key in [key for key in total if key.startswith(f"{rule.metric},")]:
            metric, _, filtered = key.partition(",")
            having = [one for one in found if key in one.items]
            stderr = total[f"{metric}_stderr,{filtered}"]
            items = pooled([_numbers(one.items[key]) for one in having], by_size=rule.weight_by_size)
            scores.append(
                Score(
                    metric=_shown(key),
                    value=float(total[key]),
                    stderr=None if stderr == "N/A" else float(stderr),
                    n=len(items),
                    higher_is_better=having[0].higher_is_better(metric),
                    items=items,
                    protocol=_group_protocol(loaded, having, key) | {"metric_key": key},
                )
            )
    return scores


def study_averages(scores: Sequence[Score]) -> list[Score]:
    """The study's average over its seven tasks, by both presets; none where a task or its examples are missing."""
    by_key = {(s.protocol["dataset"], s.protocol["metric_key"]): s for s in scores if "metric_key" in s.protocol}
    averages = []
    for preset, keys in STUDY_AVERAGES.items():
        parts = [by_key.get(part) for part in keys.items()]
        tasks = [part for part in parts if part and part.protocol["shots"] == STUDY[part.protocol["dataset"]]]
        if len(tasks) < len(STUDY):
            continue
        errors = [task.stderr for task in tasks if task.stderr is not None]
        items = pooled([task.items for task in tasks], by_size=False)
        averages.append(
            Score(
                metric=f"average {preset}",
                value=mean(task.value for task in tasks),
                stderr=sqrt(sum(error**2 for error in errors)) / len(tasks) if len(errors) == len(tasks) else None,
                n=len(items),
                higher_is_better=True,
                items=items,
                protocol={
                    "protocol": "mean of seven tasks",
                    "dataset": "study",
                    "preset": preset,
                    "metric_keys": keys,
                    **{name: tasks[0].protocol[name] for name in ("harness", "limit", "seed", "dtype")},
                    "source": {},
                },
            )
        )
    return averages


def pooled(parts: Sequence[Sequence[float]], *, by_size: bool) -> tuple[float, ...]:
    """The items of all parts, weighed so that their mean is the mean of the parts' means; `by_size`: of all items.

    >>> pooled([[1, 0], [1]], by_size=False)
    (0.75, 0.0, 1.5)
    """
    if by_size:
        return tuple(item for part in parts for item in part)
    share = sum(map(len, parts)) / len(parts)
    return tuple(item * share / len(part) for part in parts for item in part)


def _group_protocol(loaded: LoadedTasks, found: Sequence[TaskItems], key: str) -> dict[str, Any]:
    first = found[0].protocol
    shots = {one.protocol["shots"] for one in found}
    metric, _, filtered = key.partition(",")
    tasks: dict[str, dict[str, Any]] = {}
    for one in found:
        metrics = one.metrics
        stderr = metrics[f"{metric}_stderr,{filtered}"]
        tasks[one.name] = {
            "value": float(metrics[key]),
            "stderr": None if stderr == "N/A" else float(stderr),
            "n": len(one.items[key]),
            **{name: one.protocol[name] for name in ("version", "shots", "documents", "requests_sha256")},
        }
    return first | {
        "dataset": loaded.request.name,
        "version": loaded.group.version,
        "shots": shots.pop() if len(shots) == 1 else None,
        "of": sum(one.protocol["of"] for one in found),
        "cut": sum(one.protocol["cut"] for one in found),
        "documents": None,
        "requests_sha256": None,
        "tasks": tasks,
    }


def _aggregated(task: Any, metric: str, items: Sequence[Any]) -> tuple[float, float | None]:
    """The number that the harness makes of the items, and its standard error."""
    from lm_eval.api.metrics import mean as harness_mean
    from lm_eval.api.metrics import stderr_for_metric

    aggregate = task.aggregation().get(metric, harness_mean)
    error = stderr_for_metric(aggregate, BOOTSTRAPS) if len(items) > 1 else None
    return float(aggregate(items)), None if error is None else float(error(items))


def _numbers(items: Sequence[Any]) -> tuple[float, ...]:
    """The items as numbers; none where the metric is made of something else (pairs of gold and guess, ...)."""
    return tuple(float(item) for item in items) if all(isinstance(item, int | float) for item in items) else ()


def _shown(key: str) -> str:
    metric, _, filtered = key.partition(",")
    return metric if filtered in ("", "none") else f"{metric} ({filtered})"
