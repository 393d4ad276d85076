"""What each method costs more than Wanda in the same engine, and what a pass through the blocks takes of the machine.

Of SmolLM2's 30 blocks, which are alike, the first 8: as many methods in turns as possible in one run. Needs the shared
data. The pass is measured with a block of Llama-2-7B's shape too, for the share of the products grows with the width;
and methods whose own work does not grow with the tokens with as many of them as the study has.
"""

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.large import SHAPE
from benchmarks.methods import SAMPLES, SMOLLM2, calibration_set
from benchmarks.turns import compared, in_turns, spread
from calibrune.activations import InputNorm, stream_blocks
from calibrune.activations.stream import BATCH_TOKENS
from calibrune.allocators import ALLOCATORS
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import LanguageModel, load_model
from calibrune.lm.speed import operations_per_second
from calibrune.prune import prune_model
from calibrune.pruners import PRUNERS

BLOCKS, REPEATS, FORWARDS = 8, 3, 5
STUDY = (2, 128, 2048)
"""Blocks, samples and their length where there is as much data as in the study (Ji et al., 2025, arXiv 2410.17711)."""
DTYPES = ("bfloat16", "float32")
SPARSITY = 0.5
SHARE = ", share of the machine's matrix-product rate"

METHODS = {
    "wanda": ("wanda", "uniform", None),
    "dsnot": ("dsnot", "uniform", 1.3),
    "owl": ("wanda", "owl", 1.2),
    "ria": ("ria", "uniform", None),
    "sparsegpt": ("sparsegpt", "uniform", None),
    "alps": ("alps", "uniform", 3.0),
}
"""Method, allocation, and how many times Wanda's time it may take."""

PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "mkldnn"),
    "attention": ("attention",),
}
"""Parts of a pass by what the names of their operations hold; all others are the elementwise rest."""


def measure(
    blocks: int = BLOCKS, samples: int = SAMPLES, repeats: int = REPEATS, forwards: int = FORWARDS
) -> Iterator[dict[str, Any]]:
    """For each dtype a row for each method, and one for the pass."""
    for dtype in DTYPES:
        lm = cut(load_model(SMOLLM2, dtype=dtype, device="cpu"), blocks)
        input_ids = calibration_set(lm).input_ids[:samples]
        yield from _methods(lm, input_ids, dtype, repeats)
        yield _forward(lm.model, input_ids, f"calibration forward{SHARE}, {dtype}", forwards)
        yield from _wide(dtype, forwards)


def measure_study() -> Iterator[dict[str, Any]]:
    """A row for each method that works on each layer after its statistics, with as much data as in the study."""
    n, samples, length = STUDY
    lm = cut(load_model(SMOLLM2, dtype="bfloat16", device="cpu"), n)
    input_ids = calibration_set(lm, samples, length).input_ids
    yield from _methods(lm, input_ids, f"bfloat16, {samples} x {length}", 2, ("wanda", "dsnot", "alps"))


def cut(lm: LanguageModel, n: int) -> LanguageModel:
    """The model with its first `n` blocks alone."""
    lm.model.model.layers = lm.model.model.layers[:n]
    lm.model.config.num_hidden_layers = n
    return lm


def _methods(
    lm: LanguageModel, input_ids: Tensor, what: str, repeats: int, names: Sequence[str] = tuple(METHODS)
) -> Iterator[dict[str, Any]]:
    dense = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(1 + repeats):
        for name in names:
            method, allocation, _ = METHODS[name]
            lm.model.load_state_dict(dense)
            # one sample is enough for the run that does not count
            data = input_ids if repeat else input_ids[:1]
            start = time.perf_counter()
            prune_model(lm.model, data, PRUNERS[method](), SPARSITY, allocation=ALLOCATORS[allocation]())
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    lm.model.load_state_dict(dense)
    for name in names:
        method, allocation, limit = METHODS[name]
        setting = _setting(lm, input_ids) | {"method": method, "allocation": allocation, "sparsity": SPARSITY}
        if name != "wanda":
            yield {
                "name": f"whole prune against Wanda in the same engine: {name}, {what}",
                "setting": setting | {"limit_times_wanda": limit},
            } | compared(seconds[name], seconds["wanda"], "wanda")


