"""Memory and time of a streamed prune: a random checkpoint of Llama-2-7B's shape, 13.5 GB in bfloat16.

Needs 28 GB of free disk in the folder for temporary files (`TMPDIR`). The command line does the work, in a process of
its own; its resident memory is the kernel's own high-water mark, files that are mapped included.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from benchmarks.rows import peak_bytes

SHAPE = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
    architectures=["LlamaForCausalLM"],
    dtype="bfloat16",
)
SHAPE_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SAMPLES, LENGTH = 8, 128
LIMIT = 4_000_000_000


def measure(shape: LlamaConfig = SHAPE, methods: tuple[str, ...] = ("wanda", "magnitude")) -> Iterator[dict[str, Any]]:
    """Peak resident memory of the whole command, and of one that only imports; seconds."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        size = write_checkpoint(source, shape)
        imported = run_watched([sys.executable, "-c", "import calibrune.streamed, calibrune.cli, calibrune.verbs"])
        for method in methods:
            out = Path(folder) / "pruned"
            command = ["-m", "calibrune", "prune", str(source), "--stream", "--out", str(out), "--method", method]
            data = ["--calibration", "random", "--samples", str(SAMPLES), "--seq-len", str(LENGTH)]
            start = time.perf_counter()
            done = run_watched([sys.executable, *command, "--sparsity", "2:4", *data, "--json"])
            seconds = time.perf_counter() - start
            report = json.loads(done["stdout"])
            shutil.rmtree(out)
            yield {
                "name": f"peak resident memory in MB of a streamed prune: Llama-2-7B's shape, {method}",
                "setting": {
                    "shape": {key: getattr(shape, key) for key in SHAPE_KEYS},
                    "checkpoint_gb": round(size / 1e9, 2),
                    "method": method,
                    "pattern": "2:4",
                    "calibration": f"random tokens, {SAMPLES} x {LENGTH}",
                    "sparsity": report.get("report", report).get("sparsity"),
                    "imports_alone_mb": round(imported["peak"] / 1e6),
                    "seconds": round(seconds, 1),
                },
                "value": round(done["peak"] / 1e6),
                "stderr": None,
                "limit": LIMIT / 1e6,
            }


def write_checkpoint(folder: Path, config: LlamaConfig, seed: int = 0) -> int:
    """A random checkpoint in safetensors shards, one for each block, written without ever holding the model; its bytes.

    Weights are normal with the `initializer_range`, norms are 1. The tokenizer has a word for each token.
    """
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    d, inner = config.hidden_size, config.intermediate_size
    kv = d // config.num_attention_heads * config.num_key_value_heads
    block = {
        "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, d),
        "mlp.gate_proj": (inner, d),
        "mlp.up_proj": (inner, d),
        "mlp.down_proj": (d, inner),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
    }
    shards: list[dict[str, tuple[int, ...]]] = [
        {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
        for i in range(config.num_hidden_layers)
    ]
    vocabulary_shape = (config.vocab_size, d)
    shards.append({"model.embed_tokens.weight": vocabulary_shape, "lm_head.weight": vocabulary_shape})
    shards[-1]["model.norm.weight"] = (d,)
    places, size = {}, 0
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else (torch.randn(shape, generator=generator) * config.initializer_range).bfloat16()
            for name, shape in shard.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return size


def run_watched(command: list[str]) -> dict[str, Any]:
    """Run a command to its end; what it prints, and the most memory it had."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        peak = 0
        while process.poll() is None:
            try:
                peak = max(peak, peak_bytes(process.pid))
            except (FileNotFoundError, StopIteration):  # it ends just now
                break
            time.sleep(0.05)
        if process.wait():
            err.seek(0)
            raise RuntimeError(f"{command[:5]} failed: {err.read()[-2000:]}")
        out.seek(0)
        return {"stdout": out.read(), "peak": peak}
