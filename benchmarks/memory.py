"""The peak memory of a streamed prune against what it cannot do without: embeddings, one block, the activations of the
calibration data, and the statistics of a block. A random Llama, whose blocks are large enough to tell.

Above a command that only imports; both are whole commands in processes of their own, as in `large`.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks.large import SHAPE_KEYS, run_watched, write_checkpoint
from calibrune.activations import InputHessian, InputNorm, InputPeak, InputSample, InputStatistic, LayerStats

SHAPE = LlamaConfig(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=2,
    num_attention_heads=16,
    num_key_value_heads=16,
    max_position_embeddings=4096,
    architectures=["LlamaForCausalLM"],
    dtype="bfloat16",
)
DATA = ((64, 256, 512), (128, 2048, 2048))
"""Samples, their length, and tokens through a block at once: what it makes of those on the way is not among the parts.
Little data, and the study's, whose activations are most of the memory."""
METHODS: dict[str, tuple[type[InputStatistic], ...]] = {"wanda": (InputNorm,), "sparsegpt": (InputHessian,)}
IMPORTS = "import calibrune.streamed, calibrune.cli, calibrune.verbs"
LIMIT = 1.15


def measure(shape: LlamaConfig = SHAPE, data: Sequence[tuple[int, int, int]] = DATA) -> Iterator[dict[str, Any]]:
    """A row for each method and amount of data; `value` is the peak above the imports, by the sum of the parts."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        write_checkpoint(source, shape)
        imported = run_watched([sys.executable, "-c", IMPORTS])["peak"]
        for (samples, length, batch_tokens), method in product(data, METHODS):
            out = Path(folder) / "pruned"
            command = ["-m", "calibrune", "prune", str(source), "--stream", "--out", str(out), "--method", method]
            asked = ["--calibration", "random", "--samples", str(samples), "--seq-len", str(length)]
            peak = run_watched([sys.executable, *command, *asked, "--batch-tokens", str(batch_tokens)])["peak"]
            shutil.rmtree(out)
            parts = parts_of(shape, method, samples, length)
            yield {
                "name": f"peak memory of a streamed prune, in sums of its parts: {method}, {samples} x {length}",
                "setting": {
                    "shape": {key: getattr(shape, key) for key in SHAPE_KEYS},
                    "dtype": "bfloat16",
                    "method": method,
                    "sparsity": 0.5,
                    "calibration": f"random tokens, {samples} x {length}",
                    "batch_tokens": batch_tokens,
                    "threads": torch.get_num_threads(),
                    "peak_mb": round(peak / 1e6),
                    "imports_mb": round(imported / 1e6),
                    "parts_mb": {part: round(size / 1e6, 1) for part, size in parts.items()},
                    "limit": LIMIT,
                },
                "value": (peak - imported) / sum(parts.values()),
                "stderr": None,
            }


def parts_of(shape: LlamaConfig, method: str, samples: int, length: int) -> dict[str, int]:
    """Bytes of what must be there at once; of a block's statistics, those of its four distinct inputs."""
    d, inner, size = shape.hidden_size, shape.intermediate_size, 2
    head = d // shape.num_attention_heads
    in_block = 2 * d * d + 2 * d * head * shape.num_key_value_heads + 3 * d * inner + 2 * d
    kinds = (*METHODS[method], InputPeak)
    statistics = 0
    for width in (d, d, d, inner):
        states = (LayerStats(kinds, width, torch.device("meta"))[kind].state() for kind in kinds)
        statistics += sum(tensor.nbytes for state in states for tensor in state.values())
        statistics += 4 * InputSample.PER_SEQUENCE * samples * width
    return {
        "embeddings and head": 2 * shape.vocab_size * d * size,
        "one block": in_block * size,
        "activations": samples * length * d * size,
        "statistics": statistics,
    }
