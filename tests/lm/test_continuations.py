"""Continuations scored with what they share run once: equal to one plain forward each, for every architecture."""

import logging

import pytest
import torch
from tiny_models import ARCHITECTURES, VOCAB, from_config, tiny_model
from transformers import MistralConfig

from calibrune.errors import ConfigError, RunError
from calibrune.lm import continuations
from calibrune.lm.continuations import ContinuationScorer, _families, _Row


def tokens(n: int, seed: int) -> list[int]:
    return torch.randint(VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def questions(shots: int = 30, n: int = 5) -> list[tuple[list[int], list[int]]]:
    """Questions after common examples: choices of one token, of several, equal ones, and one that begins another."""
    common = tokens(shots, 0)
    asked = []
    for i in range(n):
        context = [*common, *tokens(3 + i, 100 + i)]
        long = tokens(4, 200 + i)
        asked += [(context, [i]), (context, [i + 1]), (context, long), (context, tokens(2, 300 + i))]
        asked += [(context, long), (context, long[:2])]
    return [*asked, (tokens(1, 7), tokens(6, 8)), (tokens(12, 9), tokens(1, 10))]


@torch.no_grad()
def one_by_one(model, requests) -> list[tuple[float, bool]]:
    """The naive loop: a forward for every request."""
    result = []
    for context, continuation in requests:
        logits = model(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1].float()
        scores = logits.log_softmax(-1)[range(len(continuation)), continuation]
        result.append((float(scores.sum()), logits.argmax(-1).tolist() == list(continuation)))
    return result


def check(got, expected) -> None:
    assert [one.log_likelihood for one in got] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [one.is_greedy for one in got] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("share", [True, False])
def test_what_is_shared_changes_nothing(kind, share, caplog):
    model = tiny_model(kind)
    requests = questions()
    greedy = model(torch.tensor([requests[0][0]])).logits[0, -1].argmax().item()
    requests.append((requests[0][0], [greedy]))
    scorer = ContinuationScorer(model, share=share)
    got = scorer.score(requests)
    check(got, one_by_one(model, requests))
    assert got[-1].is_greedy
    assert "cannot share" not in caplog.text or kind in NO_SHARING, caplog.text


NO_SHARING = ("bloom", "falcon-rw", "mpt")
"""They tell positions by a bias that they make of a mask of rows and columns (ALiBi), and take no other mask."""


@pytest.mark.parametrize("batch_tokens", [1, 40, 100])
def test_the_size_of_a_batch_changes_nothing(batch_tokens):
    model, requests = tiny_model(), questions()
    check(ContinuationScorer(model, batch_tokens=batch_tokens).score(requests), one_by_one(model, requests))


def run_tokens(model, requests, **options) -> list[tuple[int, int]]:
    """The shapes of the ids that the model's body was run on."""
    shapes = []
    scorer = ContinuationScorer(model, **options)
    scorer.score(requests[:1])  # the probe does not count
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        scorer.score(requests)
    finally:
        hook.remove()
    return [shape for shape in shapes if shape != (1, 1)]  # a head that is fed what the body said


def test_examples_run_once_a_context_once_and_choices_of_one_token_not_at_all():
    common = tokens(40, 0)
    contexts = [[*common, *tokens(5, 100 + i)] for i in range(3)]
    one_token = [(context, [letter]) for context in contexts for letter in range(4)]
    assert run_tokens(tiny_model(), one_token) == [(1, 40), (3, 5)]
    choices = [(context, tokens(4, 10 * i + j)) for i, context in enumerate(contexts) for j in range(2)]
    assert run_tokens(tiny_model(), choices) == [(1, 40), (3, 5 + 2 * 3)]
    assert run_tokens(tiny_model(), choices, share=False) == [(6, 48)]


def test_long_continuations_of_a_short_context_are_rows_of_their_own(monkeypatch):
    monkeypatch.setattr(continuations, "ENOUGH_TOKENS", 32)
    model, context = tiny_model(), [5]
    requests = [(context, tokens(31, i)) for i in range(3)] + [(context, tokens(3, 9)), (context, tokens(31, 0))]
    # a branch of 30 tokens leaves no room for another one, but for one of 2; and what is asked twice is there
    rows = continuations._rows(requests, branch=True)
    assert [len(row.tokens) for row in rows] == [31, 31, 33, 31]
    check(ContinuationScorer(model).score(requests), one_by_one(model, requests))


def test_no_forward_is_larger_than_the_budget():
    shapes = run_tokens(tiny_model(), questions(n=20), batch_tokens=64)
    assert max(n * length for n, length in shapes) <= 64
    assert len(shapes) > 5


def test_rows_fall_into_families_by_what_they_begin_with():
    def row(*ids: int) -> _Row:
        return _Row(list(ids), len(ids))

    a, b = list(range(30)), list(range(50, 90))
    rows = [row(*b, 1), row(*a, 2), row(*a, 3), row(*b, 5, 6), row(7), row(*a, 2, 4), row(*a[:4], 9)]
    families = {tuple(prefix): sorted(len(one.tokens) for one in members) for prefix, members in _families(rows)}
    assert families == {(): [1, 5], tuple(a): [31, 31, 32], tuple(b): [41, 42]}
    assert _families([]) == [([], [])]


def test_a_context_that_begins_another_keeps_the_token_that_predicts():
    common = tokens(40, 0)
    requests = [(common, [3]), ([*common, 5], [4]), ([*common, 5, 6], [4, 5])]
    check(ContinuationScorer(tiny_model()).score(requests), one_by_one(tiny_model(), requests))


def test_a_sliding_window_is_shared_only_where_it_does_not_slide(monkeypatch):
    config = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
    wide = from_config(MistralConfig(**config, sliding_window=64))
    scorer = ContinuationScorer(wide)
    check(scorer.score(questions()), one_by_one(wide, questions()))
    assert scorer._shareable() == 64
    long = questions(shots=60)
    check(scorer.score(long), one_by_one(wide, long))
    assert ContinuationScorer(tiny_model("mistral"))._shareable() == 4


def test_a_model_that_answers_differently_when_it_shares_is_found_by_the_probe(monkeypatch, caplog):
    model = tiny_model()
    tree = continuations._tree
    monkeypatch.setattr(continuations, "_tree", lambda *args: (tree(*args)[0], tree(*args)[1] + 1))
    with caplog.at_level(logging.WARNING):
        got = ContinuationScorer(model).score(questions())
    check(got, one_by_one(model, questions()))
    assert "cannot share" in caplog.text


def test_a_batch_that_does_not_fit_in_memory_is_halved_and_tried_again(monkeypatch, caplog):
    model, requests = tiny_model(), questions(shots=0)
    original, sizes = continuations._score, []

    def small(model, cache, rows, prefix):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return original(model, cache, rows, prefix)

    scorer = ContinuationScorer(model)
    scorer._shareable()
    monkeypatch.setattr(continuations, "_score", small)
    check(scorer.score(requests), one_by_one(model, requests))
    assert sizes[0] == len(requests) // 6 + 2
    assert "memory ran out" in caplog.text


def test_memory_for_less_than_a_row_is_an_error_and_other_errors_stay_themselves(monkeypatch):
    scorer = ContinuationScorer(tiny_model())
    scorer._shareable()

    def failing(message):
        def fail(*args):
            raise RuntimeError(message)

        return fail

    monkeypatch.setattr(continuations, "_score", failing("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(RunError, match="does not suffice for one row"):
        scorer.score(questions())
    monkeypatch.setattr(continuations, "_score", failing("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="multiplied"):
        scorer.score(questions())


def test_nothing_to_score_is_nothing_and_an_empty_half_is_an_error():
    scorer = ContinuationScorer(tiny_model())
    assert scorer.score([]) == []
    with pytest.raises(ConfigError, match="at least one token"):
        scorer.score([([], [1])])
    with pytest.raises(ConfigError, match="at least one token"):
        scorer.score([([1], [])])
