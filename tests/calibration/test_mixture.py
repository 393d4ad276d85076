"""Mixtures: the shares by hand and by property, nested subsets, and that each part is what it is by itself."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_memory import InMemory
from tiny_models import tiny_lm

from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.filters import ContaminationFilter, LengthFilter, PerplexityFilter
from calibrune.calibration.mixture import Mixture, Part
from calibrune.calibration.scores import DocumentScorer
from calibrune.calibration.windows import Windows
from calibrune.errors import CalibrationError, ConfigError

A, B = (InMemory(*(letter * 12 for _ in range(60)), name=name) for letter, name in (("a", "one"), ("b", "two")))


def mixture(*weights: float) -> Mixture:
    return Mixture(parts=tuple((InMemory("x", name=f"part {i}"), weight) for i, weight in enumerate(weights)))


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ((1, 1), [0, 1, 0, 1, 0, 1, 0, 1]),
        ((0.75, 0.25), [0, 0, 0, 1, 0, 0, 0, 1]),
        ((1, 3), [1, 1, 0, 1, 1, 1, 0, 1]),
        ((1,), [0] * 8),
    ],
)
def test_turns_by_hand(weights, turns):
    assert mixture(*weights).turns(8) == turns


def test_a_tiny_weight_is_a_tiny_share():
    tiny = mixture(1, 1e-7)
    assert tiny.turns(100) == [0] * 100
    assert tiny.shares == (Fraction(10**7, 10**7 + 1), Fraction(1, 10**7 + 1))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 200))
def test_every_beginning_has_the_shares_to_within_one_sample(weights, n):
    mixed = mixture(*weights)
    turns = mixed.turns(n)
    for end in range(n + 1):
        for part, weight in enumerate(weights):
            assert abs(turns[:end].count(part) - Fraction(end * weight, sum(weights))) < 1
    assert mixed.turns(n // 2) == turns[: n // 2]


def test_the_parts_are_dealt_out_and_each_is_what_it_is_by_itself(tokenizer):
    options = {"n_samples": 8, "seq_len": 8, "seed": 4}
    made = build(CalibrationRecipe(corpus=Mixture(parts=((A, 0.75), (B, 0.25))), **options), tokenizer)
    one = build(CalibrationRecipe(corpus=A, **options | {"n_samples": 6}), tokenizer)
    two = build(CalibrationRecipe(corpus=B, **options | {"n_samples": 2}), tokenizer)
    assert torch.equal(made.input_ids[[0, 1, 2, 4, 5, 6]], one.input_ids)
    assert torch.equal(made.input_ids[[3, 7]], two.input_ids)
    assert made.manifest["document_ids"][3] == [f"two/{name}" for name in two.manifest["document_ids"][0]]
    assert set(made.manifest["text_sha256"]) == {name for row in made.manifest["document_ids"] for name in row}


def test_a_smaller_mixture_is_the_beginning_of_a_larger_one(tokenizer):
    mixed = Mixture(parts=((A, 2), (B, 1)))
    few, many = (build(CalibrationRecipe(corpus=mixed, n_samples=n, seq_len=8), tokenizer) for n in (7, 14))
    assert torch.equal(many.input_ids[:7], few.input_ids)
    assert many.take(7).fingerprint == few.fingerprint


def test_a_part_of_a_mixture_says_nothing_that_is_true_of_the_whole_only(tokenizer):
    short = InMemory(*("c" * (3 if i % 2 else 20) for i in range(60)), name="short")
    rare = InMemory("d" * 30, name="rare")
    parts = (Part(corpus=A), Part(corpus=short, filters=(LengthFilter(min_chars=10),)), Part(corpus=rare, weight=0.2))
    few, many = (
        build(CalibrationRecipe(corpus=Mixture(parts=parts), n_samples=n, seq_len=8), tokenizer) for n in (4, 16)
    )
    taken, own = many.take(4).manifest, few.manifest
    counted = [{"name": part["name"], "n_samples": part["n_samples"]} for part in own["parts"]]
    assert taken["parts"] == counted
    assert taken["special_tokens"] == own["special_tokens"]
    assert taken["special_tokens"] != many.manifest["special_tokens"]
    assert not {"dropped", "documents_looked_at"} & taken.keys()
    assert taken["part_of"]["dropped"] == many.dropped
    assert many.take(4).dropped == {}


@pytest.mark.parametrize("weight", [0, 0.0, -1.0, float("inf"), float("nan"), "1e-999999999", None, True])
def test_a_weight_in_a_manifest_that_is_none_is_told(tokenizer, weight):
    made = build(CalibrationRecipe(corpus=Mixture(parts=((A, 2), (B, 1))), n_samples=6, seq_len=8), tokenizer)
    made.manifest["source"]["parts"][1]["weight"] = weight
    with pytest.raises(CalibrationError, match="not one that was written here"):
        made.take(3)


def test_a_part_has_filters_of_its_own(tokenizer):
    short = InMemory(*("c" * (3 if i % 2 else 20) for i in range(40)), name="short")
    parts = (Part(corpus=A), Part(corpus=short, filters=(LengthFilter(min_chars=10),)))
    made = build(CalibrationRecipe(corpus=Mixture(parts=parts), n_samples=8, seq_len=8), tokenizer)
    by_name = {part["name"]: part for part in made.manifest["parts"]}
    assert by_name["one"]["dropped"] == {}
    assert by_name["short"]["dropped"] == made.dropped
    assert sum(made.dropped.values()) > 0
    assert made.manifest["source"]["parts"][1]["filters"] == [
        {"kind": "LengthFilter", "min_chars": 10, "max_chars": None}
    ]


def test_filters_of_parts_record_themselves(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    lm = tiny_lm()
    (tmp_path / "quiz.txt").write_text("nothing that anybody wrote")
    scored = PerplexityFilter(drop_highest=0.25, scorer=DocumentScorer(model=lm))
    clean = ContaminationFilter(evals=tmp_path / "quiz.txt")
    parts = (Part(corpus=A, filters=(scored,)), Part(corpus=B, filters=(clean,)))
    made = build(CalibrationRecipe(corpus=Mixture(parts=parts), n_samples=4, seq_len=8), lm.tokenizer)
    (one,), (two,) = (part["filters"] for part in made.manifest["source"]["parts"])
    assert (one, two) == (scored.describe(), clean.describe())


def test_what_cannot_be_recorded_is_told_before_anything_is_read(tokenizer):
    @dataclass(frozen=True)
    class Odd:
        where: Path

        def keep(self, documents, dropped):
            yield from documents

    corpus = InMemory("a" * 99)
    parts = (Part(corpus=corpus, filters=(Odd(Path("x")),)),)
    with pytest.raises(ConfigError, match="cannot be recorded as JSON"):
        build(CalibrationRecipe(corpus=Mixture(parts=parts), n_samples=1, seq_len=8), tokenizer)
    assert corpus.read == 0


def test_padded_and_full_samples_can_be_mixed(tokenizer):
    short = InMemory(*("c" * 3 for _ in range(9)), name="short")
    how = Windows(policy="one_per_document")
    mixed = CalibrationRecipe(corpus=Mixture(parts=((A, 1), (short, 1))), windows=how, n_samples=4, seq_len=8)
    made = build(mixed, tokenizer)
    assert made.attention_mask.sum(dim=1).tolist() == [8, 4, 8, 4]
    assert made.manifest["real_tokens"] == 24


def test_two_parts_of_one_name_are_told_apart(tokenizer):
    made = build(CalibrationRecipe(corpus=Mixture(parts=((A, 1), (A, 1))), n_samples=2, seq_len=8), tokenizer)
    assert [part["name"] for part in made.manifest["parts"]] == ["one", "one 2"]


def test_parts_of_one_source_share_out_its_documents(tokenizer):
    parts = ((A, 1), (B, 1), Part(corpus=A, weight=2, filters=(LengthFilter(min_chars=1),)))
    made = build(CalibrationRecipe(corpus=Mixture(parts=parts), n_samples=24, seq_len=8), tokenizer)
    ids = {name for row in made.manifest["document_ids"] for name in row}
    first, again = ({name.split("/")[1] for name in ids if name.startswith(f"{of}/")} for of in ("one", "one 2"))
    assert first
    assert again
    assert first.isdisjoint(again)
    few = build(CalibrationRecipe(corpus=Mixture(parts=parts), n_samples=9, seq_len=8), tokenizer)
    assert few.fingerprint == made.take(9).fingerprint


def test_parts_that_read_one_dataset_to_different_depths_share_out_its_documents_too(tokenizer):
    class Scan(InMemory):
        def describe(self):
            return {"kind": "memory", "name": self.name, "scan": len(self.texts)}

    texts = [f"{i:02d} " * 5 for i in range(60)]
    deep, shallow = Scan(*texts, name="one"), Scan(*texts[:40], name="one")
    made = build(CalibrationRecipe(corpus=Mixture(parts=((deep, 1), (shallow, 1))), n_samples=12, seq_len=8), tokenizer)
    ids = {name for row in made.manifest["document_ids"] for name in row}
    first, again = ({name.split("/")[1] for name in ids if name.startswith(f"{of}/")} for of in ("one", "one 2"))
    assert first
    assert again
    assert first.isdisjoint(again)


def test_a_part_that_gives_too_little_is_named(tokenizer):
    few = InMemory("abc", name="few")
    with pytest.raises(CalibrationError, match="documents of 'few' give only"):
        build(CalibrationRecipe(corpus=Mixture(parts=((A, 1), (few, 1))), n_samples=8, seq_len=8), tokenizer)


@pytest.mark.parametrize("parts", [(), ((A, 0),), ((A, -1.0),), (A,)])
def test_a_mixture_that_cannot_be_is_refused(parts):
    with pytest.raises(ConfigError):
        Mixture(parts=parts)
