"""Progress goes to stderr, only where somebody looks, and never in the way of the items."""

import gc
import io
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrune import progress
from calibrune.progress import AboveBars, close_bars, progress_bar, show_progress, track


class Terminal(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def as_at_the_start():
    yield
    show_progress(None)


@given(st.lists(st.integers()))
def test_the_items_come_through_as_they_are(items):
    assert list(track(items, "blocks")) == list(track(iter(items), "blocks")) == items


def test_nothing_is_written_where_nobody_looks(capsys):
    list(track(range(3), "blocks"))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_stdout_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(track(range(3), "blocks", unit="block"))
    assert "blocks: 100%" in sys.stderr.getvalue()
    assert "3/3" in sys.stderr.getvalue()
    assert capsys.readouterr().out == ""


def test_never_is_never(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    show_progress(False)
    list(track(range(3), "blocks"))
    assert sys.stderr.getvalue() == ""


def test_always_is_always_and_a_log_is_not_flooded(capsys):
    show_progress(True)
    list(track(range(5000), "blocks"))
    written = capsys.readouterr().err
    assert "5000/5000" in written
    assert written.count("\r") <= 3


def test_a_stream_of_unknown_length_is_counted(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(track(iter(range(3)), "documents"))
    assert "documents: 3" in sys.stderr.getvalue()
    with progress_bar("tokens", total=10) as bar:
        bar.update(10)
    assert "10/10" in sys.stderr.getvalue()


def test_a_log_line_stands_on_a_line_of_its_own_above_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    log = logging.Logger("test")
    log.addHandler(AboveBars())
    for item in track(range(3), "texts"):
        log.info("text %d is there", item)
    lines = re.split("[\r\n]", sys.stderr.getvalue())
    assert [line for line in lines if "is there" in line] == [f"text {i} is there" for i in range(3)]


def test_a_bar_inside_another_is_gone_when_it_is_done(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in track(range(2), "batches"):
        list(track(range(3), "tokens"))
    assert "3/3" not in re.split("[\r\n]", sys.stderr.getvalue().strip())[-1]
    assert "2/2" in sys.stderr.getvalue()


def test_an_error_under_way_closes_the_bar_and_comes_through(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())

    def broken():
        yield 1
        raise LookupError("the second document")

    with pytest.raises(LookupError, match="the second document"):
        list(track(broken(), "documents"))
    assert sys.stderr.getvalue().endswith("\n")


def test_leaving_early_closes_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    items = track(range(10), "blocks")
    next(items)
    items.close()
    assert sys.stderr.getvalue().endswith("\n")


def test_a_length_is_taken_where_there_is_one():
    assert progress._length([1, 2]) == 2
    assert progress._length(iter([1, 2])) is None


def test_what_is_said_of_an_error_begins_a_line(capsys):
    show_progress(True)
    try:
        walk = track(range(3), "walking")
        next(walk)
        close_bars()
        sys.stderr.write("wrong\n")
    finally:
        show_progress(None)
    assert "wrong" in capsys.readouterr().err.splitlines()


def test_a_bar_that_is_interrupted_while_it_is_made_says_nothing_when_it_is_collected(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    show_progress(True)
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(progress.tqdm, "_get_free_pos", interrupted)
    with pytest.raises(KeyboardInterrupt) as interruption:
        progress_bar("blocks", total=3)
    close_bars()
    del interruption
    gc.collect()
    assert unraisable == []
    assert "Traceback" not in capsys.readouterr().err
