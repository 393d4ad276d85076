"""Studies whose rows are made up, so that the answer is known before it is judged."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

from calibrune.seeds import seed_for
from calibrune.study.judgement import Judgement, judge
from calibrune.study.plan import StudyPlan, as_yaml
from calibrune.study.reading import read_plan
from calibrune.study.results import Results
from calibrune.study.scores import read_scores
from calibrune.study.spec import RunSpec

PLAN = """
name: made-up
title: Sources and methods
about: Rows that nobody measured.
models: [a-model]
calibration:
  - {source: one.jsonl, name: one}
  - {source: two.jsonl, name: two}
  - {source: three.jsonl, name: three}
samples: 4
pruners: [magnitude, wanda, sparsegpt]
patterns: [60%]
seeds: 12
evaluations:
  - {tasks: 'arc_easy,piqa', limit: 50}
  - {perplexity: alpaca}
"""

Value = Callable[[RunSpec], Mapping[tuple[str, str], float | list[float]]]
"""Of a run: by dataset and metric, a value, or the items that it is the mean of."""


def noise(spec: RunSpec, *label: str) -> float:
    """One draw from the standard normal distribution, the run's own."""
    names = spec.calibration.name if spec.calibration else ""
    seed = seed_for(spec.seed or 0, str(spec.pruner), str(spec.pattern), names, *label)
    return float(np.random.default_rng(seed).normal())


def small_effects(spec: RunSpec) -> dict[tuple[str, str], float]:
    """`two` is two points better than `one`, and `three` like `one`; magnitude is far below, dense far above."""
    level = {None: 0.7, "magnitude": 0.5}.get(spec.pruner, 0.6)
    source = {"two": 0.02}.get(spec.calibration.name, 0.0) if spec.calibration else 0.0
    spread = 0.003 if spec.calibration else 0.0
    accuracy = level + source + spread * noise(spec, "accuracy")
    perplexity = 40.0 / level * np.exp(-5 * source + 0.01 * noise(spec, "perplexity") * bool(spec.calibration))
    return {
        ("arc_easy", "acc"): accuracy,
        ("piqa", "acc"): accuracy + 0.05,
        ("alpaca", "perplexity"): float(perplexity),
    }


def make_up(
    folder: Path, value: Value = small_effects, text: str = PLAN, only: Callable[[RunSpec], bool] = lambda spec: True
) -> tuple[StudyPlan, Results]:
    """A study's folder with a row for every run that `only` lets through."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.yaml").write_text(text)
    plan, results = read_plan(folder / "given.yaml"), Results(folder)
    (folder / "plan.yaml").write_text(as_yaml(plan))
    rows = [row_of(spec, value(spec)) for spec in filter(only, plan.runs)]
    results.file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return plan, results


def judged(folder: Path, *arguments, **options) -> Judgement:
    """The judgement of such a study."""
    return judge(read_scores(*make_up(folder, *arguments, **options)))


def row_of(spec: RunSpec, values: Mapping[tuple[str, str], float | list[float]], **more) -> dict:
    """A finished run's row, as the runner writes it."""
    scores = [
        {
            "dataset": dataset,
            "metric": metric,
            "value": mean(found) if isinstance(found, list) else found,
            "stderr": 0.01,
            "n": 50,
            "higher_is_better": "perplexity" not in metric,
            "items": found if isinstance(found, list) else [],
        }
        for (dataset, metric), found in values.items()
    ]
    pinned = replace(spec, weights="made-up")
    row = {"key": pinned.key, "id": spec.id, "run": spec.to_json(), "status": "done", "scores": scores}
    row |= {
        "calibration": {"fingerprint": "made-up"} if spec.calibration else None,
        "proxies": {},
        "weights": "made-up",
    }
    row |= {"pruning": {"sparsity": 0.6, "coverage": 0.8} if spec.pruner else None, "seconds": {"all": 60.0}}
    return row | {"compute": {"device": "cpu"}, "versions": {"calibrune": "0.1.0"}} | more
