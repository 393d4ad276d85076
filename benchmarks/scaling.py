"""How time and peak memory grow: with tokens, width, depth, seeds and sparsities, on small random Llamas.

`python -m benchmarks scaling`. Each point is a process of its own (`python -m benchmarks.scaling REQUEST`), so that no
memory of an earlier one is in its peak; its time is the median of a few runs. The exponent is the slope of a straight
line through the logarithms, and stands beside that of the mathematics, which it should not exceed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats import linregress
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.grid import whole_grid
from benchmarks.rows import peak_bytes, resident_bytes
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.lm.loading import LanguageModel
from calibrune.prune import prune_model
from calibrune.pruners import PRUNERS

ROOT = Path(__file__).resolve().parents[1]
LENGTH, REPEATS = 128, 3
PAGES = 100_000
"""Bytes of memory below which nothing is told apart."""
BASE = {"tokens": 8192, "width": 256, "depth": 4, "seeds": 0, "sparsities": 1, "method": "wanda"}

AXES: dict[str, tuple[dict[str, Any], tuple[int, ...], float, float]] = {
    # what it is measured with, the points, the exponents of time and of memory that the mathematics has at most
    "tokens": ({}, (8192, 16384, 32768, 65536), 1, 1),
    "width": ({"tokens": 4096, "depth": 2}, (512, 1024, 1536, 2048), 2, 2),
    "width, sparsegpt": ({"tokens": 4096, "depth": 2, "method": "sparsegpt"}, (512, 1024, 1536, 2048), 3, 2),
    "depth": ({}, (4, 8, 16, 32), 1, 0),
    "seeds": ({"tokens": 4096}, (2, 4, 8, 16), 1, 0),
    "sparsities": ({"tokens": 4096, "seeds": 4}, (2, 4, 8, 16), 1, 0),
}


def measure(
    axes: dict[str, tuple[dict[str, Any], tuple[int, ...], float, float]] = AXES, repeats: int = REPEATS
) -> Iterator[dict[str, Any]]:
    """Two rows for each axis: the exponents of time and of memory."""
    for axis, (setting, points, of_time, of_memory) in axes.items():
        name = axis.partition(",")[0]
        asked = [BASE | setting | {name: point, "repeats": repeats} for point in points]
        found = [_point(one) for one in asked]
        for what, limit in (("seconds", of_time), ("peak_mb", of_memory)):
            values = [one[what] for one in found]
            line = linregress(np.log(points), np.log(values))
            yield {
                "name": f"how {'time' if what == 'seconds' else 'peak memory'} grows with {axis}: exponent",
                "setting": {key: value for key, value in asked[0].items() if key != name}
                | {
                    "model": f"random Llama, inner width 3 x width, vocabulary 256; sequences of {LENGTH} tokens",
                    "dtype": "float32",
                    "threads": torch.get_num_threads(),
                    name: list(points),
                    what: [round(value, 4) for value in values],
                    "limit_exponent": limit,
                },
                "value": float(line.slope),
                "stderr": float(line.stderr),
                "repeats": repeats,
            }


def _point(request: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scaling", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{request} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_point(request: dict[str, Any]) -> dict[str, float]:
    """Seconds of one setting, and by how much its peak memory is above what the model and the libraries hold."""
    _work(request | {"tokens": 2 * LENGTH, "width": 64, "depth": 2})()  # libraries set themselves up at the first call
    work = _work(request)
    before = resident_bytes()
    seconds, peak = [], 0
    for _ in range(request["repeats"]):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
        peak = peak or peak_bytes()  # of the first: later ones find its memory
    return {"seconds": median(seconds), "peak_mb": max(peak - before, PAGES) / 1e6}


def _work(request: dict[str, Any]) -> Callable[[], object]:
    """A whole prune of a dense model; with seeds, a grid of one size, as a study with dense propagation does it."""
    model = random_llama(request["width"], request["depth"])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (request["tokens"] // LENGTH, LENGTH), generator=generator)
    if not request["seeds"]:
        # what is pruned already takes as long to be pruned again
        return lambda: prune_model(model, ids, PRUNERS[request["method"]](), 0.5)
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    lm = LanguageModel(model, PreTrainedTokenizerFast(tokenizer_object=words), {})
    pool = CalibrationSet.from_ids(ids)
    sparsities = [f"{40 + 2 * i}%" for i in range(request["sparsities"])]
    return lambda: whole_grid(lm, pool, request["seeds"], [len(ids) // 2], sparsities)


def random_llama(width: int, depth: int) -> PreTrainedModel:
    """The same one each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=LENGTH,
    )
    return AutoModelForCausalLM.from_config(config).eval()


if __name__ == "__main__":
    print(json.dumps(run_point(json.loads(sys.argv[1]))))
