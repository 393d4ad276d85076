"""Two real models, whole, through every method and pattern, saved, and read back by plain transformers.

What is looked at is whether it holds: exactly so many weights gone from every layer, every group of N:M valid, all
finite, and text from what was read back. The calibration data is too little for a good model.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.methods import DATA, GEMMA, SMOLLM2
from benchmarks.rows import read
from calibrune import verbs
from calibrune.lm.layout import decoder_blocks
from calibrune.patterns import SemiStructured, parse_pattern
from calibrune.pruners import PRUNERS

SAMPLES, LENGTH = 4, 64
PATTERNS = ("50%", "2:4", "4:8")
FEWER_ITERATIONS = {"alps": "alps:max_iterations=12"}
"""What makes a method slow and changes nothing of what is looked at."""


def measure() -> Iterator[dict[str, Any]]:
    """A row for each model, method and pattern; those that are there already are not run again."""
    known = {(row["setting"]["model"], row["setting"]["method"], row["setting"]["pattern"]) for row in read("whole")}
    for model in (SMOLLM2, GEMMA):
        for pattern in PATTERNS:
            for method in (FEWER_ITERATIONS.get(name, name) for name in PRUNERS):
                if (model, method, pattern) not in known:
                    yield _row(model, method, pattern)


def _row(model: str, method: str, pattern: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        manifest = verbs.prune(
            model=model,
            out=Path(folder) / "pruned",
            method=method,
            sparsity=pattern,
            calibration=str(DATA / "corpora" / "c4.jsonl.gz"),
            samples=SAMPLES,
            seq_len=LENGTH,
            allocation="uniform",
            propagate="pruned",
            seed=0,
            batch_tokens=4096,
            dtype="float32",
        )
        read_back = AutoModelForCausalLM.from_pretrained(Path(folder) / "pruned")
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "pruned")
    layers = manifest["report"]["layers"]
    wrong = [layer["name"] for layer in layers if layer["pruned"] * 2 != layer["shape"][0] * layer["shape"][1]]
    wrong += _faults(read_back, pattern)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    text = read_back.generate(**prompt, max_new_tokens=8, do_sample=False)
    return {
        "name": f"{model.split(':')[-1]} {method} {pattern}: layers in which the saved model is not as asked",
        "setting": {
            "model": model, "method": method, "pattern": pattern, "dtype": "float32", "allocation": "uniform",
            "calibration": f"c4, {SAMPLES} x {LENGTH}", "layers": len(layers), "new_tokens": text.shape[1],
        },
        "value": len(wrong),
        "wrong": wrong,
        "seconds": round(sum(layer["seconds"] for layer in layers), 1),
    }  # fmt: skip


def _faults(model: PreTrainedModel, pattern: str) -> list[str]:
    """The layers of a model that hold what is not finite, more weights than may stay, or a group that is no N:M."""
    asked = parse_pattern(pattern)
    wrong = []
    for block in decoder_blocks(model):
        for layer in block.layers:
            kept = layer.weight != 0
            fits = bool(layer.weight.isfinite().all()) and int(kept.sum()) <= kept.numel() // 2
            if isinstance(asked, SemiStructured):
                fits = fits and bool((kept.reshape(-1, asked.m).sum(dim=1) <= asked.n).all())
            if not fits:
                wrong.append(layer.name)
    return wrong
