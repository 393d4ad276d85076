"""The architecture of DCLM-7B: as its equations say, and a model like any other for the rest of the house."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import openlm_plain as plain
from safetensors.torch import load_file, save_file
from test_checkpoint import REQUEST
from tiny_models import VOCAB, random_ids, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calibrune.activations.statistics import InputHessian
from calibrune.activations.stream import stream_blocks
from calibrune.checkpoint import save_pruned
from calibrune.errors import ModelError
from calibrune.lm.generation import Sampling, generate
from calibrune.lm.layout import Coverage, decoder_blocks, n_parameters
from calibrune.lm.likelihood import token_log_likelihoods
from calibrune.lm.loading import LanguageModel, load_model
from calibrune.lm.openlm import CACHE, OpenLMConfig, register, rotary_tables
from calibrune.prune import PruneReport, prune_model
from calibrune.pruners import Magnitude, Pruner, SparseGPT, Wanda

LAYERS, HEADS, DIM = 3, 4, 32
SHAPE = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "vocab_size": VOCAB, "seq_len": 128}
PARTS = ("attention.in_proj[q]", "attention.in_proj[k]", "attention.in_proj[v]", "attention.out_proj")
PARTS += ("feed_forward.w12[gate]", "feed_forward.w12[up]", "feed_forward.w3")
DCLM = {"norm_type": "gain_only_lp_layer_norm", "apply_qk_norm": True, "ffn_type": "swiglu_torch"}


def weights() -> dict[str, torch.Tensor]:
    return plain.tensors(DIM, LAYERS, VOCAB)


def tiny_openlm() -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(OpenLMConfig(**SHAPE, **DCLM)).float().eval()
    model.load_state_dict(weights())
    return model


def tiny_openlm_lm() -> LanguageModel:
    return LanguageModel(tiny_openlm(), tiny_tokenizer(), {"name": "tiny-openlm", "dtype": "float32"})


def plain_logits(ids: torch.Tensor) -> torch.Tensor:
    w = weights()
    return torch.stack([plain.logits(row.tolist(), w, LAYERS, HEADS) for row in ids])


def logits(model: PreTrainedModel, ids: torch.Tensor, **arguments) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **arguments).logits


def assert_close(got: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=atol)


def published(folder: Path, config: dict) -> Path:
    """A checkpoint as open_lm publishes it: its names, its buffers, its config.json."""
    folder.mkdir()
    buffers = {f"model.layers.{i}.attention.pos_embed.inv_freq": torch.ones(DIM // HEADS // 2) for i in range(LAYERS)}
    save_file(weights() | buffers, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "openlm"} | config))
    tiny_tokenizer().save_pretrained(folder)
    return folder


# -- the equations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_the_equations(attention):
    model = tiny_openlm()
    model.set_attn_implementation(attention)
    ids = random_ids(3, 20)
    assert_close(logits(model, ids), plain_logits(ids))


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_token_by_token_with_a_cache_is_the_full_forward(name):
    model, ids = tiny_openlm(), random_ids(2, 12)
    cache, steps = None, []
    for t in range(ids.shape[1]):
        with torch.no_grad():
            output = model(input_ids=ids[:, t : t + 1], use_cache=True, **{name: cache})
        cache = output[CACHE]
        steps.append(output.logits)
    assert_close(torch.cat(steps, dim=1), plain_logits(ids))


def test_a_prompt_padded_on_the_left_gives_what_it_gives_alone():
    model, ids = tiny_openlm(), random_ids(1, 9)
    padded = torch.cat([torch.ones(1, 5, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(14) >= 5).long()[None]
    assert_close(logits(model, padded, attention_mask=mask)[:, 5:], plain_logits(ids))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    assert_close(logits(model, padded, attention_mask=mask, position_ids=positions)[:, 5:], plain_logits(ids))


def test_positions_are_rounded_as_published_in_half_precision_and_exact_in_single():
    positions, exponents = torch.tensor([[0, 1, 1000]]), torch.arange(0, 8, 2) / 8
    exact = 1 / 10000.0**exponents
    for dtype in (torch.float32, torch.bfloat16):
        frequencies = exact.to(dtype).float()
        cos, sin = rotary_tables(positions, 8, dtype)
        angles = (positions[0, :, None] * frequencies).repeat(1, 2)
        assert_close(cos[0], angles.cos().to(dtype))
        assert_close(sin[0], angles.sin().to(dtype))


@pytest.mark.parametrize(("dim", "width"), [(32, 256), (96, 256), (98, 512), (2048, 5632), (4096, 11008)])
def test_the_feed_forward_is_as_wide_as_published(dim, width):
    assert OpenLMConfig(dim=dim, n_heads=1).intermediate_size == width


def test_it_has_as_many_parameters_as_published():
    # 6,889,410,560, says the training configuration of DCLM's 7B models, which counts all but the gains of qk-norm
    config = OpenLMConfig(dim=4096, n_layers=32, n_heads=32, vocab_size=50_432, norm_type="gain_only_lp_layer_norm")
    for apply_qk_norm, more in ((False, 0), (True, 32 * 2 * 4096)):
        config.apply_qk_norm = apply_qk_norm
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert n_parameters(model) == 6_889_410_560 + more


# -- configs and checkpoints ------------------------------------------------------------------------------------------

# as a model file of open_lm and its command line say it
MODEL_FILE = {"hidden_dim": DIM} | {name: value for name, value in SHAPE.items() if name != "dim"}


@pytest.mark.parametrize(
    "config",
    [
        SHAPE | DCLM | {"norm_eps": 1e-5, "moe_num_experts": 8, "moe_freq": 0, "attn_name": "auto"},
        {"params": SHAPE | DCLM},
        {"params": None, "params_args_dict": SHAPE | DCLM | {"lr": 2e-3}},
        {"params_args_dict": MODEL_FILE | {"model_norm": "gain_only_lp_layer_norm", "qk_norm": True}},
    ],
    ids=["flat", "params", "params_args_dict", "model file names"],
)
def test_a_published_checkpoint_gives_the_logits_of_the_equations(config, tmp_path):
    folder = published(tmp_path / "published", config | {"architectures": ["OpenLMForCausalLM"]})
    lm = load_model(folder, device="cpu")
    ids = random_ids(2, 16)
    assert_close(logits(lm.model, ids), plain_logits(ids))
    assert (lm.context_length, lm.vocab_size) == (128, VOCAB)


def test_the_tokenizer_loads_by_the_name_that_open_lm_gives_it(tmp_path):
    folder = published(tmp_path / "published", SHAPE | DCLM)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "OpenLMTokenizerFast"}))
    assert load_model(folder).tokenizer("ab").input_ids == tiny_tokenizer()("ab").input_ids


def test_saved_and_loaded_again_it_is_the_same_model_under_the_same_names(tmp_path):
    model = tiny_openlm()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == weights().keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = random_ids(2, 10)
    assert torch.equal(logits(again, ids), logits(model, ids))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.dim, config.hidden_size, config.num_hidden_layers) == (DIM, DIM, LAYERS)
    assert config.norm_type == DCLM["norm_type"]


def test_tied_weights_are_one_and_come_back_so(tmp_path):
    config = OpenLMConfig(**SHAPE, weight_tying=True, post_embed_norm=True)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = load_and_compare(tmp_path, model)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert again.model.norm.bias is not None  # open_lm's own default, where a config does not say


def load_and_compare(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(again, random_ids(1, 8)), logits(model, random_ids(1, 8)))
    return again


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ffn_type": "moe"}, "ffn_type='moe' of open_lm is not supported"),
        ({"norm_type": "rms_norm"}, "norm_type='rms_norm'"),
        ({"positional_embedding_type": "head_rotary"}, "supported are: rotary"),
        ({"moe_freq": 2}, "moe_freq=2"),
        ({"n_heads": 5}, "dim=32 does not split into 5 heads"),
    ],
)
def test_what_is_not_understood_is_refused(wrong, said, tmp_path):
    folder = published(tmp_path / "published", SHAPE | DCLM | wrong)
    with pytest.raises(ModelError, match=said):
        load_model(folder)


def test_nested_parameters_without_dimensions_are_refused():
    with pytest.raises(
        ValueError, match=r"lack dim, n_layers, n_heads; copy them from the open_lm model file 'x.json'"
    ):
        OpenLMConfig(params_args_dict={"model": "x.json", "qk_norm": True})


def test_a_checkpoint_without_one_of_its_norms_is_refused(tmp_path):
    folder = published(tmp_path / "published", SHAPE | DCLM)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.attention.q_norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights.*layers\.1\.attention\.q_norm"):
        load_model(folder)


def test_registering_again_changes_nothing():
    register()
    assert isinstance(AutoConfig.for_model("openlm"), OpenLMConfig)


# -- a model like any other -------------------------------------------------------------------------------------------


def test_transformers_writes_what_the_full_forward_would():
    model, ids = tiny_openlm(), random_ids(2, 6)
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=1
    )
    expected = ids
    for _ in range(6):
        expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, expected)


def test_our_generation_scores_what_it_writes_whatever_the_padding():
    model, prompts = tiny_openlm(), [[5, 6, 7], [8], [9, 10]]
    texts = generate(model, prompts, [0, 1, 2], max_new_tokens=8, sampling=Sampling())
    for prompt, seed, text in zip(prompts, range(3), texts, strict=True):
        alone = generate(model, [prompt], [seed], max_new_tokens=8, sampling=Sampling())[0]
        assert alone.token_ids == text.token_ids
        by_equation = plain_logits(torch.tensor([text.token_ids]))[0].log_softmax(-1)
        scores = [float(by_equation[t - 1, text.token_ids[t]]) for t in range(len(prompt), len(text.token_ids))]
        assert scores == pytest.approx(text.log_probs, abs=1e-4)


def test_likelihoods_in_chunks_are_those_of_the_equations():
    ids = random_ids(2, 14)
    expected = plain_logits(ids).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    assert_close(token_log_likelihoods(tiny_openlm(), ids, logits_bytes=4 * VOCAB * 5), expected)


def test_loss_and_hidden_states_are_given_when_asked_for():
    model, ids = tiny_openlm(), random_ids(1, 8)
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids, output_hidden_states=True)
    assert float(output.loss) == pytest.approx(-float(token_log_likelihoods(model, ids).mean()), abs=1e-5)
    assert len(output.hidden_states) == LAYERS + 1
    assert torch.equal(model.get_output_embeddings()(output.hidden_states[-1]), output.logits)


def test_the_statistics_of_the_engine_are_those_of_a_full_forward():
    model, ids = tiny_openlm(), random_ids()
    expected: dict[str, torch.Tensor] = {}

    def watch(name: str):
        def hook(_module, args):
            x = args[0].reshape(-1, args[0].shape[-1])
            expected[name] = x.T @ x / len(x)

        return hook

    layers = [layer for block in decoder_blocks(model) for layer in block.layers]
    hooks = [layer.module.register_forward_pre_hook(watch(layer.name)) for layer in layers]
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    got = {
        inputs.layer.name: inputs.stats[InputHessian].matrix
        for block in stream_blocks(model, ids, (InputHessian,), propagate="dense")
        for inputs in block.layers
    }
    assert got.keys() == expected.keys()
    assert got.keys() == {f"model.layers.{i}.{part}" for i in range(LAYERS) for part in PARTS}
    for name, matrix in got.items():
        torch.testing.assert_close(matrix, expected[name], rtol=1e-4, atol=1e-5)


def test_a_published_checkpoint_is_seen_as_the_matrices_of_the_equations(tmp_path):
    folder = published(tmp_path / "published", {"params": None, "params_args_dict": SHAPE | DCLM})
    blocks, w = decoder_blocks(load_model(folder, device="cpu").model), weights()
    assert Coverage.of(blocks).unsplit == ()
    for block in blocks:
        q_k_v = w[f"{block.name}.attention.in_proj.weight"].split(DIM)
        gate_up = w[f"{block.name}.feed_forward.w12.weight"].chunk(2)
        whole = [w[f"{block.name}.{name}.weight"] for name in ("attention.out_proj", "feed_forward.w3")]
        expected = dict(zip(PARTS, (*q_k_v, whole[0], *gate_up, whole[1]), strict=True))
        assert [layer.name.removeprefix(f"{block.name}.") for layer in block.layers] == list(PARTS)
        for layer in block.layers:
            assert torch.equal(layer.weight, expected[layer.name.removeprefix(f"{block.name}.")]), layer.name


RUNS = [(Magnitude(), "50%"), (Wanda(), "50%"), (SparseGPT(), "50%"), (Wanda(), "2:4"), (SparseGPT(), "2:4")]
RUN_NAMES = [f"{type(pruner).__name__.lower()}-{pattern}" for pruner, pattern in RUNS]


def pruned_lm(pruner: Pruner, pattern: str) -> tuple[LanguageModel, PruneReport]:
    lm = tiny_openlm_lm()
    for block in decoder_blocks(lm.model):  # keys so small that all would go first, if they competed with the rest
        key = next(layer for layer in block.layers if layer.name.endswith("[k]"))
        key.replace_weight(key.weight / 1000)
    return lm, prune_model(lm.model, random_ids(), pruner=pruner, pattern=pattern)


@pytest.mark.parametrize(("pruner", "pattern"), RUNS, ids=RUN_NAMES)
def test_every_matrix_is_pruned_exactly_and_comes_back_from_disk(pruner, pattern, tmp_path):
    lm, report = pruned_lm(pruner, pattern)
    assert len(report.layers) == len(PARTS) * LAYERS
    for layer in (layer for block in decoder_blocks(lm.model) for layer in block.layers):
        kept = layer.weight != 0
        assert int(kept.sum()) == kept.numel() // 2, layer.name
        if pattern == "2:4":
            assert (kept.reshape(len(kept), -1, 4).sum(-1) == 2).all(), layer.name
    save_pruned(lm, report, REQUEST, tmp_path / "out")
    again = load_model(tmp_path / "out", device="cpu")
    assert torch.equal(logits(again.model, random_ids()), logits(lm.model, random_ids()))
    assert len(generate(again.model, [[5, 6]], [0], max_new_tokens=4)[0].log_probs) == 4


@pytest.mark.slow
def test_plain_transformers_runs_the_code_in_the_folder_if_it_is_trusted(tmp_path):
    pruned = {name: pruned_lm(*run) for name, run in zip(RUN_NAMES, RUNS, strict=True)}
    for name, (lm, report) in pruned.items():
        save_pruned(lm, report, REQUEST, tmp_path / name)
    card = (tmp_path / RUN_NAMES[0] / "README.md").read_text()
    assert 'from_pretrained("path/to/this/folder", trust_remote_code=True)' in card
    # q, k, v and gate, up are cut apart here by hand: nothing of ours is there to say where they lie
    script = """
