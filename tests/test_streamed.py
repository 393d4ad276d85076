"""A model that is read block by block is pruned as in memory, to the bit, and a run that was cut short goes on."""

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import ARCHITECTURES, random_ids, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from calibrune import verbs
from calibrune.activations.kept import KeptActivations
from calibrune.allocators import ALLOCATORS
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.checkpoint import save_pruned
from calibrune.cli import app
from calibrune.errors import ModelError, OutputError, RunError
from calibrune.lm import streaming
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import load_model, weights_fingerprint
from calibrune.lm.record import MANIFEST
from calibrune.lm.streaming import fits_in_memory, load_streamed
from calibrune.lm.weights import Shards, load_block, loaded_blocks, store_of
from calibrune.patterns import parse_target
from calibrune.prune import prune_model
from calibrune.pruners import PRUNERS
from calibrune.streamed import prune_streamed

CALIBRATION = CalibrationSet.from_ids(random_ids(4, 16))


@pytest.fixture
def saved(tmp_path):
    def save(kind: str = "llama", **options: object) -> Path:
        folder = tmp_path / kind
        tiny_model(kind).save_pretrained(folder, **options)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return save


def prune(folder, out, *, stream, method="wanda", pattern="50%", allocation="uniform", propagate="pruned", ahead=False):
    lm = (load_streamed if stream else load_model)(folder)
    if ahead:
        store_of(lm.model).ahead = True
    pruner, allocator, calibration = PRUNERS[method](), ALLOCATORS[allocation](), CALIBRATION
    request = verbs.request_for(
        lm, weights_fingerprint(lm.model), method, pruner, parse_target(pattern), calibration, allocation, allocator,
        propagate,
    )  # fmt: skip
    if stream:
        return prune_streamed(lm, calibration, pruner, request, out, allocation=allocator, masks=True)
    report = prune_model(lm.model, calibration, pruner, pattern, allocation=allocator, propagate=propagate)
    return save_pruned(lm, report, request, out, masks=True)


def assert_same(a: Path, b: Path) -> None:
    weights = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (a, b)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    manifests = [json.loads((folder / MANIFEST).read_text()) for folder in (a, b)]
    for manifest in manifests:
        manifest["report"].pop("seconds")
        for layer in manifest["report"]["layers"]:
            layer.pop("seconds")
        # the weights are in other files, which is in the seal too
        manifest.pop("seal")
        manifest["files"] = {name: file for name, file in manifest["files"].items() if not name.startswith("model")}
        assert "config.json" in manifest["files"]
    assert manifests[0] == manifests[1]
    assert (a / "masks" / "masks.safetensors").read_bytes() == (b / "masks" / "masks.safetensors").read_bytes()
    assert json.loads((a / "config.json").read_text()) == json.loads((b / "config.json").read_text())


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_blocks_that_a_thread_brings_ahead_are_the_same(propagate, saved, tmp_path):
    folder = saved()
    prune(folder, tmp_path / "a", stream=False, propagate=propagate)
    prune(folder, tmp_path / "b", stream=True, propagate=propagate, ahead=True)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_block_that_was_changed_while_its_old_weights_came_is_read_anew(saved, tmp_path):
    lm = load_streamed(saved())
    store, blocks = store_of(lm.model), decoder_blocks(lm.model)
    store.ahead = True
    load_block(lm.model, blocks[0])  # the next is on its way
    name = f"{blocks[1].name}.input_layernorm.weight"
    changed = store.tensor(name) + 1
    save_file({name: changed}, tmp_path / "changed.safetensors")
    store.written[name] = tmp_path / "changed.safetensors"
    load_block(lm.model, blocks[1])
    assert torch.equal(blocks[1].module.input_layernorm.weight, changed)


