"""Text that the model writes itself: the same for the same request, whatever the batch, and after a crash."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_lm, tiny_model

from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.filters import PerplexityFilter
from calibrune.calibration.mixture import Mixture
from calibrune.corpora import generated
from calibrune.corpora.document import Document
from calibrune.corpora.engines import local
from calibrune.corpora.generated import SelfGeneration
from calibrune.errors import ConfigError, CorpusError
from calibrune.lm.generation import Sampling
from calibrune.lm.likelihood import token_log_likelihoods
from calibrune.lm.loading import LanguageModel

FREE = Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass(frozen=True)
class Lines:
    """A corpus of a few strings."""

    texts: tuple[str, ...]
    name: str = "lines"
    in_random_order: bool = False

    def documents(self) -> Iterator[Document]:
        for row, text in enumerate(self.texts):
            yield Document(text, f"{self.name}:{row}")

    def describe(self) -> dict[str, Any]:
        return {"kind": "memory", "texts": list(self.texts)}


LINES = Lines(("first words", "second", "x", "yes and no"))


def writer(lm: LanguageModel | None = None, **given: Any) -> SelfGeneration:
    return SelfGeneration(**({"model": lm or tiny_lm(), "max_new_tokens": 12, "batch_size": 4, "n_texts": 10} | given))


def ids_of(corpus: SelfGeneration, n: int | None = None) -> list[tuple[int, ...]]:
    return [document.token_ids for document in islice(corpus.documents(), n)]


def empty_the_cache(cache: Path) -> None:
    for file in sorted(cache.rglob("*.jsonl")):
        file.unlink()


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many texts each call of `generate` was asked for."""
    made: list[int] = []
    original = local.generate

    def counting(model, prompts, seeds, **options):
        made.append(len(prompts))
        return original(model, prompts, seeds, **options)

    monkeypatch.setattr(local, "generate", counting)
    return made


@pytest.mark.parametrize("prompts", ["random", "bos", LINES])
def test_the_same_seed_writes_the_same_documents_and_another_one_others(prompts, cache):
    first = list(writer(prompts=prompts).documents())
    empty_the_cache(cache)
    assert list(writer(prompts=prompts).documents()) == first
    others = list(writer(prompts=prompts, seed=1).documents())
    assert {d.token_ids for d in others}.isdisjoint(d.token_ids for d in first)
    assert len({d.id for d in first}) == 10


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("prompts", ["random", LINES])
def test_another_batch_size_writes_the_same_texts(kind, prompts):
    lm = tiny_lm(kind, adds_bos=True)
    found = [ids_of(writer(lm, prompts=prompts, batch_size=size, prefix_tokens=3)) for size in (1, 3, 10)]
    assert found[0] == found[1] == found[2]


def test_the_longest_text_does_not_depend_on_the_prompts_beside_it():
    # the context of 128 is the limit; "x" is a prompt of one token, the others of four
    lm = tiny_lm()
    options = {"prompts": LINES, "prefix_tokens": 4, "max_new_tokens": 2048, "n_texts": 8}
    found = [ids_of(writer(lm, batch_size=size, **options)) for size in (1, 8)]
    assert found[0] == found[1]
    assert max(map(len, found[0])) <= 128
    assert writer(lm, **options).describe()["max_new_tokens"] == 124  # what the context leaves, not what was asked for


@pytest.mark.parametrize("adds_bos", [True, False])
def test_prompts_are_the_first_tokens_of_documents_with_bos_where_the_tokenizer_puts_one(adds_bos):
    lm = tiny_lm(adds_bos=adds_bos)
    documents = list(writer(lm, prompts=LINES, prefix_tokens=2, n_texts=4).documents())
    texts = {f"lines:{row}/0": text for row, text in enumerate(LINES.texts)}
    assert {d.id for d in documents} == texts.keys()
    for document in documents:
        first = lm.tokenizer(texts[document.id][:2], add_special_tokens=False).input_ids
        expected = ([0] if adds_bos else []) + first
        assert list(document.token_ids[: len(expected)]) == expected
        assert document.text.startswith(texts[document.id][:2])
        assert len(document.token_ids) > len(expected)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_prompts_from_bos_are_bos_alone(adds_bos):
    documents = list(writer(tiny_lm(adds_bos=adds_bos), prompts="bos", sampling=FREE).documents())
    assert {d.token_ids[0] for d in documents} == {0}
    assert len({d.token_ids[1] for d in documents}) > 3


