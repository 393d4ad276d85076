"""How the sparsity is shared out over the layers: a pattern for every one, checked when made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel

from calibrune.activations.statistics import InputStatistic, LayerStats
from calibrune.activations.stream import BATCH_TOKENS
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import ConfigError
from calibrune.lm.layout import PrunableLayer
from calibrune.patterns import SparsityPattern
from calibrune.pruners.masks import check_divisible

MEAN_TOLERANCE = 0.01


@dataclass(frozen=True)
class SparsityAllocation:
    """A sparsity pattern for every prunable layer, by the layer's name."""

    patterns: Mapping[str, SparsityPattern]

    @classmethod
    def of(
        cls,
        layers: Sequence[PrunableLayer],
        patterns: Mapping[str, SparsityPattern],
        target: SparsityPattern,
        tolerance: float = MEAN_TOLERANCE,
    ) -> "SparsityAllocation":
        """Check that the patterns fit the layers, and that their mean, weighted by size, is near the target's sparsity.

        Raises:
            ConfigError: a layer without a pattern, N:M where M does not divide in_features, or a mean that is off.
        """
        made = cls(dict(patterns))
        for layer in layers:
            made.check_covers(layer)
        weights = {layer.name: layer.out_features * layer.in_features for layer in layers}
        mean = sum(weights[name] * patterns[name].sparsity for name in weights) / sum(weights.values())
        if abs(mean - target.sparsity) > tolerance:
            raise ConfigError(f"the allocation's mean sparsity is {mean:.4f}, but {target.sparsity:.4f} was asked for")
        return made

    def check_covers(self, layer: PrunableLayer) -> None:
        """Raise `ConfigError` unless the layer has a pattern, and one that fits it."""
        if layer.name not in self.patterns:
            raise ConfigError(f"the allocation has no pattern for {layer.name}; give every prunable layer one")
        try:
            check_divisible(self.patterns[layer.name], layer.in_features)
        except ConfigError as error:
            raise ConfigError(f"{layer.name}: {error}") from None

    def __getitem__(self, layer_name: str) -> SparsityPattern:
        return self.patterns[layer_name]


@runtime_checkable
class Allocator(Protocol):
    """Shares a target sparsity out over the layers. Implementations are frozen dataclasses."""

    @property
    def requires(self) -> tuple[type[InputStatistic], ...]:
        """The statistics of the layers' inputs that `allocate` reads; none: no calibration data is needed."""

    def allocate(
        self,
        model: PreTrainedModel,
        calibration: CalibrationSet | None,
        target: SparsityPattern,
        *,
        batch_tokens: int = BATCH_TOKENS,
    ) -> SparsityAllocation:
        """Give every prunable layer of the model its pattern; `batch_tokens` go through a block at once."""


@runtime_checkable
class FromStatistics(Protocol):
    """An allocator that reads nothing but statistics of the dense model: where they are known, no data is run again."""

    def allocate_from(
        self, model: PreTrainedModel, statistics: Mapping[str, LayerStats], target: SparsityPattern
    ) -> SparsityAllocation:
        """As `allocate`; `statistics` by the layer's name, and all that it `requires` are among them."""
