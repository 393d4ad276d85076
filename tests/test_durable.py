"""Files are whole or not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calibrune.durable import check_writable, is_running, to_json, write_whole
from calibrune.errors import OutputError


def test_a_file_is_written_with_the_folders_above_it_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "new" / "scores.json"
    for content in (b"one", b"two"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["scores.json"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_write_that_breaks_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_whole(path, b"old")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=r"cannot write .*scores.json' \(No space left on device\)"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_place_that_takes_no_file_is_found_before_work_begins(tmp_path):
    check_writable(tmp_path / "scores.json")
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        check_writable(tmp_path / "file" / "scores.json")


def test_what_json_does_not_know_becomes_null():
    said = to_json({"a": [float("nan"), 1.5], "b": (float("-inf"), {"c": float("inf")}), "d": "ö"})
    assert json.loads(said) == {"a": [None, 1.5], "b": [None, {"c": None}], "d": "ö"}


def test_another_process_is_running_until_it_has_ended():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert is_running(str(other.pid))
        other.communicate(b"\n")
    assert not is_running(str(other.pid))
    assert not is_running(str(os.getpid()))
    assert not any(map(is_running, ("", "none", "9" * 30)))
