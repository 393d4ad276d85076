import gzip
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from calibrune.corpora.document import Corpus
from calibrune.corpora.files import FileCorpus
from calibrune.errors import ConfigError, CorpusError

pa = pytest.importorskip("pyarrow", reason="needs the extra `files`")
pq = pytest.importorskip("pyarrow.parquet")

SHARED_DATA = Path(os.environ.get("CALIBRUNE_SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))

TEXTS = ("The first.", "", "Ein zweites: äöü, 漢字.", "  \n\t", "The last\nin two lines.")


def json_lines(texts) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def parquet(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def read(path: Path, **options) -> dict[str, str]:
    return {document.id: document.text for document in FileCorpus(path=path, **options).documents()}


def complaint(path: Path, **options) -> str:
    with pytest.raises(CorpusError) as caught:
        list(FileCorpus(path=path, **options).documents())
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("toy.jsonl", bytes),
        ("toy.json", bytes),
        ("toy.jsonl.gz", gzip.compress),
        ("toy.json.gz", gzip.compress),
        ("toy.jsonl.zst", zstandard.ZstdCompressor().compress),
    ],
)
def test_blank_documents_are_skipped_but_their_lines_are_counted(tmp_path, name, pack):
    path = written(tmp_path, name, pack(json_lines(TEXTS)))
    assert read(path) == {f"{name}:1": TEXTS[0], f"{name}:3": TEXTS[2], f"{name}:5": TEXTS[4]}


def test_rows_of_parquet_are_counted_across_row_groups(tmp_path):
    path = parquet(tmp_path / "toy.parquet", text=[*TEXTS, None, "after a null"], other=list(range(7)))
    assert read(path) == {
        "toy.parquet:1": TEXTS[0],
        "toy.parquet:3": TEXTS[2],
        "toy.parquet:5": TEXTS[4],
        "toy.parquet:7": "after a null",
    }


def test_a_column_of_categories_is_text_too(tmp_path):
    path = parquet(tmp_path / "a.parquet", text=pa.array(["x", "y", "x"]).dictionary_encode())
    assert list(read(path).values()) == ["x", "y", "x"]


@pytest.mark.parametrize(("name", "pack"), [("a.txt", bytes), ("a.txt.gz", gzip.compress)])
def test_a_text_file_is_one_document(tmp_path, name, pack):
    path = written(tmp_path, name, pack(b"one paragraph\n\nand another"))
    assert read(path) == {f"{name}:1": "one paragraph\n\nand another"}


def test_the_text_may_be_in_another_field(tmp_path):
    path = written(tmp_path, "a.jsonl", b'{"content": "hello", "text": 3}\n')
    assert read(path, text_field="content") == {"a.jsonl:1": "hello"}


def test_the_name_is_the_files_without_its_endings_unless_given(tmp_path):
    assert FileCorpus(path=tmp_path / "c4.en.jsonl.gz").name == "c4.en"
    assert FileCorpus(path=tmp_path / "c4.parquet").name == "c4"
    assert FileCorpus(path=tmp_path / "c4.txt", name="mine").name == "mine"


def test_empty_lines_and_a_byte_order_mark_do_no_harm(tmp_path):
    path = written(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert read(path) == {"a.jsonl:1": "a", "a.jsonl:3": "b"}


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    path = written(tmp_path, "a.jsonl", rb'{"text": "a \ud83d b \ud83d\ude00"}')
    assert read(path) == {"a.jsonl:1": "a \ufffd b \U0001f600"}


def test_documents_start_anew_at_every_call(tmp_path):
    corpus = FileCorpus(path=written(tmp_path, "a.jsonl", json_lines(["a", "b"])))
    started = corpus.documents()
    next(started)
    assert [d.text for d in corpus.documents()] == ["a", "b"]
    assert isinstance(corpus, Corpus)
    assert not corpus.in_random_order


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), split=st.integers(1, 50))
def test_zstandard_of_many_frames_is_read_to_its_end(tmp_path_factory, texts, split):
    content = json_lines([*texts, "the last"])
    pieces = [content[i : i + split] for i in range(0, len(content), split)]
    packed = b"".join(zstandard.ZstdCompressor().compress(piece) for piece in pieces)
    path = written(tmp_path_factory.mktemp("zst"), "a.jsonl.zst", packed)
    kept = [text for text in texts if text and not text.isspace()]
    assert list(read(path).values()) == [*kept, "the last"]