def test_what_breaks_in_the_thread_is_told_where_the_block_is_asked_for(saved, monkeypatch):
    lm = load_streamed(saved())
    store_of(lm.model).ahead = True
    read = Shards.read

    def read_here_alone(self, names):
        if threading.current_thread() is not threading.main_thread():
            raise ModelError("the disk is gone")
        return read(self, names)

    monkeypatch.setattr(Shards, "read", read_here_alone)
    blocks = decoder_blocks(lm.model)
    load_block(lm.model, blocks[0])
    with pytest.raises(ModelError, match="the disk is gone"):
        load_block(lm.model, blocks[1])


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in ("mixtral", "qwen2-moe", "qwen3-moe")])
def test_every_architecture_is_pruned_as_in_memory(kind, saved, tmp_path):
    folder = saved(kind)
    prune(folder, tmp_path / "a", stream=False)
    prune(folder, tmp_path / "b", stream=True)
    assert_same(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("method", "pattern", "allocation", "propagate"),
    [
        ("magnitude", "2:4", "uniform", "pruned"),
        ("sparsegpt", "4:8", "uniform", "pruned"),
        ("dsnot", "50%", "owl", "pruned"),
        ("wanda", "50%", "alphapruning", "dense"),
        ("wanda", "2:4", "uniform", "dense"),
    ],
)
def test_every_way_to_prune_is_as_in_memory(method, pattern, allocation, propagate, saved, tmp_path):
    folder = saved()
    asked = {"method": method, "pattern": pattern, "allocation": allocation, "propagate": propagate}
    prune(folder, tmp_path / "a", stream=False, **asked)
    prune(folder, tmp_path / "b", stream=True, **asked)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_single_block_is_in_memory_at_a_time(saved):
    model = load_streamed(saved()).model
    for block in loaded_blocks(model):
        held = {name for name, parameter in model.named_parameters() if not parameter.is_meta and ".layers." in name}
        assert held == {name for name, _ in block.module.named_parameters(prefix=block.name)}


