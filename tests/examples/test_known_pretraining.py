"""Models whose pre-training is known: who reads which document, and that a training that was killed ends the same."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from study_data import write_corpus

from calibrune.corpora.document import Document
from calibrune.errors import ConfigError
from calibrune.lm.loading import load_model, weights_fingerprint

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # examples/ is a package beside tests/

from examples.known_pretraining import splits as corpora  # noqa: E402
from examples.known_pretraining.train import Stream, Training, train, train_tokenizer  # noqa: E402

SMALL = {"vocabulary": 280, "hidden": 16, "mlp": 24, "layers": 2, "heads": 2, "seq_len": 16, "batch": 2, "every": 10}
SMALL |= {"warm_up": 5}
MODELS = REPOSITORY / "examples/known_pretraining/models"
ROWS = REPOSITORY / "results/known-pretraining.jsonl"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every corpus that is read, made up."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(["c4", *(name for names in corpora.DOMAINS.values() for name in names)]):
        write_corpus(folder / "corpora" / f"{name}.jsonl.gz", seed)
    return folder


@pytest.fixture(scope="module")
def splits(data):
    return corpora.split_corpora(data)


def test_domains_that_are_compared_have_as_much_text_and_every_document_one_use(splits):
    size = {name: sum(len(one.text) for part in parts.values() for one in part) for name, parts in splits.items()}
    for pair in corpora.PARTNERS:
        assert abs(size[pair[0]] - size[pair[1]]) < 300  # less than two documents
    ids = [one.id for parts in splits.values() for part in parts.values() for one in part]
    assert len(set(ids)) == len(ids) > 100
    shares = {name: len(splits["patents"][name]) / 40 for name in corpora.SHARES}
    assert shares == pytest.approx(corpora.SHARES, abs=0.06)


def test_every_model_has_as_much_to_read_and_none_of_what_is_held_back(splits):
    read = {name: corpora.of_model(splits, name, "train") for name in corpora.MODELS}
    sizes = [sum(len(one.text) for one in documents) for documents in read.values()]
    assert max(sizes) < 1.1 * min(sizes)
    assert {one.id.partition(":")[0] for one in read["mixture"]} == {
        f"{name}.jsonl.gz" for names in corpora.DOMAINS.values() for name in names
    }
    kept = {one.id for parts in splits.values() for part in ("test", "held") for one in parts[part]}
    assert not kept & {one.id for documents in read.values() for one in documents}


def test_a_document_that_repeats_one_before_it_is_left_out():
    words = [f"w{i}" for i in range(60)]
    first, other = Document(" ".join(words), "first"), Document("something else in a few words", "other")
    part = Document(" ".join([*words[5:55], "and", "so", "on"]), "a part of the first")
    little = Document(" ".join([*words[:9], *(f"x{i}" for i in range(60))]), "quotes nine words")
    kept = list(corpora._fresh([first, other, part, little, first], set()))
    assert [one.id for one in kept] == ["first", "other", "quotes nine words"]


def test_an_epoch_has_every_document_once_in_an_order_of_its_own():
    stream = Stream([np.array([i, i, 0], dtype=np.uint16) for i in range(1, 9)], seed=0)
    whole = stream.piece(0, 3 * 8 * 2)
    epochs = whole.reshape(2, 8, 3)
    assert (np.sort(epochs[:, :, 0]) == np.arange(1, 9)).all()
    assert (epochs[0] != epochs[1]).any()
    # a piece is what the whole has there, over the end of an epoch too
    assert (stream.piece(20, 11) == whole[20:31]).all()
    assert stream.batch(2, 2, 4).tolist() == whole[16:24].reshape(2, 4).tolist()


def test_the_rate_rises_stays_and_falls():
    asked = Training(model="mixture", tokens=100 * 32, seq_len=16, batch=2, warm_up=10, learning_rate=1.0, cooling=0.2)
    assert (asked.steps, asked.cools_at) == (100, 80)
    assert [asked.rate(step) for step in (0, 4, 9, 50, 80)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    assert [asked.rate(step) for step in (90, 99)] == pytest.approx([0.5, 0.05])
    longer = Training(model="mixture", tokens=200 * 32, seq_len=16, batch=2, warm_up=10, learning_rate=1.0)
    assert all(asked.rate(step) == longer.rate(step) for step in range(asked.cools_at))


@pytest.mark.parametrize("stop_at", [7, 17])
def test_a_training_that_was_killed_ends_with_the_same_weights(splits, tmp_path, stop_at):
    asked = Training(model="wiki-web", tokens=20 * 32, **SMALL)  # its rate falls from step 14 on
    assert train(asked, splits, tmp_path / "a", tmp_path / "whole")
    assert not train(asked, splits, tmp_path / "b", tmp_path / "resumed", stop_at=stop_at)
    other = Training(model="wiki-web", tokens=20 * 32, learning_rate=0.1, **SMALL)
    with pytest.raises(ConfigError, match="of another training"):
        train(other, splits, tmp_path / "b", tmp_path / "resumed")
    assert train(asked, splits, tmp_path / "b", tmp_path / "resumed")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]
    record = json.loads((tmp_path / "resumed/training.json").read_text())
    assert [row["step"] for row in record["curve"]] == [10, 20]
    assert record["curve"][1]["train_loss"] < record["curve"][0]["train_loss"] < np.log(280) + 0.5
    lm = load_model(tmp_path / "whole")
    assert (lm.context_length, lm.vocab_size) == (16, 280)


def test_a_larger_budget_goes_on_from_where_the_rate_began_to_fall(splits, tmp_path):
    small, large = (Training(model="wiki-web", tokens=n * 32, **SMALL) for n in (10, 20))
    assert train(small, splits, tmp_path / "a", tmp_path / "small")
    assert train(large, splits, tmp_path / "a", tmp_path / "larger")
    assert train(large, splits, tmp_path / "b", tmp_path / "at once")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "larger", "at once")]
    assert weights[0] != weights[1] == weights[2]
    with pytest.raises(ConfigError, match="at step 14, and with 320 tokens the rate falls from step 7: give more"):
        train(small, splits, tmp_path / "a", tmp_path / "small")


def test_the_tokenizer_is_learnt_of_all_domains_alike(splits):
    short = {name: {part: list(documents)[:5] for part, documents in parts.items()} for name, parts in splits.items()}
    made = [train_tokenizer(one, 280, 16) for one in (splits, {name: splits[name] for name in reversed(splits)})]
    assert made[0].get_vocab() == made[1].get_vocab()  # whatever the order of the domains
    assert made[0].decode(made[0]("Naïve ☃ text").input_ids) == "Naïve ☃ text"
    assert len(train_tokenizer(short, 280, 16)) == 280


@pytest.mark.slow
def test_the_committed_splits_come_of_the_data(shared_data):
    found = {name: corpora.described(one) for name, one in corpora.files(corpora.split_corpora(shared_data)).items()}
    assert found == json.loads((corpora.HERE / "splits.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", sorted(MODELS.glob("*")), ids=lambda folder: folder.name)
def test_a_committed_model_is_whole_and_what_its_record_says(folder):
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    asked = Training(**record["training"])
    assert (asked.model, record["curve"][-1]["step"]) == (folder.name, asked.steps)
    assert (folder / "model.safetensors").stat().st_size < 10e6
    lm, first = load_model(folder), load_model(min(MODELS.glob("*")))
    assert (lm.context_length, lm.vocab_size, lm.model.dtype) == (asked.seq_len, asked.vocabulary, torch.bfloat16)
    assert lm.tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_rows_are_of_the_models_that_are_committed():
    """A model that was trained again has no rows until it is pruned again."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    dense = {row["run"]["model"]: row["weights"] for row in rows if "pruner" not in row["run"]}
    assert set(dense) == {row["run"]["model"] for row in rows}
    for name, weights in dense.items():
        assert weights_fingerprint(load_model(REPOSITORY / name, dtype="bfloat16").model) == weights
