"""What a study says, on rows whose answer is known."""

from statistics import mean, stdev

import numpy as np
import pytest
from made_up_study import PLAN, judged, make_up, row_of, small_effects
from scipy.stats import binom, ttest_rel

from calibrune.errors import ConfigError
from calibrune.seeds import seed_for
from calibrune.study.judgement import judge, outlook_text
from calibrune.study.reading import read_plan
from calibrune.study.scores import read_scores
from calibrune.uncertainty import holm

WANDA = {  # DCLM-7B pruned by Wanda, the study of Ji et al. (2025): its 20 seeds of every source
    "c4": "62.38 62.23 62.51 62.31 62.21 62.54 62.86 62.62 62.52 62.62 62.47 62.56 62.20 62.75 62.80 "
    "62.34 62.80 62.36 62.91 62.62",
    "wikipedia": "61.16 61.01 61.39 60.90 61.35 60.93 60.66 60.89 61.01 61.08 60.97 60.71 60.86 61.06 60.73 "
    "61.04 61.02 61.11 61.48 61.14",
    "slimpajama": "61.91 62.01 62.45 62.51 62.13 62.05 62.07 62.18 62.34 62.25 62.06 62.24 62.75 62.54 62.28 "
    "62.62 62.59 62.50 62.29 62.31",
    "dclm": "63.04 62.77 62.80 62.95 62.84 62.98 63.00 62.96 62.71 62.78 62.64 63.07 62.84 62.94 62.71 "
    "62.51 63.25 62.59 63.03 63.25",
}
ONE_METHOD = PLAN.replace("[magnitude, wanda, sparsegpt]", "[wanda]")


def verdicts(found, kind, measure="mean accuracy"):
    """By the names of both sides."""
    return {
        (_name(one.arm), _name(one.reference)): one.verdict
        for one in found.comparisons
        if (one.kind, one.measure.name) == (kind, measure)
    }


def _name(arm):
    return f"{arm.pruner} {arm.calibration.name}" if arm.calibration else arm.pruner


def test_a_planted_difference_is_found_and_what_is_alike_is_not_told_apart(tmp_path):
    found = judged(tmp_path)
    sources = verdicts(found, "source")
    for pruner in ("wanda", "sparsegpt"):
        assert sources[f"{pruner} two", f"{pruner} one"] == "better"
        assert sources[f"{pruner} three", f"{pruner} two"] == "worse"
        assert sources[f"{pruner} three", f"{pruner} one"] == "the same"  # within the plan's point
    methods = verdicts(found, "method")
    assert methods["wanda one", "magnitude"] == "better"
    assert methods["sparsegpt one", "wanda one"] == "the same"
    assert verdicts(found, "source", "alpaca perplexity")["wanda two", "wanda one"] == "better"  # lower is better there
    assert len(sources) == 6
    assert len(methods) == 9


def test_the_published_lists_have_the_published_answer(tmp_path):
    names = "\n".join(f"  - {{source: {name}.jsonl, name: {name}}}" for name in WANDA)
    text = f"models: [m]\ncalibration:\n{names}\npruners: [wanda]\npatterns: ['2:4']\nseeds: 20\n"
    text += "evaluations: [tasks: piqa]"
    lists = {name: [float(x) / 100 for x in said.split()] for name, said in WANDA.items()}
    found = judged(
        tmp_path,
        lambda spec: {("piqa", "acc"): lists[spec.calibration.name][spec.seed] if spec.calibration else 0.7},
        text,
    )
    shown = {one.arm.calibration.name: (one.t.value, one.deviation) for one in found.summaries if one.arm.calibration}
    published = {"c4": (62.53, 0.22), "wikipedia": (61.03, 0.22), "slimpajama": (62.30, 0.23), "dclm": (62.88, 0.20)}
    for name, expected in published.items():
        assert [100 * x for x in shown[name]] == pytest.approx(expected, abs=0.0051)
    (source_range,) = found.ranges
    assert source_range.range.value == pytest.approx(0.0186, abs=5e-5)
    assert source_range.range.low > 0.017
    assert source_range.p_value < 0.001
    tested = {(_name(c.reference), _name(c.arm)): c for c in found.comparisons}
    pair = tested["wanda wikipedia", "wanda dclm"]
    assert pair.p_value == pytest.approx(ttest_rel(lists["dclm"], lists["wikipedia"]).pvalue)
    assert pair.verdict == "better"
    assert [c.p_holm for c in found.comparisons] == holm([c.p_value for c in found.comparisons])


