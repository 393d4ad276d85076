"""How far the released code's choices change a mask: both choices on the very same inputs, layer by layer.

Perplexities after whole runs with these settings are in `methods.py`; there one weight of an early block changes what
all later blocks see, here nothing is carried on.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import LENGTH, SAMPLES, SMOLLM2, calibration_set
from calibrune.activations import InputHessian, InputMoments, InputNorm, LayerInputs, LayerStats, stream_blocks
from calibrune.lm.loading import load_model
from calibrune.patterns import SemiStructured, SparsityPattern, Unstructured
from calibrune.pruners import DSnoT, Magnitude, SparseGPT, Wanda

HALF, TWO_OF_FOUR = Unstructured(0.5), SemiStructured(2, 4)


def measure() -> Iterator[dict[str, Any]]:
    """For each choice, the share of all weights that one mask keeps and the other does not."""
    lm = load_model(SMOLLM2, dtype="float32")
    calibration = calibration_set(lm)
    differs: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    kinds = (InputNorm, InputMoments, InputHessian)
    for block in stream_blocks(lm.model, calibration.input_ids, kinds, propagate="dense"):
        for name, ours, theirs in _masks(block.layers):
            differs[name][0] += int((ours != theirs).sum())
            differs[name][1] += ours.numel()
    for name, (count, size) in differs.items():
        yield {
            "name": name,
            "setting": {
                "model": SMOLLM2,
                "dtype": "float32",
                "calibration": f"c4, {SAMPLES} x {LENGTH}, {calibration.fingerprint}",
                "propagate": "dense",
                "weights": size,
                "weights_that_differ": count,
            },
            "value": count / size,
            "stderr": None,
        }


def _masks(layers: tuple[LayerInputs, ...]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of the choice, our mask, the released code's."""
    for inputs in layers:
        W, stats, name = inputs.layer.weight, inputs.stats, inputs.layer.name
        ours = Magnitude().prune(W, stats, HALF).mask
        yield "magnitude:select=threshold, 50%", ours, Magnitude(select="threshold").prune(W, stats, HALF).mask
        wanda = Wanda().prune(W, stats, HALF).mask
        yield "wanda, ties go from the left, 50%", wanda, _ties_from_the_left(W, stats)
        yield "wanda:select=cumulative, 50%", wanda, Wanda(select="cumulative").prune(W, stats, HALF).mask
        ours = SparseGPT().prune(W, stats, HALF).mask
        yield "sparsegpt:select=threshold, 50%", ours, SparseGPT(select="threshold").prune(W, stats, HALF).mask
        for pattern in (HALF, TWO_OF_FOUR):
            yield from _dsnot(W, stats, name, pattern)
    attention = [inputs for inputs in layers if inputs.layer.name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj")]
    weights = [inputs.layer.weight for inputs in attention]
    apart = torch.cat([Magnitude().prune(W, attention[0].stats, HALF).mask for W in weights])
    fused = Magnitude().prune(torch.cat(weights), attention[0].stats, HALF).mask
    yield "magnitude, q, k and v as one matrix, 50%", apart, fused


def _dsnot(W: Tensor, stats: LayerStats, name: str, pattern: SparsityPattern) -> Iterator[tuple[str, Tensor, Tensor]]:
    shown = "2:4" if isinstance(pattern, SemiStructured) else "50%"
    initial = Wanda().prune(W, stats, pattern).mask
    ours = DSnoT().prune(W, stats, pattern).mask
    last = DSnoT(keep_best=False).prune(W, stats, pattern).mask
    yield f"dsnot against its initial wanda, {shown}", initial, ours
    yield f"dsnot:keep_best=false, {shown}", ours, last
    yield f"dsnot-published, {shown}", ours, initial if "mlp" in name else last


def _ties_from_the_left(W: Tensor, stats: LayerStats) -> Tensor:
    """Wanda as released: a stable sort, and the first of equal scores go."""
    scores = W.abs() * stats[InputNorm].rms
    goes = scores.sort(dim=1, stable=True).indices[:, : W.shape[1] // 2]
    return torch.ones_like(W, dtype=torch.bool).scatter_(1, goes, False)
