"""What a linear layer sees: running statistics of its inputs, gathered in one pass.

Statistics add up. Each sequence's share is computed by itself and added in the order of the sequences, so how they were
batched changes nothing beyond what the model's own arithmetic does to its activations.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from calibrune.errors import ConfigError

S = TypeVar("S", bound="InputStatistic")


class InputStatistic(ABC):
    """Watches the inputs of one linear layer, sequence by sequence."""

    tokens: int = 0
    """Input vectors seen so far."""

    @abstractmethod
    def __init__(self, in_features: int, device: torch.device) -> None: ...

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        """Add the inputs of one sequence."""
        self._add(x)
        self.tokens += len(x)

    def merge(self: S, other: "InputStatistic") -> None:
        """Add all that another statistic of the same kind, of the same layer, has seen."""
        if not isinstance(other, type(self)):
            raise TypeError(f"{type(self).__name__} cannot add up with {type(other).__name__}")
        self._join(other)
        self.tokens += other.tokens

    def state(self) -> dict[str, Tensor]:
        """All that it has seen, by field; for kinds that hold nothing but tensors and counts."""
        return {name: torch.as_tensor(value) for name, value in vars(self).items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what another of the same kind and width was when it gave this state."""
        for name, value in state.items():
            mine = vars(self).get(name)
            setattr(self, name, value.to(mine) if isinstance(mine, Tensor) else int(value))

    @abstractmethod
    def _add(self, x: Float[Tensor, "tokens in"]) -> None:
        """`update`, but for the count of the tokens."""

    @abstractmethod
    def _join(self: S, other: S) -> None:
        """`merge`, but for the check and the count of the tokens."""


class InputNorm(InputStatistic):
    """L2 norm of each input feature over the calibration tokens (the norm of X_j in Wanda, Sun et al., 2024)."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sum_of_squares = torch.zeros(in_features, dtype=_wide(device), device=device)

    def _add(self, x: Float[Tensor, "tokens in"]) -> None:
        # float32 before squaring: half precision overflows on massive activations
        self._sum_of_squares += x.float().square().sum(dim=0)

    def _join(self, other: "InputNorm") -> None:
        self._sum_of_squares += other._sum_of_squares

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
        self.sequences = 0

    def _add(self, x: Float[Tensor, "tokens in"]) -> None:
        x = x.float()
        total = x.sum(dim=0)
        self._sum += total
        # `x.var(dim=0)` is the same, sixteen times slower on a processor
        self._variance += (x - total / len(x)).square_().sum(dim=0) / len(x)
        self.sequences += 1

    def _join(self, other: "InputMoments") -> None:
        self._sum += other._sum
        self._variance += other._variance
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

    PANEL = 256
    """Rows that are worked out at once, from the diagonal on: the matrix is symmetric, and half of it is enough."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sum = torch.zeros(in_features, in_features, device=device)
        """Of the panels, what lies to the right of their first column."""

    def _add(self, x: Float[Tensor, "tokens in"]) -> None:
        with _tf32_where_exact(x.dtype):
            x = x.float()
            for start in range(0, len(self._sum), self.PANEL):
                panel = slice(start, start + self.PANEL)
                self._sum[panel, start:].addmm_(x[:, panel].T, x[:, start:])

    def _join(self, other: "InputHessian") -> None:
        self._sum += other._sum

    @property
    def matrix(self) -> Float[Tensor, "in in"]:
        """A new matrix at every call, the caller's to change."""
        matrix = self._sum / max(self.tokens, 1)
        for start in range(0, len(matrix), self.PANEL):
            end = min(start + self.PANEL, len(matrix))
            corner = matrix[start:end, start:end].triu()
            matrix[start:end, start:end] = corner + corner.triu(1).T
            matrix[end:, start:end] = matrix[start:end, end:].T
        return matrix


class InputSample(InputStatistic):
    """A few of the inputs themselves, evenly spaced in each sequence: to measure a new weight's output."""

    PER_SEQUENCE = 8

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._rows = [torch.empty(0, in_features, device=device)]

    def _add(self, x: Float[Tensor, "tokens in"]) -> None:
        places = torch.linspace(0, len(x) - 1, min(self.PER_SEQUENCE, len(x)), device=x.device).long()
        self._rows.append(x[places].float())

    def _join(self, other: "InputSample") -> None:
        self._rows += other._rows

    @property
    def rows(self) -> Float[Tensor, "tokens in"]:
        """The sampled inputs, in the order of the sequences."""
        return torch.cat(self._rows)


class InputPeak(InputStatistic):
    """The largest absolute value of each input feature: what never fired is told exactly, and so is what broke.

    A sum of squares tells neither: small inputs underflow in it, and large ones overflow.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._peak = torch.zeros(in_features, device=device)

    def _add(self, x: Float[Tensor, "tokens in"]) -> None:
        if len(x):
            # a NaN stays a NaN in both; `vector_norm` gives the same, fifteen times slower on a processor
            self._peak = self._peak.maximum(x.abs().amax(dim=0).float())

    def _join(self, other: "InputPeak") -> None:
        self._peak = self._peak.maximum(other._peak)

    @property
    def dead(self) -> int:
        """Features that were zero in every token; all of them where no token was seen."""
        return int((self._peak == 0).sum())

    @property
    def broken(self) -> int:
        """Features that were NaN or infinite in some token."""
        return int((~self._peak.isfinite()).sum())

    @property
    def vanishes(self) -> bool:
        """Whether all features are so small that their squares are 0 in float32, though they are not."""
        highest = self._peak.max()
        return bool(highest > 0) and bool(highest.square() < torch.finfo(torch.float32).tiny)


class LayerStats:
    """The statistics of one layer, by type: `stats[InputNorm].rms`; one that was not collected is a `ConfigError`."""

    def __init__(self, kinds: Iterable[type[InputStatistic]], in_features: int, device: torch.device) -> None:
        self._by_type = {kind: kind(in_features, device) for kind in kinds}

    def __getitem__(self, kind: type[S]) -> S:
        statistic = self._by_type.get(kind)
        if not isinstance(statistic, kind):
            collected = ", ".join(k.__name__ for k in self._by_type) or "none"
            raise ConfigError(
                f"{kind.__name__} was not collected (collected: {collected}); a pruner must list it in `requires`"
            )
        return statistic

    def update(self, x: Float[Tensor, "tokens in"]) -> None:
        """Add the inputs of one sequence to every statistic."""
        for statistic in self._by_type.values():
            statistic.update(x)

    def merge(self, other: "LayerStats") -> None:
        """Add all that those of another have seen, of the same layer and kinds."""
        for kind, statistic in self._by_type.items():
            statistic.merge(other[kind])

    @property
    def tokens(self) -> int | None:
        """Input vectors seen; None where nothing was collected."""
        return next((statistic.tokens for statistic in self._by_type.values()), None)


@contextmanager
def _tf32_where_exact(dtype: torch.dtype) -> Iterator[None]:
    """Let GPUs multiply with the 10 bits of TF32 what has no more than those; they sum in float32 all the same."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = dtype in (torch.bfloat16, torch.float16)
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def _wide(device: torch.device) -> torch.dtype:
    """For short vectors that are summed over up to millions of tokens."""
    return torch.float32 if device.type == "mps" else torch.float64
