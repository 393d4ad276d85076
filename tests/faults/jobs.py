"""The commands that are made to suffer, what they work on, and how two results are compared."""

import gzip
import json
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from study_data import write_corpus
from tiny_models import tiny_lm, tiny_model, tiny_tokenizer

from calibrune.checkpoint import save_pruned
from calibrune.patterns import parse_pattern
from calibrune.prune import prune_model
from calibrune.pruners import Magnitude
from calibrune.study.results import Results
from calibrune.verbs import request_for

TIMES = ("seconds", "pid")
"""Keys whose values no two runs share: how long it took, and which process it was."""

SEALS = ("seal",)
"""Hashes of the record that they stand in, which holds such times."""

PLAN = """
name: small
models: [../model]
calibration:
  - {source: one.jsonl.gz, name: one}
  - {source: selfgen, name: selfgen, among: 8, batch_size: 4}
samples: 4
seq_len: 24
pruners: [magnitude, wanda]
patterns: [60%]
propagation: [pruned, dense]
seeds: 1
evaluations:
  - {perplexity: texts.jsonl.gz, limit: 4, seq_len: 16}
"""


@dataclass(frozen=True)
class Job:
    """A command line, run in a folder whose neighbours are `model/`, `data/` and `plan.yaml`."""

    name: str
    arguments: tuple[str, ...]
    makes: str
    """What it makes, in its folder."""
    works_in: str | None = None
    """A glob of the folders in which it keeps what is not finished."""


SPEC = "selfgen:n_texts=24:max_new_tokens=40:batch_size=4:among=8"
DATA = ("--calibration", "../data/one.jsonl.gz", "--samples", "8", "--seq-len", "24", "--masks", "--out", "out")
TEXTS = "../data/texts.jsonl.gz,../data/texts.jsonl.gz:protocol=texts,../data/one.jsonl.gz:seq_len=12"

JOBS = (
    Job("prune", ("prune", "../model", *DATA), "out", ".out.unfinished-*"),
    Job("prune --stream", ("prune", "../model", "--stream", "--allocation", "owl", *DATA), "out", ".out.streaming"),
    Job(
        "calibrate selfgen",
        ("calibrate", SPEC, "--model", "../model", "--samples", "8", "--seq-len", "24", "--out", "out"),
        "out",
        ".out.*.partial",
    ),
    Job(
        "evaluate",
        ("evaluate", "../model", "--perplexity", TEXTS, "--limit", "8", "--seq-len", "16", "--out", "scores.json"),
        "scores.json",
    ),
    Job("mask apply", ("mask", "apply", "../model", "--mask", "../pruned", "--out", "out"), "out", ".out.unfinished-*"),
    Job("study run", ("study", "run", "../plan.yaml", "--data", "../data", "--out", "out"), "out"),
)


def prepare(place: Path) -> None:
    """Write the neighbours."""
    tiny_model().save_pretrained(place / "model", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(place / "model")
    lm = tiny_lm()
    report = prune_model(lm.model, None, Magnitude(group="row"), "50%")
    request = request_for(lm, "0" * 12, "magnitude", Magnitude(group="row"), parse_pattern("50%"), None)
    save_pruned(lm, report, request, place / "pruned")
    for seed, name in enumerate(("one", "texts")):
        write_corpus(place / f"data/{name}.jsonl.gz", seed, rows=24)
    (place / "plan.yaml").write_text(PLAN)


def result(path: Path) -> dict[str, Any]:
    """What a job made, to be compared: every file's bytes, and of JSON all but times and the seals over them."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path.parent)): _content(file) for file in files if file.name not in (".lock",)}


def rows(path: Path) -> list[Any]:
    """The whole rows of a study."""
    file = path / "results.jsonl"
    return [without_times(json.loads(line)) for line in file.read_bytes().split(b"\n")[:-1]] if file.exists() else []


def without_times(value: Any) -> Any:
    """The value less what differs between any two runs."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in (*TIMES, *SEALS)}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def differences(found: Any, expected: Any, place: str = "", rounding: float = 0.0) -> list[str]:
    """Where two results differ, by more than such a share of a number, and how: for people."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = sorted({*found, *expected}, key=str)
        return [
            line
            for name in names
            for line in differences(
                found.get(name, "nothing"), expected.get(name, "nothing"), f"{place} > {name}", rounding
            )
        ]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{place} > {i}", rounding)]
    if isinstance(found, float) and isinstance(expected, float) and isclose(found, expected, rel_tol=rounding):
        return []
    return [] if found == expected else [f"{place}: {str(found)[:200]} and not {str(expected)[:200]}"]


def check_same(job: Job, folder: Path, expected: dict[str, Any], rounding: float = 0.0) -> None:
    """A job has made what it makes undisturbed; of a study, whatever came of runs that were done again."""
    found = result(folder / job.makes)
    if job.name == "study run":
        found["out/results.jsonl"], expected = latest(folder), {**expected}
        expected["out/results.jsonl"] = {row["id"]: row for row in expected["out/results.jsonl"]}
    assert not differences(found, expected, rounding=rounding)


def latest(folder: Path) -> dict[str, Any]:
    """The rows of a study that count, by the run."""
    return {row["id"]: without_times(row) for row in Results(folder / "out").latest().values()}


def _content(file: Path) -> Any:
    if file.suffix == ".json":
        return without_times(json.loads(file.read_text(encoding="utf-8")))
    if file.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


def check_nothing_false(job: Job, folder: Path, expected: dict[str, Any], rounding: float = 0.0) -> None:
    """What a run left under the name of its result is the whole result; of a study, whole rows and their records."""
    path = folder / job.makes
    if job.name != "study run":
        wrong = differences(result(path), expected, rounding=rounding) if path.exists() else []
        assert not wrong, f"{path} looks whole and is not: {wrong}"
        return
    whole = expected["out/results.jsonl"]
    there = rows(path)
    assert not differences(there, whole[: len(there)], rounding=rounding)
    for row in there:
        name = f"out/runs/{row['key']}.json"
        assert not differences(_content(folder / name), expected[name], rounding=rounding)
