import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from calibrune.calibration import calibration_set as module
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import CalibrationError, OutputError

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def own(ids=IDS, **source) -> CalibrationSet:
    return CalibrationSet.from_ids(ids, **source)


def saved(folder: Path, calibration: CalibrationSet | None = None) -> Path:
    (calibration or own()).save(folder)
    return folder


def test_the_fingerprint_by_hand():
    by_hand = hashlib.sha256(b"(2, 3)" + struct.pack("<6q", 1, 2, 3, 4, 5, 6)).hexdigest()[:12]
    assert own().fingerprint == by_hand == own().manifest["fingerprint"]
    assert own(IDS.int()).fingerprint == by_hand
    assert own(IDS.T.contiguous().T).fingerprint == by_hand


@given(row=st.integers(0, 1), column=st.integers(0, 2), change=st.integers(1, 1 << 40))
def test_the_fingerprint_changes_when_any_token_does_or_the_shape(row, column, change):
    other = IDS.clone()
    other[row, column] += change
    assert len({own().fingerprint, own(other).fingerprint, own(IDS.reshape(3, 2)).fingerprint}) == 3


def test_a_set_is_int64_on_the_cpu_and_says_what_it_is():
    calibration = own(IDS.to(torch.uint8), name="mine")
    assert calibration.input_ids.dtype == torch.int64
    assert (calibration.n_samples, calibration.seq_len) == (2, 3)
    assert repr(calibration) == f"CalibrationSet(mine, 2 x 3 tokens, {calibration.fingerprint})"
    assert calibration.dropped == {}
    assert calibration.manifest["source"] == {"kind": "token ids", "name": "mine"}


BAD_TOKENS = [
    (IDS.float(), "float32, but token ids are whole numbers"),
    (IDS.bool(), "bool, but token ids are whole numbers"),
    (IDS.flatten(), r"shape \[6\], but must be \[n_samples, seq_len\]"),
    (IDS[None], r"shape \[1, 2, 3\]"),
    (IDS[:0], r"at least \[1, 2\] is needed"),
    (IDS[:, :1], r"at least \[1, 2\] is needed"),
    (IDS - 101, "hold -100, but no token id is below 0"),
]


@pytest.mark.parametrize(("ids", "says"), BAD_TOKENS)
def test_what_is_no_token_ids_is_refused_from_memory_and_from_a_file(tmp_path, ids, says):
    with pytest.raises(CalibrationError, match=says):
        own(ids)
    save_file({"input_ids": ids.contiguous()}, tmp_path / "own.safetensors")
    with pytest.raises(CalibrationError, match=r"own\.safetensors.*" + says):
        CalibrationSet.from_safetensors(tmp_path / "own.safetensors")


def test_ones_own_tokens_are_read_and_their_file_recorded_by_name(tmp_path):
    path = tmp_path / "own.safetensors"
    save_file({"input_ids": IDS.int(), "attention_mask": IDS}, path)
    calibration = CalibrationSet.from_safetensors(path)
    assert calibration.fingerprint == own().fingerprint
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert calibration.manifest["source"] == {"kind": "safetensors", "file": "own.safetensors", "sha256": sha256}


def test_a_file_without_tokens_says_what_it_has(tmp_path):
    path = tmp_path / "own.safetensors"
    with pytest.raises(CalibrationError, match="there is no file"):
        CalibrationSet.from_safetensors(path)
    save_file({"tokens": IDS, "mask": IDS + 1}, path)
    with pytest.raises(CalibrationError, match="no tensor 'input_ids', only 'mask', 'tokens'"):
        CalibrationSet.from_safetensors(path)
    for content in (b"", b"not safetensors at all", path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match="cannot be read as safetensors"):
            CalibrationSet.from_safetensors(path)


def test_the_first_samples_are_a_set_of_their_own():
    manifest = {
        "source": {},
        "document_ids": [["a", "b"], ["b", "c"]],
        "text_sha256": {"a": "1", "b": "2", "c": "3"},
    }
    whole = CalibrationSet(IDS, manifest)
    part = whole.take(1)
    assert part.input_ids.tolist() == [[1, 2, 3]]
    assert part.fingerprint == own(IDS[:1]).fingerprint
    assert part.manifest["document_ids"] == [["a", "b"]]
    assert part.manifest["text_sha256"] == {"a": "1", "b": "2"}
    assert part.manifest["n_samples"] == 1
    assert part.manifest["part_of"] == {"n_samples": 2, "seq_len": 3, "fingerprint": whole.fingerprint}
    assert whole.take(2) is whole


@pytest.mark.parametrize("n", [-1, 0, 3])
def test_samples_that_are_not_there_cannot_be_taken(n):
    with pytest.raises(CalibrationError, match=f"{n} samples asked for of a calibration set that has 2"):
        own().take(n)


