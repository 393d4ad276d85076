"""The page of evidence: rows that are kept small and read again, and claims that say what was put into made-up rows."""

import importlib.util
import json
import random
import re
from math import exp, log
from pathlib import Path

import pytest

from calibrune.study.results import Results
from calibrune.study.scores import read_scores

REPOSITORY = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("evidence", REPOSITORY / "docs" / "evidence.py")
evidence = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evidence)

SEEDS = 3
LIKE = {"wikipedia": "wiki-web", "web": "wiki-web", "pubmed": "pubmed-patents", "patents": "pubmed-patents"}
"""The model that knows a domain."""
TRAINING, TEXT, QUALITY = -0.05, -0.02, 0.03


@pytest.fixture(scope="module")
def plan():
    return evidence.read_plan(evidence.PLAN, [f"seeds={SEEDS}"])


def perplexity(run, domain, chance):
    """Data like the training and like the text that is measured lower it, text of patents and papers raises it."""
    if run.pruner is None:
        return 20.0
    name = run.calibration.name if run.calibration else ""
    model = Path(run.model.name).name
    found = log(40.0) + chance.gauss(0, 0.001)
    found += TRAINING * (name == model) + TEXT * (name == LIKE[domain]) + QUALITY * (name == "pubmed-patents")
    return exp(found + 0.2 * (name == "random"))


def row_of(run, chance):
    scores = [
        {"dataset": f"{name}-test.jsonl.gz:texts", "metric": "perplexity", "value": perplexity(run, name, chance)}
        | {"stderr": 1.0, "n": 16, "higher_is_better": False, "items": [3.0] * 16}
        for name in evidence.DOMAINS
    ]
    made = {"compute": {"instructions": "AVX2", "device": "cpu", "threads": 1, "attention": "sdpa"}}
    made["versions"] = {"torch": "2", "transformers": "5", "calibrune": "0"}
    head = {"key": f"key of {run.id}", "id": run.id, "run": run.to_json(), "status": "done"}
    return head | {"proxies": {}, "weights": "w", "scores": scores, "seconds": {"all": 1.5, "pruning": 1.0}} | made


@pytest.fixture(scope="module")
def cells(plan):
    chance = random.Random(0)
    rows = [evidence.whole(json.loads(json.dumps(evidence.compact(row_of(run, chance))))) for run in plan.runs]

    class MadeUp(Results):
        def rows(self):
            return rows

    return evidence.Cells(read_scores(plan, MadeUp(Path())))


def answer(cells, says, name):
    claim = next(one for one in evidence.claims() if one.says.startswith(says))
    return {one.name: one for one in evidence.answers(claim, cells, 0.01)}[name]


def test_being_like_the_training_the_text_and_being_good_come_apart(cells):
    training = answer(cells, "Data like the pre-training data is better", "wanda, 60%")
    assert training.estimate.value == pytest.approx(TRAINING, abs=2e-3)
    text = answer(cells, "Data like the text that is measured", "sparsegpt, 2:4")
    assert text.estimate.value == pytest.approx(TEXT, abs=2e-3)
    assert (training.estimate.n, training.verdict, text.verdict) == (SEEDS, "holds", "holds")
    own = answer(cells, "... measured on the model's own domains", "wanda, 60%")
    foreign = answer(cells, "... measured on domains that it was not trained on", "wanda, 60%")
    assert own.estimate.value == pytest.approx(TRAINING + TEXT, abs=2e-3)
    assert foreign.estimate.value == pytest.approx(TRAINING - TEXT, abs=2e-3)


def test_what_is_not_so_is_said_not_to_hold(cells):
    assert answer(cells, "c4 is better than random", "wanda, 60%").verdict == "holds"
    # nothing was put in that grows with sparsity
    assert answer(cells, "Being like the pre-training data counts for more at", "wanda, 2:4 less 50%").verdict == (
        "does not hold here"
    )
    read = answer(cells, "The very documents", "wanda, 60%")
    assert read.estimate.value == pytest.approx(-TRAINING - 2 / 3 * TEXT - QUALITY / 3, abs=2e-3)
    assert read.verdict == "does not hold here"  # nothing was put in for a model's own documents
    magnitude = answer(cells, "Magnitude, which reads nothing", "60%")
    assert magnitude.estimate.value == pytest.approx(-0.2, abs=2e-3)
    enough = answer(cells, "Statistics of the dense model", "wanda, 2:4")
    assert (enough.verdict, enough.estimate.value) == ("holds", pytest.approx(0, abs=2e-3))


def test_few_seeds_that_scatter_are_no_answer(cells):
    claim = evidence.Claim("x", {"a": []})

    class Scattered:
        def sum(self, terms):
            return [-0.03, 0.02, 0.01, -0.02]

    (found,) = evidence.answers(claim, Scattered(), 0.01)
    assert found.verdict == "cannot be told"
    same = evidence.Claim("x", claim.sums, "same")
    assert evidence.answers(same, Scattered(), 0.01)[0].verdict == "cannot be told"
    Scattered.sum = lambda self, terms: [-0.01]
    assert evidence.answers(claim, Scattered(), 0.01) == []


def test_every_claim_is_about_runs_of_the_plan(cells):
    for claim in evidence.claims():
        assert len(evidence.answers(claim, cells, 0.01)) == len(claim.sums), claim.says
        for name, terms in claim.sums.items():
            total = sum(term.weight for term in terms)
            assert total == pytest.approx(0), (claim.says, name)  # a common factor of all perplexities falls out


def test_rows_are_collected_added_to_and_restored(plan, tmp_path):
    chance = random.Random(1)
    study, results = tmp_path / "known-pretraining", tmp_path / "results"
    study.mkdir()
    (study / "plan.yaml").write_text("name: known-pretraining\n")
    for run in plan.runs[:3]:
        Results(study).append(row_of(run, chance))
    file = evidence.collect(study, results)
    assert max(map(len, file.read_text().splitlines())) < 1000
    Results(study).append(row_of(plan.runs[3], chance))
    Results(study).append({**row_of(plan.runs[4], chance), "status": "failed"})
    again = tmp_path / "again" / study.name
    assert (evidence.collect(study, results), evidence.restore(again, results)) == (file, 4)
    assert evidence.restore(again, results) == 0
    ids = {row["id"] for row in Results(again).rows()}
    assert ids == {run.id for run in plan.runs[:4]}
    before, after = (read_scores(plan, one) for one in (Results(study), Results(again)))
    assert [line[:4] for line in after.table.sort("key").rows()] == [
        line[:4] for line in before.table.sort("key").rows()
    ]


def test_the_plan_reads_the_files_that_the_splits_write():
    from examples.known_pretraining import splits

    named = re.findall(r"[\w-]+(?=\.jsonl\.gz)", evidence.PLAN.read_text(encoding="utf-8"))
    assert set(named) == set(json.loads((splits.HERE / "splits.json").read_text(encoding="utf-8")))
