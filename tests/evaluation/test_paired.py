"""Two models on the same items: what is shown, what is not, and what must not be compared."""

import json
from dataclasses import replace
from itertools import pairwise
from math import exp, inf, isclose, log, nan

import numpy as np
import pytest

from calibrune.durable import to_json
from calibrune.errors import ConfigError
from calibrune.evaluation.paired import Evaluation, compare, left_out, named_apart, read_evaluations
from calibrune.evaluation.score import Score


def score(items, *, metric="acc", value=None, dataset="piqa", higher=True, **protocol) -> Score:
    items = tuple(map(float, items))
    mean = sum(items) / len(items) if items else 0.0
    return Score(
        metric=metric, value=mean if value is None else value, stderr=None, n=len(items), higher_is_better=higher,
        items=items, protocol={"dataset": dataset, "limit": 100, "source": {"files": {"a": "b"}}, **protocol},
    )  # fmt: skip


def perplexity(losses, **protocol) -> Score:
    value = exp(sum(losses) / len(losses))
    return score(losses, metric="perplexity", value=value, dataset="wikitext2", higher=False, **protocol)


RNG = np.random.default_rng(0)
RIGHT = (RNG.random(300) < 0.7).astype(float)
LOSSES = RNG.normal(3.0, 0.5, 40)


def models(*scores):
    return [Evaluation(name, (one,)) for name, one in zip("ABCDEFGH", scores, strict=False)]


def test_accuracies_are_compared_by_mcnemar_and_a_planted_difference_is_found():
    worse = RIGHT.copy()
    worse[np.flatnonzero(RIGHT)[:30]] = 0.0
    [found] = compare(models(score(RIGHT), score(worse)))
    assert found.verdict == "worse"
    assert found.discordant == (30, 0)
    assert isclose(found.change, -0.1)
    assert found.interval[0] < -0.1 < found.interval[1] < 0
    assert found.p_holm == found.p_value < 1e-6
    [back] = compare(models(score(worse), score(RIGHT)))
    assert (back.verdict, back.discordant) == ("better", (0, 30))


def test_a_few_flips_each_way_are_no_difference_shown():
    other = RIGHT.copy()
    other[:12] = 1 - other[:12]
    [found] = compare(models(score(RIGHT), score(other)))
    assert sum(found.discordant) == 12
    assert found.verdict == "no difference shown"
    assert found.difference.holds(0.0)


def test_perplexities_are_compared_by_their_logarithms():
    noise = np.random.default_rng(1).normal(0.0, 0.02, 40)
    [found] = compare(models(perplexity(LOSSES), perplexity(LOSSES + log(1.1) + noise - noise.mean())))
    assert (found.scale, found.verdict) == ("logarithm", "worse")
    assert isclose(found.difference.value, log(1.1))
    assert isclose(found.change, 0.1)
    low, high = found.interval
    # the windows differ by a lot, their differences hardly
    assert 0.09 < low < 0.1 < high < 0.11
    assert isclose(low, exp(found.difference.low) - 1)


def test_holm_goes_over_all_comparisons_and_can_undo_a_finding():
    weak = RIGHT.copy()
    weak[np.flatnonzero(RIGHT)[:7]] = 0.0
    [alone] = compare(models(score(RIGHT), score(weak)))
    assert alone.verdict == "worse"
    assert isclose(alone.p_value, 2 / 2**7)
    found = compare(models(score(RIGHT), score(weak), *[score(RIGHT)] * 5))
    assert found[0].model == "B"
    assert isclose(found[0].p_holm, 6 * alone.p_value)
    assert not found[0].difference.holds(0.0)
    assert [one.verdict for one in found] == ["no difference shown"] * 6


def test_equal_models_are_called_different_no_more_often_than_stated():
    different = 0
    for run in range(80):
        rng = np.random.default_rng(run)
        a, b = ((rng.random(200) < 0.6).astype(float) for _ in range(2))
        losses = rng.normal(2.0, 0.3, 25)
        scores = [(score(one), perplexity(losses + rng.normal(0, 0.1, 25))) for one in (a, b)]
        found = compare([Evaluation(name, one) for name, one in zip("AB", scores, strict=True)])
        different += any(one.verdict != "no difference shown" for one in found)
    # of two comparisons together; four binomial standard errors over 5% of 80 runs
    assert different <= 4 + 4 * (80 * 0.05 * 0.95) ** 0.5


