"""The committed rows of studies, how they get there, and how a claim is judged by them."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # examples/ is a package

from calibrune.evaluation.agreement import KL  # noqa: E402
from calibrune.patterns import percent  # noqa: E402
from calibrune.study.plan import StudyPlan  # noqa: E402
from calibrune.study.reading import read_plan  # noqa: E402
from calibrune.study.results import Results  # noqa: E402
from calibrune.study.scores import MEAN, Measure, Scores, read_scores  # noqa: E402
from calibrune.uncertainty import Estimate, equivalence, holm, smallest_difference, t_interval  # noqa: E402
from calibrune.uncertainty.estimate import scipy  # noqa: E402
from examples.known_pretraining.claims import Claim, How, Terms  # noqa: E402

RESULTS = REPOSITORY / "results"
PLANS = REPOSITORY / "plans/evidence"
ALPHA = 0.05
FEWEST = 3
"""Seeds without which nothing is said."""
SAME = "the same within the margin"
ROUNDING = 1e-9
"""A spread over seeds, of logarithms, that is none."""
SCORE = ("dataset", "metric", "value", "stderr", "n", "higher_is_better")
MADE = {"versions": ("torch", "transformers"), "compute": ("instructions", "device", "threads")}
ACCURACY, DIVERGENCE = "mean accuracy", "KL"


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
    """A finished row of a study in a third of a kilobyte; one that was put back is as it was."""
    run, made = row["run"], row["versions"] | row["compute"]
    said = {name: run.get(name) for name in ("pruner", "pattern", "allocator", "propagation", "seed")}
    said |= {name: _name(run.get(name)) for name in ("model", "calibration")}
    return {
        **{name: row[name] for name in ("key", "id", "status", "weights")},
        "run": {name: value for name, value in said.items() if value not in (None, "uniform")},
        "scores": [[_rounded(score[name]) for name in SCORE] for score in row["scores"]],
        "proxies": row["proxies"],
        "seconds": round(row["seconds"]["all"], 2),
        "made": [made[name] for names in MADE.values() for name in names],
    }


def whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as a study reads it, with all that was kept of it."""
    scores = [dict(zip(SCORE, score, strict=True)) | {"items": []} for score in row["scores"]]
    run = {"pruner": None, "seed": None} | row["run"]
    made = iter(row["made"])
    said = {part: dict(zip(names, made, strict=False)) for part, names in MADE.items()}
    return {**row, "run": run, "scores": scores, "seconds": {"all": row["seconds"]}, "calibration": None, **said}


def collect(folder: Path, results: Path = RESULTS) -> Path:
    """Add the finished rows of a study to its file in `results/`, in place of older ones of the same runs.

    Not in place of any: what was only put back into the study may be older than what has come to stand there since.
    """
    name = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))["name"]
    file = results / f"{name}.jsonl"
    done = [row for row in Results(folder).rows() if row["status"] == "done"]
    kept = {row["id"]: compact(row) for row in done if _was_put_back(row)}
    kept |= {row["id"]: row for row in CommittedRows(file).compact_rows()}
    kept |= {row["id"]: compact(row) for row in done if not _was_put_back(row)}
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


def compared(folder: Path, results: Path = RESULTS) -> str:
    """How far the rows that were made again in this study are from the committed ones: percent of each measure."""
    name = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))["name"]
    committed = {row["id"]: row for row in CommittedRows(results / f"{name}.jsonl").rows()}
    apart: dict[tuple[str, str, str], list[float]] = {}
    for row in Results(folder).rows():
        if row["status"] != "done" or _was_put_back(row) or row["id"] not in committed:
            continue
        old = committed[row["id"]]
        for one, other in zip(row["scores"], old["scores"], strict=True):
            what = _name(old["run"].get("calibration")) or "no data", one["dataset"], one["metric"]
            apart.setdefault(what, []).append(100 * (one["value"] / other["value"] - 1))
    rows = [
        [*what, str(len(found)), f"{mean(found):+.2f}%", f"{max(found, key=abs):+.2f}%"]
        for what, found in sorted(apart.items())
    ]
    return table(["calibration", "measured on", "measure", "rows", "mean difference", "largest"], rows)


def _was_put_back(row: Mapping[str, Any]) -> bool:
    return not isinstance(row["run"].get("model"), dict)


def _name(one: Any) -> str | None:
    """Of a model or a calibration: that of a row that was put back is all that was kept of it."""
    return one["name"] if isinstance(one, dict) else one


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _measured(scores: Scores) -> dict[str, Measure]:
    """What is asked about, by the short name of its text: perplexities, divergences, the mean over tasks."""
    found = {}
    for one in scores.measures:
        text = re.split(r"[-:]|\.jsonl", one.dataset)[0]
        if one.metric == "perplexity":
            found[text] = one
        elif one.metric == KL:
            found[f"{text}, {DIVERGENCE}"] = one
        elif one.dataset == MEAN:
            found[ACCURACY] = one
    return found


