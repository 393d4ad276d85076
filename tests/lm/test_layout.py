"""The decoder's blocks and weights are found by structure, and what is not understood is refused."""

import pytest
import torch
from tiny_models import CONFIGS, tiny_model
from torch import nn

from calibrune.errors import ModelError
from calibrune.lm.layout import decoder_blocks, n_parameters

LAYERS_A_BLOCK = {"llama": 7, "gemma3": 7, "gpt2": 6, "opt": 6}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_block_and_every_matrix_in_it_is_found(kind):
    model = tiny_model(kind)
    blocks = decoder_blocks(model)
    assert [block.index for block in blocks] == list(range(model.config.num_hidden_layers))
    assert {len(block.layers) for block in blocks} == {LAYERS_A_BLOCK[kind]}
    modules = dict(model.named_modules())
    for layer in (layer for block in blocks for layer in block.layers):
        assert layer.module is modules[layer.name.partition("[")[0]]
        assert layer.key in model.state_dict()


def test_a_transposed_weight_is_seen_with_outputs_as_rows_and_written_back_in_place():
    layer = next(layer for layer in decoder_blocks(tiny_model("gpt2"))[0].layers if layer.name.endswith("c_fc"))
    assert (layer.out_features, layer.in_features) == (128, 32)
    new = torch.randn(128, 32)
    layer.replace_weight(new)
    assert torch.equal(layer.module.weight, new.T)


def test_embeddings_and_head_are_no_layers():
    names = [layer.name for block in decoder_blocks(tiny_model()) for layer in block.layers]
    assert not any("embed" in name or "lm_head" in name for name in names)


def test_weights_that_are_not_understood_are_refused_by_name():
    model = tiny_model()
    model.model.layers[1].mlp.stack = nn.Parameter(torch.ones(4, 8, 8))
    with pytest.raises(ModelError, match=r"does not know how to prune.*layers\.1\.mlp\.stack.*nothing was pruned"):
        decoder_blocks(model)


def test_tied_parameters_are_counted_once():
    model = tiny_model("gemma3")
    assert n_parameters(model) == sum(p.numel() for p in model.parameters())
    assert model.lm_head.weight is model.get_input_embeddings().weight
