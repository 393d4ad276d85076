"""Where evaluation texts come from: names, files, and Python's own documentation."""

import gzip
import json
import os
from pathlib import Path

import pytest

from calibrune.errors import ConfigError, CorpusError
from calibrune.evaluation.perplexity import TextPerplexity, WindowPerplexity
from calibrune.evaluation.texts import DATASETS, evaluation_texts, python_documentation, read_texts

SHARED = Path(os.environ.get("CALIBRUNE_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not on this machine")


def write_gzip(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()))
    return path


@needs_shared_data
def test_wikitext2_is_whole():
    texts = evaluation_texts("wikitext2", SHARED).texts
    assert len(texts) == 4358
    assert sum(text == "" for text in texts) == 1467
    # the rows' own bytes, and two for each of the joints of the papers' protocol
    assert len("".join(texts).encode()) == 1_287_656
    assert len("\n\n".join(texts).encode()) == 1_287_656 + 2 * 4357


@needs_shared_data
@pytest.mark.parametrize("name", [name for name in DATASETS if DATASETS[name].file])
def test_every_named_text_is_in_the_data_folder(name):
    found = evaluation_texts(name, SHARED)
    assert len(found.texts) > 900
    assert found.source["file"] == DATASETS[name].file


def test_pythons_documentation_is_english_text_in_a_fixed_order():
    texts = python_documentation()
    assert texts == python_documentation()
    assert sum(map(len, texts)) > 100_000
    assert " the " in texts[0]
    found = evaluation_texts("python-docs")
    assert found.texts == tuple(texts)
    assert found.source["python"].startswith("3.")


def test_a_name_is_looked_for_in_corpora_and_then_in_the_folder_itself(tmp_path):
    file = DATASETS["alpaca"].file
    write_gzip(tmp_path / file, [{"text": "outside"}])
    assert evaluation_texts("alpaca", tmp_path).texts == ("outside",)
    write_gzip(tmp_path / "corpora" / file, [{"text": "inside"}, {"text": ""}])
    found = evaluation_texts("alpaca", tmp_path)
    assert found.texts == ("inside", "")
    assert found.protocol == TextPerplexity()


def test_any_file_of_texts_will_do(tmp_path):
    (tmp_path / "book.txt").write_bytes("line one\r\n\r\nline – two".encode())
    found = evaluation_texts(str(tmp_path / "book.txt"))
    assert found.texts == ("line one\r\n\r\nline – two",)
    assert (found.name, found.protocol) == ("book.txt", WindowPerplexity())
    own = WindowPerplexity(seq_len=128)
    rows = write_gzip(tmp_path / "rows.jsonl.gz", [{"text": "a\u2028b", "id": 1}, {"text": ""}])
    assert evaluation_texts(str(rows), protocol=own).texts == ("a\u2028b", "")
    assert evaluation_texts(str(rows), protocol=own).protocol is own
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert read_texts(tmp_path / "rows.jsonl") == ("a", "b")


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ConfigError, match=r"no evaluation text 'wikitext'.*did you mean 'wikitext2'"):
        evaluation_texts("wikitext")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"c4 is read from a data folder with c4.jsonl.gz in it; say which: --data"):
        evaluation_texts("c4")
    with pytest.raises(CorpusError, match=r"c4 was looked for in .*corpora.*and is in neither"):
        evaluation_texts("c4", tmp_path)


def test_without_a_folder_the_hub_is_asked_and_an_unreachable_hub_is_said():
    # the tests are offline (HF_HUB_OFFLINE), which is one way to be out of reach
    with pytest.raises(
        CorpusError, match=r"the dataset 'Salesforce/wikitext' is no local path, the hub cannot be reached.*--data DIR"
    ):
        evaluation_texts("wikitext2")


def test_a_file_that_cannot_be_read_says_where(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(CorpusError, match=r"line 2 of .*a.jsonl.*'text'"):
        evaluation_texts(str(tmp_path / "a.jsonl"))
