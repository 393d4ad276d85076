"""Finished tasks on disk: whole or not there."""

import json
import os

import pytest

from calibrune.errors import OutputError
from calibrune.evaluation import finished
from calibrune.evaluation.finished import check_writable, read_finished, write_atomically


def test_what_was_written_is_read_and_what_is_damaged_is_not_there(tmp_path):
    record = {"key": "abc", "items": {"acc,none": [1.0, 0.0]}}
    write_atomically(tmp_path / "new" / "abc.json", record)
    assert read_finished(tmp_path / "new", "abc") == record
    assert read_finished(tmp_path / "new", "other") is None
    (tmp_path / "abc.json").write_text('{"key": "ab')
    assert read_finished(tmp_path, "abc") is None
    (tmp_path / "abc.json").write_text('{"key": "another"}')
    assert read_finished(tmp_path, "abc") is None


def test_a_write_that_breaks_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_atomically(path, {"a": 1})

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finished.os, "replace", fail)
    with pytest.raises(OutputError, match=r"nothing can be written to .*scores.json' \(No space left on device\)"):
        write_atomically(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_place_that_takes_no_file_is_found_before_work_begins(tmp_path):
    check_writable(tmp_path / "scores.json")
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="nothing can be written"):
        check_writable(tmp_path / "file" / "scores.json")
