"""Token log-likelihoods: equal to cross-entropy on a plain forward, in bounded memory, for every kind of head."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from calibrune.errors import ConfigError
from calibrune.evaluation.agreement import kl_and_top1
from calibrune.lm import likelihood
from calibrune.lm.likelihood import (
    batch_by_length,
    compare_logits,
    target_log_likelihoods,
    text_log_likelihoods,
    token_log_likelihoods,
    token_moments,
)

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, output_router_logits=True),
    "gemma2": Gemma2Config(**SIZES, final_logit_softcapping=0.5, sliding_window=5),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=5),
    "cohere": CohereConfig(**SIZES, logit_scale=2.0),
    "granite": GraniteConfig(**SIZES, logits_scaling=0.1),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "neox": GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "head_dim")}),
    "opt": OPTConfig(vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                     max_position_embeddings=64, word_embed_proj_dim=16),
}  # fmt: skip


def tiny(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)  # far from uniform, so that a missing softcap shows
    return model


def ids(batch: int, seq: int) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, seq), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_cross_entropy(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    logits = model.eval()(input_ids).logits.float()
    return -cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none")


@pytest.mark.parametrize("kind", CONFIGS)
def test_log_likelihoods_equal_cross_entropy_on_a_plain_forward(kind):
    model, input_ids = tiny(kind), ids(3, 17)
    got = token_log_likelihoods(model, input_ids, logits_bytes=4 * VOCAB * 3 * 5)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, by_cross_entropy(model, input_ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("positions", [2, 7, 12])
def test_the_head_never_holds_more_logits_than_allowed_and_the_body_runs_once(kind, positions):
    model = tiny(kind)
    bodies_run, sizes = [], []
    first_block = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
    first_block.register_forward_hook(lambda *_: bodies_run.append(1))
    model.get_output_embeddings().register_forward_hook(lambda m, a, out: sizes.append(out.numel()))
    token_log_likelihoods(model, ids(3, 17), logits_bytes=4 * VOCAB * positions)
    assert max(sizes) <= VOCAB * positions
    assert sum(sizes) == 3 * 16 * VOCAB
    assert len(bodies_run) == (2 if positions == 2 else 1)  # 3 sequences do not fit in 2 positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5, 1000])
def test_how_much_is_summed_up_at_a_time_changes_nothing(tokens, dtype, monkeypatch):
    model, input_ids = tiny("llama").to(dtype), ids(3, 17)
    places, seen = torch.tensor([[0, 3], [2, 4], [1, 15]]), []

    def compare(one, other):
        seen.append(max(one.numel(), other.numel()))
        return kl_and_top1(one, other)

    def scored():
        moments = token_moments(model, input_ids)
        asked = target_log_likelihoods(model, {"input_ids": input_ids}, places, [(0, 5), (1, 5), (1, 7), (2, 0)])
        compared = compare_logits(model, tiny("gemma3").to(dtype), input_ids, compare)
        return token_log_likelihoods(model, input_ids), moments, *asked, compared

    at_once = scored()
    monkeypatch.setattr(likelihood, "PIECE_BYTES", 4 * VOCAB * tokens)
    seen.clear()
    for one, whole in zip(scored(), at_once, strict=True):
        torch.testing.assert_close(one, whole, atol=0, rtol=0)
    assert max(seen) == VOCAB * min(tokens, 3 * 16)


def test_the_model_is_left_as_it_was_found():
    model = tiny("llama").train()
    model.lm_head.eval()
    flags = [m.training for m in model.modules()]

    def own_forward(*args, _forward=model.model.forward, **kwargs):
        return _forward(*args, **kwargs)

    model.model.forward = own_forward
    token_log_likelihoods(model, ids(1, 5), logits_bytes=1)
    assert [m.training for m in model.modules()] == flags
    assert model.model.forward is own_forward
    assert not model.model._forward_hooks


def test_the_model_is_left_as_it_was_found_also_after_an_error():
    model, calls = tiny("llama"), []

    def fail_the_second_time(*_):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError

    model.train().lm_head.register_forward_hook(fail_the_second_time)
    with pytest.raises(MemoryError):
        token_log_likelihoods(model, ids(1, 5), logits_bytes=1)
    assert model.training
    assert "forward" not in vars(model.model)
    assert not model.model._forward_hooks


def test_threads_that_score_one_model_take_turns():
    model, texts = tiny("llama"), [ids(1, 5 + n) for n in range(8)]
    expected = [by_cross_entropy(model, one) for one in texts]
    model.train()
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda one: token_log_likelihoods(model, one, logits_bytes=1), texts * 5))
    for one, values in zip(expected * 5, got, strict=True):
        torch.testing.assert_close(values, one, atol=1e-5, rtol=0)
    assert model.training
    assert "forward" not in vars(model.model)


def test_another_thread_that_calls_the_model_meanwhile_gets_what_the_model_says(monkeypatch):
    model, mine, other = tiny("llama"), ids(1, 9), ids(2, 12)
    expected, elsewhere, seen = by_cross_entropy(model, mine), model(other).logits, []
    pool = ThreadPoolExecutor(1)
    reduce = likelihood._of_targets

    def reduce_and_call(logits, targets):
        seen.append(pool.submit(lambda: model(other).logits).result())
        return reduce(logits, targets)

    monkeypatch.setattr(likelihood, "_of_targets", reduce_and_call)
    got = token_log_likelihoods(model, mine, logits_bytes=1)
    pool.shutdown()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert len(seen) == 8
    for logits in seen:
        torch.testing.assert_close(logits, elsewhere, atol=1e-5, rtol=0)


def test_a_model_whose_forward_takes_no_positions_is_scored_all_the_same():
    class Old(type(tiny("llama"))):
        def forward(self, input_ids, use_cache=None, return_dict=None):
            assert len(input_ids) == 1
            return super().forward(input_ids=input_ids, use_cache=use_cache)

    model, input_ids = tiny("llama"), ids(3, 9)
    expected = by_cross_entropy(model, input_ids)
    model.__class__ = Old
    torch.testing.assert_close(token_log_likelihoods(model, input_ids), expected, atol=1e-5, rtol=0)


def test_a_head_on_an_unknown_body_is_scored_all_the_same(monkeypatch):
    model, input_ids = tiny("llama"), ids(2, 9)
    expected = by_cross_entropy(model, input_ids)
    monkeypatch.setattr("calibrune.lm.likelihood._bodies", lambda model: set())
    got = token_log_likelihoods(model, input_ids, logits_bytes=4 * VOCAB * 4)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_a_low_precision_model_is_summed_up_in_float32():
    model = tiny("llama").to(torch.bfloat16)
    got = token_log_likelihoods(model, ids(2, 9))
    torch.testing.assert_close(got, by_cross_entropy(model, ids(2, 9)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(2, 1), (0, 5)])
def test_where_there_is_nothing_to_predict_there_is_nothing(shape):
    got = token_log_likelihoods(tiny("gpt2"), torch.zeros(shape, dtype=torch.long))
    assert got.shape == (shape[0], shape[1] - 1)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "opt"])
def test_texts_of_different_lengths_are_each_scored_as_if_alone(kind):
    model = tiny(kind)
    texts = [ids(1, n)[0].tolist() for n in (5, 1, 20, 0, 13, 2)]
    got = text_log_likelihoods(model, texts, batch_tokens=30)
    assert [len(values) for values in got] == [4, 0, 19, 0, 12, 1]
    for text, values in zip(texts, got, strict=True):
        if len(text) > 1:
            torch.testing.assert_close(values, by_cross_entropy(model, torch.tensor([text]))[0], atol=1e-5, rtol=0)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 50)), max_tokens=st.integers(1, 100))
def test_batches_hold_every_index_once_within_the_budget_longest_first(lengths, max_tokens):
    batches = batch_by_length(lengths, max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= max_tokens
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)


def test_a_batch_without_room_is_refused():
    with pytest.raises(ConfigError, match="max_tokens=0"):
        batch_by_length([1], max_tokens=0)
