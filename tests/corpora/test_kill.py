"""A run that is killed with SIGKILL at any point, and started again, gives what an uninterrupted one gives."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import tiny_model, tiny_tokenizer

TESTS = Path(__file__).resolve().parents[1]

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tiny_models import tiny_lm
from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.filters import PerplexityFilter
from calibrune.corpora.generated import SelfGeneration
lm = tiny_lm(adds_bos=True)
corpus = SelfGeneration(model=lm, n_texts=48, max_new_tokens=100, batch_size=4)
recipe = CalibrationRecipe(corpus=corpus, filters=(PerplexityFilter(among=16),), n_samples=16, seq_len=64)
print("writing", flush=True)
print(build(recipe, lm.tokenizer).fingerprint)
"""


def start(cache: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"CALIBRUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(TESTS)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def fingerprint(cache: Path) -> tuple[str, float]:
    """What a run gives, and the seconds that its writing took."""
    with start(cache) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        begun = time.monotonic()
        said = process.stdout.read().strip()
    assert process.returncode == 0
    return said, time.monotonic() - begun


@pytest.mark.slow
def test_killed_at_random_points_and_started_again_it_gives_the_same_fingerprint(tmp_path):
    expected, seconds = fingerprint(tmp_path / "whole")
    assert fingerprint(tmp_path / "another")[0] == expected  # two fresh processes
    chance = random.Random(0)
    killed = 0
    for _ in range(4):
        with start(tmp_path / "killed") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0.05, 0.35) * seconds)
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 2
    assert fingerprint(tmp_path / "killed")[0] == expected
    (whole,), (resumed,) = ((tmp_path / name).rglob("*.jsonl") for name in ("whole", "killed"))
    assert sorted(resumed.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


SPEC = "selfgen:n_texts=48:max_new_tokens=100:batch_size=4:among=16"


def calibrate(place: Path, cache: Path, out: Path) -> "subprocess.Popen[bytes]":
    """The command itself."""
    told = {"CALIBRUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent / "src")}
    # so many samples that texts of all three sixteens are needed: two of them fill 28
    asked = [SPEC, "--model", str(place / "model"), "--samples", "32", "--seq-len", "64", "--out", str(out)]
    command = [sys.executable, "-m", "calibrune", "calibrate", *asked]
    return subprocess.Popen(command, env=os.environ | told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def lines_in(cache: Path) -> int:
    return sum(journal.read_bytes().count(b"\n") for journal in cache.rglob("generated/*.jsonl"))


@pytest.mark.slow
def test_the_command_killed_again_and_again_leaves_the_set_of_one_that_was_not(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    whole, killed = tmp_path / "sets" / "whole", tmp_path / "sets" / "killed"
    with calibrate(tmp_path, tmp_path / "a", whole) as process:
        assert process.wait() == 0, process.stderr and process.stderr.read()
    cache = tmp_path / "b"
    for texts in sorted(random.Random(0).sample(range(1, 44), 3)):
        with calibrate(tmp_path, cache, killed) as process:
            while lines_in(cache) < texts and process.poll() is None:
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert texts <= lines_in(cache) < 48
        assert not killed.exists()
    with calibrate(tmp_path, cache, killed) as process:
        assert process.wait() == 0
    assert sorted(one.name for one in killed.parent.iterdir()) == ["killed", "whole"]
    for file in ("calibration.safetensors", "manifest.json"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
    assert lines_in(cache) == lines_in(tmp_path / "a") == 48
