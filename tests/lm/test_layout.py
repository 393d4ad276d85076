"""The decoder's blocks and weights are found by structure, and what is not understood is refused."""

import pytest
import torch
from tiny_models import CONFIGS, GATED, from_config, tiny_model
from torch import nn
from transformers import (
    AfmoeConfig,
    AutoModelForCausalLM,
    HunYuanMoEV1Config,
    Qwen2MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from calibrune.errors import ModelError
from calibrune.lm.layout import decoder_blocks, n_parameters

MOE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

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


@pytest.mark.parametrize(
    ("config", "router"),
    [
        (HunYuanMoEV1Config(**MOE, head_dim=8, num_experts=4, moe_topk=2), "mlp.gate.wg.weight"),
        (AfmoeConfig(**MOE, head_dim=8, num_experts=4, num_experts_per_tok=2, num_shared_experts=1,
                     moe_intermediate_size=16, num_dense_layers=1, sliding_window=8), "mlp.router.gate.weight"),
    ],
    ids=["hunyuan", "afmoe"],
)  # fmt: skip
def test_a_router_that_is_a_module_with_a_matrix_inside_is_left_alone(config, router):
    blocks = decoder_blocks(AutoModelForCausalLM.from_config(config))
    skipped = [weight.key for block in blocks for weight in block.skipped]
    assert any(key.endswith(router) for key in skipped)
    assert not any(layer.key.endswith(router) for block in blocks for layer in block.layers)
    # the shared expert is a matrix like any other
    assert any("expert" in layer.name for layer in blocks[-1].layers)


def test_an_encoder_is_not_left_out_without_a_word():
    config = T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration has an encoder beside its decoder"):
        decoder_blocks(T5ForConditionalGeneration(config))


def test_a_shared_expert_as_wide_as_there_are_experts_is_no_router():
    config = Qwen2MoeConfig(
        **GATED, num_experts=16, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
    )
    for block in decoder_blocks(from_config(config)):
        kinds = {layer.name.rpartition(".")[2] for layer in block.layers if ".shared_expert." in layer.name}
        assert kinds == {"gate_proj", "up_proj", "down_proj"}
        assert {weight.key.rpartition("mlp.")[2] for weight in block.skipped} == {
            "gate.weight", "shared_expert_gate.weight"
        }  # fmt: skip
