"""The committed rows of studies, how they get there, and how a claim is judged by them."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # examples/ is a package

from calibrune.patterns import percent  # noqa: E402
from calibrune.study.plan import StudyPlan  # noqa: E402
from calibrune.study.reading import read_plan  # noqa: E402
from calibrune.study.results import Results  # noqa: E402
from calibrune.study.scores import Scores, read_scores  # noqa: E402
from calibrune.uncertainty import Estimate, equivalence, holm, t_interval  # noqa: E402
from calibrune.uncertainty.estimate import scipy  # noqa: E402
from examples.known_pretraining.claims import Claim, How, Terms  # noqa: E402

RESULTS = REPOSITORY / "results"
PLANS = REPOSITORY / "plans/evidence"
ALPHA = 0.05
FEWEST = 3
"""Seeds without which nothing is said."""
ROUNDING = 1e-9
"""A spread over seeds, of logarithms, that is none."""
SCORE = ("dataset", "metric", "value", "stderr", "n", "higher_is_better")


@dataclass(frozen=True)
class CommittedRows(Results):
    """The rows of a study in one file of `results/`, without items and records; read like any study's."""

    @property
    def file(self) -> Path:
        return self.folder

    def rows(self) -> list[dict[str, Any]]:
        return list(map(whole, self.compact_rows()))

    def compact_rows(self) -> list[dict[str, Any]]:
        """As they stand there."""
        return list(map(json.loads, self.file.read_text(encoding="utf-8").splitlines())) if self.file.exists() else []


def compact(row: Mapping[str, Any]) -> dict[str, Any]:
    """A finished row of a study in a third of a kilobyte."""
    run, made = row["run"], row["versions"] | row["compute"]
    said = {name: run[name] for name in ("pruner", "pattern", "allocator", "propagation", "seed")}
    said |= {"model": run["model"]["name"], "calibration": run["calibration"] and run["calibration"]["name"]}
    return {
        **{name: row[name] for name in ("key", "id", "status", "weights")},
        "run": {name: value for name, value in said.items() if value not in (None, "uniform")},
        "scores": [[_rounded(score[name]) for name in SCORE] for score in row["scores"]],
        "proxies": row["proxies"],
        "seconds": round(row["seconds"]["all"], 2),
        "made": [made[name] for name in ("torch", "transformers", "instructions", "device", "threads")],
    }


def whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as a study reads it, with all that was kept of it."""
    scores = [dict(zip(SCORE, score, strict=True)) | {"items": []} for score in row["scores"]]
    run = {"pruner": None} | row["run"]
    return {**row, "run": run, "scores": scores, "seconds": {"all": row["seconds"]}}


def collect(folder: Path, results: Path = RESULTS) -> Path:
    """Add the finished rows of a study to its file in `results/`; of two of one run the later counts."""
    name = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))["name"]
    file = results / f"{name}.jsonl"
    kept = {row["id"]: row for row in CommittedRows(file).compact_rows()}
    kept |= {row["id"]: compact(row) for row in Results(folder).rows() if row["status"] == "done"}
    results.mkdir(exist_ok=True)
    ordered = sorted(kept.values(), key=lambda row: (json.dumps(row["run"], sort_keys=True), row["id"]))
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered), encoding="utf-8")
    return file


def restore(folder: Path, results: Path = RESULTS) -> int:
    """Put the committed rows of the study that the folder is named for into it, but for runs that it has."""
    own = Results(folder)
    with own.lock():
        there = {row["key"] for row in own.rows()}
        new = [row for row in CommittedRows(results / f"{folder.name}.jsonl").rows() if row["key"] not in there]
        for row in new:
            own.append(row)
    return len(new)


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


class Cells:
    """The log-perplexities of a study: by model, calibration, way to prune and text, then by seed."""

    def __init__(self, scores: Scores) -> None:
        measures = {re.split("[-:]", one.dataset)[0]: one for one in scores.measures if one.metric == "perplexity"}
        self._values: dict[tuple[Any, ...], dict[int | None, float]] = {}
        self.dense: dict[str, dict[str, float]] = {}
        self.proxies: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
        """By model and calibration: what each says of the draw of each seed."""
        for spec in scores.plan.runs:
            if spec.calibration and spec.seed is not None:
                of_set = self.proxies.setdefault((Path(spec.model.name).name, spec.calibration.name), {})
                for proxy, value in (scores.rows.get(spec.id, {}).get("proxies") or {}).items():
                    if value is not None:
                        of_set.setdefault(proxy, {})[spec.seed] = value
        for arm in scores.arms:
            model = Path(arm.model.name).name
            for domain, measure in measures.items():
                values = scores.values(arm, measure)
                if arm.pruner is None:
                    self.dense.setdefault(model, {}).update((domain, value) for value in values.values())
                    continue
                pruner = arm.pruner if arm.allocator in (None, "uniform") else f"{arm.pruner} + {arm.allocator}"
                how = How(pruner, percent(str(arm.pattern)), arm.propagation)
                place = (model, arm.calibration and arm.calibration.name, how, domain)
                self._values[place] = {seed: log(value) for seed, value in values.items()}

    def sum(self, terms: Terms) -> list[float]:
        """Of every seed that all terms have, in their order; what reads nothing is the same beside all seeds."""
        return list(self.by_seed(terms).values())

    def by_seed(self, terms: Terms) -> dict[int, float]:
        """The same, by seed."""
        found = [(term.weight, self._values.get(tuple(term[1:]), {})) for term in terms]
        drawn = [set(values) for _, values in found if set(values) != {None}]
        seeds = set.intersection(*drawn) if drawn else {None}
        return {
            seed: sum(weight * values.get(seed, values.get(None, 0.0)) for weight, values in found)
            for seed in sorted(seeds)
        }


class Answer(NamedTuple):
    """Of one sum."""

    name: str
    estimate: Estimate
    verdict: str


def answers(claim: Claim, cells: Cells, margin: float) -> list[Answer]:
    """The sums that have seeds enough, each judged among the others of its claim."""
    sums = {name: cells.sum(terms) for name, terms in claim.sums.items()}
    sums = {name: values for name, values in sums.items() if len(values) >= FEWEST and stdev(values) > ROUNDING}
    differ = holm([float(scipy("stats").ttest_1samp(values, 0.0).pvalue) for values in sums.values()])
    alike = holm([equivalence([0.0] * len(one), one, log(1 + margin)).p_value for one in sums.values()])
    found = []
    for (name, values), p_differ, p_same in zip(sums.items(), differ, alike, strict=True):
        estimate = t_interval(sorted(values))
        found.append(Answer(name, estimate, _verdict(claim.asks, estimate, p_differ, p_same, margin)))
    return found


def _verdict(asks: str, estimate: Estimate, p_differ: float, p_same: float, margin: float) -> str:
    is_same, differs = p_same < ALPHA, p_differ < ALPHA and not estimate.holds(0.0)
    if asks == "same":
        beyond = differs and not _overlaps(estimate, log(1 + margin))
        return "holds" if is_same else "does not hold here" if beyond else "cannot be told"
    if differs and estimate.value < 0:
        return "holds, by less than the margin" if is_same else "holds"
    return "does not hold here" if differs or is_same else "cannot be told"


def _overlaps(estimate: Estimate, margin: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low < margin and estimate.high > -margin


@cache
def study(name: str) -> tuple[StudyPlan, Cells]:
    """A plan of `plans/evidence/`, and what is committed of it."""
    plan = read_plan(PLANS / f"{name}.yaml")
    return plan, Cells(read_scores(plan, CommittedRows(RESULTS / f"{name}.jsonl")))


def judged(name: str, asked: Sequence[Claim]) -> list[tuple[Claim, list[Answer]]]:
    """The claims of which something is known by the rows of a study."""
    plan, cells = study(name)
    found = [(claim, answers(claim, cells, plan.margin)) for claim in asked]
    return [(claim, one) for claim, one in found if one]


def overall(found: Sequence[Answer]) -> str:
    """The verdict on a claim by those on its sums."""
    kinds = [one.verdict.partition(",")[0] for one in found]
    if len(set(kinds)) == 1:
        return f"**{kinds[0]}**"
    counted = [(kind, kinds.count(kind)) for kind in ("holds", "does not hold here", "cannot be told")]
    return "; ".join(f"{kind} in {n} of {len(kinds)}" for kind, n in counted if n)


def shown(estimate: Estimate) -> str:
    """A difference of logarithms as percent of a perplexity."""
    value, low, high = (100 * (exp(x) - 1) for x in (estimate.value, estimate.low or 0.0, estimate.high or 0.0))
    return f"{value:+.2f}% [{low:+.2f}, {high:+.2f}]"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    if not rows:
        return "Nothing was measured yet; what is measured is printed here."
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *rows])
