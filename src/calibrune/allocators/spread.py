"""From a number a block to a pattern a layer: the part that allocators share."""

from collections.abc import Sequence

from calibrune.allocators.allocation import MEAN_TOLERANCE, SparsityAllocation
from calibrune.errors import ConfigError
from calibrune.lm.layout import DecoderBlock
from calibrune.patterns import SemiStructured, SparsityPattern, Unstructured


def sizes(blocks: Sequence[DecoderBlock]) -> list[int]:
    """Prunable weights of each block."""
    return [sum(layer.out_features * layer.in_features for layer in block.layers) for block in blocks]


def weighted_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """The mean of the blocks' values, each counting for its size."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def unstructured_by_block(
    blocks: Sequence[DecoderBlock], sparsities: Sequence[float], target: SparsityPattern, cause: str
) -> SparsityAllocation:
    """Every layer of a block gets the block's sparsity.

    Raises:
        ConfigError: a sparsity is not in [0, 1); `cause` names the setting that led there.
    """
    for block, sparsity in zip(blocks, sparsities, strict=True):
        if not 0.0 <= sparsity < 1.0:
            raise ConfigError(
                f"{cause} gives {block.name} a sparsity of {sparsity:.3f}, which is not in [0, 1); spread it out less, "
                f"or choose an overall sparsity further from 0 and 1 than {target.sparsity:g}"
            )
    patterns = {
        layer.name: Unstructured(sparsity)
        for block, sparsity in zip(blocks, sparsities, strict=True)
        for layer in block.layers
    }
    return SparsityAllocation.of([layer for block in blocks for layer in block.layers], patterns, target)


def mixed_by_block(
    blocks: Sequence[DecoderBlock], shifts: Sequence[float], target: SemiStructured, *, keep_mean: bool = True
) -> SparsityAllocation:
    """Every block gets an N of its own near the target's: N + shift, rounded, at least 1; at M the block stays dense.

    Args:
        blocks: of the model.
        shifts: weights of a group that a block keeps beyond the target's N; below 0: fewer.
        target: N:M for the model as a whole.
        keep_mean: round so that the mean N stays the target's; else each block by itself, as released code does.
    """
    wished = [min(max(target.n + shift, 1.0), float(target.m)) for shift in shifts]
    weights = sizes(blocks)
    counts = _rounded(wished, weights, target) if keep_mean else [round(one) for one in wished]
    patterns: dict[str, SparsityPattern] = {
        layer.name: SemiStructured(n, target.m) if n < target.m else Unstructured(0.0)
        for block, n in zip(blocks, counts, strict=True)
        for layer in block.layers
    }
    layers = [layer for block in blocks for layer in block.layers]
    # whole numbers come no nearer to the mean than half a weight of a group in the largest block
    nearest = max(weights) / sum(weights) / target.m / 2
    return SparsityAllocation.of(layers, patterns, target, max(MEAN_TOLERANCE, nearest) if keep_mean else 1.0)


def _rounded(wished: Sequence[float], weights: Sequence[int], target: SemiStructured) -> list[int]:
    """Whole numbers from 1 to M near the wished ones; the largest remainders are rounded up, as many as it takes to
    bring the mean, weighted by the blocks' sizes, to the target's N."""
    counts = [int(wish) for wish in wished]
    missing = target.n * sum(weights) - sum(n * weight for n, weight in zip(counts, weights, strict=True))
    order = sorted(range(len(counts)), key=lambda i: counts[i] - wished[i])
    stepped = True
    while stepped:
        stepped, step = False, 1 if missing > 0 else -1
        for i in order if step > 0 else reversed(order):
            if step * missing * 2 > weights[i] and 1 <= counts[i] + step <= target.m:
                counts[i] += step
                missing -= step * weights[i]
                stepped = True
    return counts
