"""Our language model for the harness: what it answers is what the harness's own answers, request by request."""

import pytest
import torch
from tiny_models import tiny_lm

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'calibrune[evaluate]'")

from lm_eval.api.instance import Instance

from calibrune.errors import ConfigError, ModelError
from calibrune.evaluation.language_model import SharedContextLM
from calibrune.evaluation.tasks import quiet_harness
from calibrune.lm.loading import LanguageModel


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, one, 0) for one in arguments]


def hflm(lm: LanguageModel):
    with quiet_harness():
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=2)


PAIRS = [
    ("a question", " yes"), ("a question", " no"), ("a question", " y"), ("a blank at the end ", "goes over"),
    ("", "no context"), ("", "</s>begins with what would stand before it"), ("<s>has its BOS", " x"),
    ("longer than the context " * 8, "cut"), ("z", "b" * 100),
]  # fmt: skip


@pytest.mark.parametrize("adds_bos", [True, False])
def test_likelihoods_are_those_of_hflm_with_blanks_without_context_and_cut(adds_bos):
    lm = tiny_lm(adds_bos=adds_bos)
    ours = SharedContextLM(lm)
    requests = asked("loglikelihood", *PAIRS)
    counted = []
    ours.scored = counted.append
    got, expected = ours.loglikelihood(requests), hflm(lm).loglikelihood(requests, disable_tqdm=True)
    assert [score for score, _ in got] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert sum(counted) == len(PAIRS)
    assert ours.cut == 1


def test_whole_texts_are_scored_in_windows_of_the_context():
    lm = tiny_lm()
    requests = asked("loglikelihood_rolling", ("short",), ("long " * 70,), ("x",))
    with quiet_harness():
        expected = hflm(lm).loglikelihood_rolling(requests, disable_tqdm=True)
    assert SharedContextLM(lm).loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3)


def test_what_is_written_is_what_hflm_writes_up_to_the_stop():
    lm = tiny_lm()
    greedy = {"until": [], "max_gen_toks": 40}
    requests = asked("generate_until", ("Question: why?", greedy), ("Another, longer question: how?", greedy))
    with quiet_harness():
        expected = hflm(lm).generate_until(requests, disable_tqdm=True)
    ours = SharedContextLM(lm)
    whole = ours.generate_until(requests)
    assert whole == expected
    stop = whole[0][20]
    [cut] = ours.generate_until(asked("generate_until", ("Question: why?", {"until": [stop], "max_gen_toks": 40})))
    assert cut == whole[0].split(stop)[0]


def test_sampling_is_seeded():
    lm = tiny_lm()
    options = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 1.0}
    requests = asked("generate_until", ("Write: ", options))
    first = SharedContextLM(lm).generate_until(requests)
    assert first == SharedContextLM(lm).generate_until(requests) != SharedContextLM(lm, seed=1).generate_until(requests)


def test_what_does_not_fit_is_an_error():
    lm = tiny_lm()
    with pytest.raises(ConfigError, match="continuation of 200 tokens does not fit in the model's context of 128"):
        SharedContextLM(lm).loglikelihood(asked("loglikelihood", ("a", "b" * 200)))
    with pytest.raises(ConfigError, match="wants 128 new tokens, and the model's context has 128"):
        SharedContextLM(lm).generate_until(asked("generate_until", ("a", {"until": [], "max_gen_toks": 128})))
    lm.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ModelError, match=r"does not fit the model: it made token 96, and the model knows 96"):
        SharedContextLM(lm).loglikelihood(asked("loglikelihood", ("a <new>", " b")))


def test_a_text_without_context_needs_a_token_to_begin_with():
    lm = tiny_lm()
    lm.tokenizer.bos_token = lm.tokenizer.eos_token = None
    ours = SharedContextLM(lm)
    assert len(ours.loglikelihood(asked("loglikelihood", ("a", " b")))) == 1
    with pytest.raises(ModelError, match="neither a BOS nor an EOS"):
        ours.loglikelihood(asked("loglikelihood", ("", " b")))


def test_half_precision_answers_nearly_the_same():
    lm = tiny_lm()
    requests = asked("loglikelihood", *PAIRS[:4])
    exact = SharedContextLM(lm).loglikelihood(requests)
    half = SharedContextLM(LanguageModel(tiny_lm().model.to(torch.bfloat16), lm.tokenizer, {})).loglikelihood(requests)
    assert [score for score, _ in half] == pytest.approx([score for score, _ in exact], rel=0.05, abs=0.3)
