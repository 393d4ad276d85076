"""The zeros of a checkpoint: looked for layer by layer, put back after fine-tuning, and what they would save."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_ids, tiny_lm, tiny_model
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from calibrune import apply_mask, check_sparsity
from calibrune.checkpoint import save_pruned
from calibrune.cli import app
from calibrune.durable import unsealed
from calibrune.errors import ModelError, OutputError
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import load_model
from calibrune.lm.record import MASKED
from calibrune.patterns import SemiStructured, parse_pattern
from calibrune.prune import prune_model
from calibrune.pruners import Wanda
from calibrune.sparsity import KERNELS, kernels, obeys, stored_bytes
from calibrune.verbs import request_for


def pruned(folder, kind="llama", pattern="2:4"):
    """A checkpoint as `prune` makes it."""
    lm = tiny_lm(kind)
    report = prune_model(lm.model, random_ids(), pattern=pattern)
    save_pruned(lm, report, request_for(lm, "0" * 12, "wanda", Wanda(), parse_pattern(pattern), None), folder)
    return folder


def tuned(folder, out):
    """The same checkpoint after an optimiser's step, in shards as `save_pretrained` cuts them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.01)
    model.save_pretrained(out, max_shard_size="20KB")
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, out)
    return out


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3", "qwen2-moe"])
def test_zeros_that_fine_tuning_filled_are_put_back_and_nothing_else_changes(kind, tmp_path):
    before = pruned(tmp_path / "pruned", kind)
    after = tuned(before, tmp_path / "tuned")
    said = apply_mask(after, before, tmp_path / "out")
    assert said == unsealed(json.loads((tmp_path / "out" / MASKED).read_text()))
    dense, filled, masked = (load_model(path).model.state_dict() for path in (before, after, tmp_path / "out"))
    layers = {layer.key for block in decoder_blocks(tiny_model(kind)) for layer in block.layers}
    for name, weight in masked.items():
        expected = filled[name].masked_fill(dense[name] == 0, 0) if name in layers else filled[name]
        assert torch.equal(weight, expected), name
    assert said["zeros"] == said["came_back"] == sum(int((dense[name] == 0).sum()) for name in layers)
    assert said["tensors"] == len(layers)
    assert [one for one in check_sparsity(tmp_path / "out", mask=before) if one.deviates] == []


def test_what_came_back_is_counted_layer_by_layer(tmp_path):
    before = pruned(tmp_path / "pruned")
    after = tuned(before, tmp_path / "tuned")
    found = check_sparsity(after, mask=before)
    weights = load_model(before).model.state_dict()
    for one in found:
        n = int((weights[f"{one.name}.weight"] == 0).sum())
        assert one.came_back == n
        assert one.sparsity == 0
        assert one.deviates.startswith(f"{n:,} weights that the mask prunes are not zero; ")


def test_a_checkpoint_is_held_to_its_own_record(tmp_path):
    folder = pruned(tmp_path / "pruned")
    assert {(one.sparsity, one.holds, one.deviates) for one in check_sparsity(folder)} == {(0.5, ("2:4", "4:8"), None)}
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    row = weights[name][3]
    row[row == 0] = 1.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (wrong,) = [one for one in check_sparsity(folder) if one.deviates]
    assert wrong.name == "model.layers.1.mlp.up_proj"
    assert wrong.deviates == "8 of 512 groups of 4 have more than 2 weights"


@pytest.mark.parametrize(
    ("pattern", "asked", "said"),
    [
        ("50%", "50%", None),
        ("50%", "60%", "50.00% of its weights are zero, 60% were asked for"),
        ("50%", "1:3", "groups of 3"),
        ("4:8", "2:4", "groups of 4 have more than 2 weights"),
        ("1:4", "2:4", None),
    ],
)
def test_any_checkpoint_is_held_to_a_pattern(pattern, asked, said, tmp_path):
    folder = pruned(tmp_path / "pruned", pattern=pattern)
    (folder / "calibrune.json").unlink()
    assert [one.deviates for one in check_sparsity(folder)] == [None] * 21
    found = {one.deviates for one in check_sparsity(folder, pattern=asked)}
    assert found == {None} if said is None else all(said in one for one in found if one)
    assert said is None or found != {None}


def test_a_dense_model_has_no_pattern_and_misses_any(tmp_path):
    tiny_lm().model.save_pretrained(tmp_path / "dense")
    tiny_lm().tokenizer.save_pretrained(tmp_path / "dense")
    assert {(one.sparsity, one.holds) for one in check_sparsity(tmp_path / "dense")} == {(0.0, ())}


def test_checkpoints_of_two_shapes_are_refused_and_nothing_is_left(tmp_path):
    before, other = pruned(tmp_path / "pruned"), pruned(tmp_path / "other", "gemma3")
    with pytest.raises(ModelError, match="are not of one shape"):
        apply_mask(other, before, tmp_path / "out")
    with pytest.raises(ModelError, match="are not of one shape"):
        check_sparsity(other, mask=before)
    with pytest.raises(OutputError, match="already holds another run"):
        apply_mask(before, before, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "pruned"]