def test_items_that_are_neither_right_nor_wrong_go_to_the_bootstrap():
    found = compare(models(score(LOSSES, metric="f"), score(LOSSES + 1, metric="f")))[0]
    assert (found.scale, found.verdict, found.discordant) == ("value", "better", None)
    assert "bootstrap" in found.difference.method
    assert isclose(found.change, 1.0)


def test_what_happens_to_be_zero_or_one_is_not_right_or_wrong():
    kl, top1 = (
        [score(items, metric=metric, dataset="wikitext2", windows=30) for items in pair]
        for metric, pair in {
            "KL divergence": ([0.0] * 30, [0.0] * 30),
            "top-1 agreement": (RIGHT[:30], RIGHT[30:60]),
        }.items()
    )
    for pair in (kl, top1):
        [found] = compare(models(*pair))
        assert found.discordant is None
        assert "5 blocks of 6 neighbouring windows" in found.test
    [equal] = compare(models(*kl))
    assert (equal.verdict, equal.p_value, equal.interval) == ("no difference shown", 1.0, (0.0, 0.0))
    [right] = compare(models(*[score(RIGHT, metric="exact_match (strict-match)")] * 2))
    assert right.test.startswith("McNemar")


def test_windows_of_one_text_are_compared_by_blocks_of_neighbours():
    # ten runs of six windows that differ alike: ten numbers, not sixty
    drift = np.repeat(np.random.default_rng(3).normal(0.0, 0.02, 10), 6)
    losses = RNG.normal(3.0, 0.5, 60)
    [alone] = compare(models(perplexity(losses), perplexity(losses + drift)))
    [blocks] = compare(models(perplexity(losses, windows=60), perplexity(losses + drift, windows=60)))
    assert blocks.difference.value == pytest.approx(alone.difference.value)
    widths = [one.difference.high - one.difference.low for one in (alone, blocks)]
    assert widths[1] > 1.8 * widths[0]
    # by hand: 7 blocks, of 8 and 9 windows
    ends = [60 * i // 7 for i in range(8)]
    sums = [(drift - drift.mean())[a:b].sum() for a, b in pairwise(ends)]
    error = np.sqrt(7 / 6 * np.square(sums).sum()) / 60
    assert widths[1] == pytest.approx(2 * 2.4469 * error, rel=1e-4)
    assert blocks.p_value > alone.p_value
    [few] = compare(models(perplexity(losses[:24], windows=24), perplexity(losses[:24] + drift[:24], windows=24)))
    assert few.test.endswith("windows taken for independent, for there are fewer than 25")


def test_windows_that_drift_are_called_different_no_more_often_than_stated():
    different = 0
    for run in range(200):
        rng = np.random.default_rng(run)
        noise = np.convolve(rng.normal(0, 0.05, 103), np.ones(4) / 4, mode="valid")
        pair = perplexity([3.0] * 100, windows=100), perplexity(3.0 + noise, windows=100)
        different += compare(models(*pair))[0].verdict != "no difference shown"
    # 5%, and a little more for what blocks of ten leave of the drift; taken for independent it is a third of the runs
    assert different <= 200 * 0.1


def test_a_mean_of_perplexities_changes_in_percent():
    items = np.exp(LOSSES)
    metric = {"metric": "mean perplexity of texts", "dataset": "alpaca", "higher": False}
    [found] = compare(models(score(items, **metric), score(1.2 * items, **metric)))
    assert (found.scale, found.verdict) == ("share", "worse")
    assert found.change == pytest.approx(0.2)
    assert found.interval[0] < 0.2 < found.interval[1]
    assert found.difference.value == pytest.approx(0.2 * items.mean())


def test_one_item_shows_nothing():
    [found] = compare(models(perplexity([2.0]), perplexity([5.0])))
    assert found.interval is None
    assert found.verdict == "no difference shown"


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (score([], value=0.4), "no mean over items"),
        (score(RIGHT, value=0.123), "no mean over items"),
        (replace(perplexity(LOSSES), value=inf), "not finite"),
        (replace(perplexity(LOSSES), value=nan), "not finite"),
    ],
)
def test_what_items_do_not_add_up_to_is_said_and_not_tested(one, why):
    [found] = compare(models(one, one))
    assert found.verdict == "not compared"
    assert why in found.test
    assert (found.difference, found.p_value, found.p_holm, found.change) == (None, None, None, None)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"limit": 50}, r"piqa acc differs in limit \(100, 50\)"),
        ({"shots": 5}, r"shots \(None, 5\)"),
        ({"requests_sha256": "0123456789abcdef" * 4}, r"requests_sha256 \(None, 0123456789ab\.\.\.\)"),
        ({"version": 2, "harness": "0.5"}, r"version \(None, 2\), harness \(None, 0\.5\)"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"tasks": {"mmlu_anatomy": {"shots": 5}}}, r"tasks.mmlu_anatomy.shots \(None, 5\)"),
    ],
    ids=str,
)
def test_scores_that_were_not_measured_alike_are_refused_with_what_differs(changed, says):
    with pytest.raises(ConfigError, match=f"A and B were not measured alike: .*{says}.*same options"):
        compare(models(score(RIGHT), score(RIGHT, **changed)))


