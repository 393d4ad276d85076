"""Where evaluation texts come from: names, files, and Python's own documentation."""

import gzip
import json
import os
from pathlib import Path

import pytest
from tiny_models import tiny_lm

from calibrune.errors import ConfigError, CorpusError
from calibrune.evaluation.perplexity import TextPerplexity, WindowPerplexity
from calibrune.evaluation.texts import (
    DATASETS,
    evaluation_texts,
    python_documentation,
    read_texts,
    text_options,
)

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


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("wikitext", r"no evaluation text 'wikitext'.*did you mean 'wikitext2'"),
        ("", "no evaluation text ''"),
        ("python-docs:protocol=harness-words", "no protocol 'harness-words'; did you mean 'harness-word'"),
        ("python-docs:protocol=pruning-papers", "did you mean 'pruning-papers-2048' or 'pruning-papers-4096'?"),
        ("python-docs:protocol=2048", "no protocol '2048'; choose one of: harness-word, pruning-papers-2048"),
        ("python-docs:strid=4", "'python-docs' has no option 'strid'; did you mean 'stride'"),
        ("python-docs:average=exp_of_mean_loss", "has no option 'average'"),
        ("python-docs:protocol=texts:stride=4", "has no option 'stride'"),
        ("python-docs:protocol=pruning-papers-2048:stride=512", "one way to measure, so stride cannot be chosen too"),
        ("python-docs:stride=4096", "stride=2048 or less"),
        ("python-docs:limit=0", "limit cannot be 0"),
        ("python-docs:records=few", "records cannot be 'few'"),
        ("python-docs:bos=everywhere", "bos cannot be 'everywhere'"),
        ("python-docs:join=[", "cannot be read"),
    ],
)
def test_what_cannot_be_asked_of_a_text_is_said_with_what_can(spec, said):
    with pytest.raises(ConfigError, match=said):
        evaluation_texts(spec)


def test_options_change_the_protocol_of_the_text_or_choose_another():
    def protocol(spec: str):
        return evaluation_texts(spec).protocol

    assert protocol("python-docs:stride=512:bos=window") == WindowPerplexity(stride=512, bos="window")
    assert protocol("python-docs:join=' '") == WindowPerplexity(join=" ")
    assert protocol('python-docs:join="\\n"') == WindowPerplexity(join="\n")
    assert protocol("python-docs:protocol=texts:max_tokens=64") == TextPerplexity(max_tokens=64)
    assert protocol("python-docs:protocol=self-generation-study") == TextPerplexity(max_tokens=None)
    assert protocol("python-docs:protocol=pruning-papers-4096") == WindowPerplexity(seq_len=4096)


def test_a_preset_is_what_its_name_says_whatever_else_is_asked_for(tmp_path):
    write_gzip(tmp_path / "c4.jsonl.gz", [{"text": f"document {i}"} for i in range(1200)])
    lm = tiny_lm()
    plain, papers = (evaluation_texts(f"c4{more}", tmp_path) for more in ("", ":protocol=pruning-papers-2048"))
    assert papers.protocol == WindowPerplexity(seq_len=2048, join=" ")
    assert (len(plain.texts), len(papers.texts)) == (1200, 1100)
    assert (plain.limit, papers.limit) == (None, 256)
    assert papers.source["preset"] == "pruning-papers-2048"
    assert plain.fitted(lm, 64, "window").protocol == WindowPerplexity(seq_len=64, join=" ", bos="window")
    assert plain.fitted(lm).protocol.seq_len == 128  # the model's context
    says = r"pruning-papers-2048 measures windows of 2,048 tokens, .* context has 128; use protocol=windows:seq_len=128"
    with pytest.raises(ConfigError, match=says):
        papers.fitted(lm)
    lm.model.config.max_position_embeddings = 2048
    assert papers.fitted(lm, 64, "window").protocol == papers.protocol


def test_the_first_records_alone_and_the_smaller_limit(tmp_path):
    rows = [{"text": f"row {i}", "body": f"another text {i}"} for i in range(9)]
    path = write_gzip(tmp_path / "rows.jsonl.gz", rows)
    found = evaluation_texts(f"{path}:records=3:text_field=body:protocol=texts:limit=2")
    assert found.texts == ("another text 0", "another text 1", "another text 2")
    assert found.name == "rows.jsonl.gz:records=3:text_field=body:texts:limit=2"
    assert (found.source["records"], found.source["text_field"]) == (3, "body")
    lm = tiny_lm()
    assert [found.scores(lm, limit)[0].n for limit in (None, 1, 3)] == [2, 1, 2]
    both = {score.metric: score.n for score in found.scores(lm)}
    assert both == {"mean perplexity of texts": 2, "perplexity": 2}


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".jsonl", ".jsonl.zst", ".parquet"])
def test_every_kind_of_file_is_measured_alike(tmp_path, ending):
    text = "A text that is long enough for a few windows. " * 3
    plain = json.dumps({"text": text}) + "\n" if ending.startswith(".jsonl") else text
    path = tmp_path / f"texts{ending}"
    if ending == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"text": [text]}), path)
    elif ending.endswith(".zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(plain.encode()))
    else:
        path.write_bytes(gzip.compress(plain.encode()) if ending.endswith(".gz") else plain.encode())
    lm = tiny_lm()
    (score,) = evaluation_texts(f"{path}:seq_len=16").scores(lm)
    assert score.items == WindowPerplexity(seq_len=16).score(lm, [text]).items


def test_what_list_prints_can_be_written_into_a_spec():
    for name, options in (("python-docs", DATASETS["python-docs"].protocol), ("alpaca", DATASETS["alpaca"].protocol)):
        asked = {key: value for group in text_options(options).values() for key, value in group.items()}
        spec = ":".join(["python-docs", *(f"{key}={json.dumps(value)}" for key, value in asked.items())])
        assert evaluation_texts(spec).protocol == DATASETS[name].protocol


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"c4 was looked for in .*corpora.*and is in neither"):
        evaluation_texts("c4", tmp_path)


def test_without_a_folder_the_hub_is_asked_and_an_unreachable_hub_is_said():
    # the tests are offline (HF_HUB_OFFLINE), which is one way to be out of reach
    with pytest.raises(
        CorpusError, match=r"the dataset 'Salesforce/wikitext' is no local path, the hub cannot be reached.*--data DIR"
    ):
        evaluation_texts("wikitext2")
    with pytest.raises(CorpusError, match=r"'allenai/c4'.*--data DIR, a folder with c4.jsonl.gz in it"):
        evaluation_texts("c4")


def test_a_file_that_cannot_be_read_says_where(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(CorpusError, match=r"line 2 of .*a.jsonl.*'text'"):
        evaluation_texts(str(tmp_path / "a.jsonl"))
