"""A disk that is full, for real: one clear sentence, nothing half-written, and what was kept before is still there."""

import pytest
import torch
from full_disk import room_for
from tiny_models import random_ids, tiny_lm

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.scores import DocumentScorer
from calibrune.corpora.document import Document
from calibrune.corpora.generated import SelfGeneration
from calibrune.corpora.hub import HubCorpus
from calibrune.corpora.journal import Journal
from calibrune.errors import OutputError, RunError
from calibrune.lm.generation import GeneratedText
from calibrune.proxies import Context
from calibrune.study.samples import SampleStatistics
from calibrune.study.sets import SetStore
from calibrune.study.spec import Recipe

CANNOT = r"cannot be kept in .* \(File too large\)"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder):
    return [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"]


def written(n: int) -> GeneratedText:
    return GeneratedText((7, n, n + 1), 1, (-0.1 * n, None), n % 2 == 0)


def test_half_a_line_is_taken_back_and_the_texts_before_it_are_safe(tmp_path):
    file = tmp_path / "texts.jsonl"
    journal = Journal(file)
    journal.append({"a": written(1)})
    before = file.read_bytes()
    with (
        room_for(len(before) + 10),
        pytest.raises(RunError, match=rf"^1 texts {CANNOT}; the 1 before them are safe: make room, or set CALIBRUNE"),
    ):
        journal.append({"b": written(2)})
    assert file.read_bytes() == before
    journal.append({"b": written(2)})
    assert len(Journal(file)) == 2


def test_a_run_that_met_a_full_disk_goes_on_when_there_is_room(cache):
    corpus = SelfGeneration(model=tiny_lm(), n_texts=8, max_new_tokens=40, batch_size=2)
    with room_for(6_000), pytest.raises(RunError, match=r"the [46] before them are safe"):
        list(corpus.documents())
    (journal,) = cache.rglob("*.jsonl")
    kept = journal.read_bytes()
    resumed = [document.token_ids for document in corpus.documents()]
    assert journal.read_bytes().startswith(kept)
    journal.unlink()
    assert [document.token_ids for document in corpus.documents()] == resumed


def test_scores_that_cannot_be_kept_are_an_error_and_those_before_them_stay(cache):
    scorer = DocumentScorer(model=tiny_lm())
    documents = [Document("some text " * n, str(n)) for n in range(1, 20)]
    first = scorer.score(documents[:3])
    (file,) = files(cache)
    with room_for(file.stat().st_size + 20), pytest.raises(RunError, match=rf"^the scores of 16 documents {CANNOT}"):
        DocumentScorer(model=tiny_lm()).score(documents)
    assert DocumentScorer(model=tiny_lm()).score(documents)[:3] == first


def test_measurements_that_cannot_be_kept_leave_nothing_half_behind(cache):
    context = Context(tiny_lm(), lambda: CalibrationSet.from_ids(random_ids(seed=9)))
    with room_for(100), pytest.raises(RunError, match=f"^what was measured {CANNOT}"):
        context.moments(CalibrationSet.from_ids(random_ids()))
    assert files(cache) == []


def test_statistics_of_samples_that_cannot_be_kept_leave_nothing_half_behind(cache):
    statistics, data = SampleStatistics(tiny_lm(), "weights"), CalibrationSet.from_ids(random_ids())
    with room_for(100), pytest.raises(RunError, match=f"^the statistics of a sample {CANNOT}"):
        statistics.of(data, 4096)
    assert files(cache) == []


def test_a_set_of_a_study_that_cannot_be_kept_is_not_called_missing(cache):
    sets = SetStore(tiny_lm(), None)
    recipe = Recipe(name="random", source="random", spec="random", samples=4, seq_len=24)
    with (
        room_for(100),
        pytest.raises(RunError, match=r"^a calibration set cannot be kept in .*File too large.*CALIBRUNE_CACHE"),
    ):
        sets.get(recipe, 0)
    assert files(cache) == []
    assert sets.get(recipe, 0).n_samples == 4


def test_rows_of_the_hub_that_cannot_be_kept_are_not_called_damaged(cache, monkeypatch):
    # only the writing is of interest: the rows are there at once
    monkeypatch.setattr(HubCorpus, "_commit", lambda self: "0" * 40)
    monkeypatch.setattr(HubCorpus, "_fetched", lambda self, commit: (f"{i**9}" for i in range(20_000)))
    with room_for(20_000), pytest.raises(RunError, match=f"^the rows of 'org/web' {CANNOT}"):
        _ = HubCorpus(dataset="org/web").kept
    assert files(cache) == []


def test_a_set_that_cannot_be_written_leaves_no_folder(tmp_path):
    place = tmp_path / "sets" / "one"
    made = CalibrationSet.from_ids(torch.zeros(64, 64, dtype=torch.int64))
    with room_for(1000), pytest.raises(OutputError, match=f"cannot be written to {place}"):
        made.save(place)
    assert list(place.parent.iterdir()) == []
    made.save(place)
    assert CalibrationSet.load(place).fingerprint == made.fingerprint