def test_pairing_by_seed_takes_out_what_the_seeds_have_in_common(tmp_path):
    def value(spec):
        if spec.calibration is None:
            return {("piqa", "acc"): 0.7}
        shared, own = (
            np.random.default_rng(seed_for(spec.seed, *label)).normal() for label in ((), (spec.calibration.name,))
        )
        better = 0.01 * (spec.calibration.name == "two")
        return {("piqa", "acc"): 0.5 + 0.1 * shared + 0.001 * own + better}

    found = judged(tmp_path, value, ONE_METHOD)
    one, two = (s for s in found.summaries if s.arm.calibration and s.arm.calibration.name in ("one", "two"))
    assert one.t.low < two.t.low < one.t.high  # by themselves, nothing can be told
    assert verdicts(found, "source", "piqa acc")["wanda two", "wanda one"] == "better"


@pytest.mark.slow
def test_intervals_hold_the_truth_and_equal_sources_are_called_different_as_seldom_as_stated(tmp_path):
    text, studies = ONE_METHOD.replace("seeds: 12", "seeds: 5"), 80
    held, differ_held, false_alarms = [], [], 0
    for study in range(studies):

        def value(spec, study=study):
            names = (spec.calibration.name, str(spec.seed)) if spec.calibration else ("dense",)
            noise = np.random.default_rng(seed_for(study, *names)).normal()
            return {("piqa", "acc"): 0.5 + 0.02 * float(noise)}

        found = judged(tmp_path / str(study), value, text)
        held += [one.t.holds(0.5) for one in found.summaries if one.arm.calibration]
        # of the three differences, two that have no source in common but the one that both are beside
        differ_held += [one.difference.holds(0.0) for one in found.comparisons[:1]]
        false_alarms += any(one.verdict in ("better", "worse") for one in found.comparisons)
    for hits in (held, differ_held):
        low, high = binom.ppf([0.0005, 0.9995], len(hits), 0.95)
        assert low <= sum(hits) <= high
    assert false_alarms <= binom.ppf(0.9995, studies, 0.05)


def test_the_dense_row_is_always_there_and_what_takes_no_data_stands_beside_every_seed(tmp_path):
    found = judged(tmp_path)
    dense = next(one for one in found.summaries if one.arm.pruner is None)
    assert (dense.deviation, dense.t.low, dense.over_seeds) == (None, None, None)  # of one value there is no interval
    assert {one.n for one in found.comparisons} == {12}


def test_perplexities_are_compared_by_their_ratio(tmp_path):
    ratio = {"one": 10.0, "two": 20.0, "three": 10.0}

    def value(spec):
        return {("alpaca", "perplexity"): ratio[spec.calibration.name] * (1 + spec.seed) if spec.calibration else 5.0}

    found = judged(tmp_path, value, ONE_METHOD)
    two = next(one for one in found.comparisons if (_name(one.arm), _name(one.reference)) == ("wanda two", "wanda one"))
    assert two.difference.value == pytest.approx(np.log(2))
    assert two.verdict == "worse"


def test_the_mean_accuracy_is_the_plain_mean_over_tasks_and_its_items_error_that_of_independent_tasks(tmp_path):
    found = judged(tmp_path)
    first = next(one for one in found.summaries if one.arm.calibration and one.measure.name == "mean accuracy")
    tasks = [next(s for s in found.summaries if (s.arm, s.measure.name) == (first.arm, name)) for name in
             ("arc_easy acc", "piqa acc")]  # fmt: skip
    assert first.t.value == pytest.approx(mean(one.t.value for one in tasks))
    assert first.over_items == pytest.approx(0.01 / np.sqrt(2))
    assert first.over_seeds == pytest.approx(stdev(first.values) / np.sqrt(12))
    assert [one.name for one in found.scores.main] == ["mean accuracy", "alpaca perplexity"]


def test_the_errors_over_seeds_and_over_items_are_told_apart(tmp_path):
    items = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]  # the same answers from every seed
    found = judged(tmp_path, lambda spec: {("piqa", "acc"): items}, ONE_METHOD)
    one = next(one for one in found.summaries if one.arm.calibration)
    assert one.over_seeds == 0
    assert one.over_items == pytest.approx(stdev(items) / np.sqrt(8))
    assert one.both == pytest.approx(one.over_items)


def test_differences_without_a_spread_are_no_finding_of_three_seeds(tmp_path):
    better = {"one": 0.5, "two": 0.52, "three": 0.5}

    def value(spec):
        return {("piqa", "acc"): better[spec.calibration.name] if spec.calibration else 0.7}

    found = judged(tmp_path, value, ONE_METHOD.replace("seeds: 12", "seeds: 3"))
    assert verdicts(found, "source", "piqa acc")["wanda two", "wanda one"] == "no difference shown"


