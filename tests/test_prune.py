"""The main job on tiny models: exact counts, nothing else touched, the same bytes again, and the slow reference."""

import copy
import json

import pytest
import torch
from reference.wanda_slow import wanda_slow
from tiny_models import CONFIGS, VOCAB, random_ids, tiny_model
from torch import Tensor, nn

from calibrune.activations import InputHessian, InputNorm, stream_blocks
from calibrune.allocators import OWL, AlphaPruning, SparsityAllocation
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import CalibruneError, ConfigError, ModelError, RunError
from calibrune.lm.layout import Coverage, SkippedWeight, decoder_blocks
from calibrune.lm.loading import weights_fingerprint
from calibrune.patterns import SemiStructured, parse_pattern
from calibrune.prune import LayerReport, PruneReport, prune_model
from calibrune.pruners import PRUNERS, DSnoT, DSnoTPublished, Magnitude, PrunedWeight, SparseGPT, Wanda


def bytes_of(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in model.state_dict().items()}


def layer_names(model: nn.Module) -> list[list[str]]:
    return [[layer.name for layer in block.layers] for block in decoder_blocks(model)]


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    return {layer.name: layer.weight != 0 for block in decoder_blocks(model) for layer in block.layers}


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("pruner", [Magnitude(), Wanda()], ids=["magnitude", "wanda"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_layer_has_its_exact_sparsity_and_nothing_else_changes(kind, pruner, pattern):
    model = tiny_model(kind)
    before = copy.deepcopy(model.state_dict())
    report = prune_model(model, random_ids(), pruner, pattern)
    pruned = {layer.key for block in decoder_blocks(model) for layer in block.layers}
    assert [layer.name for layer in report.layers] == [name for names in layer_names(model) for name in names]
    for name, tensor in model.state_dict().items():
        if name in pruned:
            stay = tensor != 0
            assert int((~stay).sum()) == tensor.numel() // 2, name
            assert torch.equal(tensor[stay], before[name][stay]), f"a weight of {name} that stays was changed"
        else:
            assert torch.equal(tensor, before[name]), f"{name} is no layer to prune"
    for block in decoder_blocks(model):
        for layer in block.layers:
            if pattern == "2:4":
                assert ((layer.weight != 0).reshape(-1, 4).sum(dim=1) == 2).all()
            elif isinstance(pruner, Wanda):  # rows compete with nobody
                assert ((layer.weight == 0).sum(dim=1) == layer.in_features // 2).all()


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_same_request_gives_the_same_bytes(kind, propagate):
    first, second = tiny_model(kind), tiny_model(kind)
    for model in (first, second):
        prune_model(model, random_ids(), Wanda(), "50%", propagate=propagate)
    assert bytes_of(first) == bytes_of(second)


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_how_many_tokens_go_at_once_changes_no_mask(kind, pattern):
    found = []
    for batch_tokens in (1, 48, 4096):
        model = tiny_model(kind)
        prune_model(model, random_ids(), Wanda(), pattern, batch_tokens=batch_tokens)
        found.append(masks_of(model))
    assert different(found[0], found[1]) == set()
    assert different(found[0], found[2]) == set()


@pytest.mark.parametrize("kind", CONFIGS)
def test_dense_propagation_gives_the_same_first_block_and_other_later_ones(kind):
    found = []
    for propagate in ("pruned", "dense"):
        model = tiny_model(kind)
        prune_model(model, random_ids(), Wanda(), "50%", propagate=propagate)
        found.append(masks_of(model))
    unlike = different(*found)
    first, *later = layer_names(model)
    assert unlike.isdisjoint(first)
    for names in later:
        assert unlike & set(names)


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_wanda_equals_the_slow_reference(kind, pattern):
    fast, slow = tiny_model(kind), tiny_model(kind)
    input_ids = random_ids()
    prune_model(fast, input_ids, Wanda(), pattern, batch_tokens=48)
    # what is stored as one is one to the reference: Wanda compares within rows
    names = [list(dict.fromkeys(name.partition("[")[0] for name in names)) for names in layer_names(slow)]
    expected = wanda_slow(slow, input_ids, names, pattern)
    found: dict[str, Tensor] = {}
    for name, mask in masks_of(fast).items():
        whole = name.partition("[")[0]
        found[whole] = torch.cat([found[whole], mask]) if whole in found else mask
    assert different(found, expected) == set()


def test_dense_propagation_equals_the_reference_with_all_layers_in_one_block():
    # statistics of all layers from one pass through the dense model: that is what "dense" means
    fast, slow = tiny_model("gemma3"), tiny_model("gemma3")
    prune_model(fast, random_ids(), Wanda(), "50%", propagate="dense")
    expected = wanda_slow(slow, random_ids(), [[name for names in layer_names(slow) for name in names]], "50%")
    assert different(masks_of(fast), expected) == set()


def test_a_calibration_set_and_its_bare_ids_give_the_same_model():
    one, other = tiny_model(), tiny_model()
    prune_model(one, CalibrationSet.from_ids(random_ids()))
    prune_model(other, random_ids().to(torch.int32))
    assert bytes_of(one) == bytes_of(other)


def test_other_calibration_data_give_another_model():
    one, other = tiny_model(), tiny_model()
    prune_model(one, random_ids(seed=0))
    prune_model(other, random_ids(seed=1))
    assert bytes_of(one) != bytes_of(other)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_left_as_it_was(training):
    model = tiny_model().train(training)
    prune_model(model, random_ids())
    assert model.training is training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


REFUSED = {
    "ids beyond the vocabulary": ({"calibration": torch.full((2, 8), VOCAB)}, "token id 96"),
    "ids below zero": ({"calibration": torch.full((2, 8), -1)}, "below 0"),
    "longer than the context": ({"calibration": torch.ones(1, 129, dtype=torch.long)}, "at most 128"),
    "no calibration": ({"calibration": None}, "needs calibration data"),
    "a sparsity of 120%": ({"pattern": "120%"}, "1.2"),
    "5:4": ({"pattern": "5:4"}, "5:4"),
    "4:4": ({"pattern": "4:4"}, "4:4"),
    "0:4": ({"pattern": "0:4"}, "0:4"),
    "no pattern at all": ({"pattern": "much"}, "much"),
    "to prune nothing": ({"pattern": "0%"}, "prunes nothing"),
    "a zero in Python": ({"pattern": 0.0}, "prunes nothing"),
    "OWL out of [0, 1)": ({"pattern": "90%", "allocation": OWL(outlier=3.0, width=0.4)}, r"not in \[0, 1\)"),
    "N:M that does not divide": ({"pattern": "2:5"}, "divisible by 5"),
    "N:M that does not divide a later layer": ({"pattern": "2:64"}, "divisible by 64, got 32"),
    "no batch": ({"batch_tokens": 0}, "batch_tokens"),
    "an allocation without a layer": ({"allocation": SparsityAllocation({})}, "no pattern for"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_cannot_be_met_leaves_the_model_as_it_is(case):
    options, says = REFUSED[case]
    model = tiny_model()
    before = weights_fingerprint(model)
    with pytest.raises(CalibruneError, match=says) as caught:
        prune_model(model, **({"calibration": random_ids()} | options))
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    assert weights_fingerprint(model) == before


def test_a_layer_of_an_allocation_may_stay_dense():
    model = tiny_model()
    names = [name for names in layer_names(model) for name in names]
    patterns = {name: parse_pattern("0%" if "q_proj" in name else "50%") for name in names}
    report = prune_model(model, random_ids(), allocation=SparsityAllocation(patterns))
    assert [layer.name for layer in report.layers if layer.pruned == 0] == [name for name in names if "q_proj" in name]


@pytest.mark.parametrize("pruner", [Magnitude(), Wanda()], ids=["magnitude", "wanda"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_found_before_anything_is_pruned(pruner, value):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    before = bytes_of(model)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj"):
        prune_model(model, random_ids(), pruner)
    assert bytes_of(model) == before


def nan_in_a_norm(model: nn.Module) -> None:
    model.model.layers[1].post_attention_layernorm.weight[5] = float("nan")


def infinity_in_an_embedding(model: nn.Module) -> None:
    model.model.embed_tokens.weight[random_ids()[2, 3]] = float("inf")


def nan_in_the_last_norm_but_one(model: nn.Module) -> None:
    model.model.layers[2].input_layernorm.weight[:] = float("nan")


def overflow_in_half_precision(model: nn.Module) -> None:
    model.half()
    for name in ("gate_proj", "up_proj"):
        model.model.layers[1].mlp.get_submodule(name).weight *= 1000


@pytest.mark.parametrize(
    ("broken_by", "named"),
    [
        (nan_in_a_norm, "model.layers.1.post_attention_layernorm.weight"),
        (infinity_in_an_embedding, "model.embed_tokens.weight"),
        (nan_in_the_last_norm_but_one, "model.layers.2.input_layernorm.weight"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("allocation", [None, OWL()], ids=["uniform", "owl"])
def test_a_weight_that_is_not_pruned_must_be_a_number_too(broken_by, named, allocation):
    model = tiny_model()
    with torch.no_grad():
        broken_by(model)
    before = bytes_of(model)
    with pytest.raises(ModelError, match=f"weights of {named} are NaN or infinite"):
        prune_model(model, random_ids(), allocation=allocation)
    assert bytes_of(model) == before
    # whoever walks through the blocks without asking first is told too
    with pytest.raises(RunError, match=f"hold NaN or infinity on the calibration data, and so does {named}"):
        list(stream_blocks(model, random_ids(), (InputNorm,)))


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("pruner", [Wanda(), SparseGPT(), DSnoT()], ids=lambda pruner: type(pruner).__name__)
def test_activations_that_are_no_numbers_are_found_before_their_block_is_changed(pruner, propagate):
    model = tiny_model()
    with torch.no_grad():
        overflow_in_half_precision(model)
    names = layer_names(model)
    before = {layer.name: layer.weight.clone() for block in decoder_blocks(model) for layer in block.layers}
    with pytest.raises(RunError) as caught:
        prune_model(model, random_ids(), pruner, propagate=propagate)
    assert "of the inputs of model.layers.1.mlp.down_proj hold NaN or infinity" in str(caught.value)
    assert "so float16 overflowed: load the model in float32" in str(caught.value)
    after = {layer.name: layer.weight for block in decoder_blocks(model) for layer in block.layers}
    assert different(before, after) == set(names[0])
    how_far = [note for note in getattr(caught.value, "__notes__", []) if "load it anew" in note]
    assert [note.split()[0] for note in how_far] == ["7"]


def test_owl_finds_activations_that_are_no_numbers_before_anything_is_changed():
    model = tiny_model()
    with torch.no_grad():
        overflow_in_half_precision(model)
    before = bytes_of(model)
    with pytest.raises(RunError, match=r"the inputs of model\.layers\.1\.mlp\.down_proj hold NaN"):
        prune_model(model, random_ids(), allocation=OWL())
    assert bytes_of(model) == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda new: new._replace(weight=new.weight * float("nan")), "returned weights that are NaN"),
        (lambda new: new._replace(mask=~new.mask), "not zero where its mask is False"),
        (lambda new: new._replace(mask=new.mask[:1]), "both must have the layer's shape"),
    ],
)
def test_what_a_method_of_ones_own_returns_is_looked_at(spoil, said):
    class Mine:
        requires = ()

        def prune(self, weight, stats, pattern):
            return spoil(Magnitude().prune(weight, stats, pattern))

    model = tiny_model()
    before = bytes_of(model)
    with pytest.raises(RunError, match=said):
        prune_model(model, None, Mine(), "50%")
    assert bytes_of(model) == before


def test_a_hessian_that_cannot_be_factorised_says_the_layer_and_what_was_tried_and_what_is_changed(monkeypatch):
    real, calls = torch.linalg.cholesky_ex, []

    def fails_from_the_ninth_layer_on(matrix):
        calls.append(matrix)
        lower, failed = real(matrix)
        return lower, failed if len(calls) <= 8 else torch.ones_like(failed)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fails_from_the_ninth_layer_on)
    model = tiny_model()
    with pytest.raises(RunError) as caught:
        prune_model(model, random_ids(), SparseGPT())
    assert "tried with damping 0.01 to 100 times its mean diagonal; give more calibration data" in str(caught.value)
    at, how_far = caught.value.__notes__
    assert at.startswith("while pruning model.layers.1.self_attn.k_proj with SparseGPT(")
    assert how_far.startswith("8 layers were pruned already, up to model.layers.1.self_attn.q_proj")
    assert "load it anew; nothing was written" in how_far
    assert sum(float((layer.weight == 0).any()) for block in decoder_blocks(model) for layer in block.layers) == 8


def test_inputs_too_large_to_be_squared_are_an_error_of_the_layer():
    model = tiny_model()
    with torch.no_grad():
        block = model.model.layers[0]
        block.post_attention_layernorm.weight.fill_(1e20)
        block.mlp.gate_proj.weight.mul_(1e-20)
        block.mlp.up_proj.weight.mul_(1e-20)
    with pytest.raises(RunError, match="too large to be squared") as caught:
        prune_model(model, random_ids(), SparseGPT())
    assert "model.layers.0.mlp.gate_proj" in caught.value.__notes__[0]


def test_a_statistic_that_a_pruner_reads_and_does_not_require_is_named():
    class Forgetful:
        requires = (InputNorm,)

        def prune(self, weight, stats, pattern):
            return PrunedWeight(weight, stats[InputHessian].matrix > 0)

    model = tiny_model()
    before = bytes_of(model)
    with pytest.raises(
        ConfigError, match=r"InputHessian was not collected \(collected: InputNorm, .*`requires`"
    ) as caught:
        prune_model(model, random_ids(), Forgetful())
    assert "model.layers.0.self_attn.q_proj" in caught.value.__notes__[0]
    assert bytes_of(model) == before


def test_an_error_inside_a_pruner_says_at_which_layer():
    class Stubborn:
        requires = (InputNorm,)

        def prune(self, weight, stats, pattern):
            if weight.shape == (32, 64):
                raise ConfigError("not this one")
            return PrunedWeight(weight, torch.ones_like(weight, dtype=torch.bool))

    with pytest.raises(ConfigError) as caught:
        prune_model(tiny_model(), random_ids(), Stubborn())
    assert "model.layers.0.mlp.down_proj" in caught.value.__notes__[0]


def test_a_model_with_weights_that_are_not_understood_is_refused_whole():
    model = tiny_model()
    model.model.layers[1].mlp.stack = nn.Parameter(torch.ones(4, 8, 8))
    before = bytes_of(model)
    with pytest.raises(ModelError, match="does not know how to prune"):
        prune_model(model, random_ids())
    assert bytes_of(model) == before


def test_every_layer_can_have_a_pattern_of_its_own():
    model = tiny_model()
    names = [layer.name for block in decoder_blocks(model) for layer in block.layers]
    patterns = {name: parse_pattern("2:4" if i % 2 else "25%") for i, name in enumerate(names)}
    report = prune_model(model, random_ids(), allocation=SparsityAllocation(patterns))
    for i, layer in enumerate(report.layers):
        assert layer.sparsity == (0.5 if i % 2 else 0.25)
        assert layer.asked == str(patterns[layer.name])


def layer(**given) -> LayerReport:
    defaults = {
        "name": "a",
        "block": 0,
        "asked": "0.5",
        "pruned": 4,
        "tokens": 8,
        "damping": None,
        "dead_channels": None,
        "output_error": None,
        "seconds": 0.1,
    }
    return LayerReport(**(defaults | given))


def test_the_totals_of_a_report_by_hand():
    report = PruneReport(
        layers=(layer(shape=(2, 4), sparsity=0.5), layer(shape=(4, 6), sparsity=0.25, name="b")),
        parameters=64,
        seconds=1.0,
        covered=Coverage(32, 40, (SkippedWeight("gate", 8, "chooses"),), ()),
    )
    assert report.prunable == 8 + 24
    assert report.sparsity == (4 + 6) / 32
    assert report.coverage == 32 / 64
    written = json.loads(json.dumps(report.to_json()))
    assert (written["sparsity"], written["coverage"], written["prunable"]) == (10 / 32, 0.5, 32)
    assert [entry["name"] for entry in written["layers"]] == ["a", "b"]
    assert written["decoder_coverage"] == 32 / 40
    assert written["skipped"] == [{"key": "gate", "size": 8, "reason": "chooses"}]


def test_a_report_says_what_was_asked_and_what_was_done():
    model, input_ids = tiny_model(), random_ids()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, :20] = 0  # more zeros than are asked for
    report = prune_model(model, input_ids, pattern="50%")
    by_name = {entry.name: entry for entry in report.layers}
    assert [entry.block for entry in report.layers] == [0] * 7 + [1] * 7 + [2] * 7
    assert all(entry.tokens == input_ids.numel() for entry in report.layers)
    down = by_name["model.layers.2.mlp.down_proj"]
    assert (down.shape, down.asked, down.pruned, down.sparsity) == ((32, 64), "0.5", 1024, 0.5)
    up = by_name["model.layers.0.mlp.up_proj"]
    assert (up.pruned, up.sparsity) == (1024, 20 / 32)
    # q and o 32 x 32, k and v 16 x 32, three of 32 x 64; and 96 x 32 embedded, 96 x 32 in the head, 7 norms
    assert report.prunable == 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)
    assert report.parameters == report.prunable + 2 * VOCAB * 32 + 7 * 32


def test_tied_parameters_count_once():
    model = tiny_model("gemma3")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    report = prune_model(model, random_ids())
    unpruned = sum(p.numel() for name, p in model.named_parameters() if "norm" in name) + VOCAB * 32
    assert report.parameters == report.prunable + unpruned


def test_a_method_that_needs_no_data_reads_none():
    model = tiny_model()
    report = prune_model(model, None, Magnitude())
    assert {entry.tokens for entry in report.layers} == {None}
    assert report.sparsity == 0.5


def test_the_output_error_is_that_of_the_layers_own_outputs():
    model, input_ids = tiny_model(), random_ids(2, 8)
    layer = decoder_blocks(model)[0].layers[0]
    dense, inputs = layer.weight.clone(), []
    handle = layer.module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0][:, :8].reshape(-1, 32)))
    with torch.no_grad():
        model(input_ids)
    handle.remove()
    report = prune_model(model, input_ids, Wanda(), "50%")
    # 8 tokens of each sequence are sampled, and these sequences have 8
    before, after = inputs[0] @ dense.T, inputs[0] @ layer.weight.T
    expected = float((before - after).square().sum() / before.square().sum())
    assert report.layers[0].output_error == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 1


@pytest.mark.parametrize("name", PRUNERS)
def test_dead_channels_are_the_inputs_that_no_token_ever_used(name):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[[3, 7]] = 0
        model.model.layers[1].mlp.up_proj.weight[11] = 0
        # so small that its square is 0 in float32: it fired all the same
        model.model.layers[2].input_layernorm.weight[5] = 1e-30
    found = {layer.name: layer.dead_channels for layer in prune_model(model, random_ids(), PRUNERS[name]()).layers}
    if not PRUNERS[name]().requires:
        assert set(found.values()) == {None}
        return
    expected = dict.fromkeys(found, 0)
    expected |= {f"model.layers.0.self_attn.{kind}_proj": 2 for kind in "qkv"}
    assert found == expected | {"model.layers.1.mlp.down_proj": 1}


def test_without_inputs_there_is_no_output_error():
    assert prune_model(tiny_model(), None, Magnitude(), "50%").layers[0].output_error is None


def test_a_pruner_that_goes_by_names_is_asked_for_each_layer():
    input_ids = random_ids()

    def masks(pruner) -> dict[str, torch.Tensor]:
        model = tiny_model()
        prune_model(model, input_ids, pruner, "50%", propagate="dense")
        return {layer.name: layer.weight != 0 for block in decoder_blocks(model) for layer in block.layers}

    wanda, published = masks(Wanda()), masks(DSnoTPublished(refine=DSnoT(keep_best=False, threshold=0.0)))
    same = {name for name in wanda if torch.equal(wanda[name], published[name])}
    assert {name for name in wanda if "mlp" in name} <= same
    assert any("self_attn" in name for name in wanda.keys() - same)


def test_an_allocation_may_read_data_where_the_method_does_not():
    calibration = random_ids()
    model = tiny_model()
    report = prune_model(model, calibration, Magnitude(), "50%", allocation=OWL(outlier=3.0))
    assert len({layer.asked for layer in report.layers}) > 1
    assert {layer.output_error for layer in report.layers} == {None}
    with pytest.raises(ConfigError, match="OWL needs calibration data, got none"):
        prune_model(tiny_model(), None, Magnitude(), "50%", allocation=OWL(outlier=3.0))


def test_a_pattern_that_a_method_cannot_give_is_refused_before_anything_runs():
    model = tiny_model()
    with pytest.raises(ConfigError, match="cannot give 2:4"):
        prune_model(model, None, Wanda(select="cumulative"), "2:4")
    # of an allocation's own patterns too
    model, before = tiny_model(), tiny_model().state_dict()
    layers = {layer.name: SemiStructured(2, 4) for block in decoder_blocks(model) for layer in block.layers}
    with pytest.raises(ConfigError, match="cannot give 2:4"):
        prune_model(model, random_ids(), Wanda(select="cumulative"), "50%", allocation=SparsityAllocation(layers))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"pruner": Wanda}, r"pruner must be a method's object, such as Wanda\(\)"),
        ({"allocation": OWL}, "allocation must be an allocator's object"),
        ({"allocation": AlphaPruning(), "pattern": "2:4"}, "does not allow; use a percentage"),
    ],
)
def test_what_is_no_method_and_no_allocator_is_refused_before_anything_is_run(asked, said, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(model, "forward", lambda *args, **kwargs: pytest.fail("it was run"))
    with pytest.raises(ConfigError, match=said):
        prune_model(model, random_ids(), **asked)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "alps"])
def test_inputs_whose_squares_vanish_are_told_of(method):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.fill_(1e-25)
    with pytest.raises(RunError, match=r"inputs of model\.layers\.1\.self_attn\.q_proj are so small"):
        prune_model(model, random_ids(), PRUNERS[method]())
