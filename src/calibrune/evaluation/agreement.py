"""How far a model's next-token distributions are from another's: what pruning changed, before any text judges it.

Perplexity looks at the tokens that happened to come; these look at all that could have come, so that a few windows
show what perplexity needs a whole text for. Both models are in memory at once, and their logits a few positions at a
time: a second pass would have to keep the first model's distributions, 400 MB for each 2,048 tokens of 50,000.
"""

from collections.abc import Iterable
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from calibrune.calibration.tokenizers import describe_tokenizer
from calibrune.errors import ConfigError
from calibrune.evaluation.averages import TokenMean
from calibrune.evaluation.perplexity import Perplexity, TextPerplexity, WindowPerplexity
from calibrune.evaluation.score import Score
from calibrune.lm.likelihood import compare_logits, over_texts
from calibrune.lm.loading import LanguageModel, weights_fingerprint

KL = "KL divergence"
TOP1 = "top-1 agreement"


def agreement(
    lm: LanguageModel,
    dense: LanguageModel,
    texts: Iterable[str],
    protocol: Perplexity | None = None,
    limit: int | None = None,
) -> tuple[Score, Score]:
    """KL(dense || `lm`) in nats a token, and the share of tokens where both models' likeliest next token is the same.

    Measured wherever the protocol scores a token, so next to the perplexity of the same windows or texts. KL is 0 for
    equal distributions and has no upper bound: inf where `lm` rules out what the dense model may say. Items are one
    for each window or text, in its order, and their mean is the value.

    Args:
        lm: the pruned model.
        dense: what it is compared with; it stands first in the divergence. On whatever device it is.
        texts: as for the protocol.
        protocol: what is run: windows (`WindowPerplexity`, the default) or texts (`TextPerplexity`).
        limit: the first so many windows or texts.

    Raises:
        ConfigError: the models do not share a vocabulary, or the protocol has neither windows nor texts.
        CorpusError: as the protocol says.
    """
    check_comparable(lm, dense)
    chosen = check_compares(WindowPerplexity() if protocol is None else protocol)
    pieces = chosen.pieces(lm, texts, limit)
    rows = over_texts(
        lambda ids: compare_logits(dense.model, lm.model, ids, kl_and_top1),
        pieces.ids,
        description=f"comparing {pieces.what}",
    )
    scored = [row[len(row) - n :].double() for row, n in zip(rows, pieces.scored, strict=True)]
    facts = {
        **chosen.describe(),
        **pieces.facts,
        "divergence": "KL(against || model), in nats a token",
        "against": {**dense.source, "weights": weights_fingerprint(dense.model)},
    }
    # of a text there is one number here, whichever way its perplexity would be averaged
    facts.pop("average", None)

    def score(column: int, metric: str, higher_is_better: bool) -> Score:
        found = TokenMean(tuple(float(row[:, column].sum()) for row in scored), tuple(map(len, scored)))
        error = pieces.standard_error(found.deviations)
        return Score(
            metric=metric,
            value=found.value,
            stderr=error.value,
            n=len(scored),
            higher_is_better=higher_is_better,
            items=found.items,
            protocol={**facts, "standard_error": error.how},
        )

    return score(0, KL, False), score(1, TOP1, True)


def kl_and_top1(
    dense: Float[Tensor, "tokens vocab"], pruned: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, "tokens 2"]:
    """KL(dense || pruned) of what these logits stand for, and whether both have the same likeliest token.

    Takes the memory of the logits once more, and overwrites them.
    """
    same = dense.argmax(-1) == pruned.argmax(-1)
    # tokens that both rule out with -inf would make NaN
    lowest = torch.finfo(dense.dtype).min
    dense, pruned = dense.clamp_(min=lowest), pruned.clamp_(min=lowest)
    shift = pruned.logsumexp(-1) - dense.logsumexp(-1)
    p = dense.softmax(-1)
    kl = p.mul_(dense.sub_(pruned)).sum(-1) + shift
    # what only the dense model may say; and rounding makes a divergence of nothing a little negative
    return torch.stack([kl.masked_fill(kl > 1e30, inf).clamp(min=0), same.to(kl.dtype)], dim=-1)


def check_comparable(lm: LanguageModel, dense: LanguageModel) -> None:
    """Raise `ConfigError` unless the two models mean the same by every token id."""
    own, other = (describe_tokenizer(one.tokenizer)["sha256"] for one in (lm, dense))
    if own != other:
        raise ConfigError(
            f"{lm.source['name']} and {dense.source['name']} have different tokenizers ({own[:12]} and {other[:12]}), "
            f"so their distributions are over different tokens; compare a model with the one that it was pruned from"
        )
    if lm.vocab_size != dense.vocab_size:
        raise ConfigError(
            f"{lm.source['name']} gives {lm.vocab_size:,} logits and {dense.source['name']} {dense.vocab_size:,}, so "
            f"they cannot be compared; compare a model with the one that it was pruned from"
        )


def check_compares(protocol: Perplexity) -> WindowPerplexity | TextPerplexity:
    """The protocol, if two models can be compared on what it runs; else raises `ConfigError`."""
    if not isinstance(protocol, WindowPerplexity | TextPerplexity):
        raise ConfigError(
            f"two models are compared on windows or on texts, and {protocol.name} has neither; use "
            f"protocol=windows or protocol=texts for it"
        )
    return protocol
