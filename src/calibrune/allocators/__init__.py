"""Ways to share the sparsity out over the layers; the table below makes them known by name."""

from calibrune.allocators.allocation import Allocator, FromStatistics, SparsityAllocation
from calibrune.allocators.alphapruning import AlphaPruning
from calibrune.allocators.owl import OWL
from calibrune.allocators.uniform import Uniform

ALLOCATORS: dict[str, type[Allocator]] = {"uniform": Uniform, "owl": OWL, "alphapruning": AlphaPruning}

__all__ = ["ALLOCATORS", "OWL", "Allocator", "AlphaPruning", "FromStatistics", "SparsityAllocation", "Uniform"]
