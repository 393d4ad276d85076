"""Perplexity, of which the literature has several: each protocol is an object, and it is printed with its number.

All of them take texts, not a corpus: whether empty rows count is the caller's choice, and for WikiText-2 they do.
The items of a score are always such that their mean is the score, or its logarithm: two models scored on the same
texts are compared by the mean of their items' differences.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from math import exp, inf
from statistics import mean
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from calibrune.errors import ConfigError, CorpusError
from calibrune.evaluation.averages import StandardError, TokenMean, of_independent, of_neighbours
from calibrune.evaluation.score import Score
from calibrune.lm.likelihood import text_log_likelihoods
from calibrune.lm.loading import LanguageModel
from calibrune.settings import settings

Bos = Literal["tokenizer", "window"]
Average = Literal["mean_of_perplexities", "exp_of_mean_loss"]

MEAN_PERPLEXITY = "mean perplexity of texts"
"""The metric of `average="mean_of_perplexities"`."""


@runtime_checkable
class Perplexity(Protocol):
    """A way to measure perplexity. Implementations are settings classes: their fields are what can be chosen."""

    @property
    def name(self) -> str:
        """What the protocol is called in tables and records."""

    def describe(self) -> dict[str, Any]:
        """The protocol as JSON: its name and its settings."""

    def score(self, lm: LanguageModel, texts: Iterable[str], limit: int | None = None) -> Score:
        """Measure `lm` on the texts; `limit`: on the first so many items only."""


@dataclass(frozen=True)
class Pieces:
    """The token sequences that a protocol runs, and what of them it scores."""

    ids: list[list[int]]
    scored: list[int]
    """Of each sequence, how many of its last tokens count."""
    what: Literal["windows", "texts"]
    facts: dict[str, Any]
    """For the record: all that the settings do not say."""

    def standard_error(self, deviations: list[float]) -> StandardError:
        """Of the mean of one number a piece: windows of one text are neighbours, texts are independent."""
        return of_neighbours(deviations, self.what) if self.what == "windows" else of_independent(deviations, self.what)


@settings
class WindowPerplexity:
    """All texts as one string, cut into windows: how pruning papers measure WikiText-2 (Frantar and Alistarh, 2023).

    The value is exp of the mean loss of the tokens that are scored: of each window all but its first, or, where windows
    overlap, those that no window before it has scored. (The papers' scripts count `seq_len` - 1 predictions as
    `seq_len`, in both the sum and the mean, which is the same.) Items: a number for each window, its mean loss where
    windows do not overlap. The standard error is by blocks of neighbouring windows and the delta method.
    """

    seq_len: Annotated[int, Field(ge=2)] = 2048
    """Tokens in a window; what is left after the last whole one is dropped."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Tokens from the start of a window to that of the next; None: windows do not overlap. With less than a window, a
    window scores only its last `stride` tokens (the first one: all), and the others are their context."""
    join: str = "\n\n"
    """What stands between two texts; empty texts count."""
    bos: Bos = "tokenizer"
    """`tokenizer`: a BOS token at the very start at most, if the tokenizer adds one, as in the papers. `window`: BOS
    before the `seq_len` - 1 tokens of each window, for models that are lost without it (Gemma)."""

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride > self._own_tokens:
            raise ConfigError(
                f"windows with {self._own_tokens} tokens of text cannot be {self.stride} tokens apart, for those "
                f"between two would be left out; use stride={self._own_tokens} or less"
            )

    @property
    def _own_tokens(self) -> int:
        return self.seq_len - (self.bos == "window")

    @property
    def name(self) -> str:
        return "window_perplexity"

    def describe(self) -> dict[str, Any]:
        return {"protocol": self.name, **asdict(self)}

    def score(self, lm: LanguageModel, texts: Iterable[str], limit: int | None = None) -> Score:
        """The perplexity of the first `limit` windows, or of all.

        Raises:
            ConfigError: a window is longer than the model's context, or the tokenizer has no BOS token to put first.
            CorpusError: the texts have fewer tokens than one window.
            ModelError: the tokenizer does not fit the model.
        """
        pieces = self.pieces(lm, texts, limit)
        rows = text_log_likelihoods(lm.model, pieces.ids, description=pieces.what)
        totals = [-float(row[len(row) - n :].double().sum()) for row, n in zip(rows, pieces.scored, strict=True)]
        losses = TokenMean(tuple(totals), tuple(pieces.scored))
        return perplexity_of(losses, pieces.standard_error, {**self.describe(), **pieces.facts})

    def pieces(self, lm: LanguageModel, texts: Iterable[str], limit: int | None = None) -> Pieces:
        """The windows; errors as of `score`."""
        check_limit(limit)
        context = lm.context_length
        if context is not None and self.seq_len > context:
            raise ConfigError(
                f"windows of {self.seq_len} tokens do not fit in the model's context of {context}; "
                f"use seq_len={context} or less"
            )
        text = self.join.join(texts)
        bos = lm.tokenizer.bos_token_id
        if self.bos == "window" and bos is None:
            raise ConfigError("bos='window' needs a tokenizer with a BOS token, and this one has none")
        ids = _token_ids(lm, text, special=self.bos == "tokenizer")
        start = lm.known([bos]) if self.bos == "window" else []
        length = self._own_tokens
        stride = self.stride or length
        if len(ids) < length:
            raise CorpusError(
                f"one window takes {length:,} tokens, and the texts come to {len(ids):,}; use more text, or a smaller "
                f"seq_len"
            )
        starts = range(0, len(ids) - length + 1, stride)[:limit]
        # the first token of a text has nothing before it, nor has that of a window that does not overlap
        first = self.seq_len - 1
        notes = {}
        if self.bos == "tokenizer" and bos is not None and ids[0] == bos:
            notes["note"] = "the tokenizer adds BOS: the first window has it, the others do not"
        return Pieces(
            ids=[start + ids[i : i + length] for i in starts],
            scored=[min(stride, first) if i else first for i in starts],
            what="windows",
            facts={
                "limit": limit,
                "tokens": len(ids),
                "windows": len(starts),
                "unused_tokens": len(ids) - starts[-1] - length,
                **what_was_measured(lm, text),
                **notes,
            },
        )


@settings
class TextPerplexity:
    """Each text by itself, from its first token: how the self-generation study measures Alpaca.

    The study's number is the arithmetic mean of the texts' perplexities, which a few odd texts can rule; the usual one
    is exp of the mean loss of all tokens. They are two numbers, and `both` has them from one pass. Standard errors take
    the texts for independent.
    """

    average: Average = "mean_of_perplexities"
    """`mean_of_perplexities`: every text counts the same; items are the texts' perplexities, and the value is their
    mean. `exp_of_mean_loss`: every token counts the same; an item is a text's total loss over the mean number of tokens
    predicted in a text, and the value is exp of their mean."""
    max_tokens: Annotated[int, Field(ge=2)] | None = 2048
    """Longer texts are cut, and so are those longer than the model's context; None: by the context alone."""

    @property
    def name(self) -> str:
        return "text_perplexity"

    def describe(self) -> dict[str, Any]:
        return {"protocol": self.name, **asdict(self)}

    def score(self, lm: LanguageModel, texts: Iterable[str], limit: int | None = None) -> Score:
        """The perplexity of the first `limit` texts, or of all.

        Raises:
            CorpusError: no text has two tokens.
            ModelError: the tokenizer does not fit the model.
        """
        return self.both(lm, texts, limit)[self.average]

    def both(self, lm: LanguageModel, texts: Iterable[str], limit: int | None = None) -> dict[Average, Score]:
        """Both averages from one pass through the texts; `average` chooses neither."""
        pieces = self.pieces(lm, texts, limit)
        rows = text_log_likelihoods(lm.model, pieces.ids, description=pieces.what)
        losses = TextLosses(tuple(-float(row.double().sum()) for row in rows), tuple(pieces.scored))
        averages: tuple[Average, Average] = ("mean_of_perplexities", "exp_of_mean_loss")
        return {
            average: losses.score(average, {**self.describe(), "average": average, **pieces.facts})
            for average in averages
        }

    def longest(self, lm: LanguageModel) -> int | None:
        """Tokens that a text is cut to; None: it is not cut."""
        return min((bound for bound in (self.max_tokens, lm.context_length) if bound is not None), default=None)

    def pieces(self, lm: LanguageModel, texts: Iterable[str], limit: int | None = None) -> Pieces:
        """The texts that have a token to predict; errors as of `score`."""
        check_limit(limit)
        chosen = list(islice(texts, limit))
        longest = self.longest(lm)
        all_ids = [_token_ids(lm, text) for text in chosen]
        long_enough = [ids[:longest] for ids in all_ids if len(ids) > 1]
        if not long_enough:
            raise CorpusError(
                f"a perplexity needs a text of two tokens or more, and there is none (texts: {len(chosen)})"
            )
        return Pieces(
            ids=long_enough,
            scored=[len(ids) - 1 for ids in long_enough],
            what="texts",
            facts={
                "limit": limit,
                "tokens": sum(map(len, long_enough)),
                "texts": len(chosen),
                "skipped_texts": len(chosen) - len(long_enough),
                "cut_texts": sum(len(ids[:longest]) < len(ids) for ids in all_ids),
                **what_was_measured(lm, "\x1e".join(chosen)),
            },
        )


