"""What a pruning method is: weight, statistics and pattern in; weight and mask out."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from calibrune.activations.statistics import InputStatistic, LayerStats
from calibrune.patterns import SparsityPattern


class PrunedWeight(NamedTuple):
    """What a pruner makes of a weight."""

    weight: Float[Tensor, "out in"]
    """The new weight, zero where `mask` is False."""
    mask: Bool[Tensor, "out in"]
    """True where a weight stays."""
    damping: float | None = None
    """What was added to the Hessian's diagonal, as a fraction of its mean; None: no Hessian was factorised."""


@runtime_checkable
class Pruner(Protocol):
    """Prunes one linear layer. Implementations are frozen dataclasses: their fields are the method's settings."""

    @property
    def requires(self) -> tuple[type[InputStatistic], ...]:
        """The statistics of the layer's inputs that `prune` reads; none: no calibration data is needed."""

    def prune(self, weight: Float[Tensor, "out in"], stats: LayerStats, pattern: SparsityPattern) -> PrunedWeight:
        """Return the pruned weight; `weight` itself is left alone."""


@runtime_checkable
class PerLayer(Protocol):
    """A pruner that treats layers differently by their names; it has this besides `requires` and `prune`."""

    def for_layer(self, name: str) -> Pruner:
        """The pruner for the layer of this name: `model.layers.0.mlp.up_proj`."""


@runtime_checkable
class ChecksPattern(Protocol):
    """A pruner or allocator that cannot give every pattern, and says so before any work."""

    def check_pattern(self, pattern: SparsityPattern) -> None:
        """Raise `ConfigError` for a pattern that it cannot give."""
