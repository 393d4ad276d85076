"""Padding never counts: statistics of padded samples are those of the texts run one by one."""

import pytest
import torch
from tiny_models import DENSE, WITH_EXPERTS, random_ids, tiny_model
from torch import nn

from calibrune.activations import InputHessian, InputMoments, InputNorm, InputSample, LayerStats, stream_blocks
from calibrune.activations.stream import _add_by_sequence
from calibrune.allocators import OWL, SparsityAllocation
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import ModelError
from calibrune.lm.layout import decoder_blocks
from calibrune.patterns import Unstructured
from calibrune.prune import prune_model

LENGTHS = (24, 5, 9, 1, 17, 24, 2)
STATISTICS = (InputNorm, InputMoments, InputHessian, InputSample)


def padded(with_id: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    input_ids = random_ids(len(LENGTHS))
    mask = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
    return input_ids.masked_fill(~mask, with_id), mask


def walked(model: nn.Module, input_ids: torch.Tensor, **options) -> dict[str, LayerStats]:
    return {
        inputs.layer.name: inputs.stats
        for block in stream_blocks(model, input_ids, STATISTICS, **options)
        for inputs in block.layers
    }


def one_by_one(model: nn.Module, input_ids: torch.Tensor) -> dict[str, LayerStats]:
    """The sums of the statistics of the texts without padding, each run by itself."""
    layers = {layer.name: layer for block in decoder_blocks(model) for layer in block.layers}
    total = {name: LayerStats(STATISTICS, layer.in_features, layer.weight.device) for name, layer in layers.items()}
    for row, length in zip(input_ids, LENGTHS, strict=True):
        for name, stats in walked(model, row[None, :length]).items():
            for kind in STATISTICS:
                total[name][kind].merge(stats[kind])
    return total


@pytest.mark.parametrize(
    ("kind", "batch_tokens", "propagate"),
    [
        *((kind, 72, "pruned") for kind in [*DENSE, *WITH_EXPERTS]),
        *((kind, batch, "dense") for kind in ("llama", "mixtral") for batch in (24, 72, 4096)),
    ],
)
def test_statistics_of_padded_samples_equal_those_of_the_texts_run_one_by_one(kind, batch_tokens, propagate):
    model, (input_ids, mask) = tiny_model(kind), padded()
    expected = one_by_one(model, input_ids)
    found = walked(model, input_ids, attention_mask=mask, batch_tokens=batch_tokens, propagate=propagate)
    assert found.keys() == expected.keys()
    for name, stats in found.items():
        for kind_of in STATISTICS:
            assert stats[kind_of].tokens == expected[name][kind_of].tokens
        close = {"rtol": 1e-3, "atol": 1e-5}
        torch.testing.assert_close(stats[InputNorm].rms, expected[name][InputNorm].rms, **close)
        torch.testing.assert_close(stats[InputMoments].variance, expected[name][InputMoments].variance, **close)
        torch.testing.assert_close(stats[InputHessian].matrix, expected[name][InputHessian].matrix, **close)
        torch.testing.assert_close(stats[InputSample].rows, expected[name][InputSample].rows, **close)


def test_without_the_mask_padding_would_count():
    # the trap: if it made no difference here, the test above would show nothing
    model, (input_ids, mask) = tiny_model(), padded()
    told, untold = walked(model, input_ids, attention_mask=mask), walked(model, input_ids)
    name = "model.layers.0.self_attn.q_proj"
    assert told[name].tokens == sum(LENGTHS) < untold[name].tokens
    assert not torch.allclose(told[name][InputNorm].rms, untold[name][InputNorm].rms, rtol=1e-2)


def test_what_stands_at_padding_changes_nothing():
    models = [tiny_model(), tiny_model()]
    for model, with_id in zip(models, (1, 50), strict=True):
        ids, mask = padded(with_id)
        report = prune_model(model, CalibrationSet.from_ids(ids, mask), allocation=OWL(outlier=3.0))
        assert {layer.tokens for layer in report.layers} == {sum(LENGTHS)}
    assert all(torch.equal(one, two) for one, two in zip(*(m.parameters() for m in models), strict=True))


def test_outliers_are_those_of_the_real_tokens():
    ids, mask = padded()
    model = tiny_model()

    def allocated(ids: torch.Tensor, mask: torch.Tensor | None = None) -> SparsityAllocation:
        return OWL(outlier=3.0).allocate(model, CalibrationSet.from_ids(ids, mask), Unstructured(0.5))

    assert allocated(ids[[0, 5]], mask[[0, 5]]) == allocated(ids[[0, 5]])
    assert allocated(ids, mask) != allocated(ids)


def test_a_layer_that_says_not_which_tokens_it_is_given_is_refused_with_padding():
    _, mask = padded()
    add = _add_by_sequence("expert 3", LayerStats((InputNorm,), 4, torch.device("cpu")), 24, mask)
    with pytest.raises(ModelError, match="expert 3 is given 9 of 168 tokens and says not which, so padding cannot"):
        add(torch.ones(9, 4), None)
