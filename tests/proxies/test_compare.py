"""Sets side by side: one size for all, an order with its reason, and what speaks against it."""

import re
from math import isnan
from pathlib import Path

import pytest
import torch
from tiny_models import random_ids, tiny_lm

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import CalibrationError, ConfigError
from calibrune.proxies import PROXIES, Context
from calibrune.proxies.compare import WRONG_WAY, Measured, of_one_size, rank, standard_error
from calibrune.proxies.tokens import EffectiveDocuments


def measured(name, *samples, perplexity=10.0, repetition=0.0):
    mean = sum(samples) / len(samples)
    values = {"min_k_plus_plus": mean, "perplexity": perplexity, "repetition": repetition, "effective_documents": 3.0}
    return Measured(name, "f" * 12, values, {"min_k_plus_plus": list(samples)})


def test_the_highest_min_k_plus_plus_comes_first_and_the_reason_says_so():
    found = rank([measured("low", -2.0, -2.2), measured("high", -1.0, -1.2)])
    assert found.order == ("high", "low")
    # 1 / sqrt(0.1² + 0.1²)
    assert "high comes first by min_k_plus_plus (-1.1" in found.reason
    assert "7.1 standard errors away: more than the samples' noise" in found.reason
    assert "Ji et al." in found.reason


def test_what_noise_could_do_is_not_told_apart():
    assert "not told apart" in rank([measured("a", -1.0, -3.0), measured("b", -1.1, -3.1)]).reason


def test_what_speaks_against_the_order_is_said():
    said = " ".join(rank([measured("a", -1.0, repetition=0.5), measured("b", -2.0, perplexity=5.0)]).cautions)
    assert "Perplexity says otherwise: b" in said
    assert "a repeats itself (50%" in said
    assert "WikiText-2" in said
    assert "one seed" in said
    assert "better by min_k_plus_plus pruned worse" in said


@pytest.mark.parametrize("by", PROXIES)
def test_whether_a_proxy_pointed_the_wrong_way_is_what_the_evidence_says(by):
    text = (Path(__file__).parents[2] / "docs/evidence.md").read_text(encoding="utf-8")
    better, models = re.search(rf"^\| `{by}` \| (\w+) \| ([^|]+) \|", text, re.MULTILINE).groups()
    # more of it went with a higher perplexity of the pruned model where the whole interval is above zero
    intervals = [tuple(map(float, ends)) for ends in re.findall(r"\[(\S+), (\S+)\]", models)]
    assert len(intervals) == 3
    worse_with_more = all(low > 0 for low, _ in intervals)
    worse_with_less = all(high < 0 for _, high in intervals)
    assert (by in WRONG_WAY) == (worse_with_more if better == "higher" else worse_with_less and better == "lower")


def test_another_proxy_can_rank_and_the_lower_is_first_where_lower_is_better():
    sets = [measured("a", -1.0, perplexity=9.0), measured("b", -2.0, perplexity=5.0), measured("c", -2.0)]
    assert rank(sets, by="perplexity").order == ("b", "a", "c")


def test_what_cannot_be_told_comes_last():
    assert rank([measured("nan", float("nan")), measured("a", -9.0)]).order == ("a", "nan")


@pytest.mark.parametrize(
    ("by", "says"),
    [("perplexty", "did you mean 'perplexity'"), ("vocabulary", "nobody knows whether more is better")],
)
def test_ranking_by_what_cannot_rank_is_one_sentence(by, says):
    with pytest.raises(ConfigError, match=says):
        rank([measured("a", 1.0)], by=by)


def test_sets_are_cut_to_the_smallest():
    one, two = of_one_size([CalibrationSet.from_ids(random_ids(4, 24)), CalibrationSet.from_ids(random_ids(6, 16))])
    assert one.input_ids.shape == two.input_ids.shape == (4, 16)
    assert one.manifest["part_of"]["seq_len"] == 24


def test_a_padded_set_is_cut_with_its_mask():
    short, whole = torch.arange(24) < torch.tensor([[4], [20]]), torch.arange(24) < torch.tensor([[18], [20]])
    other = CalibrationSet.from_ids(random_ids(2, 16))
    one, _ = of_one_size([CalibrationSet.from_ids(random_ids(2, 24), short), other])
    assert [len(ids) for ids in one.samples] == [4, 16]
    assert one.manifest["real_tokens"] == 20
    # where only real tokens are left, nothing is said of padding
    one, _ = of_one_size([CalibrationSet.from_ids(random_ids(2, 24), whole), other])
    assert one.attention_mask is None
    assert "real_tokens" not in one.manifest


def test_after_a_cut_documents_are_counted_only_where_each_sample_is_of_one():
    def cut(*names):
        about = {"source": {}, "document_ids": [list(one) for one in names], "text_sha256": {}}
        return of_one_size([CalibrationSet(random_ids(2, 24), about), CalibrationSet.from_ids(random_ids(2, 8))])[0]

    context = Context(tiny_lm(), lambda: cut("a", "b"))
    assert EffectiveDocuments().measure(cut("a", "b"), context) == pytest.approx(2)
    # all of the first sample's first 8 tokens may be a's
    assert isnan(EffectiveDocuments().measure(cut("ab", "b"), context))
    assert "document_ids" not in cut("ab", "b").manifest


def test_a_number_of_documents_that_is_not_known_is_said_with_its_reason():
    unknown = measured("packed", -1.0)
    unknown.values["effective_documents"] = float("nan")
    said = " ".join(rank([unknown, measured("b", -2.0)]).cautions)
    assert "No effective_documents of packed: the documents are not recorded, or samples of several were cut" in said
    assert "effective_documents" not in " ".join(rank([measured("a", -1.0), measured("b", -2.0)]).cautions)


def test_a_sample_that_cannot_be_scored_is_told_before_any_is_measured():
    mask = torch.arange(16) < torch.tensor([[1], [16]])
    with pytest.raises(CalibrationError, match="fewer than 2 real tokens"):
        of_one_size([CalibrationSet.from_ids(random_ids(2, 16), mask)])


def test_one_sample_has_no_standard_error():
    assert standard_error([1.0]) is None
    assert standard_error([1.0, float("inf")]) is None
    assert standard_error([1.0, 3.0]) == 1.0
