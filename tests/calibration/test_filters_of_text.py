"""The filters that look at the text itself: length, repetition, near-duplicates, language, contamination."""

import gzip
import json
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec

import numpy as np
import pytest

from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.filters import (
    ContaminationFilter,
    DuplicateFilter,
    LanguageFilter,
    LengthFilter,
    RepetitionFilter,
    contamination,
)
from calibrune.calibration.filters import filter as filter_module
from calibrune.calibration.filters.contamination import _number, _runs
from calibrune.calibration.filters.language import _detector
from calibrune.calibration.filters.repetition import compression_ratio, repeated_share
from calibrune.calibration.spec import prepare_calibration
from calibrune.corpora.document import Document
from calibrune.errors import CalibrationError, ConfigError, CorpusError

PROSE = (
    "The river rose in the night, and by morning the lower fields were a lake on which the geese had settled, "
    "quarrelling about places as if they had paid for them."
)
OTHER = "Sugar dissolves faster in hot water, because its molecules meet the quicker ones of the water more often."


def kept(of, *texts):
    dropped = Counter()
    documents = [Document(text, str(row)) for row, text in enumerate(texts)]
    return [int(d.id) for d in of.keep(documents, dropped)], dict(dropped)


def test_both_bounds_of_a_length_are_included():
    of = LengthFilter(min_chars=2, max_chars=3)
    assert kept(of, "a", "ab", "abc", "abcd") == (
        [1, 2],
        {"fewer than 2 characters": 1, "more than 3 characters": 1},
    )
    with pytest.raises(ConfigError, match="leave nothing"):
        LengthFilter(min_chars=4, max_chars=3)


def test_the_repeated_share_counts_runs_that_stood_there_before():
    assert repeated_share("aaaa", 2) == pytest.approx(2 / 3)  # aa, aa, aa
    assert repeated_share("abcd", 2) == 0
    assert repeated_share("a", 2) == 0


def test_a_loop_goes_and_prose_stays():
    loop = "and then he said that " * 30
    assert kept(RepetitionFilter(), PROSE, loop) == ([0], {"more than 0.3 of its runs of 4 words repeated": 1})
    by_zlib = RepetitionFilter(max_repeated=None, max_compression=4)
    assert kept(by_zlib, PROSE, loop) == ([0], {"compresses by more than 4": 1})
    assert compression_ratio(PROSE) < 2 < 10 < compression_ratio(loop)
    with pytest.raises(ConfigError, match="looks at nothing"):
        RepetitionFilter(max_repeated=None)


def test_of_near_duplicates_the_first_stays():
    nearly = PROSE + " Nobody had."
    assert kept(DuplicateFilter(), PROSE, OTHER, nearly, PROSE.upper()) == (
        [0, 1],
        {"similar to an earlier one by 0.8 or more": 2},
    )
    assert kept(DuplicateFilter(dedup=1.0), PROSE, nearly)[0] == [0, 1]
    assert kept(DuplicateFilter(), "", "", "?", "a b")[0] == [0, 2, 3]
    assert DuplicateFilter().describe()["library"].startswith("datasketch ")


@pytest.mark.parametrize(
    ("of", "library", "extra"), [(DuplicateFilter(), "datasketch", "filters"), (LanguageFilter(), "lingua", "language")]
)
def test_without_its_library_a_filter_says_which_extra_to_install(of, library, extra, monkeypatch):
    _detector.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"not installed: pip install 'calibrune\[{extra}\]'"):
        kept(of, PROSE)


@pytest.mark.parametrize(("option", "extra"), [("dedup=0.8", "filters"), ("language=en", "language")])
def test_a_missing_library_is_told_before_the_model_is_loaded(option, extra, monkeypatch, tmp_path):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(filter_module, "version", missing)
    (tmp_path / "a.txt").write_text(PROSE)
    with pytest.raises(ConfigError, match=rf"not installed: pip install 'calibrune\[{extra}\]'"):
        prepare_calibration(f"{tmp_path / 'a.txt'}:{option}")


@pytest.mark.skipif(find_spec("lingua") is None, reason="needs lingua-language-detector, and it is not installed")
def test_other_languages_go_and_the_reason_names_them():
    german = "Der Fluss stieg in der Nacht, und am Morgen waren die unteren Felder ein See."
    assert kept(LanguageFilter(), PROSE, german, "12345") == (
        [0],
        {"language de, not en": 1, "language unknown, not en": 1},
    )
    with pytest.raises(ConfigError, match="does not know the language 'xx'"):
        kept(LanguageFilter(language="xx"), PROSE)


def test_a_language_is_asked_for_by_its_code():
    with pytest.raises(ConfigError, match="ISO 639-1"):
        LanguageFilter(language="English")


@pytest.fixture
def evals(tmp_path):
    """Two evaluation sets: one in JSON lines, packed, with its text in several fields; one plain text."""
    folder = tmp_path / "evals"
    (folder / "quiz").mkdir(parents=True)
    with gzip.open(folder / "quiz" / "validation.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": PROSE, "choices": {"text": ["a lake", "a sea"]}, "answer": 0}) + "\n")
    (folder / "book.txt").write_text(OTHER)
    (folder / "notes.md").write_text("no evaluation text")
    return folder


def test_thirteen_shared_words_in_a_row_are_a_contamination(evals):
    words = PROSE.split()
    thirteen, twelve = " ".join(words[3:16]), " ".join(words[3:15])
    of = ContaminationFilter(evals=evals)
    assert kept(of, f"He wrote: {thirteen.upper()}!", twelve, OTHER) == (
        [1],
        {"shares 13 words in a row with quiz": 1, "shares 13 words in a row with book": 1},
    )
    keep = ContaminationFilter(evals=evals, contaminated="keep")
    assert keep.remark(Document(PROSE, "")) == {"quiz": len(words) - 12}
    assert kept(ContaminationFilter(evals=evals / "book.txt"), PROSE)[0] == [0]


