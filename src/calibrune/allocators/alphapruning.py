"""AlphaPruning: layer ratios from the spectra of the weights alone; needs no data, and so is the control for OWL."""

from statistics import mean
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from calibrune.activations.statistics import InputStatistic
from calibrune.activations.stream import BATCH_TOKENS
from calibrune.allocators.allocation import SparsityAllocation
from calibrune.allocators.spread import sizes, unstructured_by_block, weighted_mean
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import ConfigError
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.weights import loaded_blocks
from calibrune.patterns import SemiStructured, SparsityPattern
from calibrune.progress import track
from calibrune.settings import settings

LIGHTEST = 100.0
"""The exponent from which on there is no tail to speak of; trained weights have 2 to 6."""


@settings
class AlphaPruning:
    """Blocks whose spectra have lighter tails lose more weights (Lu et al., NeurIPS 2024, arXiv 2410.10912)."""

    spread: Annotated[float, Ge(0), Lt(1)] = 0.3
    """tau: before scaling to the target, sparsities lie between 1 - tau and 1 + tau times it."""

    requires: ClassVar[tuple[type[InputStatistic], ...]] = ()

    def allocate(
        self,
        model: PreTrainedModel,
        calibration: CalibrationSet | None,
        target: SparsityPattern,
        *,
        batch_tokens: int = BATCH_TOKENS,
    ) -> SparsityAllocation:
        """Measure every weight's spectrum; `calibration` is not looked at.

        Raises:
            ConfigError: an N:M target, which leaves no ratio to choose; a block's sparsity leaves [0, 1).
        """
        self.check_pattern(target)
        blocks = decoder_blocks(model)
        alphas = [
            mean(hill_exponent(layer.weight) for layer in block.layers)
            for block in track(
                loaded_blocks(model), "measuring spectra (AlphaPruning)", unit="block", total=len(blocks)
            )
        ]
        low, width = min(alphas), max(alphas) - min(alphas)
        raw = [1 - self.spread + 2 * self.spread * (alpha - low) / width if width else 1.0 for alpha in alphas]
        scale = target.sparsity / weighted_mean(raw, sizes(blocks))
        sparsities = [scale * ratio for ratio in raw]
        return unstructured_by_block(blocks, sparsities, target, f"AlphaPruning with spread={self.spread:g}")

    def check_pattern(self, pattern: SparsityPattern) -> None:
        """Raise `ConfigError` for N:M, which leaves no ratio to choose."""
        if isinstance(pattern, SemiStructured):
            raise ConfigError(
                f"AlphaPruning gives layers different ratios, which {pattern} does not allow; use a percentage"
            )


def hill_exponent(weight: Float[Tensor, "out in"]) -> float:
    """The power law's exponent of the upper half of the eigenvalues of W^T W, by Hill's estimator.

    Lower is a heavier tail; at most `LIGHTEST`, which a weight without a tail has (all eigenvalues equal, or none).
    """
    W = weight.float()
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    eigenvalues = torch.linalg.eigvalsh(gram.double()).clamp(min=0)
    n_tail = max(len(eigenvalues) // 2, 1)
    tail = eigenvalues[-n_tail:]
    threshold = eigenvalues[-n_tail - 1] if len(eigenvalues) > n_tail else tail[0]
    if threshold <= 0:
        tail = tail[tail > 0]
        threshold = tail.min() if len(tail) else threshold
    logs = float((tail / threshold).log().sum()) if len(tail) else 0.0
    return min(1 + len(tail) / logs, LIGHTEST) if logs > 0 else LIGHTEST
