"""What other programs do with a checkpoint of ours, from their sources: vLLM does not run on every machine.

vLLM (read in November 2026): `vllm/config/model.py` takes a `quantization_config` or `compression_config` for the name
of a method, which it must know; `compressed_tensors.py` refuses a `sparsity_config` in it; `architectures[0]` names the
class; and `model_loader/weight_utils.py` loads every `*.safetensors` beside the config, or those that an index names.
"""

import fnmatch
import json

import pytest
from safetensors import safe_open
from tiny_models import ARCHITECTURES, random_ids, tiny_lm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from calibrune.checkpoint import MASKS, save_pruned
from calibrune.lm.streaming import load_streamed
from calibrune.patterns import parse_pattern
from calibrune.prune import prune_model
from calibrune.pruners import Magnitude
from calibrune.streamed import prune_streamed
from calibrune.verbs import Uniform, request_for

REFUSED = ("quantization_config", "compression_config", "sparsity_config")


def weights_that_vllm_loads(folder):
    """The tensors of the files that its default loader picks, by name; what stands in two of them stands twice."""
    files = sorted(file for file in folder.iterdir() if fnmatch.fnmatch(file.name, "*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text())["weight_map"].values())
        files = [file for file in files if file.name in named]
    names = []
    for file in files:
        with safe_open(file, "pt") as opened:
            names += opened.keys()
    return names


def checkpoint(folder, kind, streamed):
    lm = tiny_lm(kind)
    request = request_for(lm, "0" * 12, "magnitude", Magnitude(), parse_pattern("2:4"), None)
    if streamed:
        lm.model.save_pretrained(folder.with_name("dense"))
        lm.tokenizer.save_pretrained(folder.with_name("dense"))
        lm = load_streamed(folder.with_name("dense"))
        prune_streamed(lm, None, Magnitude(), request, folder, allocation=Uniform(), masks=True)
    else:
        save_pruned(lm, prune_model(lm.model, None, Magnitude(), "2:4"), request, folder, masks=True)
    return folder


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen3", "mistral", "phi3"])
def test_a_checkpoint_is_within_what_vllm_takes(kind, streamed, tmp_path):
    folder = checkpoint(tmp_path / "out", kind, streamed)
    config = json.loads((folder / "config.json").read_text())
    assert not set(REFUSED) & config.keys()
    assert config["architectures"] == [type(tiny_lm(kind).model).__name__]
    assert config["model_type"] == ARCHITECTURES[kind].model_type
    assert "auto_map" not in config
    assert config.get("dtype", config.get("torch_dtype")) == "float32"
    names = weights_that_vllm_loads(folder)
    assert (folder / MASKS).is_file()
    assert len(names) == len(set(names))
    assert all(name.rpartition(".")[2] in ("weight", "bias") for name in names)


def test_every_part_of_the_folder_loads_without_us(tmp_path):
    folder = checkpoint(tmp_path / "out", "llama", streamed=False)
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 3
    assert AutoTokenizer.from_pretrained(folder)("ab").input_ids
    assert GenerationConfig.from_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder)(random_ids(1, 4)).logits.isfinite().all()
