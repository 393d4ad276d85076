"""What the scores of a study say: means with intervals, comparisons paired by seed, and what the seeds could show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import exp, hypot, log, sqrt
from statistics import mean, stdev
from typing import Any, Literal

from calibrune.errors import ConfigError
from calibrune.evaluation.paired import scale_of
from calibrune.study.plan import StudyPlan
from calibrune.study.scores import Measure, Scores, method, variant
from calibrune.study.spec import RunSpec
from calibrune.uncertainty import (
    Equivalence,
    Estimate,
    bootstrap_interval,
    equivalence,
    groups_differ,
    holm,
    range_over_groups,
    rank_correlation,
    seeds_and_items,
    sign_flip_test,
    smallest_difference,
    t_interval,
)
from calibrune.uncertainty.estimate import scipy

ALPHA = 0.05
Kind = Literal["source", "method"]
Verdict = Literal["better", "worse", "the same", "no difference shown", "not compared"]

PAPER_SD = 0.0031
"""Standard deviation of the difference of two sources' mean accuracy over seeds, in the study of Ji et al. (2025): 20
draws of one source differ by 0.22 points, so two by the root of 2 more, if they have nothing in common."""


@dataclass(frozen=True)
class Summary:
    """One measure of one arm, over its seeds."""

    arm: RunSpec
    measure: Measure
    keys: tuple[str, ...]
    """Of the finished runs, by seed."""
    seeds: tuple[int | None, ...]
    values: tuple[float, ...]
    deviation: float | None
    """Sample standard deviation over the seeds; None for one."""
    t: Estimate
    """The mean, with Student's interval."""
    bootstrap: Estimate
    over_seeds: float | None
    """Standard error of the mean, were the seeds others."""
    over_items: float | None
    """Standard error, were the items others."""
    both: float | None
    """Were both; where the items' mean is not the value itself, at most this."""


@dataclass(frozen=True)
class Comparison:
    """Two arms over the seeds that both have. An arm without seeds stands beside every seed of the other."""

    kind: Kind
    """What the two differ in."""
    measure: Measure
    arm: RunSpec
    reference: RunSpec
    n: int
    """Pairs."""
    difference: Estimate | None
    """The mean of the arm less that of the reference, of a perplexity of their logarithms, with Student's interval."""
    bootstrap: Estimate | None
    p_value: float | None
    """Of "no difference", by itself: the paired t test."""
    same: Equivalence | None
    """Whether they are the same within the plan's margin."""
    p_holm: float | None = None
    """Raised for all comparisons of its kind and measure."""
    same_p_holm: float | None = None
    verdict: Verdict = "not compared"


@dataclass(frozen=True)
class Range:
    """How far the means of the sources are apart, as the study of Ji et al. reports: the highest less the lowest."""

    measure: Measure
    arms: tuple[RunSpec, ...]
    range: Estimate
    """Of a perplexity, of the logarithms."""
    p_value: float
    """Of "the source does not matter", by permutations."""


@dataclass(frozen=True)
class Correlation:
    """A number that is known before pruning, beside the outcome, over calibrations."""

    proxy: str
    measure: Measure
    arms: tuple[RunSpec, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    rank: Estimate | None
    """Spearman's; None for fewer than three calibrations that differ."""


@dataclass(frozen=True)
class Judgement:
    """All that a study says, as far as it is done."""

    scores: Scores
    summaries: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]
    ranges: tuple[Range, ...]
    correlations: tuple[Correlation, ...]

    def summary(self, arm: RunSpec, measure: Measure) -> Summary | None:
        """None where no run of it is finished."""
        return next((one for one in self.summaries if (one.arm, one.measure) == (arm, measure)), None)

    def of(self, kind: Kind, measure: Measure) -> list[Comparison]:
        """The comparisons that are corrected together."""
        return [one for one in self.comparisons if (one.kind, one.measure) == (kind, measure)]

    def detectable(self, kind: Kind, measure: Measure) -> float | None:
        """The smallest difference that the planned seeds find with a probability of 0.8, by the spread seen here.

        In the unit of `Comparison.difference`; None where no pair has two seeds.
        """
        mine = [one for one in self.of(kind, measure) if one.difference is not None and one.n > 1]
        n = planned_seeds(self.scores.plan)
        if not mine or n < 2:
            return None
        spread = [_differences(self.scores, one.arm, one.reference, measure) for one in mine]
        return smallest_difference(sqrt(mean(stdev(one) ** 2 for one in spread)), n)


