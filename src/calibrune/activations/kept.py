"""The hidden states between two blocks: in memory, or, above a budget, in files."""

import tempfile
from pathlib import Path
from types import TracebackType

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

BUDGET = 1 << 30
"""Bytes of hidden states that stay in memory where there is a place for files."""


class KeptActivations:
    """A batch's hidden states each, overwritten block by block.

    Args:
        n_batches: how many there are.
        place: where files may be written; None: all stay in memory.
        budget: bytes that stay in memory all the same.
    """

    def __init__(self, n_batches: int, place: Path | None, budget: int = BUDGET) -> None:
        self._kept: list[Tensor | Path | None] = [None] * n_batches
        self._files = None if place is None else tempfile.TemporaryDirectory(dir=place, prefix="activations-")
        self._left = budget
        self._device = "cpu"

    def __getitem__(self, index: int) -> Float[Tensor, "batch seq hidden"] | None:
        kept = self._kept[index]
        return load_file(kept, device=self._device)["hidden"] if isinstance(kept, Path) else kept

    def __setitem__(self, index: int, hidden: Float[Tensor, "batch seq hidden"] | None) -> None:
        kept = self._kept[index]
        if hidden is None or self._files is None or isinstance(kept, Tensor):
            self._kept[index] = hidden
        elif kept is None and hidden.nbytes <= self._left:
            self._left -= hidden.nbytes
            self._kept[index] = hidden
        else:
            path = Path(self._files.name) / f"{index:06d}.safetensors"
            save_file({"hidden": hidden.cpu().contiguous()}, path)
            self._kept[index], self._device = path, str(hidden.device)

    def __enter__(self) -> "KeptActivations":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._kept.clear()
        if self._files is not None:
            self._files.cleanup()
