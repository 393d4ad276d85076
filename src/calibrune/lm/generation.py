"""Seeded sampling from a language model; every token is scored by the model itself while it is drawn.

What a text is does not depend on which others are drawn beside it: each has a random stream of its own, and the batch
changes the arithmetic of the model by rounding only. The log-probability that is recorded is the model's own, before
temperature, top-k, top-p and repetition penalty, so that a perplexity filter needs no second pass.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from calibrune.errors import ConfigError, RunError
from calibrune.lm.cache import GrowingLayer, attends, can_begin_anew, growing_cache, taking_cache
from calibrune.lm.inference import inference
from calibrune.lm.loading import context_length
from calibrune.progress import progress_bar
from calibrune.settings import settings

KEPT_IDLE = 0.75
"""A batch is packed anew when no more than this share of its rows is still being written."""

WAITING_IDLE = 0.125
"""Texts that wait begin when this share of the rows is idle: reading a few prompts costs hardly more than one."""


@settings
class Sampling:
    """How a next token is drawn. The defaults are those of the study (Ji et al., 2025, arXiv 2410.17711)."""

    temperature: Annotated[float, Gt(0)] = 0.6
    """Logits are divided by this; 1 is the model's own distribution."""
    top_k: Annotated[int, Ge(0)] = 50
    """Only the most probable tokens can be drawn; 0: all."""
    top_p: Annotated[float, Gt(0), Le(1)] = 0.95
    """Only the fewest tokens that together have this probability can be drawn; 1: all."""
    repetition_penalty: Annotated[float, Gt(0)] = 1.2
    """Logits of tokens already in the text are divided by this where positive, multiplied where negative; 1: none."""


