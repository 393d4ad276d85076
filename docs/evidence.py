"""What the studies show, claim by claim, from the rows in results/: the tables of docs/evidence.md.

`python docs/evidence.py --collect studies/known-pretraining` adds a study's finished rows to `results/`, and
`--restore studies/known-pretraining` puts them back, so that `calibrune study run` goes on where they end.
"""

import argparse
import json
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
from examples.known_pretraining.claims import OWN_OF_ALL, SOURCES, Claim, How, Terms, claims, less  # noqa: E402
from examples.known_pretraining.splits import DOMAINS, MODELS  # noqa: E402

RESULTS = REPOSITORY / "results"
PLAN = REPOSITORY / "plans/evidence/known-pretraining.yaml"
TRAINED = REPOSITORY / "examples/known_pretraining/models"
ALPHA = 0.05
SCORE = ("dataset", "metric", "value", "stderr", "n", "higher_is_better")

# -- rows: of a study's own, what the tables need ----------------------------------------------------------------------


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


# -- what they say -----------------------------------------------------------------------------------------------------


class Cells:
    """The log-perplexities of a study: by model, calibration, way to prune and domain, then by seed."""

    def __init__(self, scores: Scores) -> None:
        measures = {one.dataset.partition("-")[0]: one for one in scores.measures if one.metric == "perplexity"}
        self._values: dict[tuple[Any, ...], dict[int | None, float]] = {}
        self.dense: dict[str, dict[str, float]] = {}
        for arm in scores.arms:
            model = Path(arm.model.name).name
            for domain, measure in measures.items():
                values = scores.values(arm, measure)
                if arm.pruner is None:
                    self.dense.setdefault(model, {}).update((domain, value) for value in values.values())
                    continue
                how = How(arm.pruner, percent(str(arm.pattern)), arm.propagation)
                place = (model, arm.calibration and arm.calibration.name, how, domain)
                self._values[place] = {seed: log(value) for seed, value in values.items()}

    def sum(self, terms: Terms) -> list[float]:
        """Of every seed that all terms have; a method that reads nothing is the same beside all seeds."""
        found = [(term.weight, self._values.get(tuple(term[1:]), {})) for term in terms]
        drawn = [set(values) for _, values in found if set(values) != {None}]
        seeds = set.intersection(*drawn) if drawn else set()
        return [sum(weight * values.get(seed, values.get(None, 0.0)) for weight, values in found) for seed in seeds]


class Answer(NamedTuple):
    """Of one sum."""

    name: str
    estimate: Estimate
    verdict: str


def answers(claim: Claim, cells: Cells, margin: float) -> list[Answer]:
    """The sums that have two seeds or more, each judged among the others of its claim."""
    sums = {name: cells.sum(terms) for name, terms in claim.sums.items()}
    sums = {name: values for name, values in sums.items() if len(values) > 1 and stdev(values) > 0}
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


# -- tables ------------------------------------------------------------------------------------------------------------


@cache
def known() -> tuple[StudyPlan, Cells]:
    """The study of known pre-training, as far as its rows are committed."""
    plan = read_plan(PLAN)
    return plan, Cells(read_scores(plan, CommittedRows(RESULTS / f"{plan.name}.jsonl")))


def models_table() -> str:
    """What the models know: their loss on what they read and on what was held back, and perplexity by domain."""
    _, cells = known()
    columns = ["model", "loss: read", "held back", "epochs", *(f"perplexity: {name}" for name in DOMAINS)]
    rows = []
    for name in MODELS:
        if not (TRAINED / name / "training.json").exists():
            continue
        record = json.loads((TRAINED / name / "training.json").read_text(encoding="utf-8"))
        last, dense = record["curve"][-1], cells.dense.get(name, {})
        losses = [f"{last['train_loss']:.2f}", f"{last['held_loss']:.2f}", f"{record['epochs']:.1f}"]
        said = [f"{dense[one]:.1f}" if one in dense else "" for one in DOMAINS]
        marked = [f"**{x}**" if one in MODELS[name] else x for x, one in zip(said, DOMAINS, strict=True)]
        rows.append([name, *losses, *marked])
    return _table(columns, rows)


def claims_table() -> str:
    """Every claim with its verdict, and how many seeds the least of its rows has."""
    plan, cells = known()
    rows = []
    for claim in claims():
        found = answers(claim, cells, plan.margin)
        if found:
            typical = max(found, key=lambda one: abs(one.estimate.value))
            seeds = min(one.estimate.n for one in found)
            rows.append([claim.says, _overall(found), f"{typical.name}: {_shown(typical.estimate)}", str(seeds)])
    return _table(["claim", "verdict", "where it is largest", "seeds"], rows)


def sources_table() -> str:
    """Every source against the model's own held-back text, measured on the model's own domains."""
    _, cells = known()
    ways = [How("wanda", "60%"), How("wanda", "2:4")]
    rows = []
    for name in SOURCES:
        row = [f"`{name}`".replace("{own}", "own")]
        for how in ways:
            for model in MODELS:
                values = cells.sum(less(name, "{own}", how, {model: OWN_OF_ALL[model]}))
                differs = len(values) > 1 and stdev(values) > 0
                row.append(_shown(t_interval(values)) if differs else "0" if values else "")
        if any(row[1:]):
            rows.append(row)
    return _table(["calibration", *(f"{how.pattern}: {model}" for how in ways for model in MODELS)], rows)


def details() -> str:
    """Every claim's sums."""
    plan, cells = known()
    parts = []
    for claim in claims():
        found = answers(claim, cells, plan.margin)
        rows = [[one.name, _shown(one.estimate), str(one.estimate.n), one.verdict] for one in found]
        if rows:
            parts.append(f"**{claim.says}**\n\n" + _table(["", "perplexity", "seeds", "verdict"], rows))
    return "\n\n".join(parts) or _table([], [])


def _overall(found: Sequence[Answer]) -> str:
    kinds = [one.verdict.partition(",")[0] for one in found]
    if len(set(kinds)) == 1:
        return f"**{kinds[0]}**"
    counted = [(kind, kinds.count(kind)) for kind in ("holds", "does not hold here", "cannot be told")]
    return "; ".join(f"{kind} in {n} of {len(kinds)}" for kind, n in counted if n)


def _shown(estimate: Estimate) -> str:
    """A difference of logarithms as percent of a perplexity."""
    value, low, high = (100 * (exp(x) - 1) for x in (estimate.value, estimate.low or 0.0, estimate.high or 0.0))
    return f"{value:+.2f}% [{low:+.2f}, {high:+.2f}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Nothing was measured yet; what is measured is printed here."
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *rows])


def main(arguments: Sequence[str]) -> int:
    """Move rows between a study and `results/`, or print the tables."""
    parser = argparse.ArgumentParser(description="The committed rows of studies, and what they say.")
    parser.add_argument("--collect", type=Path, metavar="STUDY", help="add this study's finished rows to results/")
    parser.add_argument("--restore", type=Path, metavar="STUDY", help="put the committed rows into this study's folder")
    given = parser.parse_args(arguments)
    if given.collect:
        print(collect(given.collect))
    elif given.restore:
        print(f"{restore(given.restore)} rows restored to {given.restore}")
    else:
        print("\n\n".join([models_table(), claims_table(), sources_table(), details()]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
