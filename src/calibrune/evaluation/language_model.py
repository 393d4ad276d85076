"""A loaded model as lm-evaluation-harness wants one: the tokens and the numbers of its own `HFLM`, in less time.

What is shared runs once (`calibrune.lm.continuations`). How text becomes tokens is the harness's own code: a context
and its continuation are tokenized together and then split, and a blank between them belongs to the continuation.
"""

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from calibrune.errors import ConfigError, ModelError
from calibrune.lm.continuations import BATCH_TOKENS, ContinuationScorer
from calibrune.lm.generation import Sampling, end_token_ids, generate
from calibrune.lm.likelihood import batch_by_length
from calibrune.lm.loading import LanguageModel
from calibrune.seeds import seed_for

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256
"""Tokens generated where a task does not say; as in `HFLM`."""

FIRST_PIECE = 16
"""Tokens generated before the stop sequences are looked for; then twice as many, and so on."""


class SharedContextLM(TemplateLM):  # type: ignore[misc]
    """The harness's `LM` interface over a `LanguageModel`; give it to `lm_eval.evaluate`, or to `evaluate_tasks`."""

    def __init__(self, lm: LanguageModel, *, batch_tokens: int = BATCH_TOKENS, seed: int = 0) -> None:
        super().__init__()
        self.tokenizer = lm.tokenizer
        self.max_length: int = resolve_max_length(lm.model.config, lm.tokenizer)
        """The model's context, in tokens; what is longer is cut on the left."""
        self.cut = 0
        """Requests that were cut so far."""
        self.scored: Callable[[int], object] = lambda n: None
        """Called with the number of requests that were answered, for a progress bar."""
        self._lm, self._seed, self._batch_tokens = lm, seed, batch_tokens
        self._device = lm.model.device
        self._scorer = ContinuationScorer(lm.model, batch_tokens)
        # the choices of a question come one after the other with the same context
        self._encode = lru_cache(maxsize=16)(self._encode_anew)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.prefix_token_id if self.tokenizer.eos_token_id is None else int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, or EOS where there is none."""
        found = self._bos_or_eos()
        if found is None:
            raise ModelError("the tokenizer has neither a BOS nor an EOS token, and a text needs one to begin with")
        return found

    def _bos_or_eos(self) -> int | None:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return next((int(token) for token in (bos, eos) if token is not None), None)

    @property
    def tokenizer_name(self) -> str:
        """What the harness names its caches of requests by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """A text as token ids, with BOS where the tokenizer puts it and the text does not have it."""
        return self._encode(string, add_special_tokens)

    def _encode_anew(self, string: str, add_special_tokens: bool | None) -> list[int]:
        if add_special_tokens is None:
            first = self._bos_or_eos()
            add_special_tokens = first is None or not has_bos_prefix(string, self.tokenizer.decode(first))
        # verbose=False: a text longer than the context is cut here, so its length is nothing to warn of
        return self._lm.known(self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """log p(continuation | context) of each request, and whether greedy decoding would write it."""
        result: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return result

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for _, context, continuation in requests:
            n = len(continuation)
            if n > self.max_length:
                raise ConfigError(
                    f"a continuation of {n:,} tokens does not fit in the model's context of {self.max_length:,}"
                )
            # the last token is predicted and never read, hence one more than the context holds
            whole = [*context, *continuation][-(self.max_length + 1) :]
            self.cut += len(whole) < len(context) + n
            pairs.append((whole[: len(whole) - n], whole[len(whole) - n :]))
        return list(self._scorer.score(pairs, scored=self.scored))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """log p of each whole text, in windows of the model's context, each token predicted once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        ends = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            found = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            windows += [(None, *make_disjoint_window(window)) for window in found]
            ends.append(len(windows))
        scores = [score for score, _ in self._loglikelihood_tokens(windows)]
        return [sum(scores[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model writes after each context, up to the first stop sequence; greedy unless a task says not."""
        asked = [(self.tok_encode(request.args[0]), dict(request.args[1])) for request in requests]
        result = [""] * len(asked)
        kinds: dict[str, list[int]] = {}
        for i, (_, options) in enumerate(asked):
            kinds.setdefault(repr(sorted(options.items(), key=str)), []).append(i)
        for indices in kinds.values():
            options = normalize_gen_kwargs(asked[indices[0]][1], MAX_NEW_TOKENS)
            room = self.max_length - options["max_gen_toks"]
            if room < 1:
                raise ConfigError(
                    f"the task wants {options['max_gen_toks']:,} new tokens, and the model's context has "
                    f"{self.max_length:,}; use a model with a longer one"
                )
            prompts = [asked[i][0][-room:] for i in indices]
            self.cut += sum(len(asked[i][0]) > room for i in indices)
            for batch in batch_by_length([len(p) + options["max_gen_toks"] for p in prompts], self._batch_tokens):
                texts = self._write([prompts[k] for k in batch], options, [indices[k] for k in batch])
                for k, text in zip(batch, texts, strict=True):
                    result[indices[k]] = text
                self.scored(len(batch))
        return result

    def _write(self, prompts: list[list[int]], options: dict[str, Any], names: list[int]) -> list[str]:
        """Generate in pieces that grow, so that little is written after a stop sequence."""
        if options["do_sample"]:
            choice = {"top_k": options.get("top_k", 50), "top_p": options.get("top_p", 1.0)}
            sampling = Sampling(temperature=options["temperature"], repetition_penalty=1, **choice)
        else:
            sampling = Sampling(temperature=1, top_k=1, top_p=1, repetition_penalty=1)
        ends = end_token_ids(self._lm.model, self.tokenizer.eos_token_id)
        stops = [*options["until"], self.tokenizer.decode(self.eot_token_id)]
        texts: list[list[int]] = [[] for _ in prompts]
        live, written, piece = list(range(len(prompts))), 0, FIRST_PIECE
        while live and written < options["max_gen_toks"]:
            piece = min(piece, options["max_gen_toks"] - written)
            made = generate(
                self._lm.model,
                [prompts[k] + texts[k] for k in live],
                [seed_for(self._seed, "evaluation", str(names[k]), str(written)) for k in live],
                max_new_tokens=piece,
                sampling=sampling,
                end_ids=ends,
            )
            ended = set()
            for k, one in zip(live, made, strict=True):
                texts[k] += one.token_ids[one.prompt_length :]
                so_far = self.tokenizer.decode(texts[k], skip_special_tokens=True)
                if one.finished or any(stop and stop in so_far for stop in stops):
                    ended.add(k)
            live = [k for k in live if k not in ended]
            written, piece = written + piece, 2 * piece
        return [
            postprocess_generated_text(self.tokenizer.decode(text, skip_special_tokens=True), stops, None)
            for text in texts
        ]