def test_items_that_are_too_short_to_be_found_are_counted_and_said(tmp_path, caplog):
    file = tmp_path / "quiz.jsonl"
    file.write_text("".join(json.dumps({"question": text}) + "\n" for text in (PROSE, "Who was it?", "a b c")))
    of = ContaminationFilter(evals=file)
    said = of.describe()
    assert (said["items"], said["items_too_short_to_find"]) == ({"quiz": 3}, {"quiz": 2})
    assert "fewer than 13 words cannot be found in calibration text: 2 of 3 of quiz" in caplog.text
    assert kept(of, "Who was it?")[0] == [0]
    assert ContaminationFilter(evals=file, overlap_words=3).describe()["items_too_short_to_find"] == {"quiz": 0}


def test_evaluation_sets_of_one_name_are_told_apart_and_every_file_is_recorded(tmp_path):
    texts = {"mmlu/test": PROSE, "arc/test": OTHER, "more/mmlu/test": "a b c", "quiz": "d e f"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(text)
    files = tuple(tmp_path / f"{name}.txt" for name in texts)
    of = ContaminationFilter(evals=(*files, files[0]))
    said = of.describe()["evals"]
    assert list(said) == [f"{tmp_path.name}/mmlu/test", "arc/test", "more/mmlu/test", "quiz"]
    assert len({sha256 for hashes in said.values() for sha256 in hashes.values()}) == 4
    assert kept(of, OTHER) == ([], {"shares 13 words in a row with arc/test": 1})
    # files of one name within one set
    (tmp_path / "arc" / "test").mkdir()
    (tmp_path / "arc" / "test" / "test.txt").write_text("x y z")
    both = ContaminationFilter(evals=(tmp_path / "arc" / "test.txt", tmp_path / "arc")).describe()["evals"]
    assert both.keys() == {"test"}
    assert both["test"].keys() == {"arc/test.txt", "test/test.txt"}
    assert len(set(both["test"].values())) == 2


def test_the_hashes_of_runs_are_those_of_the_words_and_their_order():
    assert len(_runs("a b c", 3)) == 1
    assert not len(np.intersect1d(_runs("a b c", 3), _runs("c b a", 3)))
    assert np.array_equal(_runs("x, A! b c", 3)[:0], _runs("a b", 3))
    assert np.array_equal(_runs("A; b - c", 3), _runs("a b c", 3))
    assert len(_runs("a a a a a", 3)) == 1
    assert _number.cache_info().maxsize  # the words of an endless corpus are not all held


def test_contamination_that_is_kept_is_in_the_manifest(evals, in_memory, tokenizer):
    corpus = in_memory(OTHER, "nothing of the kind " * 5, PROSE)
    keep = ContaminationFilter(evals=evals, contaminated="keep")
    made = build(CalibrationRecipe(corpus=corpus, filters=(keep,), n_samples=8, seq_len=32), tokenizer)
    used = {name for names in made.manifest["document_ids"] for name in names}
    assert made.manifest["contamination"].keys() == used - {"toy:1"}
    (said,) = made.manifest["filters"]
    assert said["evals"].keys() == {"quiz", "book"}
    assert "notes.md" not in json.dumps(said)
    first = made.take(1)
    assert first.manifest["contamination"].keys() <= set(first.manifest["document_ids"][0])


def test_a_document_that_stayed_is_not_looked_up_again(evals, in_memory, tokenizer, monkeypatch):
    looked_up = []
    monkeypatch.setattr(contamination, "_n_shared", lambda few, many: looked_up.append(few) or 0)
    of = ContaminationFilter(evals=evals)
    made = build(CalibrationRecipe(corpus=in_memory("x " * 40), filters=(of,), n_samples=1, seq_len=16), tokenizer)
    assert (made.manifest["contamination"], len(looked_up)) == ({}, 2)  # once for each of the two sets


def test_a_clean_set_says_that_it_was_looked_at(evals, in_memory, tokenizer):
    recipe = CalibrationRecipe(
        corpus=in_memory(PROSE, "x " * 40), filters=(ContaminationFilter(evals=evals),), n_samples=2, seq_len=16
    )
    made = build(recipe, tokenizer)
    assert made.manifest["contamination"] == {}
    assert made.dropped == {"shares 13 words in a row with quiz": 1}


@pytest.mark.parametrize(
    ("path", "says"),
    [("nothing", "no file"), ("empty", "no evaluation text"), ("evals/notes.md", "cannot be read"), ("bad", "line 1")],
)
def test_evaluation_text_that_cannot_be_read_is_one_sentence(path, says, evals, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jsonl").write_text("{")
    with pytest.raises(CorpusError, match=says):
        kept(ContaminationFilter(evals=tmp_path / path), PROSE)


def test_a_result_without_a_document_is_an_error_with_the_counts(in_memory, tokenizer):
    filters = (LengthFilter(min_chars=5), RepetitionFilter())
    corpus = in_memory("abc", "on and on and " * 20, "on and on and " * 30)
    with pytest.raises(CalibrationError, match=r"dropped all 3 documents of 'toy' \(2 more than .*, 1 fewer than 5"):
        build(CalibrationRecipe(corpus=corpus, filters=filters, n_samples=1, seq_len=4), tokenizer)
