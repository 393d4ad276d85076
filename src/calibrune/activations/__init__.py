"""What the layers of a model see on the calibration data: statistics, and the walk that collects them."""

from calibrune.activations.statistics import (
    InputHessian,
    InputMoments,
    InputNorm,
    InputPeak,
    InputSample,
    InputStatistic,
    LayerStats,
)
from calibrune.activations.stream import BlockInputs, LayerInputs, stream_blocks

__all__ = [
    "BlockInputs",
    "InputHessian",
    "InputMoments",
    "InputNorm",
    "InputPeak",
    "InputSample",
    "InputStatistic",
    "LayerInputs",
    "LayerStats",
    "stream_blocks",
]
