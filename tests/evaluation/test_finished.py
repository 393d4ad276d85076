"""Finished tasks on disk."""

import json

from calibrune.evaluation.finished import read_finished


def test_what_was_written_is_read_and_what_is_damaged_is_not_there(tmp_path):
    record = {"key": "abc", "items": {"acc,none": [1.0, 0.0]}}
    (tmp_path / "abc.json").write_text(json.dumps(record))
    assert read_finished(tmp_path, "abc") == record
    assert read_finished(tmp_path, "other") is None
    (tmp_path / "abc.json").write_text('{"key": "ab')
    assert read_finished(tmp_path, "abc") is None
    (tmp_path / "abc.json").write_text('{"key": "another"}')
    assert read_finished(tmp_path, "abc") is None
