"""Every file that a later step reads, cut short or with a bit turned: the right result, or an error that names it."""

import os
import random
import shutil
import signal
from dataclasses import dataclass, field

import pytest
from faults.jobs import DATA, JOBS, SPEC, differences, latest, result
from tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.slow

EACH = max(1, int(os.environ.get("CALIBRUNE_KILLS", "210")) // 200)
BY_NAME = {job.name: job.arguments for job in JOBS}
SMALL = ("--limit", "4", "--seq-len", "16", "--out", "scores.json")


@dataclass(frozen=True)
class Step:
    """A later step, the steps before it, and what it reads of theirs."""

    name: str
    before: tuple[tuple[str, ...], ...]
    reads: tuple[str, ...]
    """Globs."""
    then: tuple[str, ...]
    makes: str
    killed: dict[str, object] = field(default_factory=dict)
    """How the last of the steps before it ends."""


CALIBRATE = ("calibrate", SPEC, "--model", "../model", "--samples", "8", "--seq-len", "24", "--out")
EVALUATE = ("evaluate", "--perplexity", "../data/texts.jsonl.gz", *SMALL)
STEPS = (
    Step("set, prune", ((*CALIBRATE, "set"),), ("set/*",), ("prune", "../model", "--calibration", "set", *DATA[2:3],
         "4", "--out", "out"), "out"),
    Step("pruned, evaluate", (("prune", "../model", *DATA),), ("out/*",), (*EVALUATE, "out"), "scores.json"),
    Step("pruned, streamed again", (("prune", "../model", *DATA),), ("out/*.safetensors",), ("prune", "out", "--stream",
         "--method", "magnitude", "--sparsity", "70%", "--out", "more"), "more"),
    Step("texts and scores, calibrate", ((*CALIBRATE, "set"),), ("cache/generated/*.jsonl", "cache/scores/*.jsonl"),
         (*CALIBRATE, "out"), "out"),
    Step("finished scores, evaluate", ((*EVALUATE, "../model"),), ("cache/evaluations/*", "scores.json"),
         (*EVALUATE, "../model"), "scores.json"),
    Step("scores, compare", ((*EVALUATE, "../model"),), ("scores.json",), ("evaluate", "scores.json", "scores.json",
         "--compare", "--out", "both.json"), "both.json"),
    Step("blocks, prune --stream", (BY_NAME["prune --stream"],), (".out.streaming/*",), BY_NAME["prune --stream"],
         "out", killed={"kill_at": (38, signal.SIGKILL)}),
    Step("converted, evaluate", ((*EVALUATE, "../model.gguf"),), ("cache/models/*/*",), (*EVALUATE[:-1], "again.json",
         "../model.gguf"), "again.json"),
    Step("rows, study run", (BY_NAME["study run"],), ("out/*.jsonl", "out/runs/*", "out/*.yaml", "out/state.json"),
         BY_NAME["study run"], "out"),
    Step("rows, study status", (BY_NAME["study run"],), ("out/plan.yaml",),
         ("study", "status", "out", "--json"), ".said"),
    Step("what a study shares, study run", (BY_NAME["study run"],), ("cache/sets/*/*", "cache/statistics/*/*",
         "cache/generated/*.jsonl"), (*BY_NAME["study run"][:-1], "anew"), "anew"),
)  # fmt: skip


def damages(content: bytes, chance: random.Random):
    """The content with a bit turned, or cut short."""
    for _ in range(2 * EACH):
        place = chance.randrange(len(content))
        yield (
            f"bit of byte {place}",
            content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :],
        )
    for _ in range(EACH):
        yield "cut", content[: chance.randrange(len(content))]


def made(step, folder, said):
    (folder / ".said").write_text(said)
    if step.makes in ("anew", "out") and (folder / step.makes / "results.jsonl").exists():
        shutil.rmtree(folder / "out", ignore_errors=step.makes != "anew") if step.makes == "anew" else None
        if step.makes == "anew":
            (folder / "anew").rename(folder / "out")
        return latest(folder)
    return result(folder / step.makes)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_damage_is_mended_or_named(step, place, forge, record_property):
    if not (place / "model.gguf").exists():
        write_tiny_gguf(place / "model.gguf")
    base = place / f"before {step.name}"
    base.mkdir()
    for number, arguments in enumerate(step.before, 1):
        ended = forge.run(arguments, base, **(step.killed if number == len(step.before) else {}))
        assert ended.status == 0 or step.killed, ended.err
    files = sorted(file for glob in step.reads for file in base.glob(glob) if file.is_file() and file.stat().st_size)
    files = [file for file in files if file.suffix not in (".lock", ".unfinished") and file.name != "README.md"]
    assert files
    whole = shutil.copytree(base, place / f"whole {step.name}")
    ended = forge.run(step.then, whole)
    assert ended.status == 0, ended.err
    expected = made(step, whole, ended.out)
    chance, mended, named, false = random.Random(step.name), 0, 0, []
    for file in files:
        for what, content in damages(file.read_bytes(), chance):
            shutil.rmtree(place / f"trial {step.name}", ignore_errors=True)
            trial = shutil.copytree(base, place / f"trial {step.name}")
            (trial / file.relative_to(base)).write_bytes(content)
            ended = forge.run(step.then, trial)
            if ended.status == 0 and not differences(made(step, trial, ended.out), expected):
                mended += 1
            elif ended.status in (1, 2) and file.name in ended.err and "Traceback" not in ended.err:
                named += 1
            else:
                false.append((file.name, what, ended.status, ended.err[-1500:]))
    assert not false
    record_property("faults", mended + named)
