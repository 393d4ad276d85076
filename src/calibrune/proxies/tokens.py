"""What a set's tokens say without the model: variety, repetition, and likeness to what the model writes."""

from math import exp, log, nan
from statistics import mean
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.filters.repetition import compression_ratio, repeated_share
from calibrune.proxies.proxy import Better, Context
from calibrune.settings import settings


@settings
class Repetition:
    """Share of the runs of tokens of a sample that stood there before.

    Rae et al. (2021, arXiv 2112.11446) look for the same otherwise: they count the characters in the most frequent run
    of 2 to 4 words, and in repeated runs of 5 to 10.
    """

    better: ClassVar[Better] = "lower"
    founded: ClassVar[str] = "loops fill samples with copies and have a low perplexity; no study of pruning measures it"

    run_tokens: int = Field(default=4, ge=1)
    """Tokens in a run."""

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """The mean over the samples, in [0, 1]."""
        return mean(self.per_sample(data, context))

    def per_sample(self, data: CalibrationSet, context: Context) -> list[float]:
        """The share of each sample."""
        return [repeated_share(ids.tolist(), self.run_tokens) for ids in data.samples]


@settings
class Compression:
    """Bytes of a sample's text for every byte that zlib makes of them: near 2 for prose, far above for loops."""

    better: ClassVar[Better] = "lower"
    founded: ClassVar[str] = "as for repetition; it also sees repeats that are not exact"

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """The mean over the samples."""
        return mean(self.per_sample(data, context))

    def per_sample(self, data: CalibrationSet, context: Context) -> list[float]:
        """The ratio of each sample."""
        return [compression_ratio(context.lm.tokenizer.decode(ids)) for ids in data.samples]


@settings
class VocabularyCoverage:
    """Share of the model's vocabulary that occurs in the set; grows with the set's size."""

    better: ClassVar[Better] = "unknown"
    founded: ClassVar[str] = "ZipCal (2026, arXiv 2603.16105) chooses data by lexical variety; random tokens have most"

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """Different tokens of the set by tokens of the vocabulary."""
        return len(torch.unique(_tokens(data))) / context.lm.vocab_size


@settings
class OwnVocabulary:
    """Share of the tokens that the model's own samples use, each counted once, that occurs in the set."""

    better: ClassVar[Better] = "higher"
    founded: ClassVar[str] = "an assumption: what the model writes stands for what it was trained on"

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """In [0, 1]."""
        own = torch.unique(_tokens(context.own))
        return float(torch.isin(own, _tokens(data)).double().mean())


@settings
class TokenDivergence:
    """Jensen-Shannon divergence between the set's token frequencies and those of the model's own samples.

    In bits, so in [0, 1] (Lin, 1991). Two small samples of one source are already some way apart.
    """

    better: ClassVar[Better] = "lower"
    founded: ClassVar[str] = "an assumption: what the model writes stands for what it was trained on"

    smoothing: float = Field(default=0.1, ge=0)
    """Added to the count of every token that occurs in either."""

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """The divergence; 0 for the same frequencies."""
        p, q = _frequencies(_tokens(data), _tokens(context.own), self.smoothing)
        middle = (p + q) / 2
        return max(0.0, _entropy(middle) - (_entropy(p) + _entropy(q)) / 2) / log(2)


@settings
class EffectiveDocuments:
    """exp of the entropy of the tokens over the documents: as many documents as if all gave equally many tokens.

    A manifest says which documents a sample has tokens of, not how many of each: they count as sharing it equally.
    """

    better: ClassVar[Better] = "higher"
    founded: ClassVar[str] = "plausible: a few long documents are a narrow sample; not measured for pruning"

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """At least 1; nan where they are not known: for tokens of one's own, or samples of several that were cut."""
        tokens: dict[str, float] = {}
        for names, ids in zip(data.manifest.get("document_ids", ()), data.samples, strict=False):
            for name in names:
                tokens[name] = tokens.get(name, 0.0) + len(ids) / len(names)
        shares = [n / sum(tokens.values()) for n in tokens.values()]
        return exp(-sum(share * log(share) for share in shares)) if shares else nan


def _tokens(data: CalibrationSet) -> Int[Tensor, "_"]:
    """All of a set but padding, in one row."""
    return torch.cat(data.samples)


def _frequencies(
    one: Int[Tensor, "_"], other: Int[Tensor, "_"], smoothing: float
) -> tuple[Float[Tensor, "vocab"], Float[Tensor, "vocab"]]:
    """How frequent each token that occurs in either is in both."""
    size = 1 + int(max(one.max(), other.max()))
    counts = [torch.bincount(ids, minlength=size).double() for ids in (one, other)]
    occurs = (counts[0] + counts[1]) > 0
    p, q = (count[occurs] + smoothing for count in counts)
    return p / p.sum(), q / q.sum()


def _entropy(p: Float[Tensor, "vocab"]) -> float:
    """In nats; 0 log 0 is 0."""
    return float(torch.special.entr(p).sum())
