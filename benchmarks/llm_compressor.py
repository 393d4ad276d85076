"""One prune by llm-compressor, in a process and an environment of its own: imports nothing of this project.

`python benchmarks/llm_compressor.py REQUEST.json`: prints one line of JSON, its seconds from model and tokens in memory
to the pruned model, and its peak memory.
"""

import json
import sys
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from loguru import logger
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

METHODS = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    logger.remove()
    torch.set_num_threads(request["threads"])
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=getattr(torch, request["dtype"]))
    input_ids = load_file(request["tokens"])["input_ids"]
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in input_ids.tolist()]
    recipe = METHODS[request["method"]](
        sparsity=request["sparsity"], mask_structure="0:0", targets=[type(model.model.layers[0]).__name__]
    )
    start = time.perf_counter()
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        max_seq_length=input_ids.shape[1],
        num_calibration_samples=len(input_ids),
        batch_size=request["batch_size"],
        shuffle_calibration_samples=False,
    )
    seconds = time.perf_counter() - start
    masks = {
        name: module.weight != 0
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    save_file(masks, request["masks"])
    with open("/proc/self/status", encoding="ascii") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1])
