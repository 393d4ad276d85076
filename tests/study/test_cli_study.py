"""The verbs of `study` on the command line."""

import json

import pytest
from typer.testing import CliRunner

from calibrune.cli import app
from calibrune.progress import show_progress


@pytest.fixture(autouse=True)
def quiet_afterwards():
    yield
    show_progress(None)


def cli(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


@pytest.fixture
def plan(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text((place / "plan.yaml").read_text())
    return tmp_path / "plan.yaml"


def test_a_dry_run_lists_runs_what_they_share_and_what_they_take(place, plan, tmp_path):
    said = cli("run", plan, "--data", place / "data", "--dry-run")
    assert said.exit_code == 0
    assert "8 runs" in said.stdout
    assert "model, wanda, 60%, two, seed 1" in said.stdout
    assert "6 calibration sets for 6 runs that read one" in said.stdout
    for what in ("time:", "memory:", "disk:", "factor of three"):
        assert what in said.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
    found = json.loads(cli("run", plan, "--data", place / "data", "--dry-run", "--json").stdout)
    assert len(found["runs"]) == 8
    assert found["estimate"]["seconds"] > 0


def test_run_and_status_say_how_the_study_stands(place, plan, tmp_path):
    small = ("--set", "seeds=1", "--set", "calibration=[random]")
    before = cli("status", plan)
    assert "0 of 8 runs done, 0 failed, 8 left" in before.stdout
    assert "time left: unknown" in before.stdout
    said = cli("run", plan, "--data", place / "data", *small)
    assert said.exit_code == 0, said.output
    assert "small in studies/small: 3 of 3 runs done, 0 failed, 0 left" in said.stdout
    assert "[3/3, 0 min left] model, wanda, 60%, random, seed 0" in said.stderr
    for where in (plan, tmp_path / "studies/small"):
        assert json.loads(cli("status", where, "--json").stdout)["done"] == 3


def test_a_study_with_a_failed_run_ends_with_status_1_and_says_what_to_do(place, plan):
    small = ("--set", "seeds=1", "--set", "calibration=[corpora/one.jsonl.gz]", "--set", "samples=9000")
    said = cli("run", plan, "--data", place / "data", *small)
    assert said.exit_code == 1
    assert "1 failed" in said.stdout
    assert "9,000 samples" in said.stdout
    assert "--retry-failed" in said.stdout


def test_a_wrong_plan_ends_with_status_2_before_anything_starts(place, plan, tmp_path):
    for arguments, message in [
        (("run", tmp_path / "nowhere.yaml"), "there is no plan"),
        (("run", plan, "--set", "prunners=[wanda]"), "did you mean 'pruners'?"),
        (("run", plan), "corpora/one.jsonl.gz"),
        (("status", place / "model"), "holds no study"),
    ]:
        said = cli(*arguments)
        assert said.exit_code == 2
        assert message in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
