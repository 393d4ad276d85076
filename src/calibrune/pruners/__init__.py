"""Pruning methods, one a file; the table below makes them known by name."""

from calibrune.pruners.magnitude import Magnitude
from calibrune.pruners.masks import keep_highest
from calibrune.pruners.pruner import PrunedWeight, Pruner
from calibrune.pruners.wanda import Wanda

PRUNERS: dict[str, type[Pruner]] = {"magnitude": Magnitude, "wanda": Wanda}

__all__ = ["PRUNERS", "Magnitude", "PrunedWeight", "Pruner", "Wanda", "keep_highest"]
