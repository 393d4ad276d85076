"""Models from others: weights, configurations, tokenizers, GGUF files, the manifests of pruned ones."""

import json
import shutil

import pytest
import torch
from fuzz.conftest import record_of, resealed
from fuzz.fuzzing import Cases, as_json, bounded, damaged, rearranged
from fuzz.test_texts import framed

from calibrune import verbs
from calibrune.calibration.tokenizers import describe_tokenizer
from calibrune.errors import CalibruneError
from calibrune.lm.loading import load_model
from calibrune.lm.streaming import fits_in_memory, load_streamed
from calibrune.lm.weights import INDEX, SINGLE, Shards
from calibrune.report import inspection

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def spoilt(real, tmp_path):
    """A copy of one of the real ones."""

    def copy(name):
        return shutil.copytree(real / name, tmp_path / name)

    return copy


def looked_at(folder) -> None:
    shards = Shards.of(folder)
    shards.read([name for name, head in shards.headers.items() if head.nbytes < 10_000])
    shards.read_ahead(list(shards.headers))


def test_headers_of_weights(spoilt, record_property):
    folder = spoilt("model")
    file = folder / SINGLE
    whole = file.read_bytes()

    def check(content):
        file.write_bytes(content)
        looked_at(folder)

    length = int.from_bytes(whole[:8], "little")
    head, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    written = rearranged(head).map(lambda one: framed(as_json(one), body))
    Cases(1500).run(damaged(whole[: 8 + length]).map(lambda h: h + body) | written, check, record_property)


def test_the_index_of_weights(spoilt, record_property):
    folder = spoilt("sharded")
    file = folder / INDEX
    whole = file.read_bytes()

    def check(content):
        file.write_bytes(content)
        looked_at(folder)

    record = json.loads(whole)
    Cases(700).run(damaged(whole) | rearranged(record).map(as_json), check, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", SINGLE])
def test_models(name, streamed, spoilt, record_property):
    folder = spoilt("model")
    file = folder / name
    whole = file.read_bytes()

    def check(content):
        file.write_bytes(content)
        fits_in_memory(str(folder))
        lm = (load_streamed if streamed else load_model)(folder)
        with torch.no_grad():
            lm.model(torch.arange(2, 10)[None])

    if name == "config.json":
        config = json.loads(whole)
        for key in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "intermediate_size"):
            for size in (2**31, 2**40):
                with pytest.raises(CalibruneError), bounded():
                    check(as_json(config | {key: size}))
    bad = damaged(whole) if name == SINGLE else damaged(whole) | rearranged(json.loads(whole)).map(as_json)
    Cases(60).run(bad, check, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(name, spoilt, record_property):
    folder = spoilt("model")
    file = folder / name
    whole = file.read_bytes()

    def check(content):
        file.write_bytes(content)
        lm = load_model(folder)
        describe_tokenizer(lm.tokenizer)
        lm.known(lm.tokenizer("a text").input_ids)

    Cases(120).run(damaged(whole) | rearranged(json.loads(whole)).map(as_json), check, record_property)


@pytest.mark.slow
def test_gguf_files(real, tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "a.gguf"
    whole = (real / "model.gguf").read_bytes()

    def check(content):
        file.write_bytes(content)
        load_model(file)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    # what it says of itself, rather than its weights
    head = 6000
    Cases(150).run(damaged(whole[:head]).map(lambda said: said + whole[head:]), check, record_property)


def test_manifests_of_pruned_models(spoilt, record_property):
    folder = spoilt("pruned")
    file = folder / "calibrune.json"
    whole, record = file.read_bytes(), record_of(file)

    def check(content):
        file.write_bytes(content)
        kind, found = verbs.inspect(str(folder))
        inspection.text(kind, found)
        inspection.text(kind, found, every_layer=True)

    check(whole)
    cases = Cases(1200)
    cases.run(damaged(whole) | rearranged(record).map(resealed), check, record_property)
    assert 0 < cases.taken < cases.done
