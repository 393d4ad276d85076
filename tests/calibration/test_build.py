import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from calibrune.calibration import build as module
from calibrune.calibration.build import CalibrationRecipe, build, describe_tokenizer
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.filters import LengthFilter, PerplexityFilter
from calibrune.calibration.windows import Windows
from calibrune.corpora.document import Document
from calibrune.corpora.files import FileCorpus
from calibrune.corpora.random_tokens import RandomTokens
from calibrune.errors import CalibrationError, ConfigError
from calibrune.seeds import rank_of

SHARED_DATA = Path(os.environ.get("CALIBRUNE_SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.fixture
def corpus(in_memory):
    return in_memory(*(chr(ord("a") + i) * (5 + i) for i in range(26)), "x", "y")


def recipe(corpus, /, **settings) -> CalibrationRecipe:
    return CalibrationRecipe(**{"corpus": corpus, "n_samples": 4, "seq_len": 8, **settings})


@pytest.mark.parametrize("policy", ["packed", "packed_blank", "long_documents"])
def test_the_same_request_gives_the_same_set_and_another_seed_another(corpus, tokenizer, policy):
    def built(seed: int) -> CalibrationSet:
        return build(recipe(corpus, windows=Windows(policy=policy), seed=seed), tokenizer)

    assert built(0).fingerprint == built(0).fingerprint != built(1).fingerprint
    assert built(0).manifest == built(0).manifest


@pytest.mark.parametrize("policy", ["packed", "packed_blank", "long_documents"])
def test_a_smaller_set_is_the_beginning_of_a_larger_one(corpus, tokenizer, policy):
    windows = Windows(policy=policy)
    small, large = (build(recipe(corpus, windows=windows, n_samples=n), tokenizer) for n in (3, 6))
    assert small.fingerprint == large.take(3).fingerprint
    assert small.manifest["document_ids"] == large.take(3).manifest["document_ids"]
    assert small.manifest["text_sha256"] == large.take(3).manifest["text_sha256"]


def test_documents_come_in_the_order_of_their_ranks(corpus, tokenizer):
    built = build(recipe(corpus, seed=3), tokenizer)
    order = sorted((d.id for d in corpus.documents()), key=lambda name: rank_of(3, name))
    used = list(dict.fromkeys(name for names in built.manifest["document_ids"] for name in names))
    assert used == order[: len(used)]


def test_the_record_has_everything_that_can_change_a_token(corpus, tokenizer):
    built = build(recipe(corpus, filters=(LengthFilter(min_chars=4),), seed=7), tokenizer)
    manifest = built.manifest
    assert manifest == json.loads(json.dumps(manifest))
    # a class of one's own is recorded by its name
    assert manifest["source"] == {"class": "in_memory:InMemory", "kind": "memory", "name": "toy", "rows": 28}
    assert manifest["filters"] == [{"kind": "LengthFilter", "min_chars": 4, "max_chars": None}]
    assert manifest["windows"] == {"policy": "packed", "bos": "document", "eos": "policy"}
    assert (manifest["n_samples"], manifest["seq_len"], manifest["seed"]) == (4, 8, 7)
    assert manifest["sampler"] == "keyed-hash-1"
    assert manifest["tokenizer"] | {"sha256": None} == {
        "sha256": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "adds_before": [0],
        "adds_after": [],
    }
    assert manifest["fingerprint"] == built.fingerprint
    assert manifest["versions"].keys() == {"calibrune", "transformers", "tokenizers", "torch"}
    texts = {d.id: hashlib.sha256(d.text.encode()).hexdigest()[:16] for d in corpus.documents()}
    assert manifest["text_sha256"] == {name: texts[name] for names in manifest["document_ids"] for name in names}
    assert (
        len(manifest["text_sha256"]) + built.dropped.get("fewer than 4 characters", 0)
        == (manifest["documents_looked_at"])
    )


def test_what_is_built_can_be_saved_again_and_loaded(corpus, tokenizer, tmp_path):
    for _ in range(2):
        build(recipe(corpus), tokenizer).save(tmp_path / "set")
    assert CalibrationSet.load(tmp_path / "set").manifest == build(recipe(corpus), tokenizer).manifest


def test_filters_come_before_windows(tokenizer, in_memory):
    class Scored(in_memory):
        in_random_order = True

        def documents(self):
            for row, text in enumerate(self.texts):
                yield Document(text, text, perplexity=float(row))

    filters = (PerplexityFilter(drop_highest=0.5, among=2),)
    built = build(recipe(Scored("aaaa", "bbbb", "cccc", "dddd"), filters=filters, n_samples=1), tokenizer)
    assert built.manifest["document_ids"] == [["aaaa", "cccc"]]
    assert built.dropped == {"perplexity among the highest 0.5": 2}


def test_every_filter_must_be_recordable(corpus):
    class Undescribed:
        def keep(self, documents, dropped):
            yield from documents

    with pytest.raises(ConfigError, match="must be a dataclass"):
        recipe(corpus, filters=(Undescribed(),))
    with pytest.raises(ConfigError, match="filters"):
        recipe(corpus, filters=("perplexity",))


def test_filters_that_let_nothing_through_do_not_search_for_ever(tokenizer, monkeypatch):
    @dataclass(frozen=True)
    class Nothing:
        def keep(self, documents, dropped: Counter[str]):
            for _ in documents:
                dropped["never good enough"] += 1
            yield from ()

    monkeypatch.setattr(module, "GIVE_UP_AFTER", 20)
    endless = RandomTokens(tokenizer=tokenizer, length=8)
    with pytest.raises(CalibrationError, match="dropped 20 documents of 'random tokens' in a row"):
        build(recipe(endless, filters=(Nothing(),)), tokenizer)


def test_a_group_that_fills_slowly_is_waited_for(tokenizer, monkeypatch, in_memory):
    class Scored(in_memory):
        def documents(self):
            for document in super().documents():
                yield Document(document.text, document.id, perplexity=1.0)

    monkeypatch.setattr(module, "GIVE_UP_AFTER", 20)
    corpus = Scored(*("a" if i % 3 else "a" * 20 for i in range(300)))
    filters = (LengthFilter(min_chars=10), PerplexityFilter(among=None))
    built = build(recipe(corpus, filters=filters), tokenizer)
    assert built.dropped == {"fewer than 10 characters": 200, "perplexity among the highest 0.2": 20}
    # a bound that lets nothing into the group is no slow group
    endless = Scored(*("a" * 20 for _ in range(300)))
    with pytest.raises(CalibrationError, match="dropped 20 documents of 'toy' in a row"):
        build(recipe(endless, filters=(PerplexityFilter(among=None, max_perplexity=0.5),)), tokenizer)


def test_a_set_that_does_not_fit_the_model_is_an_error_before_anything_is_read(corpus, tokenizer):
    with pytest.raises(CalibrationError, match="samples of 8 tokens asked for, but the model reads at most 7"):
        build(recipe(corpus), tokenizer, context_length=7)
    assert corpus.read == 0
    with pytest.raises(CalibrationError, match="vocabulary ends at 49"):
        build(recipe(corpus), tokenizer, vocab_size=50)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_samples": 0}, "n_samples cannot be 0"),
        ({"seq_len": 1}, "seq_len cannot be 1"),
        ({"samples": 1}, "did you mean 'n_samples'"),
        ({"corpus": "c4"}, "corpus cannot be 'c4'"),
    ],
)
def test_impossible_recipes_are_errors(corpus, settings, says):
    with pytest.raises(ConfigError, match=says):
        recipe(corpus, **settings)


