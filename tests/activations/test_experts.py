"""Each expert is pruned by what was routed to it: against plain loops over tokens, and when there is too little."""

import pytest
import torch
from tiny_models import GATED, WITH_EXPERTS, from_config, random_ids, tiny_model
from transformers import GptOssConfig, PreTrainedModel

from calibrune.activations import InputHessian, InputNorm, stream_blocks
from calibrune.errors import ConfigError, ModelError
from calibrune.lm.layout import Coverage, decoder_blocks
from calibrune.prune import prune_model
from calibrune.pruners import PRUNERS, Magnitude, Wanda


def seen_by_experts(model: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs of every expert's matrices, token by token, from what each experts' module is called with."""
    calls = {}

    def hook(name):
        return lambda _module, args: calls.__setitem__(name, args)

    experts = {name: m for name, m in model.named_modules() if name.endswith(".experts")}
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in experts.items()]
    with torch.no_grad():
        model(input_ids)
    for handle in handles:
        handle.remove()
    seen: dict[str, list[torch.Tensor]] = {}
    for name, (hidden, chosen, _) in calls.items():
        module = experts[name]
        for x, those in zip(hidden, chosen.tolist(), strict=True):
            for expert in those:
                gate, up = (module.gate_up_proj[expert].detach() @ x).chunk(2)
                for part in ("gate_up_proj[gate]", "gate_up_proj[up]"):
                    seen.setdefault(f"{name}.{expert}.{part}", []).append(x)
                seen.setdefault(f"{name}.{expert}.down_proj", []).append(module.act_fn(gate) * up)
    return {name: torch.stack(rows) for name, rows in seen.items()}


@pytest.mark.parametrize("batch_tokens", [24, 4096])
@pytest.mark.parametrize("kind", WITH_EXPERTS)
def test_an_expert_sees_the_tokens_that_are_routed_to_it_and_no_others(kind, batch_tokens):
    model, input_ids = tiny_model(kind), random_ids()
    expected = seen_by_experts(model, input_ids)
    assert len({len(x) for x in expected.values()}) > 1, "all experts saw as many tokens: nothing is shown"
    found = {
        inputs.layer.name: inputs.stats
        for block in stream_blocks(model, input_ids, (InputNorm, InputHessian), batch_tokens=batch_tokens)
        for inputs in block.layers
    }
    assert {name for name in found if ".experts." in name} == expected.keys()
    for name, x in expected.items():
        assert found[name].tokens == len(x)
        torch.testing.assert_close(found[name][InputNorm].rms, x.square().mean(dim=0).sqrt(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[name][InputHessian].matrix, x.T @ x / len(x), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", WITH_EXPERTS)
def test_routers_are_left_alone_and_named_with_the_reason(kind):
    coverage = Coverage.of(decoder_blocks(tiny_model(kind)))
    reasons = {weight.key.partition(".mlp.")[2]: weight.reason for weight in coverage.skipped}
    shared = {"shared_expert_gate.weight": "scales the shared expert"} if kind == "qwen2-moe" else {}
    assert reasons == {"gate.weight": "chooses between 4 experts"} | shared


def test_the_shared_expert_is_a_layer_like_any_other():
    report = prune_model(tiny_model("qwen2-moe"), random_ids())
    shared = [layer for layer in report.layers if ".shared_expert." in layer.name]
    assert {layer.tokens for layer in shared} == {random_ids().numel()}
    assert len(shared) == 3


def test_an_expert_with_too_few_tokens_is_pruned_by_magnitude_and_the_report_says_so():
    input_ids = random_ids()
    tokens = {layer.name: layer.tokens for layer in prune_model(tiny_model("mixtral"), input_ids).layers}
    first = {name: n for name, n in tokens.items() if ".layers.0." in name and ".experts." in name}
    limit = max(first.values())
    model, plain = tiny_model("mixtral"), tiny_model("mixtral")
    report = prune_model(model, input_ids, Wanda(), "50%", min_expert_tokens=limit)
    prune_model(plain, None, Magnitude(group="row"), "50%")
    by_magnitude = {layer.name: layer.weight for layer in decoder_blocks(plain)[0].layers}
    weights = {layer.name: layer.weight for layer in decoder_blocks(model)[0].layers}
    said = {layer.name: layer.fallback for layer in report.layers if layer.block == 0}
    for name, fallback in said.items():
        if first.get(name, limit) < limit:
            assert fallback == (
                f"magnitude within rows: {first[name]} calibration tokens were routed to it, fewer than {limit}"
            )
            assert torch.equal(weights[name], by_magnitude[name])
        else:
            assert fallback is None
            assert not torch.equal(weights[name], by_magnitude[name])
    assert any(said.values())


def test_an_expert_that_saw_nothing_is_pruned_all_the_same():
    model = tiny_model("qwen3-moe")
    with torch.no_grad():  # equal scores: all tokens go to the same two
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()
    report = prune_model(model, random_ids(), Wanda(), "2:4")
    unseen = [layer for layer in report.layers if layer.tokens == 0]
    assert len(unseen) == 2 * 2 * 3  # two experts of each block
    assert all(layer.sparsity == 0.5 and layer.fallback and layer.output_error is None for layer in unseen)


def test_a_negative_minimum_is_refused():
    with pytest.raises(ConfigError, match="min_expert_tokens must be 0 or more"):
        prune_model(tiny_model("mixtral"), random_ids(), min_expert_tokens=-1)


def test_experts_that_do_something_else_with_their_matrices_are_refused():
    model = tiny_model("mixtral")
    experts = model.model.layers[1].mlp.experts
    forward = experts.forward
    experts.forward = lambda *args: 1.2 * forward(*args)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match="give another result than their matrices one by one"):
        prune_model(model, random_ids())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_experts_in_an_unknown_form_are_refused():
    model = tiny_model("mixtral")
    del model.model.layers[0].mlp.experts.is_transposed
    with pytest.raises(ModelError, match=r"does not know how to prune.*experts\.gate_up_proj.*nothing was pruned"):
        decoder_blocks(model)


def test_stacks_stored_transposed_with_gate_and_up_in_turn_are_seen_as_their_matrices():
    config = GptOssConfig(
        **GATED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, rope_parameters={"rope_type": "default"}
    )
    model = from_config(config)
    layers = {layer.name.partition(".experts.")[2]: layer for layer in decoder_blocks(model)[0].layers}
    experts, x = model.model.layers[0].mlp.experts, torch.randn(3, 32) / 10
    bias = experts.gate_up_proj_bias[2].detach()
    gate = x @ layers["2.gate_up_proj[gate]"].weight.T + bias[::2]
    up = x @ layers["2.gate_up_proj[up]"].weight.T + bias[1::2]
    middle = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
    expected = middle @ layers["2.down_proj"].weight.T + experts.down_proj_bias[2]
    found = experts(x, torch.full((3, 1), 2), torch.ones(3, 1))
    torch.testing.assert_close(found, expected)
    report = prune_model(model, random_ids(), Wanda(), "2:4", min_expert_tokens=1)
    assert {layer.sparsity for layer in report.layers} == {0.5}


@pytest.mark.parametrize("method", PRUNERS)
def test_an_expert_that_saw_nothing_keeps_its_share_whatever_the_minimum(method):
    # one token leaves most experts without any
    report = prune_model(tiny_model("mixtral"), random_ids(1, 2), PRUNERS[method](), "50%", min_expert_tokens=0)
    unseen = [layer for layer in report.layers if layer.tokens == 0]
    assert unseen or method == "magnitude"
    assert {layer.sparsity for layer in unseen} <= {0.5}
    assert all("0 calibration tokens were routed" in layer.fallback for layer in unseen)