def test_a_streamed_model_gives_the_logits_of_the_one_in_memory(saved):
    folder = saved("gemma3", max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    with torch.no_grad():
        streamed = load_streamed(folder, dtype="bfloat16").model(random_ids()).logits
        assert torch.equal(streamed, load_model(folder, dtype="bfloat16").model(random_ids()).logits)


class Cut(Exception):  # noqa: N818
    """The power goes."""


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("after", [1, 2])
def test_a_run_that_was_cut_short_goes_on_after_the_last_whole_block(after, propagate, saved, tmp_path, monkeypatch):
    folder = saved()
    asked = {"method": "sparsegpt", "allocation": "owl", "propagate": propagate}
    prune(folder, tmp_path / "a", stream=False, **asked)
    import calibrune.streamed as room

    written = room._write_tensors
    names = []

    def cut(tensors, path):
        if len(names) == after:
            raise Cut
        names.append(path.name)
        written(tensors, path)

    monkeypatch.setattr(room, "_write_tensors", cut)
    with pytest.raises(Cut):
        prune(folder, tmp_path / "b", stream=True, **asked)
    assert not (tmp_path / "b").exists()
    monkeypatch.setattr(room, "_write_tensors", lambda *given: (names.append(given[1].name), written(*given)))
    prune(folder, tmp_path / "b", stream=True, **asked)
    assert len(names) == len(set(names)) == 3  # no block twice
    assert_same(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "llama"]


def test_a_damaged_file_of_an_earlier_run_is_made_anew(saved, tmp_path, monkeypatch):
    folder = saved()
    prune(folder, tmp_path / "a", stream=False)
    import calibrune.streamed as room

    finish = room._finish
    monkeypatch.setattr(room, "_finish", lambda *given: (_ for _ in ()).throw(Cut()))
    with pytest.raises(Cut):
        prune(folder, tmp_path / "b", stream=True)
    shard = next((tmp_path / ".b.streaming").glob("model-00002-*"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    monkeypatch.setattr(room, "_finish", finish)
    prune(folder, tmp_path / "b", stream=True)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_the_unfinished_run_of_another_request_is_not_mixed_with_this_one(saved, tmp_path, monkeypatch):
    folder = saved()
    import calibrune.streamed as room

    finish = room._finish
    monkeypatch.setattr(room, "_finish", lambda *given: (_ for _ in ()).throw(Cut()))
    with pytest.raises(Cut):
        prune(folder, tmp_path / "b", stream=True)
    monkeypatch.setattr(room, "_finish", finish)
    with pytest.raises(OutputError, match="unfinished run of another request"):
        prune(folder, tmp_path / "b", stream=True, pattern="2:4")


def test_weights_that_are_stored_in_another_form_are_not_read_one_by_one(saved):
    with pytest.raises(ModelError, match=r"not in the checkpoint as it is in the model.*--no-stream"):
        load_streamed(saved("mixtral"))


def test_a_checkpoint_without_safetensors_is_refused(saved):
    folder = saved()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="its weights in pickles alone"):
        load_streamed(folder)


def test_a_shard_that_is_missing_or_torn_is_named(saved):
    folder = saved("gpt2", max_shard_size="20KB")
    shard = next(folder.glob("model-00002-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ModelError, match=shard.name):
        load_streamed(folder)
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks {shard.name}"):
        load_streamed(folder)


def test_a_disk_that_is_full_leaves_what_is_finished(saved, tmp_path, monkeypatch):
    folder = saved()
    import calibrune.streamed as room

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "_write_tensors", full)
    with pytest.raises(RunError, match="the same command goes on after it"):
        prune(folder, tmp_path / "b", stream=True)
    assert not (tmp_path / "b").exists()
    assert len(decoder_blocks(load_streamed(folder).model)) == 3


@pytest.mark.parametrize("budget", [0, 3000])
def test_activations_that_are_too_many_for_memory_are_kept_in_files(budget, saved, tmp_path, monkeypatch):
    folder = saved()
    prune(folder, tmp_path / "a", stream=False)
    import calibrune.activations.stream as room

    places = []

    def kept(n, place):
        places.append(place)
        return KeptActivations(n, place, budget)

    monkeypatch.setattr(room, "KeptActivations", kept)
    monkeypatch.setattr(verbs, "BATCH_TOKENS", 16)
    prune(folder, tmp_path / "b", stream=True)
    assert places == [tmp_path / ".b.streaming"]
    assert_same(tmp_path / "a", tmp_path / "b")


def test_hidden_states_come_back_as_they_were_in_memory_and_from_files(tmp_path):
    states = [torch.randn(2, 3, 4).to(torch.bfloat16) for _ in range(4)]
    with KeptActivations(4, tmp_path, budget=100) as kept:
        for i, state in enumerate(states):
            assert kept[i] is None
            kept[i] = state
        assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # two of 48 bytes fit in memory
        for turn in (states, states[::-1]):
            for i, state in enumerate(turn):
                kept[i] = state
                assert torch.equal(kept[i], state)
    assert not list(tmp_path.iterdir())


def command(folder, out, *more):
    asked = ["--calibration", "random", "--samples", "4", "--seq-len", "16", *more]
    return CliRunner().invoke(app, ["prune", str(folder), "--out", str(out), *asked])


def test_the_command_line_prunes_block_by_block_where_the_model_does_not_fit(saved, tmp_path, monkeypatch):
    folder = saved()
    assert command(folder, tmp_path / "a", "--no-stream").exit_code == 0
    monkeypatch.setattr(streaming, "available_memory", lambda device: 1000)
    done = command(folder, tmp_path / "b")
    assert done.exit_code == 0
    assert "3 blocks are read, pruned and written one by one" in done.stderr
    weights = [(tmp_path / name / MANIFEST).read_text().count('"name"') for name in "ab"]
    assert weights[0] == weights[1]
    a, b = (json.loads((tmp_path / name / MANIFEST).read_text()) for name in "ab")
    assert (a["key"], a["weights"]) == (b["key"], b["weights"])


def test_a_model_that_is_read_block_by_block_does_not_write_its_own_calibration_text(saved, tmp_path):
    refused = CliRunner().invoke(app, ["prune", str(saved()), "--out", str(tmp_path / "out"), "--stream"])
    assert refused.exit_code == 2
    assert "make the set with `calibrune calibrate`" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_whether_a_model_fits_is_told_by_its_files_and_dtype(saved, monkeypatch):
    folder = str(saved())
    size = (saved() / "model.safetensors").stat().st_size
    monkeypatch.setattr(streaming, "available_memory", lambda device: int(size * streaming.HEADROOM) + 1)
    assert fits_in_memory(folder)
    monkeypatch.setattr(streaming, "available_memory", lambda device: int(size * streaming.HEADROOM) - 1)
    assert not fits_in_memory(folder)
    monkeypatch.setattr(streaming, "available_memory", lambda device: None)
    assert fits_in_memory(folder)


def test_free_memory_is_known_here():
    assert 1e8 < streaming.available_memory(torch.device("cpu")) < 1e14
