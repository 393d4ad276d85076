"""The plan before a run and the pace while it runs, by hand."""

import logging
import shutil
from types import SimpleNamespace

import pytest

from calibrune.corpora.journal import BYTES_PER_TOKEN, Journal
from calibrune.corpora.pace import FIRST, Pace, Reader
from calibrune.errors import OutputError


@pytest.fixture(autouse=True)
def said(caplog):
    caplog.set_level(logging.INFO, logger="calibrune")
    return caplog


def test_how_many_texts_windows_take():
    assert Reader(1000).texts(100) == 10
    assert Reader(1000, kept=0.8).texts(100) == 13
    assert Reader(1000, kept=0.8, group=8).texts(100) == 16
    assert Reader(1, group=5000).texts(2048) == 5000


def test_the_plan_says_texts_tokens_bytes_and_where(tmp_path, said):
    Pace(Reader(1000, 0.8, 8), None, 100).plan(Journal(tmp_path / "x.jsonl"))
    assert "writing at least 16 texts of up to 100 tokens (0 are there): up to 1,600 tokens and 45 kB in" in said.text
    assert "more texts where the model ends them early" in said.text
    said.clear()
    Pace(Reader(10**9, 0.8, 5000), 5000, 2048).plan(Journal(tmp_path / "x.jsonl"))
    assert "writing 5,000 texts of up to 2,048 tokens (0 are there): up to 10,240,000 tokens and 287 MB" in said.text


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    need = 16 * 100 * BYTES_PER_TOKEN
    for free, fits in ((need, True), (need - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        pace = Pace(None, 16, 100)
        if fits:
            pace.plan(Journal(tmp_path / "x.jsonl"))
        else:
            with pytest.raises(OutputError, match=r"up to 45 kB of texts are to be kept .* make room"):
                pace.plan(Journal(tmp_path / "x.jsonl"))


def test_pace_and_time_left_count_what_was_written_now(said):
    now = 0.0
    pace = Pace(None, 40, 100, clock=lambda: now)
    pace.note([50] * 8, new=False)  # of an earlier run
    assert said.text == ""
    now = 2 * FIRST
    pace.note([50] * 8, new=True)  # 400 tokens in 10 s; 24 texts of 50 tokens are left
    assert "16 texts, 40 tokens/s; of 40 texts, some 30 s left" in said.text
    said.clear()
    now += 1
    pace.note([50] * 8, new=True)  # too soon for another line
    assert said.text == ""


def test_texts_that_end_early_make_more_of_them(said):
    now = 0.0
    pace = Pace(Reader(1000), None, 100, clock=lambda: now)
    now = 10.0
    pace.note([50] * 10, new=True)
    assert "of about 20 texts, some 10 s left" in said.text