@dataclass(frozen=True)
class GeneratedText:
    """A prompt and what the model wrote after it."""

    token_ids: tuple[int, ...]
    """Prompt and continuation; the end-of-sequence token is included where it was drawn."""
    prompt_length: int
    """Tokens of the prompt."""
    log_probs: tuple[float | None, ...]
    """Of every drawn token: its log-probability under the model, unwarped; as long as the continuation. None for a
    token that was not drawn: a chat template put it there."""
    finished: bool
    """True where the model ended the text itself; False where it was cut at the longest length."""

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of the drawn tokens; nan where none was drawn."""
        drawn = [score for score in self.log_probs if score is not None]
        if not drawn:
            return float("nan")
        return float(torch.tensor(drawn, dtype=torch.float64).mean().neg().exp())


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int = 2048,
    sampling: Sampling | None = None,
    end_ids: Sequence[int] = (),
    pad_id: int = 0,
    at_once: int | None = None,
) -> list[GeneratedText]:
    """Let the model continue every prompt, with a KV cache; the order of the work depends on nothing but this call.

    Args:
        prompts: token ids, at least one each; of different lengths they are padded on the left.
        seeds: one for each prompt's random stream.
        max_new_tokens: no text gets longer than its prompt and this.
        end_ids: tokens that end a text.
        pad_id: any token id; it is never attended to.
        at_once: texts in one forward, 1 or more; the place of one that is finished goes to the next prompt. None: all.

    Raises:
        ConfigError: an empty prompt, more tokens than the model's context holds, or a model without a cache.
        RunError: the model gives logits that are not numbers.
    """
    sampling = Sampling() if sampling is None else sampling
    if not all(prompts) or len(seeds) != len(prompts):
        raise ConfigError("every prompt needs at least one token and a seed of its own")
    longest = max((len(prompt) for prompt in prompts), default=0)
    context = context_length(model)
    if context is not None and longest + max_new_tokens > context:
        raise ConfigError(
            f"prompts of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {context}; "
            f"use max_new_tokens={max(context - longest, 1)} or less"
        )
    if max_new_tokens < 1:
        return [GeneratedText(tuple(prompt), len(prompt), (), False) for prompt in prompts]
    n = len(prompts)
    at_once = n if at_once is None else min(at_once, n)
    # a window that slides keeps the last columns of all rows, so a row cannot begin anew in it
    places = n if can_begin_anew(model) else at_once
    with inference(model), progress_bar("writing", total=n * max_new_tokens, unit="token") as bar:
        return [
            text
            for i in range(0, n, max(places, 1))
            for text in _Batch(
                model,
                prompts[i : i + places],
                seeds[i : i + places],
                max_new_tokens,
                sampling,
                tuple(end_ids),
                pad_id,
                bar.update,
            ).run(at_once)
        ]


class _Batch:
    """Texts that are written side by side, a row each.

    A finished text leaves its row to the next that waits, and once none does, idle rows leave the batch. A text that
    begins in a used row does not see what is left of the other in the cache: the attention mask hides it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        end_ids: tuple[int, ...],
        pad_id: int,
        advance: Callable[[int], object],
    ) -> None:
        self._model, self._sampling, self._prompts, self._max_new = model, sampling, prompts, max_new_tokens
        self._device, self._pad, self._advance = model.device, pad_id, advance
        self._width = max(map(len, prompts))
        self._end = torch.tensor(end_ids, dtype=torch.long)
        # one stream a text, drawn beforehand: what a text is cannot depend on its neighbours
        self._chance = torch.stack(
            [torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        )
        self._accepts = set(inspect.signature(model.forward).parameters)
        n = len(prompts)
        self._drawn = torch.zeros(n, max_new_tokens, dtype=torch.long)
        self._log_probs = torch.zeros(n, max_new_tokens, dtype=torch.float64)
        self._lengths = torch.zeros(n, dtype=torch.long)
        """Tokens drawn so far, of each text."""
        self._finished = torch.zeros(n, dtype=torch.bool)
        self._begun = 0
        """Texts that have, or had, a row."""
        self._rows: Tensor
        """[batch]: which text each row is; on the processor, as all that is known of texts."""
        self._live: Tensor
        """[batch]: whether it is still being written."""
        self._mask: Tensor
        """[batch, columns of the cache]: which of them are of the row's text."""
        self._positions: Tensor
        """[batch, 1]: of the next input."""
        self._ids: Tensor
        """[batch, 1]: the next input."""
        self._seen: Tensor
        """[batch, vocab]: the tokens that are in the text."""
        self._cache: DynamicCache

    def run(self, rows: int) -> list[GeneratedText]:
        self._begin(rows)
        while self._live.any() or self._begun < len(self._prompts):
            idle = int((~self._live).sum())
            if idle:
                self._forget()
            if self._begun < len(self._prompts):
                if idle >= max(1, len(self._live) * WAITING_IDLE):
                    self._replace((~self._live).nonzero().squeeze(-1))
                    continue
            elif len(self._live) - idle <= KEPT_IDLE * len(self._live):
                self._keep(self._live.nonzero().squeeze(-1))
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
            logits = self._logits(self._ids, self._cache, self._mask, self._positions)
            self._positions = self._positions + 1
            self._draw(self._live.nonzero().squeeze(-1), logits)
        return [
            GeneratedText(
                (*prompt, *self._drawn[i, : self._lengths[i]].tolist()),
                len(prompt),
                tuple(self._log_probs[i, : self._lengths[i]].tolist()),
                bool(self._finished[i]),
            )
            for i, prompt in enumerate(self._prompts)
        ]

    def _begin(self, rows: int) -> None:
        """The first texts, and with them the batch."""
        self._rows = torch.arange(min(rows, len(self._prompts)))
        self._live = torch.ones(len(self._rows), dtype=torch.bool)
        self._cache = growing_cache(self._model, self._width + self._max_new)
        self._mask, logits = self._read(self._rows, self._cache)
        self._positions = self._mask.sum(dim=1, keepdim=True)
        self._ids = self._positions.clone()
        self._seen = self._of_prompts(self._rows, logits.shape[-1])
        self._begun = len(self._rows)
        self._draw(torch.arange(len(self._rows)), logits)

    def _replace(self, idle: Int[Tensor, "idle"]) -> None:
        """Texts that wait begin in rows that are idle."""
        texts = torch.arange(self._begun, min(self._begun + len(idle), len(self._prompts)))
        idle = idle[: len(texts)]
        cache = growing_cache(self._model, self._width)
        mask, logits = self._read(texts, cache)
        for layer, new in zip(self._cache.layers, cache.layers, strict=True):
            layer.put(idle.to(self._device), new)
        self._mask[idle] = False
        self._mask[idle, -mask.shape[1] :] = mask
        self._positions[idle] = mask.sum(dim=1, keepdim=True)
        self._seen[idle] = self._of_prompts(texts, logits.shape[-1])
        self._rows[idle], self._live[idle] = texts, True
        self._begun += len(texts)
        self._draw(idle, logits)

    def _read(self, texts: Int[Tensor, "texts"], cache: DynamicCache) -> tuple[Tensor, Tensor]:
        """The prompts of some texts, padded on the left: which columns are real, and the logits after the last."""
        prompts = [self._prompts[i] for i in texts.tolist()]
        width = max(map(len, prompts)) if self._begun else self._width
        padded = [[self._pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        mask = torch.arange(width, device=self._device) >= width - lengths[:, None]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return mask, self._logits(torch.tensor(padded, device=self._device), cache, mask, positions)

    def _of_prompts(self, texts: Int[Tensor, "texts"], n_tokens: int) -> Bool[Tensor, "texts vocab"]:
        """The tokens that are in the prompts."""
        seen = torch.zeros(len(texts), n_tokens, dtype=torch.bool)
        for row, text in zip(seen, texts.tolist(), strict=True):
            row[torch.tensor(self._prompts[text])] = True
        return seen.to(self._device)

    def _draw(self, rows: Int[Tensor, "rows"], logits: Float[Tensor, "batch vocab"]) -> None:
        """A token for each of these rows, whose logits these are, or among these are."""
        texts = self._rows[rows]
        steps = self._lengths[texts]
        if len(logits) > len(rows):
            logits = logits[rows.to(self._device)]
        chance = self._chance[texts, steps].to(self._device)
        drawn, scores = draw(logits, self._seen[rows], chance, self._sampling)
        self._seen[rows.to(self._device), drawn] = True
        self._ids[rows] = drawn[:, None]
        tokens = drawn.cpu()
        self._drawn[texts, steps], self._log_probs[texts, steps] = tokens, scores.cpu()
        self._lengths[texts] += 1
        self._finished[texts] = torch.isin(tokens, self._end)
        done = self._finished[texts] | (self._lengths[texts] == self._max_new)
        self._live[rows[done]] = False
        self._advance(len(rows) + int((self._max_new - self._lengths[texts[done]]).sum()))

    def _forget(self) -> None:
        """Leave the columns behind that no text needs any more."""
        living = self._positions[self._live]
        # a prompt that begins anew must find room
        needed = max(self._width, int(living.max()) if len(living) else 0)
        if (beyond := self._mask.shape[1] - needed) > 0 and all(
            type(one) is GrowingLayer for one in self._cache.layers
        ):
            self._mask = self._mask[:, beyond:].contiguous()
            for layer in self._cache.layers:
                layer.forget(beyond)

    def _keep(self, rows: Int[Tensor, "rows"]) -> None:
        """These rows alone."""
        self._rows, self._live = self._rows[rows], self._live[rows]
        self._ids, self._seen = self._ids[rows], self._seen[rows]
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        self._cache.batch_select_indices(rows.to(self._device))

    def _logits(self, ids: Tensor, cache: DynamicCache, mask: Tensor, positions: Tensor) -> Tensor:
        options: dict[str, object] = {"logits_to_keep": 1}
        # without padding no mask is needed, and attention is faster without one; a layer that keeps a state, and no
        # column for each token, has left the padding out of the state already
        if not mask.all() and (attends(cache) or mask.shape == ids.shape):
            options |= {"attention_mask": mask.long(), "position_ids": positions}
        accepted = {name: value for name, value in options.items() if name in self._accepts}
        output = self._model(input_ids=ids, **taking_cache(self._model, cache), **accepted)
        logits: Tensor = output.logits[:, -1].float()
        if torch.isnan(logits).any():
            raise RunError("the model gives logits that are not a number (NaN); try float32, or check the checkpoint")
        return logits


def draw(
    logits: Float[Tensor, "batch vocab"],
    seen: Bool[Tensor, "batch vocab"],
    chance: Float[Tensor, "batch"],
    sampling: Sampling,
) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch"]]:
    """Draw one token a row by inverting the warped distribution at `chance`, a number in [0, 1) a row.

    The warps are those of transformers' `generate`, in its order: repetition penalty, temperature, top-k, top-p.

    Args:
        seen: True for the tokens that are in the row's text already.

    Returns:
        The tokens, and the log-probability of each under the unwarped distribution.
    """
    warped = logits
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        warped = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    k = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    candidates = warped.topk(k, dim=-1)
    probabilities = torch.softmax(candidates.values.double() / sampling.temperature, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    mass = probabilities.cumsum(dim=-1)
    # the first candidate whose cumulated share exceeds the row's chance
    place = (mass <= chance[:, None] * mass[:, -1:]).sum(dim=-1).clamp(max=k - 1)
    tokens = candidates.indices.gather(1, place[:, None]).squeeze(1)
    score = logits.gather(1, tokens[:, None]).squeeze(1).double() - logits.logsumexp(dim=-1).double()
    return tokens, score


def end_token_ids(model: PreTrainedModel, eos_token_id: int | None) -> tuple[int, ...]:
    """The tokens that end a text: those of the model's generation config, else the tokenizer's EOS."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = eos_token_id if ids is None else ids
    return tuple(ids) if isinstance(ids, Sequence) else () if ids is None else (int(ids),)