def test_where_the_rows_lay_and_what_was_measured_are_no_part_of_how():
    parts = [{"anatomy": {"value": value, "stderr": 0.1, "shots": 5}} for value in (0.3, 0.4)]
    sources = ({"files": {"x": "1"}}, {"hub": "y"})
    scores = [
        score(RIGHT, cut=cut, tasks=tasks) for cut, tasks in zip((0, 3), parts, strict=True)
    ]  # fmt: skip
    scores = [replace(s, protocol=s.protocol | {"source": where}) for s, where in zip(scores, sources, strict=True)]
    assert compare(models(*scores))[0].verdict == "no difference shown"


def test_the_same_task_in_two_ways_is_paired_with_its_like():
    none, five = score(RIGHT, shots=0), score(1 - RIGHT, shots=5)
    found = compare([Evaluation("A", (none, five)), Evaluation("B", (five, none))])
    assert [one.change for one in found] == [0.0, 0.0]


def test_what_only_one_model_has_is_named_and_nothing_in_common_is_an_error():
    both, other = score(RIGHT), perplexity(LOSSES)
    evaluations = [Evaluation("A", (both, other)), Evaluation("B", (both,))]
    assert [one.dataset for one in compare(evaluations)] == ["piqa"]
    assert left_out(evaluations) == ["wikitext2 perplexity"]
    with pytest.raises(ConfigError, match="no score of the same thing: piqa there, wikitext2 here"):
        compare(models(both, other))
    with pytest.raises(ConfigError, match="two models or more, got 1"):
        compare(models(both))
    with pytest.raises(ConfigError, match="300 items of A and 299 of B"):
        compare(models(both, score(RIGHT[1:])))


def test_what_was_written_is_read_again(tmp_path):
    one, other = Evaluation("a", (score(RIGHT),), {"calibrune": "0"}, "calibrune evaluate a"), Evaluation("a", ())
    path = tmp_path / "scores.json"
    path.write_text(to_json(one.as_json()))
    assert read_evaluations(path) == [one]
    path.write_text(to_json({"evaluations": [one.as_json(), other.as_json()]}))
    assert read_evaluations(path) == [one, other]
    assert [each.model for each in named_apart([one, other, one])] == ["a", "a'", "a''"]
    endless = replace(perplexity(LOSSES), value=inf, items=(inf, 1.0))
    path.write_text(to_json(Evaluation("a", (endless,)).as_json()))
    [found] = read_evaluations(path)[0].scores
    assert found.value != found.value
    assert found.items[1] == 1.0
    # without versions and command, as it was written before there were any
    path.write_text(json.dumps({"model": "old", "scores": []}))
    assert read_evaluations(path) == [Evaluation("old", ())]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read .it is no JSON object"),
        ('{"model": "m"}', "holds no scores"),
        ('{"model": "m", "scores": [{"value": 1}]}', "holds no scores"),
        ('{"evaluations": []}', "holds no scores"),
    ],
)
def test_a_file_that_holds_no_scores_is_named(content, says, tmp_path):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"other.json' {says}.*evaluate --out"):
        read_evaluations(path)
