"""The engine against the plain model: what hooks see on a full forward pass is what the walk reports."""

import pytest
import torch
from tiny_models import DENSE, random_ids, tiny_model
from torch import nn

from calibrune.activations import InputNorm, stream_blocks
from calibrune.activations.stream import BATCH_TOKENS, MOST_BATCH_TOKENS, fitting_batch_tokens
from calibrune.errors import ModelError
from calibrune.lm.layout import decoder_blocks


def sums_by_full_forward(model: nn.Module, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sum of squares of every layer's inputs, by hooks on one plain pass."""
    sums: dict[str, torch.Tensor] = {}
    handles = []
    for block in decoder_blocks(model):
        for layer in block.layers:

            def hook(_module, args, name=layer.name):
                x = args[0].reshape(-1, args[0].shape[-1]).double()
                sums[name] = sums.get(name, 0) + x.square().sum(dim=0)

            handles.append(layer.module.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(input_ids)
    for handle in handles:
        handle.remove()
    return sums


def walked(model, input_ids, **options) -> dict[str, InputNorm]:
    return {
        inputs.layer.name: inputs.stats[InputNorm]
        for block in stream_blocks(model, input_ids, (InputNorm,), **options)
        for inputs in block.layers
    }


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("kind", DENSE)
def test_statistics_equal_those_of_a_full_forward_pass(kind, propagate):
    model, input_ids = tiny_model(kind), random_ids()
    expected = sums_by_full_forward(model, input_ids)
    found = walked(model, input_ids, propagate=propagate, batch_tokens=48)
    assert found.keys() == expected.keys()
    for name, norm in found.items():
        assert norm.tokens == input_ids.numel()
        torch.testing.assert_close(norm.rms.double().square() * norm.tokens, expected[name], rtol=1e-4, atol=1e-6)


def test_sliding_blocks_do_see_something_else_than_full_ones():
    # the trap: one block's mask used for all. If windows did not matter here, the test above would show nothing.
    model, input_ids = tiny_model("gemma3"), random_ids()
    expected = sums_by_full_forward(model, input_ids)
    model.config.layer_types = ["full_attention"] * 4
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
        layer.attention_type = "full_attention"
    other = sums_by_full_forward(model, input_ids)
    assert any(not torch.allclose(expected[name], other[name], rtol=1e-2) for name in expected)


def test_later_blocks_see_what_a_changed_block_gives_unless_propagation_is_dense():
    input_ids = random_ids()

    def norms(propagate: str) -> tuple[dict[str, torch.Tensor], nn.Module]:
        model = tiny_model()
        found = {}
        for block in stream_blocks(model, input_ids, (InputNorm,), propagate=propagate):
            for inputs in block.layers:
                found[inputs.layer.name] = inputs.stats[InputNorm].rms
                inputs.layer.replace_weight(torch.zeros_like(inputs.layer.weight))
        return found, model

    dense, _ = norms("dense")
    original = walked(tiny_model(), input_ids)
    for name, rms in dense.items():
        torch.testing.assert_close(rms, original[name].rms)
    pruned, emptied = norms("pruned")
    # with every matrix zero the hidden states stay the embeddings: the last block sees the first one's input again
    first, last = "model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"
    torch.testing.assert_close(pruned[last], pruned[first])
    assert not torch.allclose(dense[last], dense[first])
    assert all(layer.weight.eq(0).all() for block in decoder_blocks(emptied) for layer in block.layers)


def test_the_batch_size_changes_statistics_by_rounding_only():
    model, input_ids = tiny_model("gemma3"), random_ids(8)
    one, all_at_once = walked(model, input_ids, batch_tokens=1), walked(model, input_ids, batch_tokens=10**6)
    for name, norm in one.items():
        torch.testing.assert_close(norm.rms, all_at_once[name].rms, rtol=1e-5, atol=1e-7)


def test_a_batch_grows_with_the_memory_that_the_weights_leave_free():
    model = tiny_model()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert fitting_batch_tokens(model) == fitting_batch_tokens(model, weights) == BATCH_TOKENS
    assert fitting_batch_tokens(model, 1 << 50) == MOST_BATCH_TOKENS
    sizes = [fitting_batch_tokens(model, weights + (1 << power)) for power in range(20, 36)]
    assert sizes == sorted(sizes)
    assert set(sizes) == {BATCH_TOKENS, 2 * BATCH_TOKENS, 4 * BATCH_TOKENS, MOST_BATCH_TOKENS}


def test_layers_with_the_same_input_share_their_statistics():
    block = next(iter(stream_blocks(tiny_model(), random_ids(), (InputNorm,))))
    shared: dict[int, list[str]] = {}
    for inputs in block.layers:
        shared.setdefault(id(inputs.stats), []).append(inputs.layer.name.rsplit(".", 1)[-1])
    assert sorted(shared.values()) == [
        ["down_proj"],
        ["gate_proj", "up_proj"],
        ["o_proj"],
        ["q_proj", "k_proj", "v_proj"],
    ]


@pytest.mark.parametrize("stop_at", [0, 1])
def test_nothing_is_left_on_the_model_when_the_walk_is_broken_off(stop_at):
    model = tiny_model()
    model.train()

    def break_off() -> None:
        for block in stream_blocks(model, random_ids(), (InputNorm,)):
            if block.block.index == stop_at:
                raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        break_off()
    assert model.training
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in vars(module)


def test_nothing_is_left_on_the_model_when_a_forward_pass_fails():
    model = tiny_model()
    with pytest.raises(IndexError):
        list(stream_blocks(model, random_ids() + 10_000, (InputNorm,)))
    assert not any(m._forward_pre_hooks or m._forward_hooks or "forward" in vars(m) for m in model.modules())


def test_a_method_that_needs_no_statistics_needs_no_data():
    blocks = list(stream_blocks(tiny_model(), None, ()))
    assert len(blocks) == 3
    assert blocks[0].layers[0].stats.tokens is None


def test_a_model_that_hands_more_than_hidden_states_from_block_to_block_is_refused():
    model = tiny_model()
    second = model.model.layers[1]
    forward = second.forward
    calls = {"first": 0}

    def remembers(hidden_states, *args, **kwargs):
        # a hidden channel: block 0 has run in this pass, or it was replaced by a stand-in
        return forward(hidden_states + calls["first"], *args, **kwargs)

    def counts(*_args):
        calls["first"] += 1

    model.model.layers[0].self_attn.register_forward_pre_hook(counts)
    second.forward = remembers
    with pytest.raises(ModelError, match="more between its blocks than hidden states"):
        list(stream_blocks(model, random_ids(), (InputNorm,)))
    assert second.forward is remembers