@pytest.mark.parametrize("adds_bos", [True, False])
def test_random_prompts_are_one_ordinary_token_each(adds_bos):
    documents = list(writer(tiny_lm(adds_bos=adds_bos), prompts="random", n_texts=40).documents())
    place = 1 if adds_bos else 0
    assert all(d.token_ids[:place] == (0,) * place for d in documents)
    firsts = [d.token_ids[place] for d in documents]
    assert min(firsts) >= 2
    assert len(set(firsts)) > 20


def test_prompts_from_bos_need_a_bos():
    lm = tiny_lm()
    lm.tokenizer.bos_token = None
    with pytest.raises(CorpusError, match="use prompts='random'"):
        next(writer(lm, prompts="bos").documents())


def test_a_corpus_that_ends_is_begun_again_with_another_draw():
    documents = list(writer(prompts=LINES, n_texts=12, sampling=FREE).documents())
    assert {d.id for d in documents} == {f"lines:{row}/{draw}" for row in range(4) for draw in range(3)}
    by_row = {row: {d.token_ids for d in documents if d.id.startswith(f"lines:{row}/")} for row in range(4)}
    assert all(len(texts) == 3 for texts in by_row.values())


def test_a_corpus_without_a_token_gives_no_prompts():
    with pytest.raises(CorpusError, match="'lines' has no document with a token"):
        next(writer(prompts=Lines(("", ""))).documents())


def test_prompts_as_long_as_the_context_leave_no_room():
    with pytest.raises(CorpusError, match="use fewer prefix_tokens"):
        next(writer(prompts=Lines(("a" * 200,)), prefix_tokens=128).documents())


@pytest.mark.parametrize("n_texts", [5, 8, 1])
def test_fewer_documents_are_the_first_of_more(n_texts, cache):
    ten = list(writer(n_texts=10).documents())
    # with the ten in the cache ...
    assert ids_of(writer(n_texts=n_texts)) == [d.token_ids for d in ten[:n_texts]]
    empty_the_cache(cache)
    # ... without, by reading on no further ...
    assert list(islice(writer(n_texts=None).documents(), n_texts)) == ten[:n_texts]
    empty_the_cache(cache)
    # ... and the fewer first
    assert ids_of(writer(n_texts=n_texts)) == [d.token_ids for d in ten[:n_texts]]
    assert ids_of(writer(n_texts=10)) == [d.token_ids for d in ten]


def test_a_finished_run_is_read_back_and_not_written_again(calls):
    first = list(writer().documents())
    assert calls == [4, 4, 2]
    assert list(writer().documents()) == first
    assert calls == [4, 4, 2]


def test_no_more_batches_are_written_than_are_read(calls):
    next(writer(n_texts=None).documents())
    assert calls == [4]