def judge(scores: Scores) -> Judgement:
    """Judge a study, finished or not. Draws are seeded by what they are for, so the same rows say the same.

    Raises:
        ConfigError: scipy is not installed.
    """
    arms, measures = scores.arms, scores.measures
    summaries = [_summary(scores, arm, one) for one in measures for arm in arms if scores.values(arm, one)]
    compared = [c for m in measures for kind in ("source", "method") for c in _corrected(scores, kind, m)]
    ranges = [found for m in scores.main for group in _groups(scores) for found in _ranges(scores, m, group)]
    related = [found for m in scores.main for found in _correlations(scores, m)]
    return Judgement(scores, tuple(summaries), tuple(compared), tuple(ranges), tuple(related))


def planned_seeds(plan: StudyPlan) -> int:
    """The most seeds that one arm of a plan has."""
    arms = [replace(spec, seed=None) for spec in plan.runs if spec.seed is not None]
    return max((arms.count(arm) for arm in set(arms)), default=0)


def outlook_text(plan: StudyPlan) -> str:
    """What the planned seeds can show, before the start: in deviations, and in points by the published spread."""
    n = planned_seeds(plan)
    if n < 2:
        return "one seed: no difference can be told from chance; two and more have intervals, five are a beginning"
    least = smallest_difference(1.0, n)
    return (
        f"{n} seeds: a true difference of {least:.2g} standard deviations (of a pair's difference over seeds) is found "
        f"with a probability of 0.8; with the spread of Ji et al. (2025), seven tasks in full, {least * PAPER_SD:.2%} "
        f"accuracy. Corrected for many comparisons, it takes more"
    )


def _summary(scores: Scores, arm: RunSpec, measure: Measure) -> Summary:
    lines = scores.of(arm, measure)
    values, errors, items = lines["value"].to_list(), lines["stderr"].to_list(), lines["items"].to_list()
    deviation = stdev(values) if len(values) > 1 else None
    over_seeds = None if deviation is None else deviation / sqrt(len(values))
    over_items = None if None in errors else sqrt(mean(error**2 for error in errors))
    both = None if over_seeds is None or over_items is None else hypot(over_seeds, over_items)
    scales = {scale_of(value, own) for value, own in zip(values, items, strict=True)}
    if scales == {"value"} and len(set(map(len, items))) == 1:
        apart = seeds_and_items(items)
        over_items, both = apart.over_items, apart.both
    return Summary(
        arm, measure, tuple(lines["key"]), tuple(lines["seed"]), tuple(values), deviation,
        t_interval(values), bootstrap_interval(values, name=f"{arm.id} {measure.name}"), over_seeds, over_items, both,
    )  # fmt: skip


def _pairs(scores: Scores, kind: Kind) -> Iterator[tuple[RunSpec, RunSpec]]:
    """What is compared: arms that differ in one thing, the better known one first."""
    baseline = scores.plan.baseline
    for one, other in combinations([arm for arm in scores.arms if arm.pruner is not None], 2):
        if (one.model, one.pattern) != (other.model, other.pattern):
            continue
        a, b = one.calibration, other.calibration
        if kind == "source" and a and b and a != b and method(one) == method(other):
            akin = a.source == b.source or variant(one) == variant(other) or not (variant(one) and variant(other))
            if baseline in (a.name, b.name) or (baseline is None and akin):
                yield (other, one) if b.name == baseline else (one, other)
        if kind == "method" and method(one) != method(other) and (a == b or not (a and b)):
            yield one, other


def _differences(scores: Scores, arm: RunSpec, reference: RunSpec, measure: Measure) -> list[float]:
    ours, theirs = (_scaled(scores, one, measure) for one in (arm, reference))
    for one, other in ((ours, theirs), (theirs, ours)):
        if set(one) == {None}:  # it takes no seed, and is what it is beside all
            one |= dict.fromkeys(other, one[None])
    both = [seed for seed in ours if seed in theirs]  # by seed, as they are read
    return [ours[seed] - theirs[seed] for seed in both if seed is not None or len(both) == 1]


def _scaled(scores: Scores, arm: RunSpec, measure: Measure) -> dict[int | None, float]:
    values = scores.values(arm, measure)
    return {seed: log(value) for seed, value in values.items()} if measure.is_logarithmic else values


