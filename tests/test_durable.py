"""Files are whole or not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrune.durable import (
    append,
    check_writable,
    claimed,
    is_running,
    let_go,
    parsed,
    sealed,
    to_json,
    unsealed,
    write_whole,
)
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


def test_lines_are_added_whole_or_not_at_all_and_half_a_line_of_a_crash_goes(tmp_path, monkeypatch, caplog):
    file = tmp_path / "rows.jsonl"
    append(file, b"one\n")
    file.write_bytes(file.read_bytes() + b"half a l")
    append(file, b"two\nthree\n")
    assert file.read_bytes() == b"one\ntwo\nthree\n"
    assert "cut short by a crash" in caplog.text
    write = os.write
    # a system that takes three bytes at a time, and then has no room
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, bytes(content)[:3]))
    append(file, b"four\n")
    assert file.read_bytes() == b"one\ntwo\nthree\nfour\n"

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        append(file, b"five\n")
    assert file.read_bytes() == b"one\ntwo\nthree\nfour\n"


def test_a_killed_process_leaves_nothing_beside_what_the_next_one_writes(tmp_path):
    path = tmp_path / "scores.json"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom calibrune.durable import write_whole\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\nwrite_whole(Path(sys.argv[1]), b'x')"
    )
    source = str(Path(__file__).resolve().parents[1] / "src")
    subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ | {"PYTHONPATH": source}, check=False)
    (left,) = os.listdir(tmp_path)
    assert left.endswith(".unfinished")
    (tmp_path / ".mine.1-1.unfinished").touch()
    write_whole(path, b"new")
    assert sorted(os.listdir(tmp_path)) == [".mine.1-1.unfinished", "scores.json"]


RECORDS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
).filter(lambda record: not record or next(reversed(record)) != "seal")


@given(RECORDS, st.data())
def test_a_sealed_record_is_read_back_and_no_turned_bit_passes(record, data):
    text = json.dumps(sealed(record)).encode()
    assert json.dumps(unsealed(parsed(text))) == json.dumps(record)
    place = data.draw(st.integers(0, len(text) - 1))
    for bit in range(8):
        turned = text[:place] + bytes([text[place] ^ 1 << bit]) + text[place + 1 :]
        try:
            found = unsealed(parsed(turned))
        except ValueError:
            continue
        assert json.dumps(found) == json.dumps(record)  # 1E5 is 1e5


def test_what_was_never_sealed_is_taken_as_it_is():
    assert unsealed({"a": 1}) == {"a": 1}
    assert unsealed({}) == {}
    with pytest.raises(ValueError, match="no JSON object"):
        unsealed([])
    for text in ("[" * 100_000, "9" * 5000, "{", b"\xff"):
        with pytest.raises(ValueError):
            parsed(text)


def test_a_place_is_claimed_by_one_and_nothing_is_left_of_the_claim(tmp_path):
    out = tmp_path / "new" / "out"
    with claimed(out), pytest.raises(OutputError, match="another run is writing"), claimed(out):
        pass
    assert os.listdir(tmp_path) == []
    with claimed(out):
        out.mkdir()
    assert os.listdir(tmp_path / "new") == ["out"]


def test_the_lock_of_who_was_killed_goes_and_that_of_who_is_at_work_stays(tmp_path):
    out, lock = tmp_path / "out", tmp_path / ".out.lock"
    lock.touch()
    let_go(out)
    assert not lock.exists()
    with claimed(out):
        let_go(out)
        assert lock.exists()