def test_the_record_and_pickles_of_the_fine_tuned_model_are_not_taken_over(tmp_path):
    before = pruned(tmp_path / "pruned")
    after = tuned(before, tmp_path / "tuned")
    shutil.copy(before / "calibrune.json", after)
    (after / "optimizer.pt").write_bytes(b"pickle")
    apply_mask(after, before, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", MASKED} <= names
    assert not {"calibrune.json", "optimizer.pt", "calibrune.unfinished"} & names


def test_a_mask_must_be_as_it_was_written_and_have_zeros(tmp_path):
    mask = pruned(tmp_path / "pruned")
    dense = tuned(mask, tmp_path / "tuned")
    with pytest.raises(ModelError, match="has no zeros"):
        apply_mask(dense, dense, tmp_path / "out")
    weights = load_file(mask / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][weights[name] == 0] = 1.0
    save_file(weights, mask / "model.safetensors", {"format": "pt"})
    for look in (lambda: apply_mask(dense, mask, tmp_path / "out"), lambda: check_sparsity(dense, mask=mask)):
        with pytest.raises(ModelError, match="was changed or damaged"):
            look()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned", "tuned"]


def test_what_was_masked_is_known_as_that_and_held_to_its_record(tmp_path):
    mask = pruned(tmp_path / "pruned")
    dense, out = tuned(mask, tmp_path / "tuned"), tmp_path / "out"
    apply_mask(dense, mask, out)
    with pytest.raises(OutputError, match="already holds a masked model"):
        apply_mask(dense, mask, out)
    load_model(out)
    (out / "config.json").write_text((out / "config.json").read_text() + " ")
    with pytest.raises(ModelError, match="was changed or damaged"):
        load_model(out)


@pytest.mark.parametrize(
    "layers", [[{}], ["x"], None, 5, [{"name": ["a"], "asked": "50%"}], [{"name": "a", "asked": "?"}]]
)
def test_a_record_that_is_none_of_layers_is_told(layers, tmp_path):
    folder = pruned(tmp_path / "pruned")
    (folder / "calibrune.json").write_text(json.dumps({"report": {"layers": layers}}))
    if layers == [{"name": ["a"], "asked": "50%"}]:
        assert {one.is_asked for one in check_sparsity(folder)} == {False}
        return
    with pytest.raises(ModelError, match="does not say what was asked of every layer"):
        check_sparsity(folder)


def test_where_nothing_was_asked_the_command_says_so(tmp_path):
    dense = tuned(pruned(tmp_path / "pruned"), tmp_path / "tuned")
    said = CliRunner().invoke(app, ["mask", "check", str(dense)])
    assert said.exit_code == 2
    assert "nothing says what the layers of" in said.stderr


def test_the_commands_say_it_and_a_deviation_ends_with_1(tmp_path):
    before = pruned(tmp_path / "pruned")
    after = tuned(before, tmp_path / "tuned")
    run = CliRunner()
    wrong = run.invoke(app, ["mask", "check", str(after), "--mask", str(before)])
    assert wrong.exit_code == 1
    assert "21 of 21 layers deviate" in wrong.stdout
    made = run.invoke(
        app, ["mask", "apply", str(after), "--mask", str(before), "--out", str(tmp_path / "out"), "--json"]
    )
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["tensors"] == 21
    right = run.invoke(app, ["mask", "check", str(tmp_path / "out"), "--sparsity", "2:4"])
    assert right.exit_code == 0
    assert "2:4, 4:8" in right.stdout
    assert "0 of 21 layers deviate" in right.stdout


def test_2_4_is_what_pytorchs_own_compression_keeps_whole(tmp_path):
    lm = tiny_lm()
    prune_model(lm.model, random_ids(), pattern="2:4")
    for block in decoder_blocks(lm.model):
        for layer in block.layers:
            weight = layer.weight.half() if layer.in_features % 64 == 0 else layer.weight.half().repeat(1, 2)
            weight = weight.repeat(math.ceil(32 / len(weight)), 1)
            assert obeys(weight.float(), SemiStructured(2, 4))
            packed = sparse_semi_structured_from_dense_cutlass(weight.contiguous())
            assert torch.equal(sparse_semi_structured_to_dense_cutlass(*packed), weight)


def test_a_weight_that_is_not_2_4_loses_weights_in_that_compression():
    dense = torch.ones(32, 64, dtype=torch.float16)
    assert not obeys(dense.float(), SemiStructured(2, 4))
    assert not torch.equal(
        sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(dense)), dense
    )


def test_the_shapes_and_dtypes_that_we_name_are_those_of_this_pytorch():
    for name, kind in (
        ("CUTLASS", SparseSemiStructuredTensorCUTLASS),
        ("cuSPARSELt", SparseSemiStructuredTensorCUSPARSELT),
    ):
        theirs = {
            str(dtype).removeprefix("torch."): (least.sparse_min_rows, least.sparse_min_cols)
            for dtype, least in kind._DTYPE_SHAPE_CONSTRAINTS.items()
            if dtype in (torch.float16, torch.bfloat16, torch.float32)
        }
        assert KERNELS[name] == theirs
    assert kernels((4096, 4096), "bfloat16") == ["cuSPARSELt", "CUTLASS"]
    assert kernels((48, 576), "bfloat16") == ["cuSPARSELt"]
    assert kernels((33, 64), "float16") == []
    assert kernels((64, 64), "float32") == ["CUTLASS"]


def test_sizes_by_hand():
    layers = [{"shape": [64, 128], "sparsity": 0.5, "asked": "2:4"}]
    sizes = stored_bytes(layers, 64 * 128 + 1000, "bfloat16")
    assert sizes["dense"] == 2 * (8192 + 1000)
    assert sizes["bitmask"] == 2 * 1000 + 2 * 4096 + 8192 // 8
    assert sizes["2:4"] == 2 * 1000 + 2 * 4096 + 4096 * 2 // 8
    assert sizes["coded"] == sizes["bitmask"]  # at one half a bit tells nothing less
    few = stored_bytes([{"shape": [64, 128], "sparsity": 0.9, "asked": "0.9"}], 8192, "float32")
    assert "2:4" not in few
    assert few["coded"] < few["bitmask"] == round(4 * 819.2 + 1024)