def _corrected(scores: Scores, kind: Kind, measure: Measure) -> list[Comparison]:
    """All comparisons of a kind, each with the verdict that it has among the others."""
    found = [_compared(scores, kind, measure, b, a) for a, b in _pairs(scores, kind)]
    tested = [i for i, one in enumerate(found) if one.p_value is not None and one.same is not None]
    differ = holm([p for i in tested if (p := found[i].p_value) is not None])
    alike = holm([same.p_value for i in tested if (same := found[i].same) is not None])
    for i, p_differ, p_same in zip(tested, differ, alike, strict=True):
        verdict = _verdict(found[i], p_differ, p_same)
        found[i] = replace(found[i], p_holm=p_differ, same_p_holm=p_same, verdict=verdict)
    return [one for one in found if one.difference is not None]


def _compared(scores: Scores, kind: Kind, measure: Measure, arm: RunSpec, reference: RunSpec) -> Comparison:
    differences = _differences(scores, arm, reference, measure)
    n = len(differences)
    if n < 2:
        estimate = t_interval(differences) if n else None
        return Comparison(kind, measure, arm, reference, n, estimate, None, None, None)
    zeros = [0.0] * n
    label = f"{arm.id} {reference.id} {measure.name}"
    if stdev(differences) > 1e-12:
        p_value = float(scipy("stats").ttest_1samp(differences, 0.0).pvalue)
    else:  # without a spread t has nothing to go by: the exact test of the signs has
        p_value = sign_flip_test(zeros, differences, name=label)
    margin = log(1 + scores.plan.margin) if measure.is_logarithmic else scores.plan.margin
    same = equivalence(zeros, differences, margin, alpha=ALPHA)
    interval = bootstrap_interval(differences, name=label)
    return Comparison(kind, measure, arm, reference, n, t_interval(differences), interval, p_value, same)


def _verdict(one: Comparison, p: float, same: float) -> Verdict:
    assert one.difference is not None
    if p < ALPHA and not one.difference.holds(0.0):
        return "better" if (one.difference.value > 0) == one.measure.higher_is_better else "worse"
    return "the same" if same < ALPHA else "no difference shown"


def _groups(scores: Scores) -> list[list[RunSpec]]:
    """Arms that differ in their source alone, or, where a study has one source, in what it varies of it."""
    arms = [arm for arm in scores.arms if arm.calibration]
    several = len({arm.calibration.source for arm in arms if arm.calibration}) > 1
    groups: dict[Any, list[RunSpec]] = {}
    for arm in arms:
        key = (arm.model, method(arm), arm.pattern, variant(arm) if several else "")
        groups.setdefault(key, []).append(arm)
    return [group for group in groups.values() if len(group) > 1]


def _ranges(scores: Scores, measure: Measure, group: Sequence[RunSpec]) -> Iterator[Range]:
    values = [_scaled(scores, arm, measure) for arm in group]
    shared = [seed for seed in values[0] if seed is not None and all(seed in one for one in values)]
    if len(shared) < 2:  # as long as a source is missing, the others' range is none of the study's
        return
    paired = [[one[seed] for seed in shared] for one in values]
    name = f"{group[0].id} {measure.name}"
    found = range_over_groups(paired, name=name, paired=True)
    yield Range(measure, tuple(group), found, groups_differ(paired, name=name, paired=True))


def _correlations(scores: Scores, measure: Measure) -> Iterator[Correlation]:
    """Each proxy of each way to prune, over the calibrations: means over the seeds on both sides."""
    known: dict[str, dict[str, list[float]]] = {}
    for spec in scores.plan.runs:
        for proxy, value in (scores.rows.get(spec.id, {}).get("proxies") or {}).items():
            if value is not None:
                known.setdefault(proxy, {}).setdefault(replace(spec, seed=None).id, []).append(value)
    groups: dict[Any, list[RunSpec]] = {}
    for arm in scores.arms:
        if arm.calibration:
            groups.setdefault((arm.model, method(arm), arm.pattern), []).append(arm)
    for group in groups.values():
        for proxy, values in known.items():
            arms = [arm for arm in group if arm.id in values and scores.values(arm, measure)]
            x = tuple(mean(values[arm.id]) for arm in arms)
            y = tuple(mean(scores.values(arm, measure).values()) for arm in arms)
            if arms:
                yield Correlation(proxy, measure, tuple(arms), x, y, _rank(x, y))


def _rank(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    try:
        return rank_correlation(x, y)
    except ConfigError:  # fewer than three that differ
        return None


def shown_change(measure: Measure, value: float) -> float:
    """A difference as it is shown: points of an accuracy, percent of a perplexity, or as it is."""
    if measure.is_logarithmic:
        return 100 * (exp(min(value, 700.0)) - 1)
    return 100 * value if measure.is_share else value
