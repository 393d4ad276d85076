"""Every plan for two cores runs from start to page, on a tiny model and small corpora of the same names."""

import json
import re
from pathlib import Path

import pytest
from study_data import write_corpus, write_tasks

from calibrune.report.study import write_report
from calibrune.study.judgement import judge
from calibrune.study.reading import read_plan
from calibrune.study.results import Results
from calibrune.study.runner import run_study
from calibrune.study.scores import read_scores

PLANS = sorted((Path(__file__).resolve().parents[2] / "plans" / "two-core").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every corpus that a plan names, and the tasks."""
    folder = tmp_path_factory.mktemp("data")
    names = {name for path in PLANS for name in re.findall(r"corpora/\w+\.jsonl\.gz", path.read_text())}
    for seed, name in enumerate(sorted({*names, "corpora/alpaca.jsonl.gz"})):
        write_corpus(folder / name, seed)
    write_tasks(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_for_two_cores_runs_from_start_to_page(path, data, place, tmp_path):
    written = read_plan(path)
    samples = [2, 3] if len({spec.calibration.samples for spec in written.runs if spec.calibration}) > 1 else 2
    tasks = [{"tasks": "arc_easy,piqa", "limit": 3}] if path.stem == "quickstart" else []
    settings = {
        "models": [str(place / "model")],
        "samples": samples,
        "seq_len": 24,
        "seeds": 1,
        "evaluations": [{"perplexity": "alpaca", "limit": 2}, *tasks],
    }
    plan = read_plan(path, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    said = run_study(plan, tmp_path, data=data)
    assert (said["done"], said["failed"]) == (len(plan.runs), 0), said["errors"][:1]
    results = Results(tmp_path)
    rows = results.rows()
    pruned = [row for row in rows if row["run"]["pruner"]]
    assert all(row["weights"] != rows[0]["weights"] for row in pruned)
    assert all(len(row["scores"]) == (6 if tasks else 2) for row in rows)
    asked = {spec.calibration and spec.calibration.name for spec in plan.runs}
    assert {row["run"]["calibration"] and row["run"]["calibration"]["name"] for row in rows} == asked
    found = judge(read_scores(plan, results))
    page = write_report(found, results, page=None, command="calibrune study report")
    html = page.read_text(encoding="utf-8")
    assert f"{len(plan.runs)} of {len(plan.runs)}" in html
    assert html.count('class="chart"') == len(list(page.parent.glob("*.svg"))) > 0
    assert {f"arm-{arm.id}" for arm in found.scores.arms} == set(re.findall(r'<details id="([\w-]+)"', html))
    assert len(html) < 2e6