def test_the_description_pins_the_content_and_not_the_place(tmp_path):
    content = json_lines(["a"])
    described = FileCorpus(path=written(tmp_path, "a.jsonl", content)).describe()
    assert described == {
        "kind": "file",
        "name": "a",
        "file": "a.jsonl",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "text_field": "text",
        "licence": None,
    }
    assert str(tmp_path) not in json.dumps(described)


def test_a_missing_file_names_the_nearest(tmp_path):
    written(tmp_path, "wikipedia.jsonl.gz", b"")
    assert "did you mean wikipedia.jsonl.gz?" in complaint(tmp_path / "wikipeda.jsonl.gz")
    assert "nor the folder" in complaint(tmp_path / "nowhere" / "a.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder" in complaint(tmp_path / "folder.jsonl")
    with pytest.raises(CorpusError, match="there is no file"):
        FileCorpus(path=tmp_path / "x.txt").describe()


@pytest.mark.parametrize("name", ["a.csv", "a", "a.gz", "a.parquet.gz", ".gz", "a.txt.bz2"])
def test_an_unknown_ending_lists_the_known_ones(name):
    with pytest.raises(CorpusError, match=r"\.txt, \.jsonl, \.json, \.parquet"):
        FileCorpus(path=name)


def test_an_unknown_setting_is_an_error():
    with pytest.raises(ConfigError, match="did you mean 'text_field'"):
        FileCorpus(path="a.txt", textfield="text")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"[1, 2]", "line 2 of .* is a list, not an object"),
        (b"{", "line 2 of .* is not JSON .*, character 1.: the file must have"),
        (b"nonsense", "line 2 of .* is not JSON"),
        (b'{"content": "x", "url": "y"}', "line 2 of .* has no field 'text', only 'content', 'url'"),
        (b"{}", "has no field 'text', only none at all"),
        (b'{"text": 3}', "the field 'text' in line 2 of .* is a number, not text"),
        (b'{"text": ["a"]}', "is a list, not text"),
        ('{"text": "ä"}'.encode("latin-1"), r"line 2 of .* is not UTF-8 \(byte 0xe4 at 10\)"),
        (b'{"text": "\0"}', "line 2 of .* binary file"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = written(tmp_path, "a.jsonl", b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(CorpusError, match=says):
        list(FileCorpus(path=path).documents())


def test_binary_and_badly_encoded_text_files_are_refused(tmp_path):
    assert "binary" in complaint(written(tmp_path, "a.txt", b"\x7fELF\x00\x00"))
    assert "UTF-16" in complaint(written(tmp_path, "b.txt", "text".encode("utf-16")))
    assert "line 2 of" in complaint(written(tmp_path, "c.txt", b"fine\nna\xefve"))


@pytest.mark.parametrize(
    ("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.ZstdCompressor().compress)]
)
def test_damaged_and_cut_off_packings_are_errors_not_short_files(tmp_path, name, pack):
    packed = pack(json_lines(f"{i} {hashlib.sha256(str(i).encode()).hexdigest()}" for i in range(200)))
    assert len(read(written(tmp_path, name, packed))) == 200
    middle = len(packed) // 2
    for broken in (packed[:-12], packed[:middle], packed[:2], b'{"text": "not packed"}\n', packed[:9] + bytes(40)):
        assert "damaged, cut off" in complaint(written(tmp_path, name, broken))


def test_parquet_says_what_is_wrong_with_it(tmp_path):
    good = parquet(tmp_path / "a.parquet", text=["a"], url=["b"], score=[1.0])
    assert "has no field 'content', only 'text', 'url', 'score'" in complaint(good, text_field="content")
    assert "holds double, not text" in complaint(good, text_field="score")
    for broken in (b"", b"PAR1", good.read_bytes()[:-20], b"text" * 30):
        assert "cannot be read as Parquet" in complaint(written(tmp_path, "b.parquet", broken))


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": ""}\n{"text": null}\n'])
def test_a_file_without_text_is_an_error(tmp_path, content):
    assert "has no text in it" in complaint(written(tmp_path, "a.jsonl", content))


@pytest.mark.parametrize(("name", "module"), [("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")])
def test_a_missing_extra_says_how_to_install_it(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert f"needs the package {module}" in complaint(written(tmp_path, name, b"x"))
    assert "pip install 'calibrune[files]'" in complaint(tmp_path / name)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs ../shared/data")
def test_real_files_give_all_their_rows():
    rows = {"c4": 1993, "alpaca": 999, "wikipedia_articles": 712}
    for name, n in rows.items():
        documents = list(FileCorpus(path=SHARED_DATA / "corpora" / f"{name}.jsonl.gz").documents())
        assert len(documents) == len({d.id for d in documents}) == n
