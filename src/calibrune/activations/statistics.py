"""What a linear layer sees: running statistics of its inputs, gathered in one pass.

Statistics add up. Each sequence's share is computed by itself and added in the order of the sequences, so how they were
batched changes nothing beyond what the model's own arithmetic does to its activations.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

S = TypeVar("S", bound="InputStatistic")


class InputStatistic(ABC):
    """Watches the inputs of one linear layer, sequence by sequence."""

    tokens: int
    """Input vectors seen so far."""

    @abstractmethod
    def __init__(self, in_features: int, device: torch.device) -> None: ...

    @abstractmethod
    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        """Add the inputs of one sequence."""

    @abstractmethod
    def merge(self, other: "InputStatistic") -> None:
        """Add all that another statistic of the same layer has seen."""


class InputNorm(InputStatistic):
    """L2 norm of each input feature over the calibration tokens (the norm of X_j in Wanda, Sun et al., 2024)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sum_of_squares = torch.zeros(in_features, dtype=_wide(device), device=device)
        self.tokens = 0

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        # float32 before squaring: half precision overflows on massive activations
        self._sum_of_squares += x.float().square().sum(dim=0)
        self.tokens += len(x)

    def merge(self, other: "InputStatistic") -> None:
        if not isinstance(other, InputNorm):
            raise TypeError(f"InputNorm cannot add up with {type(other).__name__}")
        self._sum_of_squares += other._sum_of_squares
        self.tokens += other.tokens

    @property
    def rms(self) -> Float[Tensor, "in"]:
        """The norm divided by the square root of the tokens: calibration sets of two sizes compare. All 0 unseen."""
        return (self._sum_of_squares / max(self.tokens, 1)).sqrt().float()


class InputMoments(InputStatistic):
    """Sum and variance of each input feature (what DSnoT calls the expectation and the variance of the inputs)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        dtype = _wide(device)
        self._sum = torch.zeros(in_features, dtype=dtype, device=device)
        self._variance = torch.zeros(in_features, dtype=dtype, device=device)
        self.tokens = self.sequences = 0

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        x = x.float()
        self._sum += x.sum(dim=0)
        self._variance += x.var(dim=0, correction=0)
        self.tokens += len(x)
        self.sequences += 1

    def merge(self, other: "InputStatistic") -> None:
        if not isinstance(other, InputMoments):
            raise TypeError(f"InputMoments cannot add up with {type(other).__name__}")
        self._sum += other._sum
        self._variance += other._variance
        self.tokens += other.tokens
        self.sequences += other.sequences

    @property
    def sum_per_sequence(self) -> Float[Tensor, "in"]:
        """Sum over a sequence's tokens, mean over sequences: the unit of the published DSnoT code."""
        return (self._sum / max(self.sequences, 1)).float()

    @property
    def variance(self) -> Float[Tensor, "in"]:
        """Variance within a sequence, mean over sequences; how the means of sequences differ is not in it."""
        return (self._variance / max(self.sequences, 1)).float()


class InputHessian(InputStatistic):
    """Second moment of the inputs, E[x xT]: the Hessian of the layer's squared output error, up to a factor of 2."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sum = torch.zeros(in_features, in_features, device=device)
        self.tokens = 0

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        x = x.float()
        self._sum.addmm_(x.T, x)
        self.tokens += len(x)

    def merge(self, other: "InputStatistic") -> None:
        if not isinstance(other, InputHessian):
            raise TypeError(f"InputHessian cannot add up with {type(other).__name__}")
        self._sum += other._sum
        self.tokens += other.tokens

    @property
    def matrix(self) -> Float[Tensor, "in in"]:
        """A new matrix at every call, the caller's to change."""
        return self._sum / max(self.tokens, 1)


class InputSample(InputStatistic):
    """A few of the inputs themselves, evenly spaced in each sequence: to measure a new weight's output."""

    PER_SEQUENCE = 8

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._rows = [torch.empty(0, in_features, device=device)]
        self.tokens = 0

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        places = torch.linspace(0, len(x) - 1, min(self.PER_SEQUENCE, len(x)), device=x.device).long()
        self._rows.append(x[places].float())
        self.tokens += len(x)

    def merge(self, other: "InputStatistic") -> None:
        if not isinstance(other, InputSample):
            raise TypeError(f"InputSample cannot add up with {type(other).__name__}")
        self._rows += other._rows
        self.tokens += other.tokens

    @property
    def rows(self) -> Float[Tensor, "tokens in"]:
        """The sampled inputs, in the order of the sequences."""
        return torch.cat(self._rows)


class LayerStats:
    """The statistics of one layer, by type: `stats[InputNorm].rms`."""

    def __init__(self, kinds: Iterable[type[InputStatistic]], in_features: int, device: torch.device) -> None:
        self._by_type = {kind: kind(in_features, device) for kind in kinds}

    def __getitem__(self, kind: type[S]) -> S:
        statistic = self._by_type.get(kind)
        if not isinstance(statistic, kind):
            collected = ", ".join(k.__name__ for k in self._by_type) or "none"
            raise KeyError(
                f"{kind.__name__} was not collected (collected: {collected}); a pruner must list it in `requires`"
            )
        return statistic

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        """Add the inputs of one sequence to every statistic."""
        for statistic in self._by_type.values():
            statistic.update(x)

    @property
    def tokens(self) -> int | None:
        """Input vectors seen; None where nothing was collected."""
        return next((statistic.tokens for statistic in self._by_type.values()), None)


def _wide(device: torch.device) -> torch.dtype:
    """For short vectors that are summed over up to millions of tokens."""
    return torch.float32 if device.type == "mps" else torch.float64
