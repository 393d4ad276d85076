"""vLLM is not run here: a stand-in with the names that are used shows what it is called with, and no more."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import tiny_lm

from calibrune.corpora.engines import VLLM
from calibrune.corpora.generated import SelfGeneration
from calibrune.errors import ConfigError


class StandIn:
    """`vllm`, as far as it is used: LLM, SamplingParams, TokensPrompt."""

    __version__ = "0.0-stand-in"

    def __init__(self) -> None:
        self.loaded: list[dict[str, Any]] = []
        self.calls: list[tuple[Any, Any]] = []

    def SamplingParams(self, **given: Any) -> SimpleNamespace:
        return SimpleNamespace(**given)

    def TokensPrompt(self, **given: Any) -> dict[str, Any]:
        return given

    def LLM(self, **given: Any) -> Any:
        self.loaded.append(given)

        def generate(prompts: Any, settings: Any, use_tqdm: bool) -> list[Any]:
            self.calls.append((prompts, settings))
            ids = [[5, 1] if number % 2 else [6, 7, 8] for number in range(len(prompts))]
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(
                            token_ids=tokens,
                            logprobs=[
                                {i: SimpleNamespace(logprob=-0.5), 95: SimpleNamespace(logprob=-9.0)} for i in tokens
                            ],
                            finish_reason="stop" if tokens[-1] == 1 else "length",
                        )
                    ]
                )
                for tokens in ids
            ]

        return SimpleNamespace(generate=generate)


def test_settings_seeds_and_ids_reach_vllm_and_its_tokens_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path))
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    lm = tiny_lm(adds_bos=True)
    corpus = SelfGeneration(model=lm, engine=VLLM(gpu_memory=0.5), max_new_tokens=3, n_texts=4, batch_size=4)
    documents = list(corpus.documents())
    assert [d.token_ids[2:] for d in documents] == [(6, 7, 8), (5, 1), (6, 7, 8), (5, 1)]
    assert documents[0].perplexity == pytest.approx(2.718281828**0.5)
    ((prompts, settings),) = stand_in.calls
    assert [tuple(p["prompt_token_ids"]) for p in prompts] == [d.token_ids[:2] for d in documents]
    assert len({one.seed for one in settings}) == 4
    one = vars(settings[0]) | {"seed": None}
    assert one == {
        "temperature": 0.6, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.2, "seed": None, "max_tokens": 3,
        "stop_token_ids": [1], "logprobs": 1, "detokenize": False,
    }  # fmt: skip
    assert stand_in.loaded[0]["gpu_memory_utilization"] == 0.5
    assert stand_in.loaded[0]["logprobs_mode"] == "raw_logprobs"
    assert corpus.describe()["engine"] == "vllm 0.0-stand-in"
    assert list(corpus.documents()) == documents
    assert len(stand_in.loaded) == 1  # read back: vLLM is not even loaded


@pytest.mark.parametrize("revision", [None, "0123abc"])
@pytest.mark.parametrize("own_code", [True, False])
def test_vllm_loads_the_very_revision_and_its_code_only_where_it_runs_here(revision, own_code, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path))
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    lm = tiny_lm(adds_bos=True)
    lm = replace(lm, source=lm.source | ({"revision": revision} if revision else {}))
    if own_code:
        kind = type(lm.model)
        lm.model.__class__ = type(kind.__name__, (kind,), {"__module__": "transformers_modules.org.name"})
    next(SelfGeneration(model=lm, engine=VLLM(), max_new_tokens=3, n_texts=1).documents())
    (loaded,) = stand_in.loaded
    assert (loaded["revision"], loaded["tokenizer_revision"]) == (revision, revision)
    assert loaded["trust_remote_code"] is own_code


def test_without_vllm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"install it with: pip install 'calibrune\[vllm\]'"):
        SelfGeneration(model=tiny_lm(), engine=VLLM()).describe()
