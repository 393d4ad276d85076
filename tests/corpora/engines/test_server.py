"""A completions server: real HTTP on loopback, everything that can go wrong with it, nothing lost and nothing twice."""

import json
import logging
import multiprocessing
from itertools import islice
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from corpora.engines.loopback import FAULTS, Loopback, serving
from tiny_models import tiny_lm

from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.filters import PerplexityFilter
from calibrune.corpora.engines import CompletionsServer
from calibrune.corpora.engines.server import KEY_VARIABLE
from calibrune.corpora.generated import SelfGeneration
from calibrune.errors import ConfigError, RunError
from calibrune.lm.likelihood import token_log_likelihoods

LM = tiny_lm(adds_bos=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server():
    to = Loopback(tiny_lm(adds_bos=True))  # a model of its own: the server's threads are in this process
    with serving(to):
        yield to


def writer(to: Loopback, n_texts: int = 10, **engine: Any) -> SelfGeneration:
    options = {"url": to.url, "backoff": 0.001, "timeout": 30.0, "concurrency": 3, "retries": 20} | engine
    return SelfGeneration(
        model=LM, engine=CompletionsServer(**options), max_new_tokens=12, n_texts=n_texts, prompts="random"
    )


def lines(cache: Path) -> list[str]:
    (file,) = cache.rglob("*.jsonl")
    return file.read_text().splitlines()


def test_a_server_writes_the_texts_that_the_model_here_would_write(server):
    # seeds of a request have 31 bits, so the tokens differ from the local engine's; each is the server's own
    documents = list(writer(server).documents())
    assert [d.id for d in documents] == [f"random/{i}" for i in range(10)]
    asked = {tuple(body["prompt"]): body for body in server.bodies[1:]}
    for document in documents:
        body = asked[document.token_ids[:2]]
        answer = server.completion(body)["choices"][0]["token_ids"]
        assert list(document.token_ids) == body["prompt"] + answer
    assert len({body["seed"] for body in server.bodies[1:]}) == 10


def test_a_request_says_the_studys_settings_in_the_words_of_every_server(server):
    list(writer(server, n_texts=1).documents())
    body = server.bodies[-1]
    assert body["model"] == "org/tiny-llama"
    assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (0.6, 0.95, 50, 1.2)
    assert (body["repeat_penalty"], body["repeat_last_n"], body["min_p"]) == (1.2, -1, 0.0)
    assert body["max_tokens"] == 12
    assert body["stop_token_ids"] == [1]
    assert all(isinstance(i, int) for i in body["prompt"])


@pytest.mark.parametrize("style", ["vllm", "vllm-old", "llama.cpp", "ids-only"])
def test_exact_ids_are_read_wherever_a_server_puts_them(style, server, cache):
    expected = [d.token_ids for d in writer(server).documents()]
    server.style = style
    corpus = writer(server)
    documents = list(corpus.documents())
    assert [d.token_ids for d in documents] == expected
    description = corpus.describe()
    assert description["token_ids"] == "the server's"
    assert description["scores"] == ("the model's here" if style == "ids-only" else "the server's")
    for document in documents:
        scores = token_log_likelihoods(LM.model, torch.tensor([document.token_ids]))[0, 1:].double()
        if style == "llama.cpp" and document.token_ids[-1] == 1:
            scores = scores[:-1]  # it says nothing of the token that ends a text
        assert abs(document.perplexity / exp(-scores.mean()) - 1) < 1e-3


def test_text_alone_is_tokenized_and_scored_here_and_the_manifest_says_so(server):
    server.style = "text"
    corpus = writer(server)
    assert corpus.describe()["token_ids"] == "its text, tokenized here"
    assert corpus.describe()["scores"] == "the model's here"
    for document in corpus.documents():
        scores = token_log_likelihoods(LM.model, torch.tensor([document.token_ids]))[0, 1:].double()
        assert abs(document.perplexity / exp(-scores.mean()) - 1) < 1e-3


def test_scores_after_temperature_are_warned_of_and_can_be_taken_here(server, caplog):
    server.style = "after-temperature"
    wrong = list(writer(server).documents())
    assert "use scores=model" in caplog.text
    right = list(writer(server, scores="model").documents())
    assert [d.token_ids for d in right] == [d.token_ids for d in wrong]
    assert all(abs(a.perplexity - b.perplexity**2) < 1e-2 * a.perplexity for a, b in zip(right, wrong, strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_repeated_and_changes_nothing(fault, server, cache):
    expected = list(writer(server).documents())
    for file in cache.rglob("*.jsonl"):
        file.unlink()
    server.answered.clear()
    # the first goes to the question what the server gives; a fault there that is an answer would be believed
    server.faults = ["", *[fault, "", fault] * 2]
    assert list(writer(server, timeout=1.0).documents()) == expected
    assert len(lines(cache)) == len({json.loads(line)["key"] for line in lines(cache)}) == 10


def test_many_faults_of_all_kinds_at_once_lose_nothing_and_write_nothing_twice(server, cache):
    expected = list(writer(server, n_texts=30).documents())
    for file in cache.rglob("*.jsonl"):
        file.unlink()
    server.answered.clear()
    server.faults = ["", *FAULTS * 2]
    assert list(writer(server, n_texts=30, concurrency=8, timeout=1.0).documents()) == expected
    assert sorted(json.loads(line)["key"] for line in lines(cache)) == sorted(d.id for d in expected)
    del server.answered[0]
    assert set(server.answered.values()) == {1}


def test_a_server_that_dies_ends_in_one_sentence_and_only_missing_texts_are_asked_for_again(server, cache):
    expected = list(writer(server).documents())
    for file in cache.rglob("*.jsonl"):
        file.unlink()
    server.answered.clear()
    server.die_after = 5
    with pytest.raises(RunError, match=r"no usable answer for 'completions' in 3 attempts \(last: 500: out of memory"):
        list(writer(server, retries=2).documents())
    kept = {json.loads(line)["key"] for line in lines(cache)}
    assert len(kept) == 4  # one answer was the first look at what the server gives
    server.die_after = None
    server.bodies.clear()
    assert list(writer(server).documents()) == expected
    assert len(server.bodies) == 1 + 10 - 4


def test_a_refusal_is_told_at_once_in_the_servers_words(server):
    server.refuses = (400, "max_tokens is too large:\n 12")
    with pytest.raises(ConfigError, match="refuses the request for 'completions' \\(400: max_tokens is too large: 12"):
        list(writer(server).documents())
    assert len(server.bodies) == 1


def test_a_refusal_under_way_keeps_what_is_finished_and_says_so(server, cache):
    expected = list(writer(server).documents())
    for file in cache.rglob("*.jsonl"):
        file.unlink()
    server.faults = [""] * 6 + ["401"] * 20
    with pytest.raises(RunError, match=r"\(401: .*\), though it took others before; finished texts are kept"):
        list(writer(server).documents())
    assert 0 < len(lines(cache)) < 10
    server.faults.clear()
    assert list(writer(server).documents()) == expected


def test_a_server_that_is_not_there_is_one_sentence(server):
    gone = SelfGeneration(model=LM, engine=CompletionsServer(url="http://127.0.0.1:1/v1", retries=1, backoff=0.001))
    with pytest.raises(RunError, match="no usable answer for 'models' in 2 attempts"):
        next(gone.documents())


@pytest.mark.parametrize(
    ("models", "served", "says"),
    [
        (["a", "b"], None, "the server has 2 models; say which with served_model; choose one of: a, b"),
        ([], None, "the server has 0 models"),
        (["org/tiny-llama"], "tiny-lama", "no model 'tiny-lama'"),
        (["org/tiny-llama"], "org/tiny-lama", "did you mean 'org/tiny-llama'"),
    ],
)
def test_a_model_that_the_server_does_not_have_is_refused(models, served, says, server):
    server.models = models
    with pytest.raises(ConfigError, match=says):
        writer(server, served_model=served).describe()


def test_a_model_of_another_name_is_warned_of(server, caplog):
    writer(server).describe()
    assert caplog.text == ""
    server.models = ["other"]
    writer(server).describe()
    assert "calls its model 'other', and texts are wanted of 'tiny-llama'" in caplog.text


def test_a_key_is_sent_and_recorded_nowhere(server, cache, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    corpus = writer(server, n_texts=2)
    list(corpus.documents())
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    server.refuses = (401, "the key sk-secret is wrong")
    with pytest.raises(ConfigError, match=r"the key \*\*\* is wrong") as caught:
        list(writer(server, n_texts=3).documents())
    said = [
        *lines(cache),
        json.dumps(json.loads(corpus.engine and json.dumps({"url": corpus.engine.url}))),
        caplog.text,
    ]
    assert "sk-secret" not in "".join([*said, str(caught.value)])


def test_the_address_is_not_in_the_record(server):
    assert "127.0.0.1" not in json.dumps(writer(server).describe())


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "", "http://me:pass@host/v1"])
def test_an_address_that_cannot_be_is_refused(url):
    with pytest.raises(ConfigError, match="the server's url"):
        CompletionsServer(url=url)


def test_concurrency_changes_no_text(server, cache):
    found = []
    for concurrency in (1, 2, 7):
        for file in cache.rglob("*.jsonl"):
            file.unlink()
        found.append(list(writer(server, concurrency=concurrency).documents()))
    assert found[0] == found[1] == found[2]


def test_a_finished_set_is_read_back_and_nothing_is_asked_for_again(server):
    first = list(writer(server).documents())
    server.bodies.clear()
    assert list(writer(server).documents()) == first
    assert len(server.bodies) == 1  # what it gives


def test_texts_that_nobody_reads_are_kept_for_the_next_run(server, cache):
    list(islice(writer(server, n_texts=10).documents(), 1))
    kept = len(lines(cache))
    assert 1 <= kept <= 7
    server.bodies.clear()
    list(writer(server, n_texts=10).documents())
    assert len(server.bodies) == 1 + 10 - kept


def test_a_calibration_set_from_a_server(server):
    recipe = CalibrationRecipe(
        corpus=writer(server, n_texts=20), filters=(PerplexityFilter(among=20),), n_samples=4, seq_len=16
    )
    made = build(recipe, LM.tokenizer, vocab_size=LM.vocab_size, context_length=LM.context_length)
    assert made.manifest["source"]["engine"] == "completions server"
    assert made.manifest["source"]["served_model"] == "org/tiny-llama"
    assert made.manifest["source"]["batch_size"] is None
    assert made.fingerprint == build(recipe, LM.tokenizer).fingerprint


def _read(url: str, cache: str, queue: Any) -> None:
    import os

    os.environ["CALIBRUNE_CACHE"] = cache
    corpus = SelfGeneration(
        model=tiny_lm(adds_bos=True),
        engine=CompletionsServer(url=url, concurrency=4),
        max_new_tokens=12,
        n_texts=40,
    )
    queue.put([document.token_ids for document in corpus.documents()])


@pytest.mark.slow
def test_two_processes_at_once_read_the_same_texts_and_keep_each_once(server, cache):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    both = [context.Process(target=_read, args=(server.url, str(cache), queue)) for _ in range(2)]
    for one in both:
        one.start()
    found = [queue.get(timeout=120) for _ in both]
    for one in both:
        one.join()
    assert found[0] == found[1]
    keys = [json.loads(line)["key"] for line in lines(cache)]
    assert sorted(keys) == sorted(f"random/{i}" for i in range(40))