def test_tokens_that_the_model_cannot_read_are_named():
    own().check_fits()
    own().check_fits(vocab_size=7, context_length=3)
    with pytest.raises(CalibrationError, match="has the token id 6, but the model's vocabulary ends at 5"):
        own().check_fits(vocab_size=6)
    with pytest.raises(CalibrationError, match="sequences of 3 tokens, but the model reads at most 2"):
        own().check_fits(context_length=2)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    folder = saved(tmp_path / "deep" / "set", own(name="ä"))
    loaded = CalibrationSet.load(folder)
    assert loaded.input_ids.equal(IDS)
    assert loaded.manifest == own(name="ä").manifest
    assert sorted(p.name for p in folder.iterdir()) == ["calibration.safetensors", "manifest.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["set"]
    assert CalibrationSet.from_safetensors(folder / "calibration.safetensors").fingerprint == loaded.fingerprint


def test_all_files_of_a_set_have_the_rights_of_new_files(tmp_path):
    (tmp_path / "new").touch()
    rights = (tmp_path / "new").stat().st_mode
    assert {file.stat().st_mode for file in saved(tmp_path / "set", own()).iterdir()} == {rights}


def test_the_same_set_again_is_fine_and_writes_nothing(tmp_path):
    folder = saved(tmp_path / "set")
    before = (folder / "manifest.json").stat().st_mtime_ns
    saved(folder)
    newer = CalibrationSet(IDS, {**own().manifest, "versions": {"torch": "99"}})
    saved(folder, newer)
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_an_empty_folder_is_free(tmp_path):
    assert CalibrationSet.load(saved(tmp_path)).fingerprint == own().fingerprint


def test_a_place_that_is_not_free_is_left_alone(tmp_path):
    folder = saved(tmp_path / "set")
    for other in (own(IDS + 1), own(name="another recipe")):
        with pytest.raises(OutputError, match="holds another calibration set"):
            other.save(folder)
    assert CalibrationSet.load(folder).fingerprint == own().fingerprint
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for taken in ("notes", "file"):
        with pytest.raises(OutputError, match="is not a calibration set"):
            own().save(tmp_path / taken)
    with pytest.raises(OutputError, match="cannot be written"):
        own().save(tmp_path / "file" / "below")


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "save_file", full_disk)
    with pytest.raises(OutputError, match="no space left"):
        own().save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_left_is_swept_away_and_what_others_write_is_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [tmp_path / f".set.{pid}.partial" for pid in (gone.pid, os.getpid(), os.getppid())]
    left += [tmp_path / ".set.two.partial", tmp_path / f".sets.{gone.pid}.partial"]
    for folder in left:
        folder.mkdir()
        (folder / "calibration.safetensors").touch()
    saved(tmp_path / "set")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "set", *left[2:]])


def test_tokens_that_were_changed_after_they_were_written_are_refused(tmp_path):
    folder = saved(tmp_path / "set")
    save_file({"input_ids": IDS + 1}, folder / "calibration.safetensors")
    with pytest.raises(CalibrationError, match="changed after they were written"):
        CalibrationSet.load(folder)
    with pytest.raises(CalibrationError, match="changed after they were written"):
        own().save(folder)


def test_an_unfinished_or_foreign_folder_is_not_loaded(tmp_path):
    folder = saved(tmp_path / "set")
    manifest = folder / "manifest.json"
    for content, says in (("{", "is damaged"), ("[]", "it is no JSON object")):
        manifest.write_text(content)
        with pytest.raises(CalibrationError, match=says):
            CalibrationSet.load(folder)
    manifest.unlink()
    with pytest.raises(CalibrationError, match=r"no finished calibration set \(there is no manifest\.json"):
        CalibrationSet.load(folder)
    manifest.write_text(json.dumps({"model": "somebody's"}))
    (folder / "calibration.safetensors").unlink()
    with pytest.raises(CalibrationError, match="holds no calibration set"):
        CalibrationSet.load(folder)


MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def padded(mask=MASK, ids=IDS) -> CalibrationSet:
    return CalibrationSet.from_ids(ids, mask)


def test_a_padded_set_is_saved_and_loaded_with_its_mask(tmp_path):
    loaded = CalibrationSet.load(saved(tmp_path / "set", padded()))
    assert torch.equal(loaded.attention_mask, MASK.bool())
    assert loaded.fingerprint == padded().fingerprint
    assert loaded.manifest["real_tokens"] == 5
    path = tmp_path / "own.safetensors"
    save_file({"input_ids": IDS, "attention_mask": MASK}, path)
    assert CalibrationSet.from_safetensors(path).fingerprint == padded().fingerprint


def test_the_fingerprint_knows_what_is_padding_but_not_what_pads():
    assert padded().fingerprint != own().fingerprint
    other = IDS.clone()
    other[0, 2] = 99
    assert padded(ids=other).fingerprint == padded().fingerprint
    assert padded(mask=torch.ones(2, 3)).fingerprint == own().fingerprint
    assert padded(mask=torch.ones(2, 3)).attention_mask is None


def test_the_first_samples_of_a_padded_set_keep_their_mask():
    assert torch.equal(padded().take(1).attention_mask, MASK[:1].bool())
    assert padded(MASK.flip(0)).take(1).attention_mask is None
    assert "real_tokens" not in padded(MASK.flip(0)).take(1).manifest


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (MASK[:1], r"shape \[1, 3\], but the token ids have \[2, 3\]"),
        (MASK.flip(1), "sample 0 has padding before a token"),
        (torch.tensor([[1, 1, 1], [0, 0, 0]]), "sample 1 has padding before a token, or no token"),
        (torch.tensor([[1, 0, 1], [1, 1, 1]]), "padding must be on the right"),
    ],
    ids=["shape", "left", "empty", "hole"],
)
def test_a_mask_that_cannot_be_is_refused(mask, says):
    with pytest.raises(CalibrationError, match=says):
        padded(mask)


def test_a_mask_that_was_changed_on_disk_is_refused(tmp_path):
    folder = saved(tmp_path / "set", padded())
    save_file({"input_ids": IDS}, folder / module.TOKENS_FILE)
    with pytest.raises(CalibrationError, match="changed after they were written"):
        CalibrationSet.load(folder)
