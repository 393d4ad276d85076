"""Whole prunes against llm-compressor: two processes in turns, the same checkpoint, tokens, dtype and threads.

llm-compressor runs in an environment of its own (`peers.txt`), made in `.venv-peers` where it is missing. Timed
on both sides: from the model and the tokens in memory to the pruned model in memory. Needs the shared data.
"""

import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.methods import LENGTH, SAMPLES, SMOLLM2, calibration_set
from benchmarks.rows import peak_bytes
from benchmarks.turns import compared
from calibrune.lm.loading import load_model
from calibrune.prune import prune_model
from calibrune.pruners import PRUNERS

ROOT = Path(__file__).resolve().parent
PEER_PYTHON = ROOT.parent / ".venv-peers" / "bin" / "python"
SPARSITY = 0.5

CASES = [
    # method, dtype, propagate, repeats
    ("wanda", "bfloat16", "pruned", 3),
    ("wanda", "bfloat16", "dense", 3),
    ("wanda", "float32", "pruned", 3),
    ("sparsegpt", "bfloat16", "pruned", 2),
    ("sparsegpt", "float32", "pruned", 2),
]


def measure() -> Iterator[dict[str, Any]]:
    """Seconds of both, and how far their masks agree, for each method and dtype."""
    _install_peer()
    with tempfile.TemporaryDirectory() as folder:
        for method, dtype, propagate, repeats in CASES:
            request = _request(Path(folder), method, dtype, propagate)
            sides = {
                "ours": [sys.executable, "-m", "benchmarks.peers"],
                "theirs": [PEER_PYTHON, ROOT / "llm_compressor.py"],
            }
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(repeats):
                for side, command in sides.items():
                    runs[side].append(_run(command, request | {"masks": f"{folder}/{side}.safetensors"}, folder))
            ours, theirs = ([run["seconds"] for run in runs[side]] for side in sides)
            yield {
                "name": f"whole prune against llm-compressor: {method}, {dtype}, propagate={propagate}",
                "setting": {
                    "model": SMOLLM2,
                    "method": method,
                    "dtype": dtype,
                    "propagate": propagate,
                    "sparsity": SPARSITY,
                    "calibration": f"c4, {SAMPLES} x {LENGTH}",
                    "threads": request["threads"],
                    "peer": (ROOT / "peers.txt").read_text(encoding="utf-8").split()[-2:],
                    "first_block_masks_agree": _agree(folder, "model.layers.0."),
                    "masks_agree": _agree(folder, ""),
                    "peak_mb": {side: round(max(run["peak_bytes"] for run in runs[side]) / 1e6) for side in sides},
                },
            } | compared(ours, theirs, "llm-compressor")


def _request(folder: Path, method: str, dtype: str, propagate: str) -> dict[str, Any]:
    """What both sides are asked for; the checkpoint and the tokens are written where they are missing."""
    model = folder / dtype
    tokens = folder / "tokens.safetensors"
    if not model.exists():
        lm = load_model(SMOLLM2, dtype=dtype, device="cpu")
        lm.model.save_pretrained(model)
        lm.tokenizer.save_pretrained(model)
        save_file({"input_ids": calibration_set(lm).input_ids.contiguous()}, tokens)
    return {
        "model": str(model),
        "tokens": str(tokens),
        "method": method,
        "dtype": dtype,
        "propagate": propagate,
        "sparsity": SPARSITY,
        "batch_size": 1,
        "threads": torch.get_num_threads(),
    }


def _run(command: list[Any], request: dict[str, Any], folder: str) -> dict[str, Any]:
    path = Path(folder) / "request.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    done = subprocess.run([*map(str, command), str(path)], capture_output=True, text=True, cwd=ROOT.parent)
    if done.returncode:
        raise RuntimeError(f"{command[-1]} failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _prune(path: str) -> None:
    """Our side, in a process of its own."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    lm = load_model(request["model"], dtype=request["dtype"], device="cpu")
    input_ids = load_file(request["tokens"])["input_ids"]
    start = time.perf_counter()
    prune_model(lm.model, input_ids, PRUNERS[request["method"]](), request["sparsity"], propagate=request["propagate"])
    seconds = time.perf_counter() - start
    linear = {name: module for name, module in lm.model.named_modules() if isinstance(module, torch.nn.Linear)}
    save_file({name: one.weight != 0 for name, one in linear.items() if name != "lm_head"}, request["masks"])
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}))


def _agree(folder: str, prefix: str) -> float:
    """Share of the weights, of layers whose names begin so, that both keep or both prune."""
    ours, theirs = (load_file(f"{folder}/{side}.safetensors") for side in ("ours", "theirs"))
    same = {name: int((mask == theirs[name]).sum()) for name, mask in ours.items() if name.startswith(prefix)}
    return sum(same.values()) / sum(ours[name].numel() for name in same)


def _install_peer() -> None:
    if not PEER_PYTHON.exists():
        print(f"making {PEER_PYTHON.parent.parent} for llm-compressor ...", file=sys.stderr)
        venv.create(PEER_PYTHON.parent.parent, with_pip=True)
        subprocess.run([PEER_PYTHON, "-m", "pip", "install", "-q", "-r", ROOT / "peers.txt"], check=True)


if __name__ == "__main__":
    _prune(sys.argv[1])