def test_a_proxy_that_orders_as_the_outcome_does_has_rank_correlation_one(tmp_path):
    text = ONE_METHOD.replace("seeds: 12", "seeds: 2\nproxies: [min_k_plus_plus, repetition]")
    text = text.replace("name: three}", "name: three}\n  - {source: four.jsonl, name: four}")
    level = {"one": 0.4, "two": 0.6, "three": 0.5, "four": 0.7}
    plan, results = make_up(tmp_path, text=text, only=lambda spec: False)
    for spec in plan.runs:
        accuracy = level[spec.calibration.name] if spec.calibration else 0.8
        proxies = {"min_k_plus_plus": accuracy**3, "repetition": -accuracy} if spec.calibration else {}
        results.append(row_of(spec, {("piqa", "acc"): accuracy}, proxies=proxies), None)
    found = {one.proxy: one.rank for one in judge(read_scores(plan, results)).correlations}
    assert (found["min_k_plus_plus"].value, found["repetition"].value) == (pytest.approx(1), pytest.approx(-1))
    assert found["min_k_plus_plus"].low < 0.9  # four things say little
    assert found["min_k_plus_plus"].n == 4


def test_a_study_half_done_is_judged_by_what_is_there(tmp_path):
    found = judged(
        tmp_path, only=lambda spec: spec.calibration is None or (spec.seed < 3 and spec.calibration.name != "three")
    )
    assert {one.n for one in found.comparisons} == {3}
    assert not found.ranges  # of all sources, and one is missing
    assert found.scores.planned(found.comparisons[0].arm) == 12
    nothing = judged(tmp_path / "begun", only=lambda spec: spec.seed == 0)
    assert {one.verdict for one in nothing.comparisons} == {"not compared"}


def test_a_value_that_is_not_finite_and_a_run_that_failed_are_left_out(tmp_path):
    plan, results = make_up(tmp_path)
    one, other = [spec for spec in plan.runs if spec.seed == 0][:2]
    results.append(
        row_of(one, {("arc_easy", "acc"): 0.5, ("piqa", "acc"): 0.5, ("alpaca", "perplexity"): float("inf")})
    )
    failed = {key: value for key, value in row_of(other, {}).items() if key != "scores"}
    results.append({**failed, "status": "failed", "error": "out of memory"})
    found = judge(read_scores(plan, results))
    counts = {(_name(s.arm), s.measure.name): s.t.n for s in found.summaries}
    names = [_name(spec) for spec in (one, other)]
    assert (counts[names[0], "alpaca perplexity"], counts[names[0], "piqa acc"]) == (11, 12)
    assert counts[names[1], "piqa acc"] == 11


def test_rows_of_another_plan_are_counted_and_left_out(tmp_path):
    plan, results = make_up(tmp_path)
    (tmp_path / "given.yaml").write_text(PLAN.replace("seeds: 12", "seeds: 11"))
    scores = read_scores(read_plan(tmp_path / "given.yaml"), results)
    assert (len(scores.rows), scores.n_others) == (len(plan.runs) - 6, 6)


def test_with_a_baseline_everything_is_compared_with_it_and_with_nothing_else(tmp_path):
    found = judged(tmp_path, text=f"{PLAN}baseline: two\nmargin: 0.001\n")
    assert {reference for _, reference in verdicts(found, "source")} == {"wanda two", "sparsegpt two"}
    assert set(verdicts(found, "source").values()) == {"worse"}
    for wrong, said in {
        "baseline: ten": "got 'ten'",
        "margin: 2": "over 0 and under 1",
        "margin: no": "cannot be False",
    }.items():
        with pytest.raises(ConfigError, match=said):
            make_up(tmp_path, text=f"{PLAN}{wrong}\n")


def test_sources_are_compared_within_a_variant_and_variants_within_a_source(tmp_path):
    text = ONE_METHOD.replace("samples: 4", "samples: [4, 8]").replace("seeds: 12", "seeds: 2")
    pairs = verdicts(judged(tmp_path, text=text), "source")
    assert ("wanda two:samples=4", "wanda one:samples=4") in pairs
    assert ("wanda one:samples=8", "wanda one:samples=4") in pairs
    assert ("wanda two:samples=8", "wanda one:samples=4") not in pairs
    assert len(pairs) == 2 * 3 + 3


def test_what_the_seeds_can_show_is_said_before_the_start_and_from_the_spread(tmp_path):
    few, many = (read_plan(_written(tmp_path, PLAN.replace("seeds: 12", f"seeds: {n}"))) for n in (3, 20))
    assert "3 seeds" in outlook_text(few)
    assert "3.3 standard deviations" in outlook_text(few)  # the noncentral t of two degrees of freedom
    assert "0.66 standard deviations" in outlook_text(many)
    assert "one seed" in outlook_text(read_plan(_written(tmp_path, PLAN.replace("seeds: 12", "seeds: 1"))))
    found = judged(tmp_path / "study", small_effects)
    least = found.detectable("source", found.scores.main[0])
    # two draws with a deviation of 0.003 each, twelve pairs
    assert least == pytest.approx(0.89 * 0.003 * np.sqrt(2), rel=0.35)


def _written(folder, text):
    (folder / "plan.yaml").write_text(text)
    return folder / "plan.yaml"
