"""Pruning methods, one a file; the table below makes them known by name."""

from calibrune.pruners.alps import ALPS
from calibrune.pruners.dsnot import DSnoT, DSnoTPublished
from calibrune.pruners.magnitude import Magnitude
from calibrune.pruners.masks import keep_highest
from calibrune.pruners.pruner import ChecksPattern, PerLayer, PrunedWeight, Pruner
from calibrune.pruners.ria import RIA
from calibrune.pruners.sparsegpt import SparseGPT
from calibrune.pruners.wanda import Wanda

PRUNERS: dict[str, type[Pruner]] = {
    "magnitude": Magnitude,
    "wanda": Wanda,
    "ria": RIA,
    "sparsegpt": SparseGPT,
    "dsnot": DSnoT,
    "dsnot-published": DSnoTPublished,
    "alps": ALPS,
}

__all__ = [
    "ALPS",
    "PRUNERS",
    "RIA",
    "ChecksPattern",
    "DSnoT",
    "DSnoTPublished",
    "Magnitude",
    "PerLayer",
    "PrunedWeight",
    "Pruner",
    "SparseGPT",
    "Wanda",
    "keep_highest",
]
