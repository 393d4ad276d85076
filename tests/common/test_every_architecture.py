"""Every architecture goes through every method and pattern, is saved, and read back by plain transformers."""

import copy

import pytest
import torch
from tiny_models import ARCHITECTURES, from_config, random_ids, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from calibrune.checkpoint import PruneRequest, save_pruned
from calibrune.lm.layout import Coverage, decoder_blocks
from calibrune.lm.loading import LanguageModel
from calibrune.patterns import SemiStructured, parse_pattern
from calibrune.prune import MIN_EXPERT_TOKENS, prune_model
from calibrune.pruners import PRUNERS

PATTERNS = ("50%", "2:4", "4:8")
CALIBRATION = random_ids(4, 16)


def two_blocks(kind: str) -> PreTrainedModel:
    """The first two blocks of an architecture's tiny model: all kinds of block that it has."""
    config = copy.deepcopy(ARCHITECTURES[kind])
    config.num_hidden_layers = 2
    if types := getattr(config, "layer_types", None):
        config.layer_types = types[:2]
    return from_config(config)


def request(method: str, pattern: str) -> PruneRequest:
    return PruneRequest(
        model={"name": "tiny"},
        pruner={"name": method},
        pattern=pattern,
        allocation={"name": "uniform"},
        propagate="pruned",
        batch_tokens=4096,
        compute={},
        calibration=None,
    )


def check_sparsity(model: PreTrainedModel, dense: dict[str, torch.Tensor], pattern: str) -> None:
    """At least half of every layer is zero, in every group of M too; what is no layer is as it was."""
    asked = parse_pattern(pattern)
    layers = [layer for block in decoder_blocks(model) for layer in block.layers]
    for layer in layers:
        kept = layer.weight != 0
        assert int(kept.sum()) <= kept.numel() // 2, layer.name
        if isinstance(asked, SemiStructured):
            assert (kept.reshape(-1, asked.m).sum(dim=1) <= asked.n).all(), layer.name
    pruned = {layer.key for layer in layers}
    for name, tensor in model.state_dict().items():
        assert name in pruned or torch.equal(tensor, dense[name]), f"{name} is no layer to prune"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_method_and_pattern_gives_exact_sparsity_on_disk_too(kind, tmp_path):
    model = two_blocks(kind)
    dense = copy.deepcopy(model.state_dict())
    methods = list(PRUNERS)
    for turn, pattern in enumerate(PATTERNS):
        # each architecture's three checkpoints are of other methods
        saved = methods[(list(ARCHITECTURES).index(kind) + turn) % len(methods)]
        for method in methods:
            model.load_state_dict(dense)
            # few tokens and several experts: none falls back here, but in what is saved
            least = MIN_EXPERT_TOKENS if method == saved else 1
            report = prune_model(model, CALIBRATION, PRUNERS[method](), pattern, min_expert_tokens=least)
            for layer in report.layers:
                assert layer.pruned == layer.shape[0] * layer.shape[1] // 2, (method, layer.name)
            check_sparsity(model, dense, pattern)
            if method == saved:
                out, lm = tmp_path / f"{turn}", LanguageModel(model, tiny_tokenizer(), {"name": "tiny"})
                save_pruned(lm, report, request(method, pattern), out)
                again = AutoModelForCausalLM.from_pretrained(out)
                check_sparsity(again, dense, pattern)
                with torch.no_grad():
                    torch.testing.assert_close(again(CALIBRATION).logits, model(CALIBRATION).logits)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_all_but_norms_biases_and_routers_is_covered(kind):
    model = two_blocks(kind)
    blocks = decoder_blocks(model)
    coverage = Coverage.of(blocks)
    assert coverage.unsplit == ()
    left = sum(p.numel() for block in blocks for p in block.module.parameters() if p.ndim == 1)
    left += sum(weight.size for weight in coverage.skipped)
    assert coverage.prunable + left == coverage.parameters
    assert 0.9 < coverage.share < 1
    # every stored weight once
    stored = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for block in blocks:
        for layer in block.layers:
            layer.replace_weight(layer.weight * 0 + 7)
    for name, parameter in model.named_parameters():
        if name in {layer.key for block in blocks for layer in block.layers}:
            assert (parameter == stored[name] + 7).all(), name
