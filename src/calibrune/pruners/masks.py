"""Which weights stay: chosen by rank, so that exactly as many go as were asked for, ties or not.

A mask is True where a weight **stays**, everywhere in this package.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from calibrune.errors import ConfigError, RunError
from calibrune.patterns import SemiStructured, SparsityPattern

ComparisonGroup = Literal["row", "layer"]
Selection = Literal["rank", "threshold"]

AT_ONCE = 1 << 20
"""Values that a processor works on at once, where they are of many rows."""


def keep_highest(
    scores: Float[Tensor, "out in"],
    pattern: SparsityPattern,
    group: ComparisonGroup = "row",
    select: Selection = "rank",
) -> Bool[Tensor, "out in"]:
    """Keep the highest scores of each comparison group; of equal scores, the ones further left (then further up).

    Exactly `pattern.n_pruned(group size)` weights of each group go; for N:M exactly M - N of each block.

    Args:
        scores: importance of each weight; only the order inside a group matters.
        pattern: how many weights stay. N:M has groups of its own and ignores `group` and `select`.
        group: the weights that compete with each other: one output row, or the whole layer.
        select: `threshold` is what much released code does: of the k weights that were to go, the score of the next one
            is the threshold, and all up to it go: one too many, and all that equal it.

    Raises:
        ConfigError: in_features is not a multiple of M.
        RunError: a score is not a number.
    """
    # a sum is one pass, and not a number where one of them is none
    if not scores.sum().isfinite() and torch.isnan(scores).any():
        raise RunError(
            f"{int(torch.isnan(scores).sum())} of {scores.numel()} pruning scores are not a number: the weights or "
            f"the activations hold NaN or infinity; check the model with `calibrune evaluate` in float32"
        )
    if isinstance(pattern, SemiStructured):
        check_divisible(pattern, scores.shape[-1])
        groups, n_keep = scores.reshape(-1, pattern.m), pattern.n
    else:
        groups = scores if group == "row" else scores.reshape(1, -1)
        n_keep = groups.shape[-1] - pattern.n_pruned(groups.shape[-1])
        if select == "threshold":
            threshold = groups.sort(dim=-1).values[:, pattern.n_pruned(groups.shape[-1]), None]
            return (groups > threshold).reshape(scores.shape)
    return _highest_of_rows(groups, n_keep).reshape(scores.shape)


def pieces(matrix: Shaped[Tensor, "out in"]) -> Sequence[Shaped[Tensor, "some in"]]:
    """The rows of a matrix: on a processor some at a time, so that what is made of them fits its cache."""
    at_once = max(1, AT_ONCE // matrix.shape[-1]) if matrix.device.type == "cpu" else len(matrix)
    return torch.split(matrix, at_once)


def check_divisible(pattern: SparsityPattern, in_features: int) -> None:
    """Raise `ConfigError` where an N:M pattern does not fit a layer's inputs."""
    if isinstance(pattern, SemiStructured) and in_features % pattern.m:
        raise ConfigError(
            f"{pattern} sparsity needs layers whose in_features are divisible by {pattern.m}, got {in_features}; "
            f"choose an M that divides it, or a percentage"
        )


def _highest_of_rows(rows: Float[Tensor, "out in"], n_keep: int) -> Bool[Tensor, "out in"]:
    if n_keep == rows.shape[-1]:
        return torch.ones_like(rows, dtype=torch.bool)
    # rows know nothing of each other, and selections need less memory by pieces
    return torch.cat([_highest(some, n_keep) for some in pieces(rows)])


def _highest(rows: Float[Tensor, "out in"], n_keep: int) -> Bool[Tensor, "out in"]:
    # the n-th highest value by selection (several times faster than a sort); most often only it is as high as that ...
    threshold = rows.topk(n_keep, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    mask = rows >= threshold
    if int(mask.count_nonzero()) > n_keep * len(rows):
        # ... and where others are, too, the first of them stay
        crowded = mask.count_nonzero(dim=-1) > n_keep
        few, least = rows[crowded], threshold[crowded]
        above, equal = few > least, few == least
        places = n_keep - above.count_nonzero(dim=-1)[:, None]
        mask[crowded] = above | equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= places)
    return mask
