"""Ways to share the sparsity out over the layers; the table below makes them known by name."""

from calibrune.allocators.allocation import Allocator, SparsityAllocation
from calibrune.allocators.uniform import Uniform

ALLOCATORS: dict[str, type[Allocator]] = {"uniform": Uniform}

__all__ = ["ALLOCATORS", "Allocator", "SparsityAllocation", "Uniform"]
