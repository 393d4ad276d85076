"""OWL from its definition, and what it refuses."""

import pytest
import torch
from tiny_models import random_ids, tiny_model

from calibrune.activations import InputNorm, stream_blocks
from calibrune.allocators import OWL, Uniform
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import ConfigError
from calibrune.lm.layout import decoder_blocks
from calibrune.patterns import SemiStructured, Unstructured


def outlier_shares(model, input_ids, multiple: float) -> list[float]:
    """By the definition, weight by weight."""
    shares = []
    for block in stream_blocks(model, input_ids, (InputNorm,), propagate="dense"):
        scores = [
            abs(w) * float(x)
            for inputs in block.layers
            for row in inputs.layer.weight.tolist()
            for w, x in zip(row, inputs.stats[InputNorm].rms, strict=True)
        ]
        mean = sum(scores) / len(scores)
        shares.append(100 * sum(score > multiple * mean for score in scores) / len(scores))
    return shares


def by_block(allocation, model) -> list[float]:
    return [allocation[block.layers[0].name].sparsity for block in decoder_blocks(model)]


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_sparsities_follow_the_released_codes_definition(kind):
    model, input_ids = tiny_model(kind), random_ids()
    D = torch.tensor(outlier_shares(model, input_ids, 3.0))
    density = (D - D.min()) / (D.max() - D.min()) * 2 * 0.08
    density += (1 - 0.7) - density.mean()
    found = by_block(OWL(outlier=3.0).allocate(model, CalibrationSet.from_ids(input_ids), Unstructured(0.7)), model)
    assert found == pytest.approx((1 - density).tolist(), abs=1e-6)
    assert len(set(found)) > 1
    assert sum(found) / len(found) == pytest.approx(0.7)


def test_every_layer_of_a_block_gets_the_blocks_sparsity_and_the_model_is_left_alone():
    model, input_ids = tiny_model(), random_ids()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    allocation = OWL(outlier=3.0).allocate(model, CalibrationSet.from_ids(input_ids), Unstructured(0.5))
    for block in decoder_blocks(model):
        assert len({allocation[layer.name] for layer in block.layers}) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_without_outliers_anywhere_the_sparsity_is_uniform_and_not_nan():
    model = tiny_model()
    found = by_block(OWL(outlier=1e6).allocate(model, CalibrationSet.from_ids(random_ids()), Unstructured(0.5)), model)
    assert found == pytest.approx([0.5] * 3)


def test_mixed_n_of_m_keeps_the_mean_and_strict_keeps_the_pattern():
    model, input_ids, target = tiny_model("gemma3"), random_ids(), SemiStructured(2, 4)
    mixed = OWL(outlier=3.0).allocate(model, CalibrationSet.from_ids(input_ids), target)
    found = by_block(mixed, model)
    assert sum(found) == pytest.approx(4 * 0.5)
    assert set(found) <= {0.0, 0.25, 0.5, 0.75}
    assert len(set(found)) > 1
    assert OWL(n_m="strict").allocate(model, None, target) == Uniform().allocate(model, None, target)


def test_mixed_n_of_m_keeps_the_mean_of_blocks_of_different_sizes():
    model = tiny_model("qwen2-moe")
    blocks = decoder_blocks(model)
    sizes = [sum(layer.weight.numel() for layer in block.layers) for block in blocks]
    assert len(set(sizes)) > 1
    mixed = OWL(outlier=3.0).allocate(model, CalibrationSet.from_ids(random_ids()), SemiStructured(2, 4))
    mean = sum(s * size for s, size in zip(by_block(mixed, model), sizes, strict=True)) / sum(sizes)
    assert abs(mean - 0.5) <= max(sizes) / sum(sizes) / 4 / 2


def test_published_n_of_m_is_rounded_block_by_block():
    model, input_ids, target = tiny_model("gemma3"), random_ids(), SemiStructured(2, 4)
    D = torch.tensor(outlier_shares(model, input_ids, 3.0))
    shift = (D - D.min()) / (D.max() - D.min()) * 2 * 2.0
    kept = (2 + torch.round(shift - shift.mean())).clamp(1, 4)
    found = by_block(
        OWL(outlier=3.0, n_m="published").allocate(model, CalibrationSet.from_ids(input_ids), target), model
    )
    assert found == (1 - kept / 4).tolist()


def test_a_spread_that_leaves_the_range_of_sparsities_is_refused_with_the_block():
    with pytest.raises(ConfigError, match=r"OWL with width=0.4 gives model.layers.\d a sparsity of .* not in \[0, 1\)"):
        OWL(outlier=3.0, width=0.4).allocate(tiny_model(), CalibrationSet.from_ids(random_ids()), Unstructured(0.9))


def test_without_data_there_are_no_outliers_to_find():
    with pytest.raises(ConfigError, match="OWL needs calibration data"):
        OWL().allocate(tiny_model(), None, Unstructured(0.5))
