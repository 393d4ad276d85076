"""An engine behind HTTP: any server of the OpenAI completions API, as vLLM, SGLang and llama.cpp have it.

Prompts go out as token ids, and token ids come back where the server gives them: text that is tokenized again is not
always what the model wrote. What the three call things differs; a request says it in all their words, and each takes
its own.
"""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import torch
from annotated_types import Ge, Gt

from calibrune.corpora.engines.engine import Session
from calibrune.corpora.engines.http import Client, UnusableError
from calibrune.errors import ConfigError
from calibrune.lm.generation import GeneratedText, Sampling
from calibrune.lm.likelihood import token_log_likelihoods
from calibrune.lm.loading import LanguageModel
from calibrune.settings import nearest, settings

log = logging.getLogger(__name__)

KEY_VARIABLE = "CALIBRUNE_API_KEY"
"""The environment variable that an API key is read from; it is sent to the server and recorded nowhere."""

SUSPICIOUS = 0.1
"""A first text whose perplexity by the server and by the model here differ by more than this share is warned of."""


@settings
class CompletionsServer:
    """A server of the OpenAI completions API that has the model loaded."""

    url: str
    """Up to `/v1`, as `http://localhost:8000/v1`. It is not recorded: the same model may move."""
    served_model: str | None = None
    """What the server calls the model; None: the only one that it has."""
    concurrency: Annotated[int, Ge(1)] = 8
    """Requests under way at a time."""
    retries: Annotated[int, Ge(0)] = 5
    """How often a failed request is repeated."""
    backoff: Annotated[float, Gt(0)] = 1.0
    """Seconds before the first repetition, give or take a half; twice as long before every further one."""
    timeout: Annotated[float, Gt(0)] = 600.0
    """Seconds after which a request has failed whose answer is not there as a whole."""
    scores: Literal["server", "model"] = "server"
    """Whose log-probabilities are recorded. "model": those of the model here, in a second pass, for servers that report
    them after temperature; so it is in any case where the server gives none."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the server's url cannot be {self.url!r}; give one like http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError(
                f"the server's url holds a name, a password or a query; put a key into {KEY_VARIABLE} instead"
            )
        try:
            _ = parts.port
        except ValueError as error:
            raise ConfigError(f"the server's url cannot be {self.url!r} ({error})") from None

    def open(self, model: LanguageModel) -> Session:
        """Nothing is sent before something is asked for."""
        return _Session(self, model)


class _Session:
    """One server and what is known of it."""

    def __init__(self, to: CompletionsServer, model: LanguageModel) -> None:
        self._to, self._model = to, model
        key = os.environ.get(KEY_VARIABLE)
        self._client = Client(to.url, key, retries=to.retries, backoff=to.backoff, timeout=to.timeout)
        self._compared = False

    @property
    def in_flight(self) -> int:
        return self._to.concurrency

    def describe(self) -> dict[str, Any]:
        """What the server calls itself, and how texts become tokens and scores; asks it."""
        ids, scores = self._gives
        return {
            "engine": "completions server",
            "served_model": self._served,
            "server": self._fingerprint,
            "token_ids": "the server's" if ids else "its text, tokenized here",
            "scores": "the server's" if scores else "the model's here",
        }

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        end_ids: Sequence[int],
    ) -> list[GeneratedText]:
        ids, scores = self._gives

        def one(prompt: Sequence[int], seed: int) -> GeneratedText:
            request = self._request(prompt, seed, max_new_tokens, sampling, end_ids)
            text = self._client.post(
                "completions", request, lambda answer: self._text(answer, prompt, max_new_tokens, end_ids, ids, scores)
            )
            return self._checked(text) if scores else self._scored(text)

        return [one(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _request(
        self, prompt: Sequence[int], seed: int, max_new_tokens: int, sampling: Sampling, end_ids: Sequence[int]
    ) -> dict[str, Any]:
        return {
            "model": self._served,
            "prompt": list(prompt),
            "max_tokens": max_new_tokens,
            "n": 1,
            "stream": False,
            "seed": seed % 2**31,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,  # llama.cpp has another default
            "repetition_penalty": sampling.repetition_penalty,
            "repeat_penalty": sampling.repetition_penalty,  # llama.cpp
            "repeat_last_n": -1,  # llama.cpp: the whole text, as everywhere else
            "stop_token_ids": list(end_ids),
            "skip_special_tokens": False,
            "add_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,  # vLLM, SGLang
            "return_tokens_as_token_ids": True,  # vLLM before it had the former
        }

    def _text(
        self,
        answer: Any,
        prompt: Sequence[int],
        max_new_tokens: int,
        end_ids: Sequence[int],
        wants_ids: bool,
        wants_scores: bool,
    ) -> GeneratedText:
        choice = _choice(answer)
        finished = choice["finish_reason"] == "stop"
        ids, scores = token_ids(choice), log_probs(choice)
        if ids is None or not wants_ids:
            if wants_ids:
                raise UnusableError("it holds no token ids, though the server gave them before")
            ids, scores = (
                self._model.tokenizer(choice["text"], add_special_tokens=False).input_ids[:max_new_tokens],
                None,
            )
        if wants_scores and (scores is None or len(scores) != len(ids)):
            raise UnusableError("its log-probabilities are not those of its tokens")
        if len(ids) > max_new_tokens + 1 or any(not 0 <= i < self._model.vocab_size for i in ids):
            raise UnusableError("it holds tokens that were not asked for")
        known: list[float | None] = list(scores) if wants_scores and scores is not None else [None] * len(ids)
        if finished and end_ids and (not ids or ids[-1] not in end_ids):
            # the token that ended the text, which some servers leave out
            said = choice.get("stop_reason", choice.get("matched_stop"))
            end = next((i for i in end_ids if i == said), end_ids[0])
            ids, known = [*ids, end], [*known, None]
        if not ids:
            raise UnusableError("it holds no token")
        return GeneratedText((*prompt, *ids), len(prompt), tuple(known), finished)

    def _scored(self, text: GeneratedText) -> GeneratedText:
        """The text with the log-probabilities of the model here."""
        values = token_log_likelihoods(self._model.model, torch.tensor([text.token_ids]))[0]
        scores = tuple(values[text.prompt_length - 1 :].double().tolist())
        return GeneratedText(text.token_ids, text.prompt_length, scores, text.finished)

    def _checked(self, text: GeneratedText) -> GeneratedText:
        """The text as it is; the first one is scored here too, to see that server and model are the same."""
        if not self._compared:
            self._compared = True
            here, there = self._scored(text).perplexity, text.perplexity
            if not abs(there / here - 1) <= SUSPICIOUS:
                log.warning(
                    "the first text has perplexity %.4g by the server and %.4g by the model here: if the server "
                    "reports log-probabilities after temperature, use scores=model; else it has another model than %s",
                    *(there, here, self._model.source["name"]),
                )
        return text

    @cached_property
    def _served(self) -> str:
        """The model's name at the server, which is checked."""
        found = self._client.get("models", lambda answer: {str(entry["id"]): dict(entry) for entry in answer["data"]})
        name = self._to.served_model
        if name is None and len(found) != 1:
            raise ConfigError(f"the server has {len(found)} models; say which with served_model{nearest('', found)}")
        name = next(iter(found)) if name is None else name
        if name not in found:
            raise ConfigError(f"the server has no model {name!r}{nearest(name, found)}")
        ours = str(self._model.source["name"]).removeprefix("package:").rstrip("/").rpartition("/")[2].lower()
        if not any(ours in str(said).lower() for said in (name, found[name].get("root"))):
            log.warning("the server calls its model %r, and texts are wanted of %r: are they the same?", name, ours)
        return name

    @cached_property
    def _probe(self) -> tuple[dict[str, Any], Any]:
        """A choice of two tokens: it shows what the server gives."""
        first = self._model.tokenizer.bos_token_id or 0
        request = self._request([first], 0, 2, Sampling(), ())
        return self._client.post("completions", request, _looked_at)

    @property
    def _gives(self) -> tuple[bool, bool]:
        """Whether the server gives token ids, and whether scores of its are taken."""
        ids, scores = token_ids(self._probe[0]), log_probs(self._probe[0])
        aligned = ids is not None and scores is not None and len(ids) == len(scores)
        return ids is not None, aligned and self._to.scores == "server"

    @property
    def _fingerprint(self) -> str | None:
        said = self._probe[1].get("system_fingerprint")
        return None if said is None else str(said)


