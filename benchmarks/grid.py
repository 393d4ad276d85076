"""A study's grid of sets, sparsities and methods with dense propagation, against a single pass over the pool.

20 seeds x 4 sizes x 4 sparsities x {magnitude, Wanda, RIA, OWL}, the pool and the sizes of the self-generation study.
Every sample is run once; sets are sums of statistics, and every cell's masks are made, none is evaluated. What a cell
takes grows with the model as the pass does, so SmolLM2's first blocks are enough to tell the ratio.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.engine import cut
from benchmarks.methods import SMOLLM2
from calibrune.activations import InputNorm, stream_blocks
from calibrune.activations.stream import BATCH_TOKENS
from calibrune.allocators import OWL, Allocator, FromStatistics, Uniform
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import LanguageModel, load_model
from calibrune.patterns import parse_target
from calibrune.prune import prune_model
from calibrune.pruners import RIA, Magnitude, Pruner, Wanda
from calibrune.study.samples import SampleStatistics
from calibrune.study.sets import draw

BLOCKS, POOL, LENGTH = 2, 1024, 2048
SEEDS, SIZES, SPARSITIES = 20, (64, 128, 256, 512), ("40%", "50%", "60%", "70%")
METHODS: dict[str, tuple[Pruner, Allocator]] = {
    "magnitude": (Magnitude(), Uniform()),
    "wanda": (Wanda(), Uniform()),
    "ria": (RIA(), Uniform()),
    "owl": (Wanda(), OWL()),
}
VOCABULARY = 3200
"""Each cell's checks read the embeddings too: so many tokens, that they are the share of it all that they are whole."""
LIMIT = 2.0


def measure(
    blocks: int = BLOCKS,
    pool: int = POOL,
    length: int = LENGTH,
    seeds: int = SEEDS,
    sizes: Sequence[int] = SIZES,
    sparsities: Sequence[str] = SPARSITIES,
    dtype: str = "bfloat16",
) -> Iterator[dict[str, Any]]:
    """How many passes over the pool the whole grid takes, and where the time goes."""
    lm = cut(load_model(SMOLLM2, dtype=dtype, device="cpu"), blocks)
    lm.model.resize_token_embeddings(VOCABULARY)
    samples = random_set(lm, pool, length)
    for _ in stream_blocks(lm.model, samples.input_ids[:2], (InputNorm,), propagate="dense"):
        pass  # does not count
    one_pass = pass_seconds(lm, samples)
    seconds, cells = whole_grid(lm, samples, seeds, sizes, sparsities)
    yield {
        "name": "a study's grid with dense propagation, in passes over its pool",
        "setting": {
            "model": SMOLLM2,
            "blocks": blocks,
            "dtype": dtype,
            "pool": f"random tokens, {pool} x {length}",
            "seeds": seeds,
            "sizes": list(sizes),
            "sparsities": list(sparsities),
            "methods": list(METHODS),
            "threads": torch.get_num_threads(),
            "masks_made": cells,
            "one_pass_seconds": round(one_pass, 1),
            "seconds_by_part": {part: round(took, 1) for part, took in seconds.items()},
            "limit_passes": LIMIT,
        },
        "value": sum(seconds.values()) / one_pass,
        "stderr": None,
    }


def random_set(lm: LanguageModel, n: int, length: int) -> CalibrationSet:
    """What is read changes no time."""
    generator = torch.Generator().manual_seed(0)
    return CalibrationSet.from_ids(torch.randint(0, lm.vocab_size, (n, length), generator=generator))


def pass_seconds(lm: LanguageModel, data: CalibrationSet) -> float:
    """A pass of the engine with Wanda's statistics."""
    start = time.perf_counter()
    for _ in stream_blocks(lm.model, data.input_ids, (InputNorm,), propagate="dense"):
        pass
    return time.perf_counter() - start


def whole_grid(
    lm: LanguageModel, pool: CalibrationSet, seeds: int, sizes: Sequence[int], sparsities: Sequence[str]
) -> tuple[dict[str, float], int]:
    """Seconds by part, as a study's workbench goes about it without evaluations; how many models were pruned.

    Magnitude reads no set, so that a study does it once for each sparsity.
    """
    seconds = dict.fromkeys(["the pool's statistics, to disk", "sums of statistics", *METHODS], 0.0)
    done: set[tuple[str, ...]] = set()
    layers = [layer for block in decoder_blocks(lm.model) for layer in block.layers]
    dense = [layer.weight.clone() for layer in layers]

    def clocked(part: str, start: float) -> None:
        seconds[part] += time.perf_counter() - start

    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, CALIBRUNE_CACHE=cache):
        store = SampleStatistics(lm, "random pool")
        start = time.perf_counter()
        store.of(pool, BATCH_TOKENS)
        clocked("the pool's statistics, to disk", start)
        for seed in range(seeds):
            for size in sizes:
                data = draw(pool, size, seed)
                start = time.perf_counter()
                statistics = store.of(data, BATCH_TOKENS)
                clocked("sums of statistics", start)
                for name, (pruner, allocator) in METHODS.items():
                    for sparsity in sparsities:
                        cell = (name, sparsity, data.fingerprint if pruner.requires else "")
                        if cell in done:
                            continue
                        done.add(cell)
                        start = time.perf_counter()
                        _cell(lm, data, statistics, pruner, allocator, sparsity)
                        for layer, weight in zip(layers, dense, strict=True):
                            layer.replace_weight(weight)
                        clocked(name, start)
    return seconds, len(done)


def _cell(
    lm: LanguageModel, data: CalibrationSet, statistics: Any, pruner: Pruner, allocator: Allocator, sparsity: str
) -> None:
    target = parse_target(sparsity)
    allocation = (
        allocator.allocate_from(lm.model, statistics, target)
        if isinstance(allocator, FromStatistics)
        else allocator.allocate(lm.model, data, target)
    )
    prune_model(lm.model, data, pruner, target, allocation=allocation, propagate="dense", statistics=statistics)