@dataclass(frozen=True)
class TextLosses:
    """What one pass over texts measures, before it is averaged in one way or the other."""

    totals: tuple[float, ...]
    """Each text's loss, summed over its predicted tokens."""
    counts: tuple[int, ...]
    """Each text's predicted tokens; at least 1."""

    def score(self, average: Average, protocol: Mapping[str, Any]) -> Score:
        """The texts' perplexity by one of the averages; its standard error is over texts, None for a single one."""

        def independent(deviations: list[float]) -> StandardError:
            return of_independent(deviations, "texts")

        if average == "exp_of_mean_loss":
            return perplexity_of(TokenMean(self.totals, self.counts), independent, protocol)
        items = [_exp(total / count) for total, count in zip(self.totals, self.counts, strict=True)]
        error = independent(items)
        return Score(
            metric=MEAN_PERPLEXITY,
            value=mean(items),
            stderr=error.value,
            n=len(items),
            higher_is_better=False,
            items=tuple(items),
            protocol={**protocol, "standard_error": error.how},
        )


def perplexity_of(
    losses: TokenMean,
    error: Callable[[list[float]], StandardError],
    protocol: Mapping[str, Any],
    metric: str = "perplexity",
) -> Score:
    """exp of a mean loss, with its standard error by the delta method; items are the losses'."""
    value = _exp(losses.value)
    found = error([value * deviation for deviation in losses.deviations])
    return Score(
        metric=metric,
        value=value,
        stderr=found.value,
        n=len(losses.items),
        higher_is_better=False,
        items=losses.items,
        protocol={**protocol, "standard_error": found.how},
    )


def check_limit(limit: int | None) -> None:
    """Raise `ConfigError` for a limit of less than one item."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")


def _token_ids(lm: LanguageModel, text: str, *, special: bool = True) -> list[int]:
    # verbose=False: a text longer than the context is cut or windowed here, so its length is nothing to warn of
    return lm.known(lm.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def what_was_measured(lm: LanguageModel, text: str) -> dict[str, Any]:
    """For the record: a hash of the text, and the precision."""
    return {
        "text_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
    }


def _exp(loss: float) -> float:
    """exp, where a loss that is too large gives inf and not an error."""
    return inf if loss > 709 else exp(loss)
