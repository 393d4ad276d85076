"""What is stored as one matrix is seen as several: by what each does, and by a twin that stores them so."""

import pytest
import torch
from tiny_models import DENSE, GATED, VOCAB, from_config, random_ids, tiny_model
from torch import nn
from transformers import CodeGenConfig, LlamaConfig, Phi3Config, PreTrainedModel

from calibrune.lm.fused import parts_of
from calibrune.lm.layout import Coverage, PrunableLayer, decoder_blocks
from calibrune.patterns import parse_pattern
from calibrune.prune import prune_model
from calibrune.pruners import PRUNERS, Magnitude

FUSED = (
    "gpt2", "phi3", "gpt-neox", "gpt-neox-japanese", "persimmon", "bloom", "falcon", "falcon-rw", "falcon-new", "mpt",
    "gpt-bigcode", "gpt-bigcode-heads", "openlm",
)  # fmt: skip


def layers_of(model: PreTrainedModel) -> dict[str, PrunableLayer]:
    """The first block's layers, by the part of their names in brackets, the others by their whole names."""
    layers = decoder_blocks(model)[0].layers
    return {layer.name.partition("[")[2].strip("]") or layer.name: layer for layer in layers}


def sizes(kind: str) -> tuple[int, int, int]:
    layers = layers_of(tiny_model(kind))
    return layers["q"].out_features, layers["k"].out_features, layers["v"].out_features


def attention_output(model: PreTrainedModel) -> torch.Tensor:
    """What the first block's attention gives to the matrix that comes after it."""
    module = layers_of(model)["q"].module
    parent = next(m for m in model.modules() if module in m.children())
    last = next(m for m in parent.children() if m is not module and getattr(m, "weight", None) is not None)
    seen = []
    handle = last.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
    with torch.no_grad():
        model(random_ids(1, 12))
    handle.remove()
    return seen[0]


def test_only_models_that_store_several_as_one_have_parts():
    found = {kind for kind in DENSE if "q" in layers_of(tiny_model(kind))}
    assert found == set(FUSED)


def test_keys_and_values_have_the_sizes_of_their_heads():
    assert {kind: sizes(kind) for kind in FUSED} == {
        "gpt2": (32, 32, 32),
        "phi3": (32, 16, 16),
        "gpt-neox": (32, 32, 32),
        "gpt-neox-japanese": (32, 32, 32),
        "persimmon": (32, 32, 32),
        "mpt": (32, 32, 32),
        "gpt-bigcode": (32, 8, 8),
        "gpt-bigcode-heads": (32, 32, 32),
        "bloom": (32, 32, 32),
        "falcon": (32, 8, 8),
        "falcon-rw": (32, 32, 32),
        "falcon-new": (32, 16, 16),
        "openlm": (32, 32, 32),
    }


@pytest.mark.parametrize("kind", FUSED)
def test_without_values_attention_gives_nothing_and_without_queries_keys_do_not_matter(kind):
    # the biases of these models are zero, so a matrix of zeros gives zeros
    for name in ("v", "q", "k"):
        model = tiny_model(kind)
        before = attention_output(model)
        layers = layers_of(model)
        layers[name].replace_weight(torch.zeros_like(layers[name].weight))
        without = attention_output(model)
        assert (without == 0).all() == (name == "v")
        assert not torch.allclose(without, before, atol=1e-3)
        if name == "q":
            layers["k"].replace_weight(2 * layers["k"].weight)
            torch.testing.assert_close(attention_output(model), without)


@pytest.mark.parametrize(
    ("kind", "feed_forward", "last"), [
        ("phi3", "mlp", "down_proj"), ("glm", "mlp", "down_proj"), ("glm4", "mlp", "down_proj"),
        ("openlm", "feed_forward", "w3"),
    ],
)  # fmt: skip
def test_the_gate_is_what_the_activation_is_applied_to_and_up_is_the_other(kind, feed_forward, last):
    model = tiny_model(kind)
    layers, module = layers_of(model), model.model.layers[0].get_submodule(feed_forward)
    x = torch.randn(5, 32)
    with torch.no_grad():
        gate, up = x @ layers["gate"].weight.T, x @ layers["up"].weight.T
        down = module.get_submodule(last)
        torch.testing.assert_close(down(nn.functional.silu(gate) * up), module(x))
        assert not torch.allclose(down(nn.functional.silu(up) * gate), module(x), atol=1e-3)


