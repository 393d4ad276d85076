"""What files from others cannot do: run code, or make us read or write anything but themselves."""

import ast
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_lm

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import parse_spec
from calibrune.corpora.hub import HubCorpus
from calibrune.durable import sha256_of
from calibrune.errors import CalibruneError, ConfigError, ModelError
from calibrune.lm.loading import load_model
from calibrune.lm.streaming import load_streamed
from calibrune.lm.trust import INDEX
from calibrune.lm.weights import Shards
from calibrune.study.reading import read_plan
from calibrune.study.runner import run_study

SOURCES = sorted((Path(__file__).resolve().parents[2] / "src").rglob("*.py"))


@pytest.fixture
def folder(tmp_path):
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class Marks:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def configured(folder: Path, **settings) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def indexed(folder: Path, shard: str) -> None:
    """Let an index say where the weights lie; the one file goes."""
    names = load_file(folder / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("load", [load_model, load_streamed])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_weights_in_pickles_alone_are_refused_with_the_way_out(file, load, folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(pickle.dumps(Marks(tmp_path / "ran")))
    with pytest.raises(ModelError, match=rf"pickles alone \({file}\).*convert it .*docs/security.md says how"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_beside_safetensors_a_pickle_is_not_opened(folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Marks(tmp_path / "ran")))
    assert load_model(folder).vocab_size == 96
    assert not (tmp_path / "ran").exists()


def test_the_way_out_of_the_docs_converts_pickled_weights(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(folder, weights_only=True).save_pretrained(folder)
    (folder / "pytorch_model.bin").unlink()
    assert load_model(folder).vocab_size == 96


@pytest.mark.parametrize("load", [load_model, load_streamed])
@pytest.mark.parametrize("where", ["../outside.safetensors", "{outside}", "sub/inside.safetensors", "inside.bin", 7])
def test_an_index_names_safetensors_files_of_its_own_folder_alone(where, load, folder, tmp_path):
    save_file(load_file(folder / "model.safetensors"), tmp_path / "outside.safetensors", {"format": "pt"})
    where = where.format(outside=tmp_path / "outside.safetensors") if isinstance(where, str) else where
    indexed(folder, where)
    save_file({"x": torch.ones(1)}, folder / "honest.safetensors")
    (folder / "inside.bin").write_bytes(pickle.dumps(Marks(tmp_path / "ran")))
    with pytest.raises(ModelError, match=r"may only name .safetensors files in its own folder"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_an_index_that_names_its_own_shards_is_read(folder):
    save_file(load_file(folder / "model.safetensors"), folder / "a.safetensors", {"format": "pt"})
    indexed(folder, "a.safetensors")
    assert load_model(folder).vocab_size == load_streamed(folder).vocab_size == 96
    assert set(Shards.of(folder).files.values()) == {folder / "a.safetensors"}


def test_a_config_that_names_pickled_weights_or_an_index_elsewhere_is_refused(folder):
    configured(folder, transformers_weights="adapter_model.bin")
    with pytest.raises(ModelError, match=r"names its weights 'adapter_model.bin', which are no safetensors"):
        load_model(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.bin"}}))
    configured(folder, transformers_weights="sub/x.safetensors.index.json")
    with pytest.raises(ModelError, match=r"names the weights '../x.bin'"):
        load_model(folder)


def test_an_adapter_that_would_name_other_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../other"}))
    with pytest.raises(ModelError, match=r"comes with an adapter.*merge it into its model"):
        load_model(folder)


@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": "somebody/kernel"},
        {"attn_implementation": {"": "somebody/kernel"}},
        {"_attn_implementation": ["sdpa", "somebody/kernel"]},
        {"text_config": {"experts_implementation": {"text_config": "somebody/kernel"}}},
    ],
    ids=str,
)
def test_a_config_cannot_have_compiled_code_fetched(folder, named):
    configured(folder, **named)
    with pytest.raises(ModelError, match=r"names compiled code to be fetched and run \('somebody/kernel'\)"):
        load_model(folder)


def modules_and_calls(source: str) -> set[str]:
    """The modules that a source imports, and what it calls, as "torch.load"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    return found


OPENERS = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.load", "numpy.load", "np.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "subprocess", "pandas"),
}
"""What runs what it reads, or may."""

UNPACKERS = {"zipfile", "tarfile", "shutil.unpack_archive", "patoolib", "py7zr"}
"""What writes files whose names others chose."""


def test_nothing_of_ours_opens_a_pickle_evaluates_a_text_or_unpacks_an_archive():
    assert modules_and_calls("import pickle\ntorch.load(x)\nfrom zipfile import ZipFile") >= {
        "pickle",
        "torch.load",
        "zipfile",
    }
    found = {path.name: modules_and_calls(path.read_text()) & (OPENERS | UNPACKERS) for path in SOURCES}
    assert {name: calls for name, calls in found.items() if calls} == {}


PYTHON_IN_YAML = "!!python/object/apply:os.mkdir ['{mark}']"


def test_yaml_makes_plain_values_and_runs_nothing(tmp_path):
    said = PYTHON_IN_YAML.format(mark=tmp_path / "ran")
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"models: [{said}]\npruners: [wanda]\npatterns: ['50%']\n")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_plan(plan)
    plan.write_text("models: [m]\npruners: [magnitude]\npatterns: ['50%']\n")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_plan(plan, [f"seeds={said}"])
    with pytest.raises(ConfigError):
        parse_spec(f"c4:scan={said}")
    study = tmp_path / "study"
    study.mkdir()
    (study / "plan.yaml").write_text(f"name: {said}\n")
    with pytest.raises(CalibruneError):
        run_study(read_plan(plan), study)
    assert not (tmp_path / "ran").exists()


def test_no_plan_allows_a_models_own_code(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("models:\n- {name: m, trust_remote_code: true}\npruners: [magnitude]\npatterns: ['50%']\n")
    with pytest.raises(ConfigError, match=r"line 2 .*cannot allow a model's own code: say --trust-remote-code"):
        read_plan(plan)
    plan.write_text("trust_remote_code: true\nmodels: [m]\npruners: [magnitude]\npatterns: ['50%']\n")
    with pytest.raises(ConfigError, match="no key 'trust_remote_code'"):
        read_plan(plan)


@pytest.mark.parametrize("files", ["../x.parquet", "/etc/passwd", "https://elsewhere.example/x.jsonl", "a/../../b"])
def test_the_files_of_a_hub_dataset_are_files_of_it(files):
    with pytest.raises(ConfigError, match="leads out of the repository"):
        HubCorpus(dataset="some/dataset", files=files)


def test_a_manifest_says_nothing_of_where_files_lie(tmp_path):
    CalibrationSet.from_ids(torch.ones(2, 4, dtype=torch.int64)).save(tmp_path / "set")
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    stolen = {"file": "../../secret.safetensors", "path": str(tmp_path), "tokens_file": "/etc/passwd"}
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest | stolen | {"source": stolen}))
    read = CalibrationSet.load(tmp_path / "set")
    assert read.input_ids.tolist() == [[1] * 4] * 2


def test_a_journal_names_files_of_its_own_folder(folder, tmp_path):
    from calibrune.streamed import JOURNAL, _Journal

    (tmp_path / "run").mkdir()
    outside = tmp_path / "model" / "model.safetensors"
    lines = [
        {"key": "k", "allocation": {}},
        {"file": f"../model/{outside.name}", "sha256": sha256_of(outside), "names": ["a"], "layers": []},
    ]
    (tmp_path / "run" / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _Journal.read(tmp_path / "run", "k", 3).written == {}
