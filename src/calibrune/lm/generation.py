"""Seeded sampling from a language model; every token is scored by the model itself while it is drawn.

What a text is does not depend on which others are drawn beside it: each has a random stream of its own, and the batch
changes the arithmetic of the model by rounding only. The log-probability that is recorded is the model's own, before
temperature, top-k, top-p and repetition penalty, so that a perplexity filter needs no second pass.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from calibrune.errors import ConfigError, RunError
from calibrune.lm.loading import context_length
from calibrune.progress import progress_bar
from calibrune.settings import settings

KEPT_IDLE = 0.75
"""A batch is packed anew when no more than this share of its rows is still being written."""


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
) -> list[GeneratedText]:
    """Let the model continue every prompt; one batch, with a KV cache.

    Args:
        prompts: token ids, at least one each; of different lengths they are padded on the left.
        seeds: one for each prompt's random stream.
        max_new_tokens: no text gets longer than its prompt and this.
        end_ids: tokens that end a text.
        pad_id: any token id; it is never attended to.

    Raises:
        ConfigError: an empty prompt, or more tokens than the model's context holds.
        RunError: the model gives logits that are not numbers.
    """
    sampling = Sampling() if sampling is None else sampling
    if not all(prompts) or len(seeds) != len(prompts):
        raise ConfigError("every prompt needs at least one token and a seed of its own")
    longest = max(len(prompt) for prompt in prompts)
    context = context_length(model)
    if context is not None and longest + max_new_tokens > context:
        raise ConfigError(
            f"prompts of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {context}; "
            f"use max_new_tokens={max(context - longest, 1)} or less"
        )
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _Batch(model, prompts, seeds, max_new_tokens, sampling, tuple(end_ids), pad_id).run()
    finally:
        model.train(was_training)


class _Batch:
    """The texts that are still being written, row by row; finished rows leave once they are a quarter of the batch."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        end_ids: tuple[int, ...],
        pad_id: int,
    ) -> None:
        self._model, self._sampling, self._prompts, self._max_new = model, sampling, prompts, max_new_tokens
        device = model.device
        width = max(len(prompt) for prompt in prompts)
        padded = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        self._ids = torch.tensor(padded, device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._mask = torch.arange(width, device=device) >= width - lengths[:, None]
        self._padded = bool((lengths < width).any())
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._end = torch.tensor(end_ids, device=device, dtype=torch.long)
        # one stream a text, drawn beforehand: what a text is cannot depend on its neighbours
        self._chance = torch.stack(
            [torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
        ).to(device)
        self._cache = _growing_cache(model, width + max_new_tokens)
        self._accepts = set(inspect.signature(model.forward).parameters)

    def run(self) -> list[GeneratedText]:
        n, device = len(self._prompts), self._model.device
        drawn = torch.zeros(n, self._max_new, dtype=torch.long)
        log_probs = torch.zeros(n, self._max_new, dtype=torch.float64)
        lengths = torch.full((n,), self._max_new)
        finished = torch.zeros(n, dtype=torch.bool)
        rows = torch.arange(n)  # which text each row of the batch is
        ids, live = self._ids, torch.ones(n, dtype=torch.bool)
        seen: Tensor | None = None
        with progress_bar("writing", total=self._max_new, unit="step") as bar:
            for step in range(self._max_new):
                logits = self._logits(ids)
                if seen is None:
                    seen = torch.zeros(logits.shape, dtype=torch.bool, device=device)
                    seen.scatter_(1, self._ids, self._mask)
                tokens, scores = draw(logits, seen, self._chance[rows, step], self._sampling)
                seen.scatter_(1, tokens[:, None], torch.ones_like(tokens, dtype=torch.bool)[:, None])
                drawn[rows, step] = tokens.cpu()
                log_probs[rows, step] = scores.cpu()
                ended = live & torch.isin(tokens, self._end).cpu()
                lengths[rows[ended]] = step + 1
                finished[rows[ended]] = True
                live = live & ~ended
                bar.update()
                if not live.any():
                    break
                ids = tokens[:, None]
                self._mask = torch.cat([self._mask, torch.ones_like(ids, dtype=torch.bool)], dim=1)
                self._positions = self._positions[:, -1:] + 1
                if int(live.sum()) <= KEPT_IDLE * len(live):
                    kept = live.nonzero().squeeze(-1)
                    rows, live, ids, seen = rows[kept], live[kept], ids[kept], seen[kept]
                    self._mask, self._positions = self._mask[kept], self._positions[kept]
                    self._cache.batch_select_indices(kept.to(device))
        return [
            GeneratedText(
                (*prompt, *drawn[i, : lengths[i]].tolist()),
                len(prompt),
                tuple(log_probs[i, : lengths[i]].tolist()),
                bool(finished[i]),
            )
            for i, prompt in enumerate(self._prompts)
        ]

    def _logits(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch vocab"]:
        options = {"past_key_values": self._cache, "use_cache": True, "logits_to_keep": 1}
        if self._padded:  # without padding no mask is needed, and attention is faster without one
            options |= {"attention_mask": self._mask.long(), "position_ids": self._positions}
        output = self._model(input_ids=ids, **{k: v for k, v in options.items() if k in self._accepts})
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


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values in a buffer that doubles when full, instead of a new tensor at every token."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self._longest = longest
        self._buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._buffers or end > self._buffers[0].shape[-2]:
            room = min(max(2 * end, 64), max(self._longest, end))
            grown = [
                states.new_empty(*states.shape[:-2], room, states.shape[-1]) for states in (key_states, value_states)
            ]
            for new, old in zip(grown, self._buffers, strict=False):
                new[..., :start, :] = old[..., :start, :]
            self._buffers = grown
        self._buffers[0][..., start:end, :] = key_states
        self._buffers[1][..., start:end, :] = value_states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)


def _growing_cache(model: PreTrainedModel, longest: int) -> DynamicCache:
    """The model's own kind of cache, its plain layers replaced by ones that do not copy all at every token."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_GrowingLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def end_token_ids(model: PreTrainedModel, eos_token_id: int | None) -> tuple[int, ...]:
    """The tokens that end a text: those of the model's generation config, else the tokenizer's EOS."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = eos_token_id if ids is None else ids
    return tuple(ids) if isinstance(ids, Sequence) else () if ids is None else (int(ids),)
