"""How likely a model finds continuations of contexts: what they have in common runs once.

The choices of a question share its text, and the questions of a set share their examples. Two ways to share:

- **a row**: a context and all its continuations in one sequence, each continuation blind to the others (a tree
  attention mask, positions that start anew at the end of the context), as long as they are not much more than it;
- **a prefix**: the tokens that many contexts begin with run once, and all rows attend to their keys and values.

Both are exact up to rounding. Whether a model can do it is asked of its cache and then tried: a probe is scored with
and without sharing, and a model for which the two differ is scored without.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from calibrune.errors import ConfigError, RunError
from calibrune.lm.cache import taking_cache
from calibrune.lm.inference import inference
from calibrune.lm.likelihood import target_log_likelihoods

log = logging.getLogger(__name__)

BATCH_TOKENS = 4096
"""Tokens in one forward, padding included, unless told otherwise."""

KEYS_PER_TOKEN = 8
"""A forward of n tokens may attend to this many times n tokens, shared ones counted once a row."""

ENOUGH_TOKENS = 256
"""A forward of so many tokens keeps a processor busy; larger ones gain nothing if they are padding."""

MIN_FILLED = 0.8
"""In a batch of enough tokens, no row is shorter than this part of the longest."""

MIN_PREFIX = 24
"""A prefix of fewer tokens is not worth a forward of its own."""

Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of a continuation, at least one each."""


class Likelihood(NamedTuple):
    """What a model says of a continuation."""

    log_likelihood: float
    """Sum over the continuation's tokens, natural logarithm."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest one."""


