"""A tracker is told of every row once, whatever happens in between; real trackers where they are installed."""

import json
import sqlite3
import sys

import of_ones_own
import pytest
from made_up_study import make_up, row_of
from of_ones_own import KEPT, Keeper
from typer.testing import CliRunner

from calibrune.cli import app
from calibrune.errors import ConfigError
from calibrune.progress import show_progress
from calibrune.study.results import Results
from calibrune.study.tracking import TRACKED, TRACKERS, Tracker, Tracking, tracker_of


@pytest.fixture(autouse=True)
def nothing_kept():
    KEPT.clear()
    yield
    show_progress(None)


def rows_for(folder, n=4):
    plan, _ = make_up(folder / "made-up")
    rows = Results(folder / "made-up").rows()[:n]
    results = Results(folder / "out")
    results.folder.mkdir()
    return plan, rows, results


def cli(*arguments):
    return CliRunner().invoke(app, ["study", "run", *map(str, arguments)])


@pytest.fixture
def plan(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text((place / "plan.yaml").read_text())
    return ("plan.yaml", "--data", place / "data", "--set", "calibration=[random]", "--track", "of_ones_own:Keeper")


def test_every_run_is_tracked_with_its_settings_and_its_scores(plan, tmp_path):
    said = cli(*plan, "--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["done"] == 4  # whatever the tracker prints
    rows = Results(tmp_path / "studies/small").rows()
    assert [one["id"] for one in KEPT] == [row["key"] for row in rows]
    assert [one["name"] for one in KEPT] == [
        "dense", "magnitude, 60%", "wanda, 60%, random, seed 0", "wanda, 60%, random, seed 1"
    ]  # fmt: skip
    last, row = KEPT[-1], rows[-1]
    assert last["study"] == "small"
    assert last["config"]["calibration.spec"] == "random"
    assert (last["config"]["calibration.samples"], last["config"]["seed"]) == (4, 1)
    assert (last["config"]["status"], last["error"]) == ("done", None)
    (score,) = row["scores"]
    name = f"{score['dataset']}/{score['metric']}"
    assert last["values"][name] == score["value"]
    assert (f"{name}_stderr" in last["values"]) == (score["stderr"] is not None)
    assert last["values"]["pruning/sparsity"] == row["pruning"]["sparsity"]


def test_started_again_it_tracks_what_is_new_alone(plan, tmp_path):
    cli(*plan, "--set", "seeds=1")
    assert len(KEPT) == 3
    cli(*plan)
    assert len(KEPT) == len({one["id"] for one in KEPT}) == 4


def test_a_tracker_that_comes_late_is_told_of_all_rows(plan):
    cli(*plan[:-2])
    assert KEPT == []
    cli(*plan)
    assert len(KEPT) == 4


def test_a_tracker_that_fails_is_one_warning_and_takes_up_where_it_was(plan, tmp_path):
    said = cli(*plan[:-1], "of_ones_own:Keeper:fails_at=1")
    assert said.exit_code == 0
    assert "4 of 4 runs done" in said.stdout
    assert said.stderr.count("the disk is full") == 1
    assert "the study goes on" in said.stderr
    assert len(KEPT) == 1
    cli(*plan)
    assert [one["id"] for one in KEPT] == [row["key"] for row in Results(tmp_path / "studies/small").rows()]


def test_a_run_that_failed_is_tracked_with_its_error_and_done_again_it_is_another(tmp_path):
    _, rows, results = rows_for(tmp_path)
    failed = {key: value for key, value in rows[2].items() if key != "scores"}
    failed |= {"status": "failed", "error": "the machine caught fire"}
    tracking = Tracking(Keeper(), "made-up", results)
    for row in (rows[0], failed, rows[2]):
        results.append(row)
        tracking.note(row)
    assert [one["error"] for one in KEPT] == [None, "the machine caught fire", None]
    assert [one["id"] for one in KEPT] == [rows[0]["key"], rows[2]["key"], f"{rows[2]['key']}-2"]
    assert KEPT[1]["config"]["error"] == "the machine caught fire"
    Tracking(Keeper(), "made-up", results)
    assert len(KEPT) == 3


def test_of_a_study_that_was_begun_anew_all_is_told(tmp_path):
    _, rows, results = rows_for(tmp_path)
    for row in rows:
        results.append(row)
    Tracking(Keeper(), "made-up", results)
    results.file.write_text("")
    results.append(rows[0])
    Tracking(Keeper(), "made-up", results)
    assert len(KEPT) == 5


def test_what_is_no_number_is_no_value(tmp_path):
    plan, _, results = rows_for(tmp_path)
    results.append(row_of(plan.runs[0], {("alpaca", "perplexity"): float("inf"), ("piqa", "acc"): 0.5}))
    Tracking(Keeper(), "made-up", results)
    assert "alpaca/perplexity" not in KEPT[0]["values"]
    assert KEPT[0]["values"]["piqa/acc"] == 0.5


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_says_how_to_get_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"{name} needs a package that is not installed: pip install "):
        tracker_of(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trackoi", "there is no tracker 'trackoi'; did you mean 'trackio'"),
        ("of_ones_own:Kepper", "the module 'of_ones_own' has no class 'Kepper'; did you mean 'Keeper'"),
        ("of_ones_own:Wordy", "'of_ones_own:Wordy' is no tracker: it has no finish and no log and no start"),
    ],
)
def test_a_tracker_that_is_none_is_told_before_anything_starts(plan, tmp_path, name, message):
    said = cli(*plan[:-1], name)
    assert said.exit_code == 2
    assert message in " ".join(said.stderr.split())
    assert not (tmp_path / "studies").exists()


def test_the_protocol_is_what_the_classes_have():
    assert isinstance(Keeper(), Tracker)
    assert of_ones_own.Keeper.__module__ == "of_ones_own"


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    for name, module in list(sys.modules.items()):  # they read where to write when they are imported
        if name.startswith("trackio.") and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return trackio


@pytest.mark.filterwarnings("ignore")
def test_trackio_has_every_row_in_its_database_and_needs_no_network(trackio, tmp_path):
    _, rows, results = rows_for(tmp_path)
    for row in rows:
        results.append(row)
    for _ in range(2):
        Tracking(tracker_of("trackio"), "made-up", results)
    assert json.loads((results.folder / TRACKED).read_text()) == {"Trackio": 4}
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        told = dict(opened.execute("select run_name, metrics from metrics").fetchall())
        configs = dict(opened.execute("select run_name, config from configs").fetchall())
    assert [name.partition(" (")[2] for name in told] == [f"{row['key']})" for row in rows]
    assert json.loads(told[f"dense ({rows[0]['key']})"])["arc_easy/acc"] == rows[0]["scores"][0]["value"]
    assert json.loads(configs[f"dense ({rows[0]['key']})"])["model.name"] == "a-model"


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_every_row_and_which_failed(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    _, rows, results = rows_for(tmp_path)
    for row in (rows[0], {**rows[1], "status": "failed", "error": "broke", "scores": []}):
        results.append(row)
    for _ in range(2):
        Tracking(tracker_of("mlflow"), "made-up", results)
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("made-up").experiment_id])
    assert {run.info.status: run.data.params.get("error") for run in runs} == {"FINISHED": None, "FAILED": "broke"}
    (done,) = [run for run in runs if run.info.status == "FINISHED"]
    assert done.data.metrics["arc_easy/acc"] == rows[0]["scores"][0]["value"]