@pytest.mark.parametrize("kind", FUSED)
def test_each_part_has_the_exact_sparsity_where_all_of_a_layer_compete(kind):
    model = tiny_model(kind)
    with torch.no_grad():  # so small that all of the keys would go before any of the others
        key = layers_of(model)["k"]
        key.replace_weight(key.weight / 1000)
    prune_model(model, None, Magnitude(), "30%")
    for name, layer in layers_of(model).items():
        assert int((layer.weight == 0).sum()) == int(0.3 * layer.weight.numel()), name


@pytest.mark.parametrize("method", PRUNERS)
def test_a_fused_model_is_pruned_as_its_twin_with_separate_matrices(method):
    fused, twin = from_config(Phi3Config(**GATED)), from_config(LlamaConfig(**GATED, rms_norm_eps=1e-5))
    names = {"qkv_proj[q]": "q_proj", "qkv_proj[k]": "k_proj", "qkv_proj[v]": "v_proj"}
    names |= {"gate_up_proj[gate]": "gate_proj", "gate_up_proj[up]": "up_proj"}

    def separate(name: str) -> str:
        path, _, last = name.rpartition(".")
        return f"{path}.{names.get(last, last)}"

    with torch.no_grad():
        for block in decoder_blocks(fused):
            for layer in block.layers:
                twin.get_submodule(separate(layer.name)).weight.copy_(layer.weight)
        for name, parameter in fused.named_parameters():
            if "layers" not in name or parameter.ndim == 1:
                twin.get_parameter(name).copy_(parameter)
    torch.testing.assert_close(twin(random_ids()).logits, fused(random_ids()).logits)
    for model in (fused, twin):
        # dense: what rounds differently in the first block is not made more of in the second
        prune_model(model, random_ids(), PRUNERS[method](), "50%", propagate="dense")
    for block in decoder_blocks(fused):
        for layer in block.layers:
            weight = twin.get_submodule(separate(layer.name)).weight
            assert torch.equal(layer.weight != 0, weight != 0), layer.name
            torch.testing.assert_close(layer.weight, weight.detach(), rtol=1e-3, atol=1e-4)


def test_a_layout_that_nobody_knows_is_pruned_as_one_matrix_and_named():
    model = from_config(CodeGenConfig(vocab_size=VOCAB, n_embd=32, n_head=4, n_layer=2, n_positions=128, rotary_dim=4))
    coverage = Coverage.of(decoder_blocks(model))
    assert coverage.unsplit == ("transformer.h.0.attn.qkv_proj", "transformer.h.1.attn.qkv_proj")
    widths = {layer.name: layer.out_features for layer in decoder_blocks(model)[0].layers}
    assert widths["transformer.h.0.attn.qkv_proj"] == 96
    report = prune_model(model, None, Magnitude(), parse_pattern("50%"))
    assert report.sparsity == 0.5


@pytest.mark.parametrize(
    ("shape", "others", "parts"),
    [
        ((64, 32), [(32, 32)], {"q", "k", "v"}),  # 4 + 2 x 2 heads of 8; also twice what comes after it
        ((128, 32), [(32, 64)], {"gate", "up"}),
        ((64, 32), [(32, 64)], set()),  # a feed-forward without a gate
        ((64, 32), [(64, 32), (32, 64)], set()),  # gate and up by themselves
        ((32, 32), [(32, 32)], set()),
        ((64, 32), [], set()),
    ],
)
def test_parts_are_seen_in_the_shapes(shape, others, parts):
    assert parts_of(Phi3Config(**GATED), shape, others).keys() == parts


def test_a_feed_forward_as_wide_as_attention_is_no_attention():
    config = Phi3Config(**(GATED | {"intermediate_size": 32, "num_key_value_heads": 4}))
    assert parts_of(config, (64, 32), [(32, 32)]).keys() == {"gate", "up"}
    assert parts_of(config, (96, 32), [(32, 32)]).keys() == {"q", "k", "v"}
