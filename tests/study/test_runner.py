"""A study on a tiny model, from its plan to its rows."""

import json
import multiprocessing
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from full_disk import room_for
from study_data import write_corpus

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import build_calibration
from calibrune.errors import CalibruneError, OutputError, StorageError
from calibrune.evaluation.texts import evaluation_texts
from calibrune.lm.loading import load_model, weights_fingerprint
from calibrune.prune import prune_model
from calibrune.pruners import Wanda
from calibrune.study.reading import read_plan, read_selection
from calibrune.study.results import Results
from calibrune.study.runner import run_study, status
from calibrune.study.sets import draw
from calibrune.study.workbench import Workbench


def lasting(row):
    """What of a row is the same whenever and wherever it was made."""
    return {key: value for key, value in row.items() if key != "seconds"}


def rows_of(out: Path):
    return [lasting(row) for row in Results(out).rows()]


@pytest.fixture(scope="module")
def plan(place):
    return read_plan(place / "plan.yaml")


@pytest.fixture(scope="module")
def done(place, plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("done") / "out"
    return out, run_study(plan, out, data=place / "data")


def test_every_run_has_a_row_in_the_order_of_the_plan(done, plan):
    out, said = done
    assert (said["runs"], said["done"], said["failed"], said["left"]) == (8, 8, 0, 0)
    rows = Results(out).rows()
    assert [row["id"] for row in rows] == [spec.id for spec in plan.runs]
    assert rows[0]["run"]["pruner"] is None
    assert [row["pruning"] and round(row["pruning"]["sparsity"], 1) for row in rows] == [None, *[0.6] * 7]
    assert rows[1]["run"]["calibration"] is None


def test_a_row_is_what_the_same_steps_by_hand_give(done, place):
    row = next(row for row in Results(done[0]).rows() if "wanda, 60%, two, seed 1" in as_text(row))
    lm = load_model(place / "model")
    data = build_calibration(str(place / "data/corpora/two.jsonl.gz"), lm, n_samples=4, seq_len=24, seed=1)
    prune_model(lm.model, data, Wanda(), "60%")
    texts = evaluation_texts(str(place / "data/corpora/texts.jsonl.gz"))
    (score,) = texts.fitted(lm, 16).scores(lm, 4)
    assert row["calibration"]["fingerprint"] == data.fingerprint
    assert row["weights"] == weights_fingerprint(lm.model)
    (found,) = row["scores"]
    assert (found["value"], found["stderr"], found["n"]) == (score.value, score.stderr, 4)
    assert tuple(found["items"]) == score.items


def test_a_text_is_measured_in_every_way_that_is_asked_for(place, tmp_path):
    text = "corpora/texts.jsonl.gz"
    evaluations = [{"perplexity": f"{text}:seq_len=12:stride=4,{text}:protocol=texts", "seq_len": 16, "limit": 4}]
    plan = read_plan(place / "plan.yaml", ["pruners=[magnitude]", f"evaluations={json.dumps(evaluations)}"])
    run_study(plan, tmp_path, data=place / "data")
    results = Results(tmp_path)
    row = results.rows()[0]
    windows, *single = results.record(row["key"])["scores"]
    assert [score["dataset"] for score in row["scores"]] == [
        "texts.jsonl.gz:seq_len=12:stride=4", *["texts.jsonl.gz:texts"] * 2
    ]  # fmt: skip
    assert (windows["protocol"]["seq_len"], windows["protocol"]["stride"]) == (12, 4)
    assert {score["protocol"]["protocol"] for score in single} == {"text_perplexity"}
    assert {score["n"] for score in row["scores"]} == {4}


def as_text(row):
    run = row["run"]
    seed = "" if run["seed"] is None else f", seed {run['seed']}"
    return f"{run['pruner']}, 60%, {run['calibration'] and run['calibration']['name']}{seed}"


def test_the_divergence_from_the_dense_model_is_measured_beside_a_perplexity(place, tmp_path):
    text = "corpora/texts.jsonl.gz"
    settings = ["calibration=[corpora/two.jsonl.gz]", "seeds=[1]", "pruners=[wanda]"]
    evaluations = [{"perplexity": text, "seq_len": 16, "limit": 4, "against": "dense"}]
    plan = read_plan(place / "plan.yaml", [*settings, f"evaluations={json.dumps(evaluations)}"])
    run_study(plan, tmp_path, data=place / "data")
    dense, pruned = [row for row in Results(tmp_path).rows() if row["run"]["pruner"] in (None, "wanda")]
    lm, texts = load_model(place / "model"), evaluation_texts(str(place / "data" / text))
    data = build_calibration(str(place / "data/corpora/two.jsonl.gz"), lm, n_samples=4, seq_len=24, seed=1)
    prune_model(lm.model, data, Wanda(), "60%")
    expected = texts.fitted(lm, 16).agreement(lm, load_model(place / "model"), 4)
    found = {score["metric"]: score["value"] for score in pruned["scores"]}
    assert found == {**{one.metric: one.value for one in expected}, "perplexity": found["perplexity"]}
    assert found["KL divergence"] > 0
    of_dense = {score["metric"]: score["value"] for score in dense["scores"]}
    assert of_dense["KL divergence"] == pytest.approx(0, abs=1e-6)
    assert of_dense["top-1 agreement"] == 1
    given = ([{**evaluations[0], "against": None}], [{"perplexity": text, "seq_len": 16, "limit": 4}])
    named, without = (read_plan(place / "plan.yaml", [*settings, f"evaluations={json.dumps(one)}"]) for one in given)
    assert [one.id for one in named.runs] == [one.id for one in without.runs] != [one.id for one in plan.runs]


def test_a_runs_record_has_the_manifest_the_layers_and_the_protocols(done):
    results = Results(done[0])
    row = results.rows()[-1]
    record = results.record(row["key"])
    assert record["calibration"]["fingerprint"] == row["calibration"]["fingerprint"]
    assert record["calibration"]["source"]["name"] == "selfgen"
    assert len(record["report"]["layers"]) == 21
    assert record["scores"][0]["protocol"]["seq_len"] == 16


def test_started_again_it_does_nothing_and_a_plan_that_grew_does_what_is_new(done, place, plan, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    before = (out / "results.jsonl").read_bytes()
    assert run_study(plan, out, data=place / "data")["done"] == 8
    assert (out / "results.jsonl").read_bytes() == before
    grown = read_plan(place / "plan.yaml", ["seeds=3", "calibration=[{source: corpora/one.jsonl.gz, name: one}]"])
    assert run_study(grown, out, data=place / "data")["done"] == 5
    after = (out / "results.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == before.count(b"\n") + 1


def test_only_the_runs_that_are_meant_are_done_and_the_rest_when_all_are(done, place, plan, tmp_path):
    meant = read_selection(plan, ["pruner=wanda", "seed=1", "calibration=one,two"])
    found = run_study(plan, tmp_path / "out", only=meant, data=place / "data")
    rows = Results(tmp_path / "out").rows()
    assert [as_text(row) for row in rows[1:]] == ["wanda, 60%, one, seed 1", "wanda, 60%, two, seed 1"]
    assert rows[0]["run"]["pruner"] is None
    assert (found["done"], found["left"]) == (3, 5)  # of the whole study
    run_study(plan, tmp_path / "out", data=place / "data")
    assert sorted(map(str, rows_of(tmp_path / "out"))) == sorted(map(str, rows_of(done[0])))


def test_another_content_of_a_file_is_another_run(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    plan = read_plan(place / "plan.yaml", ["calibration=[corpora/one.jsonl.gz]", "seeds=1", "pruners=[wanda]"])

    def keys():
        return [spec.key for spec in Workbench(plan.models[0], tmp_path / "data").pin(plan.runs)]

    before = keys()
    assert keys() == before
    write_corpus(tmp_path / "data/corpora/one.jsonl.gz", 7)
    calibrated_anew = keys()
    assert [a == b for a, b in zip(before, calibrated_anew, strict=True)] == [True, False]
    write_corpus(tmp_path / "data/corpora/texts.jsonl.gz", 8)
    assert not set(keys()) & {*before, *calibrated_anew}


def test_the_model_is_dense_again_to_the_bit_after_every_run(place):
    plan = read_plan(place / "plan.yaml", ["pruners=[sparsegpt]", "calibration=[random]", "seeds=1"])
    bench = Workbench(plan.models[0], place / "data")
    (dense, pruned) = bench.pin(plan.runs)
    row = bench.run(pruned).row
    assert row["weights"] != bench.weights == weights_fingerprint(bench.lm.model)
    assert bench.run(dense).row["weights"] == bench.weights


def test_a_run_that_fails_is_a_row_with_its_error_and_the_others_go_on(place, tmp_path):
    # 39 documents of 200 characters cannot give 900 windows of 100; with 4 they can
    plan = read_plan(place / "plan.yaml", ["samples=[900, 4]", "seq_len=100", "seeds=1", "pruners=[wanda]"])
    plan = replace(plan, grids=(replace(plan.grids[0], calibration=plan.grids[0].calibration[:2]),))
    said = run_study(plan, tmp_path, data=place / "data")
    assert (said["done"], said["failed"]) == (2, 1)
    assert "900 samples" in said["errors"][0]["error"]
    assert run_study(plan, tmp_path, data=place / "data") == said
    assert len(Results(tmp_path).rows()) == 3
    assert run_study(plan, tmp_path, data=place / "data", retry_failed=True)["failed"] == 1
    rows = Results(tmp_path).rows()
    assert [row["status"] for row in rows] == ["done", "failed", "done", "failed"]
    assert lasting(rows[1]) == lasting(rows[3])


def test_a_failed_run_that_succeeds_when_tried_again_counts_as_done(place, tmp_path, plan):
    run_study(plan, tmp_path, data=place / "data")
    rows = Results(tmp_path).rows()
    Results(tmp_path).append({**rows[2], "status": "failed", "error": "the machine caught fire", "scores": []})
    assert status(plan, Results(tmp_path))["errors"] == [{"run": str(plan.runs[2]), "error": "the machine caught fire"}]
    assert run_study(plan, tmp_path, data=place / "data", retry_failed=True)["done"] == 8
    assert lasting(Results(tmp_path).rows()[-1]) == lasting(rows[2])


def test_a_row_that_a_crash_cut_short_is_done_anew(done, place, plan, tmp_path):
    for end in (1, 200):
        out = tmp_path / str(end)
        shutil.copytree(done[0], out)
        (out / "results.jsonl").write_bytes((done[0] / "results.jsonl").read_bytes()[:-end])
        run_study(plan, out, data=place / "data")
        assert rows_of(out) == rows_of(done[0])
        assert all(json.loads(line) for line in (out / "results.jsonl").read_text().splitlines())


def test_a_second_process_is_told_that_one_is_at_work(place, plan, tmp_path):
    results = Results(tmp_path)
    with results.lock():
        results.note({"running": "something"})
        assert status(plan, results)["running"] == "something"
        with pytest.raises(OutputError, match=r"another process \(number \d+\) is at work"):
            run_study(plan, tmp_path, data=place / "data")
    assert status(plan, results)["process"] is None


def test_a_folder_with_another_study_is_left_alone(place, plan, tmp_path):
    (tmp_path / "plan.yaml").write_text("name: other\n")
    with pytest.raises(OutputError, match=r"holds the study 'other', and this is 'small'"):
        run_study(plan, tmp_path, data=place / "data")
    assert not (tmp_path / "results.jsonl").exists()


def test_what_cannot_be_read_is_told_before_any_run(place, tmp_path):
    def told(*settings):
        plan = read_plan(place / "plan.yaml", settings)
        with pytest.raises(CalibruneError) as caught:
            run_study(plan, tmp_path / "out", data=place / "data")
        assert not (tmp_path / "out" / "results.jsonl").exists()
        assert not (tmp_path / "out" / "plan.yaml").exists()
        return str(caught.value)

    assert "nowhere" in told("calibration=[corpora/nowhere.jsonl]")
    assert "evaluation text" in told("evaluations=[{perplexity: nowhere.txt}]")
    assert "no folder" in told("models=[./nowhere]")
    assert "divisible by 7" in told("patterns=['3:7']")


def test_of_two_models_the_one_that_cannot_be_read_fails_and_the_other_goes_on(place, tmp_path):
    plan = read_plan(place / "plan.yaml", [f"models=[./nowhere, {place / 'model'}]", "pruners=[magnitude]"])
    said = run_study(plan, tmp_path, data=place / "data")
    assert (said["done"], said["failed"]) == (2, 2)
    assert run_study(plan, tmp_path, data=place / "data") == said
    assert len(Results(tmp_path).rows()) == 4


def test_items_of_large_scores_are_in_the_record(tmp_path):
    score = {"dataset": "many", "metric": "acc", "value": 0.5, "stderr": None, "higher_is_better": True}
    score |= {"items": [0.5] * 5000}
    row = {"key": "k", "id": "i", "status": "done", "scores": [score]}
    row |= {"run": {"pruner": None}, "seconds": {"all": 1.0}}
    Results(tmp_path).append(row, {"scores": [score]})
    (found,) = Results(tmp_path).rows()
    assert found["scores"][0]["items"] is None
    assert Results(tmp_path).items(found) == [[0.5] * 5000]


def test_a_run_whose_record_is_damaged_is_done_anew(done, place, plan, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    records = sorted((out / "runs").iterdir())
    whole = records[0].read_bytes()
    records[0].write_bytes(whole.replace(b"0.6", b"0.7", 1) if b"0.6" in whole else whole[:-2])
    records[1].unlink()  # somebody did not want it
    run_study(plan, out, data=place / "data")
    assert len(Results(out).rows()) == 9
    expected = Results(done[0]).latest()
    assert {key: lasting(row) for key, row in Results(out).latest().items()} == {
        key: lasting(row) for key, row in expected.items()
    }


def test_a_study_whose_disk_is_full_ends_and_writes_no_run_down_as_failed(place, plan, tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    with room_for(9_000), pytest.raises(StorageError, match="File too large"):
        run_study(plan, tmp_path / "out", data=place / "data")
    assert "failed" not in [row["status"] for row in Results(tmp_path / "out").rows()]
    assert run_study(plan, tmp_path / "out", data=place / "data")["done"] == 8


def test_samples_of_a_pool_are_nested_and_differ_between_seeds():
    pool = CalibrationSet.from_ids(torch.arange(40).reshape(20, 2))
    few, more, other = draw(pool, 4, 0), draw(pool, 8, 0), draw(pool, 4, 1)
    assert torch.equal(few.input_ids, more.input_ids[:4])
    assert few.fingerprint != other.fingerprint
    assert draw(pool, 20, 3).input_ids.sort(0).values.equal(pool.input_ids)
    assert few.manifest["pool"]["fingerprint"] == pool.fingerprint


def test_proxies_are_in_the_rows(place, tmp_path):
    plan = read_plan(place / "plan.yaml", ["proxies=[repetition, perplexity]", "seeds=1"])
    run_study(plan, tmp_path, data=place / "data")
    rows = Results(tmp_path).rows()
    assert [sorted(row["proxies"]) for row in rows] == [[], [], *[["perplexity", "repetition"]] * 3]
    assert len({row["proxies"]["perplexity"] for row in rows[2:]}) == 3


def work(plan_file: str, out: str, data: str) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    run_study(read_plan(plan_file), Path(out), data=Path(data))


@pytest.mark.slow
def test_killed_at_twenty_random_points_and_resumed_it_has_the_same_rows(place, tmp_path, monkeypatch):
    # processes that begin with everything imported, and are killed by the kernel
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["calibrune.study.runner", "calibrune.study.reading"])
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    caches = 0

    def start(out: Path) -> "multiprocessing.process.BaseProcess":
        process = context.Process(target=work, args=(str(place / "plan.yaml"), str(out), str(place / "data")))
        process.start()
        return process

    whole = tmp_path / "whole"
    begun = time.monotonic()
    start(whole).join()
    begun = time.monotonic() - begun
    expected = rows_of(whole)
    assert len(expected) == 8

    chance, killed, torn, out = random.Random(0), 0, 0, tmp_path / "out-0"
    while killed < 20:
        process = start(out)
        process.join(chance.uniform(0, 0.6) * begun)
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            torn += 0 < len(Results(out).rows()) < 8
        else:
            assert rows_of(out) == expected
            caches += 1
            out = tmp_path / f"out-{caches}"
    assert torn  # some were killed in the middle of the rows
    start(out).join()
    assert rows_of(out) == expected