def test_a_run_that_was_killed_goes_on_with_the_batch_it_was_at(cache, monkeypatch, calls):
    uninterrupted = list(writer().documents())
    empty_the_cache(cache)
    calls.clear()
    counting = local.generate

    def killed_in_the_third(*args, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return counting(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(local, "generate", killed_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            list(writer().documents())
    assert calls == [4, 4]
    assert list(writer().documents()) == uninterrupted
    assert calls == [4, 4, 2]


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_the_recorded_perplexity_is_that_of_a_second_pass(kind):
    lm = tiny_lm(kind, adds_bos=True)
    for document in writer(lm, prompts=LINES, prefix_tokens=2, max_new_tokens=40).documents():
        ids = torch.tensor([document.token_ids])
        # "x" is shorter than a prefix
        prompt = 2 if document.id.startswith("lines:2/") else 3
        scores = token_log_likelihoods(lm.model, ids)[0, prompt - 1 :].double()
        assert abs(document.perplexity / exp(-scores.mean()) - 1) < 1e-3


def test_the_description_is_json_and_changes_with_every_setting():
    plain = writer()
    assert json.loads(json.dumps(plain.describe())) == plain.describe()
    warmer = tiny_lm()
    with torch.no_grad():
        warmer.model.model.norm.weight *= 2
    other_end = tiny_lm()
    other_end.model.generation_config.eos_token_id = [1, 7]
    others = {
        "model": writer(warmer),
        "where texts end": writer(other_end),
        "prompts": writer(prompts="bos"),
        "a corpus": writer(prompts=LINES),
        "another corpus": writer(prompts=Lines(("a", "b"))),
        "prefix_tokens": writer(prompts=LINES, prefix_tokens=3),
        "temperature": writer(sampling=Sampling(temperature=0.7)),
        "top_k": writer(sampling=Sampling(top_k=49)),
        "top_p": writer(sampling=Sampling(top_p=0.9)),
        "repetition_penalty": writer(sampling=Sampling(repetition_penalty=1.0)),
        "max_new_tokens": writer(max_new_tokens=13),
        "batch_size": writer(batch_size=5),
        "n_texts": writer(n_texts=11),
        "seed": writer(seed=1),
    }
    described = {json.dumps(corpus.describe(), sort_keys=True) for corpus in [plain, *others.values()]}
    assert len(described) == 1 + len(others)


def test_a_setting_that_cannot_be_is_refused():
    for wrong in ({"prefix_tokens": 0}, {"max_new_tokens": 0}, {"batch_size": 0}, {"n_texts": 0}, {"prompts": "c4"}):
        with pytest.raises(ConfigError):
            writer(**wrong)


def recipe(lm: LanguageModel, **given: Any) -> CalibrationRecipe:
    corpus = writer(lm, n_texts=20, max_new_tokens=40, batch_size=8, sampling=Sampling(temperature=1.5, top_k=0))
    chosen = {"corpus": corpus, "filters": (PerplexityFilter(among=20),), "n_samples": 6, "seq_len": 32}
    return CalibrationRecipe(**(chosen | given))


def test_a_calibration_set_has_the_exact_tokens_and_not_those_of_the_text_read_again():
    lm = tiny_lm(adds_bos=True)
    made = recipe(lm)
    documents = list(made.corpus.documents())
    tokenizer = lm.tokenizer
    changed = [d for d in documents if tokenizer(d.text).input_ids != [i for i in d.token_ids if i != 1]]
    assert changed, "no text tells its tokens from those of its text read again: this test shows nothing"
    by_perplexity = sorted(documents, key=lambda d: d.perplexity)
    dropped = {d.id for d in by_perplexity[16:]}
    stream: list[int] = []
    for document in documents:
        if document.id not in dropped:
            stream += [*document.token_ids, *([] if document.token_ids[-1] == 1 else [1])]
    n = len(stream) // 32
    built = build(recipe(lm, n_samples=n), tokenizer, vocab_size=lm.vocab_size, context_length=lm.context_length)
    assert built.input_ids.flatten().tolist() == stream[: n * 32]
    assert built.dropped == {"perplexity among the highest 0.2": 4}
    used = {name for names in built.manifest["document_ids"] for name in names}
    assert used.isdisjoint(dropped)
    assert any(d.id in used for d in changed)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_weights_are_hashed_once_a_build_and_anew_in_the_next(mixed, monkeypatch):
    hashed = []
    original = generated.weights_fingerprint
    monkeypatch.setattr(generated, "weights_fingerprint", lambda model: hashed.append(1) or original(model))
    lm = tiny_lm(adds_bos=True)
    made = recipe(lm, n_samples=2)
    if mixed:
        made = replace(made, corpus=Mixture(parts=((made.corpus, 1), (LINES, 1e-6))))
    first = build(made, lm.tokenizer)
    assert len(hashed) == 1
    with torch.no_grad():
        lm.model.model.norm.weight *= 2  # as after pruning: no text of the model that was
    assert build(made, lm.tokenizer).manifest["source"] != first.manifest["source"]
    assert len(hashed) == 2


BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from corpora.test_generated import recipe
from tiny_models import tiny_lm
from calibrune.calibration.build import build
lm = tiny_lm(adds_bos=True)
print(build(recipe(lm), lm.tokenizer).fingerprint)
"""


@pytest.mark.slow
def test_two_processes_build_the_same_set(tmp_path):
    found = []
    for i in range(2):
        environment = os.environ | {"CALIBRUNE_CACHE": str(tmp_path / f"cache{i}"), "PYTHONHASHSEED": str(i)}
        run = subprocess.run(
            [sys.executable, "-c", BUILD, str(Path(__file__).parents[1])],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert run.returncode == 0, run.stderr
        found.append(run.stdout.split()[-1])
    lm = tiny_lm(adds_bos=True)
    assert found[0] == found[1] == build(recipe(lm), lm.tokenizer).fingerprint


def test_the_model_is_left_as_it_was():
    lm = tiny_lm()
    lm.model.train()
    next(writer(lm).documents())
    assert lm.model.training
    expected = tiny_model().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in lm.model.state_dict().items())