@dataclass
class ContinuationScorer:
    """Scores continuations with one model; finds out at the first call what the model can share."""

    model: PreTrainedModel
    batch_tokens: int = BATCH_TOKENS
    """Tokens in one forward, padding included; halved for good when memory runs out."""
    share: bool = True
    """False: every context runs by itself, once for all of its continuations of one token."""
    _longest: float | None = None

    def score(
        self, requests: Sequence[Request], *, scored: Callable[[int], object] = lambda n: None
    ) -> list[Likelihood]:
        """log p(continuation | context), in the order of the requests.

        Args:
            requests: none longer than the model's context; those with the same input are run once.
            scored: called after every forward with the number of requests that it answered, for a progress bar.

        Raises:
            ConfigError: an empty context or continuation.
            RunError: memory does not suffice for a single row.
        """
        if not all(context and continuation for context, continuation in requests):
            raise ConfigError("a context and a continuation need at least one token each")
        paths = [len(context) + len(continuation) - 1 for context, continuation in requests]
        rows = _rows(requests, branch=max(paths, default=0) <= self._shareable())
        result: list[Likelihood | None] = [None] * len(requests)
        for prefix, family in self._families(rows):
            cache = _keys_and_values(self.model, prefix, self.batch_tokens) if prefix else None
            waiting = sorted(family, key=lambda row: -len(row.tokens))
            while waiting:
                batch = waiting[: self._fitting(waiting, len(prefix))]
                try:
                    found = _score(self.model, cache, batch, len(prefix))
                except (RuntimeError, MemoryError) as error:
                    self._make_room(error, batch, len(prefix))
                    continue
                for index, likelihood in found:
                    result[index] = likelihood
                scored(len(found))
                waiting = waiting[len(batch) :]
        return result  # type: ignore[return-value]

    def _families(self, rows: "list[_Row]") -> "list[tuple[list[int], list[_Row]]]":
        longest = max((row.path for row in rows), default=0)
        families = _families(rows) if longest <= self._shareable() else [([], rows)]
        # longest first: what does not fit in memory fails at once, and the time left is not underestimated
        return sorted(families, key=lambda family: -max((row.path for row in family[1]), default=0))

    def _fitting(self, rows: "Sequence[_Row]", prefix: int) -> int:
        """How many of the rows, which are sorted, go into one forward; one at least."""
        width = len(rows[0].tokens) - prefix
        cost = max(width, (prefix + width) // KEYS_PER_TOKEN)
        most = min(len(rows), max(1, self.batch_tokens // cost))
        # a batch that is large enough to be fast takes in no rows that would be padding for a good part
        enough = -(-ENOUGH_TOKENS // width)
        return next((i for i in range(enough, most) if len(rows[i].tokens) - prefix < MIN_FILLED * width), max(1, most))

    def _make_room(self, error: Exception, rows: "Sequence[_Row]", prefix: int) -> None:
        if not _is_out_of_memory(error):
            raise error
        if len(rows) == 1:
            raise RunError(
                f"memory does not suffice for one row of {len(rows[0].tokens)} tokens; use a smaller model or dtype, "
                f"or another device"
            ) from error
        taken = len(rows) * (len(rows[0].tokens) - prefix)
        self.batch_tokens = max(1, min(taken, self.batch_tokens) // 2)
        log.warning("memory ran out; going on with %d tokens in one forward", self.batch_tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _shareable(self) -> float:
        """The longest sequence, in tokens, within which sharing is exact; 0: none."""
        if self._longest is None:
            self._longest = _shareable_length(self.model) if self.share else 0
            if self._longest and not self._probe():
                log.warning("%s cannot share contexts: each runs by itself", type(self.model).__name__)
                self._longest = 0
        return self._longest

    def _probe(self) -> bool:
        """Whether sharing changes nothing on a few random tokens, which show a wrong mask or position at once."""
        vocab = self.model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocab, (MIN_PREFIX + 40,), generator=generator).tolist()
        prefix, rest = ids[:MIN_PREFIX], ids[MIN_PREFIX:]
        ends = [((rest[:4]), rest[4:8]), (rest[:4], rest[8:10]), (rest[:4], rest[10:11]), (rest[11:12], rest[12:17])]
        requests = [([*prefix, *context], continuation) for context, continuation in ends]
        try:
            shared = self.score(requests)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            log.debug("sharing failed on the probe: %s", error)
            return False
        alone = ContinuationScorer(self.model, share=False).score(requests)
        tolerance = 3 * torch.finfo(self.model.dtype).eps ** 0.5
        return all(
            abs(a.log_likelihood - b.log_likelihood) <= tolerance * len(continuation)
            for a, b, (_, continuation) in zip(shared, alone, requests, strict=True)
        )


@dataclass
class _Row:
    """A context and what follows it, in one sequence: the context's tokens, then those of each branch."""

    tokens: list[int]
    context: int
    """Tokens of the context."""
    branches: list[tuple[int, ...]] = field(default_factory=list)
    """Inputs after the context; of a continuation, all but its last token, which is only predicted."""
    requests: list[tuple[int, list[int], Sequence[int]]] = field(default_factory=list)
    """Index of the request, columns in `tokens` that predict its targets, the targets."""

    @property
    def path(self) -> int:
        """The longest way through the row, in tokens."""
        return self.context + max(map(len, self.branches), default=0)

    @property
    def is_line(self) -> bool:
        return len(self.branches) < 2

    def has_room(self, continuation: Sequence[int]) -> bool:
        """Whether a branch for it is worth its place: all tokens of a row look for each other, seen or not."""
        branch = tuple(continuation[:-1])
        grown = len(self.tokens) - self.context + len(branch)
        return not self.branches or branch in self.branches or grown <= max(ENOUGH_TOKENS, self.context)

    def add(self, index: int, continuation: Sequence[int]) -> None:
        branch = tuple(continuation[:-1])
        start = self.context
        for other in self.branches:
            if other == branch:
                break
            start += len(other)
        else:
            if branch:
                self.branches.append(branch)
                self.tokens += branch
        columns = [self.context - 1, *range(start, start + len(branch))]
        self.requests.append((index, columns, continuation))


def _rows(requests: Sequence[Request], *, branch: bool) -> list[_Row]:
    """The requests in rows: those of one context together, or, where rows may not branch, those of one input."""
    rows: list[_Row] = []
    latest: dict[tuple[tuple[int, ...], ...], _Row] = {}
    for index, (context, continuation) in enumerate(requests):
        key = (tuple(context),) if branch else (tuple(context), tuple(continuation[:-1]))
        if key not in latest or not latest[key].has_room(continuation):
            latest[key] = _Row(list(context), len(context))
            rows.append(latest[key])
        latest[key].add(index, continuation)
    return rows


def _families(rows: Sequence[_Row]) -> list[tuple[list[int], list[_Row]]]:
    """The rows by the prefix that they share; those that share none last, with an empty one."""
    ordered = sorted(rows, key=lambda row: row.tokens)  # relatives are neighbours
    # a row keeps a token of its context, the one that predicts what follows
    shared = [min(_common(a.tokens, b.tokens), a.context - 1, b.context - 1) for a, b in pairwise(ordered)]
    families: list[tuple[list[int], list[_Row]]] = []
    alone: list[_Row] = []
    start, prefix = 0, 0
    for i, common in enumerate([*shared, 0]):
        # one who shares less than half of what the family shares is no relative
        if common >= max(MIN_PREFIX, prefix / 2):
            prefix = min(prefix, common) if prefix else common
            continue
        if prefix:
            families.append((ordered[start].tokens[:prefix], ordered[start : i + 1]))
        else:
            alone += ordered[start : i + 1]
        start, prefix = i + 1, 0
    return [*families, ([], alone)]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _score(
    model: PreTrainedModel, cache: DynamicCache | None, rows: Sequence[_Row], prefix: int
) -> list[tuple[int, Likelihood]]:
    """One forward of the rows after their prefix."""
    inputs: dict[str, Any] = {"input_ids": _padded([row.tokens[prefix:] for row in rows]).to(model.device)}
    if cache is not None:
        inputs |= taking_cache(model, cache)
    if not all(row.is_line for row in rows):
        mask, positions = _tree(rows, prefix, inputs["input_ids"].shape[1])
        blocked = torch.zeros(mask.shape, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
        inputs |= {"attention_mask": blocked.to(model.device), "position_ids": positions.to(model.device)}
    places: dict[tuple[int, int], int] = {}
    wanted = [
        (places.setdefault((i, column - prefix), len(places)), token)
        for i, row in enumerate(rows)
        for _, columns, tokens in row.requests
        for column, token in zip(columns, tokens, strict=True)
    ]
    scores, likeliest = target_log_likelihoods(model, inputs, torch.tensor(list(places)), _in_order(wanted))
    of_target = dict(zip(_in_order(wanted), zip(scores.tolist(), likeliest.tolist(), strict=True), strict=True))
    result, at = [], 0
    for row in rows:
        for index, _, tokens in row.requests:
            found = [of_target[target] for target in wanted[at : at + len(tokens)]]
            result.append((index, Likelihood(sum(score for score, _ in found), all(top for _, top in found))))
            at += len(tokens)
    return result


def _in_order(wanted: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(set(wanted))


def _padded(sequences: Sequence[Sequence[int]]) -> Int[Tensor, "batch seq"]:
    """Padded on the right, where nothing real looks at it."""
    width = max(map(len, sequences))
    return torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in sequences])


def _tree(rows: Sequence[_Row], prefix: int, width: int) -> tuple[Tensor, Int[Tensor, "batch seq"]]:
    """What each token may look at, [batch, 1, seq, prefix + seq], and its place in the text, [batch, seq].

    A token sees the context and its own branch, up to itself. Padding is a branch that nobody else sees.
    """
    branch = torch.full((len(rows), width), -1)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        branch[i, : row.context - prefix] = 0
        positions[i, : row.context - prefix] = torch.arange(prefix, row.context)
        start = row.context - prefix
        for k, tokens in enumerate(row.branches, start=1):
            branch[i, start : start + len(tokens)] = k
            positions[i, start : start + len(tokens)] = torch.arange(row.context, row.context + len(tokens))
            start += len(tokens)
    sees = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    sees &= torch.ones(width, width, dtype=torch.bool).tril()
    before = torch.ones(len(rows), width, prefix, dtype=torch.bool)
    return torch.cat([before, sees], dim=-1)[:, None], positions


class _SharedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values of one sequence, which every row of any batch has before its own; nothing is kept."""

    def __init__(self, keys: Float[Tensor, "1 heads seq dim"], values: Float[Tensor, "1 heads seq dim"]) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        n = len(key_states)
        keys = torch.cat([self.keys.expand(n, -1, -1, -1), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(n, -1, -1, -1), value_states], dim=-2)


def _keys_and_values(model: PreTrainedModel, prefix: Sequence[int], batch_tokens: int) -> DynamicCache:
    """The prefix, run once, as a cache that any batch of rows can follow."""
    cache = DynamicCache()
    body = model.base_model
    with inference(model):
        for ids in torch.split(torch.tensor([list(prefix)], device=model.device), batch_tokens, dim=1):
            body(input_ids=ids, **taking_cache(body, cache))
    shared = DynamicCache()
    shared.layers = [_SharedLayer(layer.keys, layer.values) for layer in cache.layers]
    return shared


def _shareable_length(model: PreTrainedModel) -> float:
    """Up to which length every layer attends to all that came before; 0 where a layer is no attention at all."""
    if getattr(model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return 0  # other kernels take no mask of their own
    length = inf
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            length = min(length, layer.sliding_window)
        elif type(layer) is not DynamicLayer:
            return 0
    return length


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        "memory" in said and ("alloc" in said or "not enough" in said or "out of" in said)
    )