class Cells:
    """What a study measured, as numbers of which less is better: by model, calibration, way and text, then by seed.

    Logarithms of perplexities and of divergences; accuracies below zero.
    """

    def __init__(self, scores: Scores) -> None:
        measures = _measured(scores)
        self.done = len(scores.rows)
        self._values: dict[tuple[Any, ...], dict[int | None, float]] = {}
        self.dense: dict[str, dict[str, float]] = {}
        self.proxies: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
        """By model and calibration: what each says of the draw of each seed."""
        named = (spec.calibration.name for spec in scores.plan.runs if spec.calibration)
        self.calibrations = list(dict.fromkeys(named))
        """Of the plan, in its order."""
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
                worse = {seed: -value if domain == ACCURACY else log(value) for seed, value in values.items()}
                self._values[place] = worse

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
    differs: bool
    """It is shown not to be zero."""
    least: float
    """The smallest true difference that so many seeds find four times of five, by the spread that was seen."""

    @property
    def is_share(self) -> bool:
        """An accuracy, and no logarithm."""
        return self.name.endswith(ACCURACY)


Judged = Sequence[tuple[Claim, list[Answer]]]


def answers(claim: Claim, cells: Cells, margin: float) -> list[Answer]:
    """The sums that have seeds enough, each judged among the others of its claim."""
    return judge({name: cells.sum(terms) for name, terms in claim.sums.items()}, claim.asks, margin)


def judge(sums: Mapping[str, Sequence[float]], asks: str, margin: float) -> list[Answer]:
    """Those that have seeds enough, by their values over seeds."""
    sums = {name: values for name, values in sums.items() if len(values) >= FEWEST and stdev(values) > ROUNDING}
    differ = holm([float(scipy("stats").ttest_1samp(values, 0.0).pvalue) for values in sums.values()])
    alike = holm([equivalence([0.0] * len(one), one, log(1 + margin)).p_value for one in sums.values()])
    found = []
    for (name, values), p_differ, p_same in zip(sums.items(), differ, alike, strict=True):
        estimate = t_interval(sorted(values))
        differs = p_differ < ALPHA and not estimate.holds(0.0)
        verdict = _verdict(asks, estimate, differs, p_same < ALPHA, margin)
        found.append(Answer(name, estimate, verdict, differs, smallest_difference(stdev(values), len(values))))
    return found


def _verdict(asks: str, estimate: Estimate, differs: bool, is_same: bool, margin: float) -> str:
    if asks == "same":
        beyond = differs and not _overlaps(estimate, log(1 + margin))
        return "holds" if is_same else "does not hold here" if beyond else "cannot be told"
    if differs and (estimate.value < 0) == (asks == "lower"):
        return "holds, by less than the margin" if is_same else "holds"
    if is_same and not differs:
        return SAME
    against = "does not hold here, by less than the margin" if is_same else "does not hold here"
    return against if differs else "cannot be told"


def _overlaps(estimate: Estimate, margin: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low < margin and estimate.high > -margin


@cache
def study(name: str) -> tuple[StudyPlan, Cells]:
    """A plan of `plans/evidence/`, and what is committed of it."""
    plan = read_plan(PLANS / f"{name}.yaml")
    return plan, Cells(read_scores(plan, CommittedRows(RESULTS / f"{name}.jsonl")))


def judged(name: str, asked: Sequence[Claim]) -> Judged:
    """The claims of which something is known by the rows of a study."""
    plan, cells = study(name)
    found = [(claim, answers(claim, cells, plan.margin)) for claim in asked]
    return [(claim, one) for claim, one in found if one]


def of_models(claims: Judged, titles: Sequence[str]) -> Judged:
    """The answers about some models: judged among all of their claim, as on the page."""
    about = [(claim, [one for one in found if any(title in one.name for title in titles)]) for claim, found in claims]
    return [(claim, found) for claim, found in about if found]


def overall(claim: Claim, found: Sequence[Answer]) -> str:
    """The verdict on a claim by those on its sums."""
    kinds = [one.verdict.partition(",")[0] for one in found]
    against, held = kinds.count("does not hold here"), kinds.count("holds")
    if claim.of_all and held < len(kinds):
        said = "**does not hold here**: shown to be worse" if against else "**cannot be told**: shown to be better"
        return f"{said} in {against or held} of {len(kinds)}"
    if len(set(kinds)) == 1:
        return f"**{found[0].verdict if len({one.verdict for one in found}) == 1 else kinds[0]}**"
    counted = [(kind, kinds.count(kind)) for kind in ("holds", "does not hold here", SAME, "cannot be told")]
    return "; ".join(f"{kind} in {n} of {len(kinds)}" for kind, n in counted if n)


def shown(estimate: Estimate) -> str:
    """A difference of logarithms as percent of a perplexity."""
    value, low, high = (100 * (exp(x) - 1) for x in (estimate.value, estimate.low or 0.0, estimate.high or 0.0))
    return f"{value:+.2f}% [{low:+.2f}, {high:+.2f}]"


def told(one: Answer) -> str:
    """The difference with its interval: percent of a perplexity or a divergence, or points of accuracy.

    More accuracy is shown as more, though its sum is below zero.
    """
    if not one.is_share:
        return shown(one.estimate)
    low, high = (100 * (x or 0.0) for x in (one.estimate.low, one.estimate.high))
    return f"{-100 * one.estimate.value:+.2f} points [{-high:+.2f}, {-low:+.2f}]"


def least(one: Answer) -> str:
    """The smallest difference that could have been shown."""
    return f"{100 * one.least:.1f} points" if one.is_share else f"{100 * (exp(one.least) - 1):.1f}%"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    if not rows:
        return "Nothing was measured yet; what is measured is printed here."
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *rows])
