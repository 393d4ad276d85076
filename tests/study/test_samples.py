"""Statistics of single samples serve every set that they are in, and masks are those of the direct way."""

import pytest
import torch
from tiny_models import random_ids, tiny_lm

from calibrune.activations.statistics import InputNorm
from calibrune.allocators import OWL
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import build_calibration
from calibrune.errors import ConfigError
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import load_model, weights_fingerprint
from calibrune.patterns import parse_target
from calibrune.prune import prune_model
from calibrune.pruners import RIA, DSnoT, Wanda
from calibrune.study.reading import read_plan
from calibrune.study.results import Results
from calibrune.study.runner import run_study
from calibrune.study.samples import SampleStatistics
from calibrune.study.spec import located


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))


def store(lm):
    return SampleStatistics(lm, weights_fingerprint(lm.model))


def padded(ids):
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 9:] = False
    mask[3, 17:] = False
    return CalibrationSet.from_ids(ids, mask)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3", "opt"])
@pytest.mark.parametrize("pruner", [Wanda(), DSnoT(), RIA()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("make", [CalibrationSet.from_ids, padded], ids=["whole", "padded"])
def test_masks_are_those_of_the_direct_way(kind, pruner, make):
    data = make(random_ids())
    direct, lm = tiny_lm(kind), tiny_lm(kind)
    report = prune_model(direct.model, data, pruner, "60%", propagate="dense")
    statistics = store(lm).of(data, 4096)
    stored = prune_model(lm.model, data, pruner, "60%", propagate="dense", statistics=statistics)
    assert weights_fingerprint(lm.model) == weights_fingerprint(direct.model)
    same = ("name", "pruned", "tokens", "dead_channels")
    assert [[getattr(layer, f) for f in same] for layer in stored.layers] == [
        [getattr(layer, f) for f in same] for layer in report.layers
    ]
    assert {layer.output_error for layer in stored.layers} == {None}


@pytest.mark.parametrize("pattern", ["60%", "2:4"])
def test_owl_shares_out_by_kept_statistics_as_by_a_run_of_its_own(pattern, monkeypatch):
    lm, data = tiny_lm(), CalibrationSet.from_ids(random_ids())
    owl, target = OWL(outlier=3.0, n_width=0.5), parse_target(pattern)
    direct = owl.allocate(lm.model, data, target)
    statistics = store(lm).of(data, 4096)
    monkeypatch.setattr(type(lm.model), "forward", lambda *_args, **_kwargs: pytest.fail("the model was run"))
    assert owl.allocate_from(lm.model, statistics, target).patterns == direct.patterns
    assert len({str(one) for one in direct.patterns.values()}) > 1


def test_it_goes_on_after_blocks_that_are_pruned_already():
    whole, lm, data = tiny_lm(), tiny_lm(), CalibrationSet.from_ids(random_ids())
    statistics = store(lm).of(data, 4096)
    asked = {"propagate": "dense", "statistics": statistics}
    report = prune_model(whole.model, data, Wanda(), "60%", **asked)
    first = decoder_blocks(lm.model)[0]
    first.module.load_state_dict(decoder_blocks(whole.model)[0].module.state_dict())
    already, seen = [layer for layer in report.layers if layer.block == first.index], []
    after = prune_model(
        lm.model, data, Wanda(), "60%", **asked, already=already, after_block=lambda block, _: seen.append(block.index)
    )
    assert weights_fingerprint(lm.model) == weights_fingerprint(whole.model)
    assert [layer.name for layer in after.layers] == [layer.name for layer in report.layers]
    assert seen == [block.index for block in decoder_blocks(lm.model)[1:]]


def test_a_sample_is_run_once_whatever_set_it_is_in():
    lm, ids = tiny_lm(), random_ids(8)
    statistics, calls = store(lm), []
    lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    statistics.of(CalibrationSet.from_ids(ids[:6]), 4096)
    assert calls
    calls.clear()
    for rows in ([0, 1, 2], [5, 0], [3, 3, 4]):
        statistics.of(CalibrationSet.from_ids(ids[rows]), 4096)
    assert not calls
    store(lm).of(CalibrationSet.from_ids(ids[:4]), 4096)  # another process
    assert not calls
    statistics.of(CalibrationSet.from_ids(ids[5:7]), 4096)
    assert calls


def test_a_sample_that_stands_twice_counts_twice():
    ids = random_ids(3)[[0, 1, 0]]
    data = CalibrationSet.from_ids(ids)
    direct, lm = tiny_lm(), tiny_lm()
    prune_model(direct.model, data, Wanda(), "60%", propagate="dense")
    prune_model(lm.model, data, Wanda(), "60%", propagate="dense", statistics=store(lm).of(data, 4096))
    assert weights_fingerprint(lm.model) == weights_fingerprint(direct.model)


def test_a_kept_sample_that_is_damaged_is_run_again(tmp_path):
    lm, data = tiny_lm(), CalibrationSet.from_ids(random_ids(3))
    expected = store(lm).of(data, 4096)["model.layers.2.mlp.down_proj"]
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    again = store(lm).of(data, 4096)["model.layers.2.mlp.down_proj"]
    assert torch.equal(again[InputNorm].rms, expected[InputNorm].rms)


def test_experts_that_do_not_see_every_sample_are_measured_directly():
    lm = tiny_lm("mixtral")
    assert store(lm).of(CalibrationSet.from_ids(random_ids(4, 2)), 4096) is None


def test_statistics_are_for_dense_propagation():
    lm, data = tiny_lm(), CalibrationSet.from_ids(random_ids(2))
    with pytest.raises(ConfigError, match=r"for propagate='dense', got 'pruned'"):
        prune_model(lm.model, data, Wanda(), "60%", statistics=store(lm).of(data, 4096))


def test_a_study_with_dense_propagation_has_the_models_of_the_direct_way(place, tmp_path):
    settings = ["propagation=[dense]", "pruners=[wanda, dsnot, sparsegpt]", "samples=[2, 4]", "patterns=[60%, '2:4']"]
    run_study(read_plan(place / "plan.yaml", [*settings, "seeds=1"]), tmp_path / "out", data=place / "data")
    rows = Results(tmp_path / "out").rows()
    assert len(rows) == 1 + 3 * 2 * 3 * 2
    row = next(row for row in rows if row["run"]["pruner"] == "dsnot" and row["run"]["pattern"] == "2:4")
    recipe = row["run"]["calibration"]
    lm = load_model(place / "model")
    spec = located(recipe["spec"], place / "data")
    data = build_calibration(spec, lm, n_samples=recipe["samples"], seq_len=24, seed=0)
    prune_model(lm.model, data, DSnoT(), "2:4", propagate="dense")
    assert row["weights"] == weights_fingerprint(lm.model)
