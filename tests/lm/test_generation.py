"""Sampling: the warps by hand, one text's independence of the others, and scores that equal the model's own."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIGS, VOCAB, from_config, tiny_model
from transformers import LlamaConfig, Mamba2Config, MambaConfig, OpenAIGPTConfig, cache_utils
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from calibrune.errors import ConfigError, RunError
from calibrune.lm.generation import GeneratedText, Sampling, draw, generate

PROMPTS = [[2, 3], [4], [5, 6, 7], [8, 9], [10, 11, 12, 13]]
SEEDS = [11, 12, 13, 14, 15]
FREE = Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)


def nothing_seen(logits: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(logits, dtype=torch.bool)


def test_a_draw_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for chance, token in [(0.0, 0), (0.49, 0), (0.51, 1), (0.79, 1), (0.81, 2), (0.999999, 2)]:
        tokens, scores = draw(logits, nothing_seen(logits), torch.tensor([chance]).double(), FREE)
        assert tokens.tolist() == [token]
        assert math.isclose(float(scores), float(logits[0, token]), rel_tol=1e-6)


def test_top_k_and_top_p_leave_the_fewest_tokens_that_are_enough():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    almost_one = torch.tensor([0.999999]).double()
    highest_token = lambda sampling: int(draw(logits, nothing_seen(logits), almost_one, sampling)[0])  # noqa: E731
    assert highest_token(FREE) == 3
    assert highest_token(Sampling(temperature=1, top_k=2, top_p=1, repetition_penalty=1)) == 1
    # 0.5 + 0.3 is not 0.9 yet, so the third is needed
    assert highest_token(Sampling(temperature=1, top_k=0, top_p=0.9, repetition_penalty=1)) == 2
    assert highest_token(Sampling(temperature=1, top_k=0, top_p=0.4, repetition_penalty=1)) == 0


def test_the_score_is_of_the_unwarped_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    warped = Sampling(temperature=0.3, top_k=2, top_p=0.5, repetition_penalty=1.5)
    tokens, scores = draw(logits, ~nothing_seen(logits), torch.tensor([0.2]).double(), warped)
    torch.testing.assert_close(scores.float(), logits.log_softmax(-1)[0, tokens])


@given(seed=st.integers(0, 500), temperature=st.floats(0.3, 1.5), top_k=st.integers(1, 40), top_p=st.floats(0.2, 0.999))
def test_the_distribution_is_that_of_transformers_own_warps(seed, temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 30, generator=generator) * 3
    text = torch.randint(30, (1, 8), generator=generator)
    warps = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(min(top_k, 30)),
            TopPLogitsWarper(top_p),
        ]
    )
    expected = warps(text, logits.clone()).softmax(-1)[0]
    seen = nothing_seen(logits).scatter_(1, text, True)
    steps = 2000
    chance = (torch.arange(steps).double() + 0.5) / steps
    ours = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=1.2)
    tokens, _ = draw(logits.expand(steps, -1), seen.expand(steps, -1), chance, ours)
    found = torch.bincount(tokens, minlength=30) / steps
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1.5 / steps)


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_a_text_is_does_not_depend_on_the_batch(kind):
    model = tiny_model(kind)
    options = {"max_new_tokens": 20, "end_ids": (1,), "pad_id": 1}
    together = generate(model, PROMPTS, SEEDS, **options)
    alone = [generate(model, [prompt], [seed], **options)[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    assert [text.token_ids for text in together] == [text.token_ids for text in alone]
    assert len({text.token_ids for text in together}) == len(PROMPTS)


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_row_that_is_done_goes_to_the_next_text(kind, at_once):
    model = tiny_model(kind)
    prompts, seeds = PROMPTS + [prompt[::-1] for prompt in PROMPTS], [*SEEDS, *range(5)]
    free = generate(model, prompts, seeds, max_new_tokens=24, pad_id=1)
    # tokens that come up early in some of the texts, so that rows become free at different steps
    ends = tuple({text.token_ids[text.prompt_length + 2 + i] for i, text in enumerate(free[::3])})
    options = {"max_new_tokens": 24, "end_ids": ends, "pad_id": 1}
    alone = [generate(model, [prompt], [seed], **options)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert len({len(text.log_probs) for text in alone}) > 2
    side_by_side = generate(model, prompts, seeds, at_once=at_once, **options)
    for text, expected in zip(side_by_side, alone, strict=True):
        assert (text.token_ids, text.finished) == (expected.token_ids, expected.finished)
        torch.testing.assert_close(torch.tensor(text.log_probs), torch.tensor(expected.log_probs), rtol=1e-4, atol=1e-4)


def test_no_new_tokens_are_no_text():
    assert generate(tiny_model(), PROMPTS, SEEDS, max_new_tokens=0)[0] == GeneratedText((2, 3), 2, (), False)


def test_another_seed_writes_another_text():
    model = tiny_model()
    first, second = generate(model, [[2, 3]] * 2, [1, 2], max_new_tokens=20)
    assert first.token_ids != second.token_ids


@pytest.mark.parametrize("kind", CONFIGS)
def test_recorded_scores_equal_those_of_a_second_pass(kind):
    model = tiny_model(kind)
    for text in generate(model, PROMPTS, SEEDS, max_new_tokens=24, end_ids=(1,), pad_id=1):
        ids = torch.tensor([text.token_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].log_softmax(-1)
        expected = logits.gather(1, ids[0, 1:, None])[text.prompt_length - 1 :, 0]
        torch.testing.assert_close(torch.tensor(text.log_probs).float(), expected, rtol=1e-4, atol=1e-4)
        assert math.isclose(text.perplexity, float(expected.mean().neg().exp()), rel_tol=1e-3)


STATES = {
    "mamba": MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
    "mamba2": Mamba2Config(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, head_dim=16, num_heads=4, n_groups=1
    ),
}
"""Models that keep a state instead of keys and values."""


@pytest.mark.skipif(
    not hasattr(cache_utils, "LinearAttentionLayer"), reason="their states are no cache of transformers"
)
@pytest.mark.parametrize("at_once", [None, 2])
@pytest.mark.parametrize("kind", STATES)
def test_a_model_that_keeps_a_state_sees_all_that_came_before(kind, at_once):
    model = from_config(STATES[kind]).eval()
    for text in generate(model, PROMPTS, SEEDS, max_new_tokens=12, end_ids=(1,), pad_id=1, at_once=at_once):
        with torch.no_grad():
            logits = model(torch.tensor([text.token_ids])).logits[0, :-1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(text.token_ids)[1:, None])[text.prompt_length - 1 :, 0]
        torch.testing.assert_close(torch.tensor(text.log_probs).float(), expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_would_forget_what_it_wrote_is_refused():
    model = from_config(OpenAIGPTConfig(vocab_size=VOCAB, n_embd=32, n_head=4, n_layer=2, n_positions=128))
    with pytest.raises(ConfigError, match="OpenAIGPTLMHeadModel takes no cache"):
        generate(model, PROMPTS, SEEDS, max_new_tokens=12)


def test_a_text_ends_with_its_end_token_and_rows_that_are_done_leave_the_others_alone():
    model = tiny_model()
    free = generate(model, PROMPTS, SEEDS, max_new_tokens=30)
    # make tokens that were drawn early in three of the five texts end tokens: more than half of the batch leaves
    ends = tuple({text.token_ids[text.prompt_length + step] for text, step in zip(free[:3], (1, 3, 5), strict=True)})
    for text, whole in zip(generate(model, PROMPTS, SEEDS, max_new_tokens=30, end_ids=ends), free, strict=True):
        new = whole.token_ids[whole.prompt_length :]
        stop = next((i for i, token in enumerate(new) if token in ends), len(new) - 1)
        assert text.token_ids == whole.token_ids[: whole.prompt_length + stop + 1]
        assert text.finished == (text.token_ids[-1] in ends)
        assert len(text.log_probs) == stop + 1


def test_a_perplexity_by_hand_and_none_for_an_empty_text():
    assert math.isclose(GeneratedText((1, 2, 3), 1, (math.log(0.5), math.log(0.125)), False).perplexity, 4.0)
    assert math.isnan(GeneratedText((1,), 1, (), True).perplexity)


def test_more_than_the_context_is_refused_with_the_length_that_fits():
    with pytest.raises(ConfigError, match=r"model's context of 128; use max_new_tokens=126"):
        generate(tiny_model(), [[2, 3]], [0], max_new_tokens=200)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="at least one token"):
        generate(tiny_model(), [[]], [0], max_new_tokens=2)


def test_logits_that_are_not_numbers_are_refused():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(RunError, match="not a number"):
        generate(model, [[2]], [0], max_new_tokens=2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"temperature": 0}, "temperature"), ({"top_p": 1.5}, "top_p"), ({"top_k": -1}, "top_k"), ({"topk": 5}, "top_k")],
)
def test_impossible_sampling_is_refused_by_name(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Sampling(**wrong)


def test_a_cache_that_grows_past_its_first_room_gives_the_same_text():
    model = from_config(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
        )
    )
    (text,) = generate(model, [[2, 3]], [5], max_new_tokens=200)
    ids = torch.tensor([text.token_ids])
    with torch.no_grad():
        expected = model(ids).logits[0, 1:-1].log_softmax(-1).gather(1, ids[0, 2:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(text.log_probs).float(), expected, rtol=1e-4, atol=1e-4)
