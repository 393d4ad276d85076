"""How likely the model finds a set, and whether that looks like text that the model was trained on."""

from math import isnan, nan
from statistics import mean, median
from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.proxies.proxy import Better, Context
from calibrune.settings import settings


@settings
class Perplexity:
    """Median over the samples of the perplexity under the model that is to be pruned."""

    better: ClassVar[Better] = "lower"
    founded: ClassVar[str] = (
        "Ji et al. (2025) drop the fifth of the generated texts that has the highest; Xu et al. (2026, arXiv "
        "2606.03328) find that more of it goes with better general tasks and worse mathematics and code"
    )

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """The median: a few wild samples do not move it; nan where one is."""
        values = self.per_sample(data, context)
        return nan if any(map(isnan, values)) else median(values)

    def per_sample(self, data: CalibrationSet, context: Context) -> list[float]:
        """exp of the mean negative log-likelihood of each sample."""
        return [float(moments[:, 0].double().mean().neg().exp()) for moments in context.moments(data)]


@settings
class MinK:
    """Min-K% Prob (Shi et al., 2024, arXiv 2310.16789): mean log-likelihood of the least likely tokens of a sample."""

    better: ClassVar[Better] = "higher"
    founded: ClassVar[str] = "higher means more like text seen in training; weaker than Min-K%++ in that paper's tests"

    k: float = Field(default=0.2, gt=0, le=1)
    """Share of the tokens that counts; the paper's is 20%."""

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """The mean over the samples."""
        return mean(self.per_sample(data, context))

    def per_sample(self, data: CalibrationSet, context: Context) -> list[float]:
        """The score of each sample, in nats."""
        return [_mean_of_lowest(moments[:, 0], self.k) for moments in context.moments(data)]


@settings
class MinKPlusPlus:
    """Min-K%++ (Zhang et al., 2024, arXiv 2404.02936): as Min-K%, each token measured against all that could have come.

    (log p - mean) / standard deviation, both over the vocabulary at that place.
    """

    better: ClassVar[Better] = "higher"
    founded: ClassVar[str] = (
        "the measure of similarity to the training data in Ji et al. (2025), whose self-generated data scores highest "
        "and prunes best"
    )

    k: float = Field(default=0.5, gt=0, le=1)
    """Share of the tokens that counts; the study's is 50%."""

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """The mean over the samples."""
        return mean(self.per_sample(data, context))

    def per_sample(self, data: CalibrationSet, context: Context) -> list[float]:
        """The score of each sample, in standard deviations."""
        return [_mean_of_lowest(_standardized(moments), self.k) for moments in context.moments(data)]


def _standardized(moments: Float[Tensor, "seq 3"]) -> Float[Tensor, "seq"]:
    log_p, mu, sigma = moments.unbind(dim=-1)
    # where the model is certain, nothing else could have come and the deviation is 0
    return (log_p - mu) / sigma.clamp(min=1e-4)


def _mean_of_lowest(scores: Float[Tensor, "seq"], share: float) -> float:
    """The mean of the lowest `share` of the scores, at least of one; nan where one of all is."""
    if scores.isnan().any():
        return nan  # which topk takes for the highest
    n = max(1, int(share * len(scores)))
    return float(scores.double().topk(n, largest=False).values.mean())
