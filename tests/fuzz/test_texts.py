"""Files of documents, of tokens, and of records: what people get from others."""

import gzip
import json
import shutil
from itertools import islice

import pytest
import torch
from fuzz.conftest import record_of, resealed
from fuzz.fuzzing import Cases, as_json, damaged, rearranged, values
from hypothesis import strategies as st
from safetensors.torch import save

from calibrune import verbs
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import build_calibration
from calibrune.corpora.files import FileCorpus
from calibrune.evaluation.paired import compare, read_evaluations
from calibrune.lm.loading import load_model
from calibrune.report import inspection

pytestmark = pytest.mark.filterwarnings("ignore")

LINES = "".join(json.dumps({"text": f"a text of words, number {i}", "n": i}) + "\n" for i in range(6)).encode()


def parquet() -> bytes:
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    pq.write_table(pyarrow.table({"text": ["a text", None, "another one"], "n": [1, 2, 3]}), sink)
    return bytes(sink.getvalue())


def zstd(content: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(content))


KINDS = {
    "a.jsonl": (lambda: LINES, 1000),
    "a.txt": (lambda: "words, and ümläute 漢字\n".encode() * 5, 500),
    "a.jsonl.gz": (lambda: gzip.compress(LINES, mtime=0), 700),
    "a.jsonl.zst": (lambda: zstd(LINES), 500),
    "a.parquet": (parquet, 500),
}


@pytest.mark.parametrize("name", KINDS)
def test_documents(name, tmp_path, record_property):
    make, n = KINDS[name]
    whole, file = make(), tmp_path / name

    def check(content):
        file.write_bytes(content)
        corpus = FileCorpus(path=file)
        corpus.check()
        for document in islice(corpus.documents(), 1000):
            document.text.encode()
        corpus.describe()

    check(whole)
    bad = damaged(whole) | st.binary(max_size=80)
    if name == "a.jsonl":
        lines = st.lists(rearranged({"text": "a text", "n": 1}) | values, max_size=4)
        deep = st.sampled_from([b"[" * 100_000, b'{"text": ' * 100_000, b'{"text": ' + b"9" * 5000 + b"}"])
        bad |= lines.map(lambda rows: b"\n".join(map(as_json, rows))) | deep
    Cases(n).run(bad, check, record_property)


def test_tokens(real, tmp_path, record_property):
    file = tmp_path / "a.safetensors"

    def check(content):
        file.write_bytes(content)
        CalibrationSet.from_safetensors(file).check_fits(vocab_size=96, context_length=128)

    whole = (real / "tokens.safetensors").read_bytes()
    check(whole)
    kinds = [torch.int64, torch.int8, torch.uint16, torch.bool, torch.float8_e4m3fn, torch.bfloat16, torch.complex64]
    made = st.builds(
        lambda names, kind, shape: save({name: torch.zeros(shape).to(kind) for name in names}),
        st.sets(st.sampled_from(["input_ids", "attention_mask", "x"])),
        st.sampled_from(kinds),
        st.lists(st.integers(0, 4), max_size=3),
    )
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    written = rearranged(header).map(lambda head: framed(as_json(head), whole[8 + length :]))
    Cases(1500).run(damaged(whole) | made | written, check, record_property)


def framed(head: bytes, body: bytes) -> bytes:
    return len(head).to_bytes(8, "little") + head + body


def test_sets(real, tmp_path, record_property):
    """A set from somebody else: its manifest is used while it is loaded, cut, shown, and checked against a model."""
    shutil.copytree(real / "set", tmp_path / "set")
    file = tmp_path / "set" / "manifest.json"
    lm = load_model(real / "model")

    def check(content):
        file.write_bytes(content)
        CalibrationSet.load(tmp_path / "set").take(2)
        build_calibration(str(tmp_path / "set"), lm, n_samples=3)
        inspection.text(*verbs.inspect(str(tmp_path / "set")))

    whole, record = file.read_bytes(), record_of(file)
    check(whole)
    more = {
        "tokenizer": {"sha256": None, "bos_token_id": 0}, "dropped": {"too short": 3}, "windows": {"policy": "packed"},
        "special_tokens": {"bos": "document"}, "document_ids": [["a:1"], ["a:2"], ["a:1", "b:3"], ["b:3"]],
        "filters": [{"kind": "length", "n": 3}], "text_sha256": {"a:1": "0" * 64}, "documents_looked_at": 7,
        "parts": [{"name": "a", "n_samples": 2}, {"name": "b", "n_samples": 2}], "seed": 0,
    }  # fmt: skip
    parts = [{"name": name, "weight": 1.0, "source": {"kind": "file", "name": name}} for name in "ab"]
    record |= more | {"source": {"kind": "mixture", "name": "both", "parts": parts, "licence": "none"}}
    check(resealed(record))
    cases = Cases(1500)
    cases.run(damaged(whole) | rearranged(record).map(resealed) | values.map(as_json), check, record_property)
    assert 0 < cases.taken < cases.done


def test_evaluations(real, tmp_path, record_property):
    file = tmp_path / "scores.json"
    scores = [
        {"metric": "perplexity", "value": 12.5, "stderr": 0.5, "n": 4, "higher_is_better": False,
         "items": [2.0, 2.5, 3.0, 2.7],
         "protocol": {"protocol": "perplexity", "dataset": "wikitext2", "source": {"sha256": "0"}, "seq_len": 16}},
        {"metric": "acc", "value": 0.5, "stderr": None, "n": 2, "higher_is_better": True, "items": [0.0, 1.0],
         "protocol": {"dataset": "piqa", "source": {}, "shots": 0}},
    ]  # fmt: skip
    one = {"model": "a", "scores": scores, "versions": {"torch": "2"}, "command": "calibrune evaluate a"}
    both = {"evaluations": [one, one | {"model": "b"}]}

    def check(content):
        file.write_bytes(content)
        read = read_evaluations(file)
        compare([*read, *read])

    check(resealed(both))
    bad = damaged(resealed(both)) | rearranged(both).map(resealed) | values.map(as_json)
    Cases(800).run(bad, check, record_property)
