"""OWL: blocks with many outlying scores keep more of their weights."""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt, Lt
from transformers import PreTrainedModel

from calibrune.activations import BlockInputs, InputNorm, InputStatistic, LayerStats, stream_blocks
from calibrune.activations.stream import BATCH_TOKENS, blocks_with
from calibrune.allocators.allocation import SparsityAllocation
from calibrune.allocators.spread import mixed_by_block, sizes, unstructured_by_block, weighted_mean
from calibrune.allocators.uniform import Uniform
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import ConfigError
from calibrune.lm.layout import decoder_blocks
from calibrune.patterns import SemiStructured, SparsityPattern
from calibrune.settings import settings


@settings
class OWL:
    """Outlier-weighed layerwise sparsity (Yin et al., ICML 2024, arXiv 2310.05175), as its released code computes it.

    A block's outliers are the weights whose |weight| x input norm exceeds `outlier` times the mean over all of the
    block's weights. The shares of outliers are spread over a band of densities 2 x `width` wide, whose mean is what was
    asked for; so a single block can lie outside of +- `width`.
    """

    outlier: Annotated[float, Gt(0)] = 5.0
    """M: how many times the block's mean score makes an outlier."""
    width: Annotated[float, Gt(0), Lt(0.5)] = 0.08
    """Lambda: half the width of the band of densities, which must fit between 0 and 1."""
    n_m: Literal["mixed", "published", "strict"] = "mixed"
    """For N:M. mixed: an N of its own for each block, with the target's mean (the study's, whose Lambda is 2 and M is 6
    there); published: each N rounded by itself, as in the released code, which can miss the mean; strict: the target's
    N everywhere, which leaves OWL nothing to choose."""
    n_width: Annotated[float, Gt(0)] = 2.0
    """Lambda for mixed N:M, in weights of a group of M."""

    requires: ClassVar[tuple[type[InputStatistic], ...]] = (InputNorm,)

    def allocate(
        self,
        model: PreTrainedModel,
        calibration: CalibrationSet | None,
        target: SparsityPattern,
        *,
        batch_tokens: int = BATCH_TOKENS,
    ) -> SparsityAllocation:
        """Run the calibration data through the dense model and share the sparsity out by block.

        Raises:
            ConfigError: no calibration data, or a block's sparsity leaves [0, 1).
        """
        if isinstance(target, SemiStructured) and self.n_m == "strict":
            return Uniform().allocate(model, calibration, target)
        if calibration is None:
            raise ConfigError("OWL needs calibration data to find outliers, got none; use allocation=uniform without")
        blocks = stream_blocks(
            model,
            calibration.input_ids,
            self.requires,
            propagate="dense",
            batch_tokens=batch_tokens,
            attention_mask=calibration.attention_mask,
            description="looking for outliers (OWL)",
        )
        return self._shared_out(model, blocks, target)

    def allocate_from(
        self, model: PreTrainedModel, statistics: Mapping[str, LayerStats], target: SparsityPattern
    ) -> SparsityAllocation:
        """The same by statistics of the dense model that are there already; nothing is run.

        Raises:
            ConfigError: a block's sparsity leaves [0, 1).
        """
        if isinstance(target, SemiStructured) and self.n_m == "strict":
            return Uniform().allocate(model, None, target)
        return self._shared_out(model, blocks_with(model, statistics, description="looking for outliers (OWL)"), target)

    def _shared_out(
        self, model: PreTrainedModel, with_inputs: Iterable[BlockInputs], target: SparsityPattern
    ) -> SparsityAllocation:
        blocks, shares = decoder_blocks(model), [self._outliers(block) for block in with_inputs]
        spread = max(shares) - min(shares)
        # equal shares: nothing to tell the blocks apart by, so all get the same
        positions = [(share - min(shares)) / spread if spread else 0.0 for share in shares]
        mean = weighted_mean(positions, sizes(blocks))
        if isinstance(target, SemiStructured):
            shifts = [2 * self.n_width * (p - mean) for p in positions]
            return mixed_by_block(blocks, shifts, target, keep_mean=self.n_m == "mixed")
        sparsities = [target.sparsity - 2 * self.width * (p - mean) for p in positions]
        return unstructured_by_block(blocks, sparsities, target, f"OWL with width={self.width:g}")

    def _outliers(self, block: BlockInputs) -> float:
        """The share of a block's weights that are outliers; one mean for the whole block."""
        scores = [inputs.layer.weight.abs().float() * inputs.stats[InputNorm].rms for inputs in block.layers]
        count = sum(score.numel() for score in scores)
        mean = float(torch.stack([score.double().sum() for score in scores]).sum()) / count
        return sum(int((score > self.outlier * mean).sum()) for score in scores) / count