import json, sys, warnings
warnings.simplefilter("error")
import torch
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("it was run without being trusted")
ids = torch.tensor([[5, 6, 7]])
said = []
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    matrices = []
    for block in model.model.layers:
        matrices += [*block.attention.in_proj.weight.split(model.config.dim), block.attention.out_proj.weight]
        matrices += [*block.feed_forward.w12.weight.chunk(2), block.feed_forward.w3.weight]
    written = [
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=1, use_cache=cache
        ).tolist()
        for cache in (True, False)
    ]
    sparsity = [float((matrix == 0).sum()) / matrix.numel() for matrix in matrices]
    said.append({"logits": model(ids).logits.tolist(), "written": written, "sparsity": sparsity})
assert "calibrune" not in sys.modules
print(json.dumps(said))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(
        [sys.executable, "-c", script, *(str(tmp_path / name) for name in pruned)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    ids = torch.tensor([[5, 6, 7]])
    for (lm, report), said in zip(pruned.values(), json.loads(run.stdout), strict=True):
        assert said["sparsity"] == [layer.sparsity for layer in report.layers] == [0.5] * len(PARTS) * LAYERS
        assert_close(torch.tensor(said["logits"]), logits(lm.model, ids))
        with_cache, without = said["written"]
        assert with_cache == without
        here = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=1
        )
        assert with_cache == here.tolist()
