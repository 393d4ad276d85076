"""Perplexities that are kept: what was finished is read, and what can change a number makes it another one."""

import logging
from dataclasses import replace

import pytest
import torch
from full_disk import room_for
from tiny_models import tiny_lm

from calibrune.errors import CorpusError, RunError
from calibrune.evaluation import agreement, perplexity
from calibrune.evaluation.perplexity import TextPerplexity, WindowPerplexity
from calibrune.evaluation.text_scores import evaluate_texts
from calibrune.evaluation.texts import EvaluationTexts

WINDOWS = EvaluationTexts(
    name="book.txt", texts=("All work and no play. " * 9,), protocol=WindowPerplexity(seq_len=32), source={"file": "a"}
)
TEXTS = replace(WINDOWS, name="rows", texts=("one text", "and another one, longer"), protocol=TextPerplexity())
SHORT = replace(WINDOWS, name="short", texts=("too short",))


@pytest.fixture
def passes(monkeypatch):
    """What is run through a model, counted."""
    counted = []

    def watched(function, name):
        def run(*args, **kwargs):
            counted.append(name)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(perplexity, "text_log_likelihoods", watched(perplexity.text_log_likelihoods, "perplexity"))
    monkeypatch.setattr(agreement, "over_texts", watched(agreement.over_texts, "agreement"))
    return counted


def test_what_was_finished_before_an_error_is_read_when_it_is_asked_again(tmp_path, passes, caplog):
    lm, dense = tiny_lm(), tiny_lm()
    with torch.no_grad():
        lm.model.lm_head.weight.mul_(0.5)
    with pytest.raises(CorpusError, match="one window takes 32 tokens, and the texts come to 9"):
        evaluate_texts(lm, [WINDOWS, TEXTS, SHORT], dense=dense, finished=tmp_path)
    assert passes == ["perplexity", "agreement"] * 2
    with caplog.at_level(logging.INFO):
        scores = evaluate_texts(lm, [WINDOWS, TEXTS], dense=dense, finished=tmp_path)
    assert len(passes) == 4
    assert "the perplexity of book.txt was finished before; it is read from" in caplog.text
    assert "the agreement on rows was finished before" in caplog.text
    fresh = [*WINDOWS.scores(lm), *WINDOWS.agreement(lm, dense), *TEXTS.scores(lm), *TEXTS.agreement(lm, dense)]
    assert scores == fresh


def test_whatever_can_change_a_number_makes_it_another_one(tmp_path, passes):
    lm = tiny_lm()

    def measured(text=WINDOWS, lm=lm, **more) -> bool:
        before = len(passes)
        evaluate_texts(lm, [text], finished=tmp_path, **more)
        return len(passes) > before

    assert measured()
    assert not measured()
    assert not measured(lm=tiny_lm())  # the same weights once more
    assert measured(limit=2)
    assert measured(replace(WINDOWS, limit=3))
    assert not measured(replace(WINDOWS, limit=3), limit=5)
    assert measured(replace(WINDOWS, texts=(*WINDOWS.texts, "")))
    assert measured(replace(WINDOWS, protocol=WindowPerplexity(seq_len=32, stride=16)))
    with torch.no_grad():
        lm.model.model.norm.weight[0] += 1
    assert measured()
    lm.model.bfloat16()
    assert measured()
    # of the agreement, the dense model too
    assert measured(dense=lm)
    other = tiny_lm()
    other.model.bfloat16()
    assert measured(dense=other)


def test_infinite_scores_and_damaged_files_are_no_hindrance(tmp_path, passes):
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.lm_head.weight.mul_(1e30)
    first = evaluate_texts(lm, [WINDOWS], finished=tmp_path)
    assert first[0].value == float("inf")
    assert evaluate_texts(lm, [WINDOWS], finished=tmp_path) == first
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text()[:40])
    assert evaluate_texts(lm, [WINDOWS], finished=tmp_path) == first
    assert len(passes) == 2


def test_texts_that_were_cut_are_said_also_when_they_are_read(tmp_path, caplog):
    cut = replace(TEXTS, protocol=TextPerplexity(max_tokens=12))
    for _ in ("measured", "read"):
        caplog.clear()
        evaluate_texts(tiny_lm(), [cut], finished=tmp_path)
        assert "rows: longer than 12 tokens, and cut on the right: 1 of 2 texts" in caplog.text


def test_scores_that_a_full_disk_does_not_keep_are_one_sentence(tmp_path):
    with (
        room_for(100),
        pytest.raises(RunError, match=r"^the results of the perplexity of book.txt cannot be kept in .*"),
    ):
        evaluate_texts(tiny_lm(), [WINDOWS], finished=tmp_path)
    assert list(tmp_path.iterdir()) == []