def token_ids(choice: dict[str, Any]) -> list[int] | None:
    """The ids of a choice's tokens, wherever the server puts them; None where it gives none."""
    if isinstance(choice.get("token_ids"), list):  # vLLM, SGLang
        return [int(i) for i in choice["token_ids"]]
    probabilities = choice.get("logprobs") or {}
    if isinstance(content := probabilities.get("content"), list) and all("id" in entry for entry in content):
        return [int(entry["id"]) for entry in content]  # llama.cpp
    tokens = [str(token) for token in probabilities.get("tokens") or ()]
    if tokens and all(token.startswith("token_id:") for token in tokens):
        return [int(token.removeprefix("token_id:")) for token in tokens]
    return None


def log_probs(choice: dict[str, Any]) -> list[float] | None:
    """The log-probability of each of a choice's tokens; None where the server gives none."""
    probabilities = choice.get("logprobs") or {}
    if isinstance(content := probabilities.get("content"), list):
        values = [entry.get("logprob") for entry in content]
    else:
        values = list(probabilities.get("token_logprobs") or ())
    return [float(value) for value in values] if values and None not in values else None


def _looked_at(answer: Any) -> tuple[dict[str, Any], Any]:
    """The choice and the answer, in which what is read of every later one can be read."""
    choice = _choice(answer)
    _ = token_ids(choice), log_probs(choice)
    return choice, answer


def _choice(answer: Any) -> dict[str, Any]:
    (choice,) = answer["choices"]
    if choice["finish_reason"] not in ("stop", "length") or not isinstance(choice["text"], str):
        raise UnusableError(f"the text ended for {choice['finish_reason']!r}")
    return dict(choice)
