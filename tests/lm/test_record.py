"""A folder that was made here is as it was written, or is not loaded."""

import json

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from calibrune.durable import sealed
from calibrune.errors import ModelError
from calibrune.lm.loading import load_model
from calibrune.lm.record import MANIFEST, check_files, files_in, read_manifest
from calibrune.lm.streaming import load_streamed
from calibrune.lm.tensors import read_tensors, write_tensors


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / MANIFEST).write_text(json.dumps(sealed({"format": 2, "files": files_in(tmp_path)})))
    return tmp_path


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("load", [load_model, load_streamed])
def test_a_changed_file_is_named_and_not_loaded(name, load, folder):
    load(folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(ModelError, match=f"{name}' was changed or damaged"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name}' is missing|has no config.json"):
        load(folder)


def test_the_card_may_be_edited_and_a_record_that_is_removed_binds_nobody(folder):
    (folder / "README.md").write_text("a better card")
    check_files(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    (folder / MANIFEST).unlink()
    check_files(folder)


def test_a_name_in_a_record_leads_nowhere_else(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_text("x")
    said = {"bytes": 1, "sha256": files_in(outside.parent)["secret"]["sha256"]}
    (folder / MANIFEST).write_text(json.dumps(sealed({"format": 2, "files": {str(outside): said}})))
    with pytest.raises(ModelError, match="secret' is missing"):
        check_files(folder)


def test_a_manifest_of_an_older_version_is_taken_as_it_is_and_a_changed_one_is_not(folder):
    (folder / MANIFEST).write_text('{"format": 1}')
    assert read_manifest(folder) == {"format": 1}
    check_files(folder)
    (folder / MANIFEST).write_text(json.dumps(sealed({"format": 2})).replace("2", "1", 1))
    with pytest.raises(ModelError, match="damaged"):
        read_manifest(folder)


def test_tensors_of_the_cache_are_read_back_or_not_there(tmp_path):
    file, tensors = tmp_path / "a.safetensors", {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.int64)}
    assert read_tensors(file) is None
    write_tensors(file, tensors, "said")
    found, said = read_tensors(file)
    assert said == "said"
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    whole = file.read_bytes()
    for place in range(8, len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = read_tensors(file)
        assert found is None or all(torch.equal(found[0][name], tensor) for name, tensor in tensors.items())
    file.write_bytes(whole[:-1])
    assert read_tensors(file) is None
