"""What the layers of the model see of a set, against what they see of the model's own samples."""

from math import nan
from statistics import mean
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.proxies.proxy import Better, Context
from calibrune.settings import settings


@settings
class ActivationDistance:
    """How far apart the input channels' RMS are on the set and on the model's own samples, mean over the layers.

    Of a layer: standard deviation over its channels of log(RMS on the set / RMS on the own samples). A factor that all
    channels share is no distance: it changes no rank in Wanda, whose scores of a row are |weight| · RMS.
    """

    better: ClassVar[Better] = "lower"
    founded: ClassVar[str] = (
        "Wanda sees the data through these numbers alone; He et al. (COLA, 2025, arXiv 2510.10618) choose data by the "
        "model's activations"
    )

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """In nats; 0 for the same set."""
        return mean(float((_log(rms) - _log(own)).std(correction=0)) for rms, own in _pairs(data, context))


@settings
class OutlierCoverage:
    """Of the outlier channels of the model's own samples, the share that the set excites as well.

    A channel is an outlier of a layer where its RMS is above `times` the layer's median; all layers count together.
    """

    better: ClassVar[Better] = "higher"
    founded: ClassVar[str] = (
        "outlier channels carry much of what a model does (Dettmers et al., 2022, arXiv 2208.07339), and OWL shares "
        "out sparsity by them; that a set must excite them is an assumption"
    )

    times: float = Field(default=5.0, gt=1)
    """How far above the median an outlier is; OWL's published M is 5 (of the mean)."""

    def measure(self, data: CalibrationSet, context: Context) -> float:
        """In [0, 1]; nan where the own samples have no outlier."""
        wanted = found = 0
        for rms, own in _pairs(data, context):
            outliers = own > self.times * own.median()
            wanted += int(outliers.sum())
            found += int((outliers & (rms > self.times * rms.median())).sum())
        return found / wanted if wanted else nan


def _pairs(data: CalibrationSet, context: Context) -> list[tuple[Float[Tensor, "in"], Float[Tensor, "in"]]]:
    """RMS on the set and on the own samples, of every layer that saw tokens of both."""
    here, own = context.input_rms(data), context.input_rms(context.own)
    return [(here[name], own[name]) for name in own if name in here]


def _log(rms: Float[Tensor, "in"]) -> Float[Tensor, "in"]:
    # a channel that is 0 throughout has no logarithm: a millionth of the layer's mean stands for it
    rms = rms.double()
    return torch.log(rms.clamp(min=max(1e-6 * float(rms.mean()), 1e-30)))