def test_the_tokenizers_hash_is_of_what_it_does_and_not_of_its_last_call(make_tokenizer):
    tokenizer = make_tokenizer()
    before = describe_tokenizer(tokenizer)
    tokenizer("abcdef", truncation=True, max_length=2)
    assert describe_tokenizer(tokenizer) == before == describe_tokenizer(make_tokenizer())
    assert describe_tokenizer(make_tokenizer(adds="$A"))["sha256"] != before["sha256"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("policy", ["packed", "packed_blank", "long_documents"])
def test_real_text_gives_sets_of_its_own_for_each_seed(tokenizer, policy):
    fineweb = FileCorpus(path=SHARED_DATA / "corpora" / "fineweb_edu.jsonl.gz")
    fingerprints = set()
    for seed in range(2):
        of = CalibrationRecipe(corpus=fineweb, windows=Windows(policy=policy), n_samples=16, seq_len=512, seed=seed)
        fingerprints.add(build(of, tokenizer).fingerprint)
    assert len(fingerprints) == 2


def test_short_texts_are_samples_with_a_mask_and_a_smaller_set_is_a_part_of_a_larger(in_memory, tokenizer):
    short = in_memory(*("ab" * (1 + i % 5) for i in range(20)))
    how = Windows(policy="one_per_document", eos="document")
    made, half = (
        build(CalibrationRecipe(corpus=short, windows=how, n_samples=n, seq_len=8), tokenizer) for n in (16, 8)
    )
    assert made.take(8).fingerprint == half.fingerprint
    assert torch.equal(made.take(8).attention_mask, half.attention_mask)
    assert made.manifest["real_tokens"] == int(made.attention_mask.sum()) < made.input_ids.numel()
    assert half.manifest["real_tokens"] == made.take(8).manifest["real_tokens"]


def test_where_bos_and_eos_were_put_is_recorded(in_memory, tokenizer, make_tokenizer):
    corpus = in_memory(*("abcdefgh" for _ in range(9)))
    options = {"corpus": corpus, "n_samples": 4, "seq_len": 8}
    said = build(CalibrationRecipe(**options), tokenizer).manifest["special_tokens"]
    assert said == {
        "before_document": [0],
        "after_document": [1],
        "window_begins": None,
        "eos": "document",
        "tokenizer_adds_bos": True,
        "tokenizer_adds_eos": False,
        "samples_that_begin_with_bos": 1,
    }
    asked = CalibrationRecipe(**options, windows=Windows(bos="window", eos="none"))
    said = build(asked, make_tokenizer(adds="$A")).manifest["special_tokens"]
    assert (said["before_document"], said["after_document"], said["window_begins"]) == ([], [], 0)
    assert (said["tokenizer_adds_bos"], said["samples_that_begin_with_bos"]) == (False, 4)
