"""The wheel has what it needs and no more, and works outside the repository: the core alone, and every extra."""

import os
import re
import tomllib
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from release.conftest import FULL, REPOSITORY
from tiny_gguf import write_tiny_gguf
from tiny_models import tiny_lm

import calibrune

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]

EXTRAS = {
    "gguf": ("gguf", "accelerate"),
    "files": ("pyarrow", "zstandard"),
    "hub": ("datasets",),
    "filters": ("datasketch", "scipy"),
    "language": ("lingua",),
    "report": ("altair", "vl_convert"),
    "evaluate": ("lm_eval",),
    "study": ("scipy", "polars"),
    "vllm": ("vllm",),
    "ray": ("ray",),
    "track": ("trackio",),
}
"""The modules of each extra."""


@pytest.fixture
def core(installed):
    """An environment without any extra, a model and texts."""
    if os.environ.get(FULL):
        pytest.skip(f"with {FULL}, all extras are there")
    lm = tiny_lm()
    lm.model.save_pretrained(installed.folder / "model")
    lm.tokenizer.save_pretrained(installed.folder / "model")
    text = "All work and no play makes Jack a dull boy. " * 20
    (installed.folder / "texts.jsonl").write_text("".join(f'{{"text": "{i}: {text}"}}\n' for i in range(20)))
    return replace(installed, lacks=tuple(name for names in EXTRAS.values() for name in names))


def with_extra(core, extra: str):
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, which is not installed")
    return replace(core, lacks=tuple(name for name in core.lacks if name not in EXTRAS[extra]))


def test_the_wheel_has_the_package_and_what_it_reads_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"calibrune/py.typed", "calibrune/report/page.html.jinja", "calibrune/report/page.js"} <= set(names)
    assert all(name.startswith(("calibrune/", "calibrune-")) for name in names)
    assert not [name for name in names if "__pycache__" in name]


def test_one_version_is_said_everywhere(wheel):
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {PROJECT["version"], citation["version"], calibrune.__version__} == {PROJECT["version"]}
    assert f"calibrune-{PROJECT['version']}-" in wheel.name
    assert f"## {PROJECT['version']}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_modules_of_every_extra_are_known():
    assert EXTRAS.keys() == PROJECT["optional-dependencies"].keys() - {"all", "dev", "docs"}


def test_the_core_alone_does_the_main_job(core):
    assert "site-packages" in core.run("python", "-c", "import calibrune; print(calibrune.__file__)")
    assert core.run("calibrune", "--version").strip() == f"calibrune {PROJECT['version']}"
    asked = ("--calibration", "texts.jsonl", "--samples", "4", "--seq-len", "32")
    assert "50.00% of the weights" in core.run("calibrune", "prune", "model", *asked, "--out", "out")
    assert "0 of 21 layers deviate" in core.run("calibrune", "mask", "check", "out")
    assert "perplexity" in core.run(
        "calibrune", "evaluate", "out", "--perplexity", "texts.jsonl", "--limit", "2", "--seq-len", "32"
    )


WITHOUT = {
    "gguf": ("inspect", "model.gguf"),
    "files": ("calibrate", "texts.parquet", "--model", "model", "--out", "x"),
    "filters": (
        "calibrate",
        "texts.jsonl:dedup=0.8",
        "--model",
        "model",
        "--samples",
        "2",
        "--seq-len",
        "32",
        "--out",
        "x",
    ),
    "report": ("inspect", "model", "--picture", "model.html"),
    "evaluate": ("evaluate", "model", "--tasks", "arc_easy"),
}


@pytest.mark.parametrize("extra", WITHOUT)
def test_what_needs_an_extra_names_it_without_and_works_with_it(extra, core):
    if extra == "gguf":
        write_tiny_gguf(core.folder / "model.gguf") if find_spec("gguf") else pytest.skip("needs gguf")
    if extra == "files":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = __import__("pyarrow").table({"text": ["All work and no play. " * 40] * 20})
        parquet.write_table(table, core.folder / "texts.parquet")
    command = WITHOUT[extra]
    assert f"calibrune[{extra}]" in core.run("calibrune", *command, status=2)
    if extra != "evaluate":  # its tasks are of the hub
        more = ("--samples", "2", "--seq-len", "32") if extra == "files" else ()
        with_extra(core, extra).run("calibrune", *command, *more)
    if extra == "report":
        assert re.match("<!doctype html>", Path(core.folder / "model.html").read_text(encoding="utf-8"))


def test_a_study_runs_with_its_extra(core):
    (core.folder / "plan.yaml").write_text(
        "name: s\nmodels: [model]\ncalibration: [texts.jsonl]\nsamples: 2\nseq_len: 16\npruners: [wanda]\n"
        "patterns: [50%]\nseeds: 2\nevaluations: [{perplexity: texts.jsonl, limit: 2, seq_len: 16}]\n"
    )
    study = with_extra(core, "study")
    study.run("calibrune", "study", "run", "plan.yaml", "--quiet")
    assert "| " in study.run("calibrune", "study", "report", "plan.yaml", "--format", "md")