def _wide(dtype: str, repeats: int, shape: LlamaConfig = SHAPE) -> Iterator[dict[str, Any]]:
    """The pass of one random block of this shape, with two of its sequences."""
    config = LlamaConfig(**shape.to_dict() | {"num_hidden_layers": 1, "vocab_size": 256})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(256, (2, min(2048, config.max_position_embeddings)), generator=generator)
    yield _forward(model, input_ids, f"calibration forward of a block of Llama-2-7B's shape{SHARE}, {dtype}", repeats)


def _forward(model: PreTrainedModel, input_ids: Tensor, name: str, repeats: int) -> dict[str, Any]:
    """A pass of the model's own, and the engine's with Wanda's statistics, against the machine's matrix product."""
    rates: dict[str, list[float]] = {"as wide as the model": [], "2048 wide": []}

    def machine() -> None:
        for name, width in zip(rates, (model.config.hidden_size, 2048), strict=True):
            rates[name].append(operations_per_second(width, model.dtype, torch.device("cpu")))

    sides = {
        "machine": machine,
        "pass": lambda: _pass(model, input_ids),
        "calibration": lambda: _calibration(model, input_ids),
    }
    seconds = in_turns(sides, repeats)
    weights = sum(layer.weight.numel() for block in decoder_blocks(model) for layer in block.layers)
    operations = 2 * input_ids.numel() * weights
    best = max(median(found) for found in rates.values())
    rate = operations / median(seconds["calibration"])
    return {
        "name": name,
        "setting": {
            "hidden_size": model.config.hidden_size,
            "blocks": len(decoder_blocks(model)),
            "calibration": f"{len(input_ids)} x {input_ids.shape[1]}",
            "threads": torch.get_num_threads(),
            "batch_tokens": BATCH_TOKENS,
            "machine_gflops": {name: round(median(found) / 1e9, 1) for name, found in rates.items()},
            "calibration_gflops": round(rate / 1e9, 1),
            "plain_pass_gflops": round(operations / median(seconds["pass"]) / 1e9, 1),
            "calibration_seconds": spread(seconds["calibration"]),
            "plain_pass_seconds": spread(seconds["pass"]),
            "parts_of_the_calibration": _parts(model, input_ids),
            "limit_share": 0.7,
        },
        "value": rate / best,
        "stderr": None,
        "repeats": repeats,
    }


def _pass(model: PreTrainedModel, input_ids: Tensor) -> None:
    """transformers' own forward through embeddings and blocks, in the engine's batches."""
    with torch.no_grad():
        for batch in torch.split(input_ids, max(1, BATCH_TOKENS // input_ids.shape[1])):
            model.model(input_ids=batch, use_cache=False)


def _calibration(model: PreTrainedModel, input_ids: Tensor) -> None:
    """The engine's pass with dense propagation, in which Wanda's statistics are collected."""
    for _ in stream_blocks(model, input_ids, (InputNorm,), propagate="dense"):
        pass


def _parts(model: PreTrainedModel, input_ids: Tensor) -> dict[str, float]:
    """Shares of the time of the operations in a calibration pass."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        _calibration(model, input_ids)
    times = dict.fromkeys([*PARTS, "the rest"], 0.0)
    for operation in found.key_averages():
        named = (part for part, words in PARTS.items() if any(word in operation.key for word in words))
        times[next(named, "the rest")] += operation.self_cpu_time_total
    return {part: round(time / sum(times.values()), 3) for part, time in times.items()}


def _setting(lm: LanguageModel, input_ids: Tensor) -> dict[str, Any]:
    return {
        "model": SMOLLM2,
        "blocks": len(decoder_blocks(lm.model)),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "calibration": f"c4, {len(input_ids)} x {input_ids.shape[1]}",
        "threads": torch.get_num_threads(),
        "seed": 0,
    }
