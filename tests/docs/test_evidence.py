"""The page of evidence: rows that are kept small and read again, and claims that say what was put into made-up rows."""

import importlib.util
import json
import random
import re
import sys
from math import exp, log
from pathlib import Path
from types import SimpleNamespace

import pytest

from calibrune.patterns import percent
from calibrune.study.reading import read_plan
from calibrune.study.results import Results
from calibrune.study.scores import read_scores

REPOSITORY = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("evidence", REPOSITORY / "docs" / "evidence.py")
evidence = importlib.util.module_from_spec(spec)
spec.loader.exec_module(evidence)
rows, pages, spreads, fresh = (sys.modules[f"evidence_{name}"] for name in ("rows", "pages", "spreads", "fresh"))

SEEDS = 3
LETTERS = list("abcdefgh")
LIKE = {"wikipedia": "wiki-web", "web": "wiki-web", "pubmed": "pubmed-patents", "patents": "pubmed-patents"}
"""The model that knows a domain."""
TRAINING, TEXT, QUALITY = -0.05, -0.02, 0.03


@pytest.fixture(scope="module")
def plan():
    return read_plan(rows.PLANS / "known-pretraining.yaml", [f"seeds={SEEDS}"])


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
def cells(plan, tmp_path_factory):
    chance = random.Random(0)
    made = [json.dumps(rows.compact(row_of(run, chance))) for run in plan.runs]
    return read(plan, made, tmp_path_factory.mktemp("results") / "known-pretraining.jsonl")


def read(plan, lines, file):
    file.write_text("\n".join(lines) + "\n")
    return evidence.Cells(read_scores(plan, rows.CommittedRows(file)))


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
    growing = answer(cells, "Being like the pre-training data counts for more under", "wanda, 2:4 less 50%")
    assert growing.verdict == "the same within the margin"
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
    # what was put back, and what was done beside it, is collected as it was
    (again / "plan.yaml").write_text("name: known-pretraining\n")
    collected = file.read_text()
    assert evidence.collect(again, results).read_text() == collected
    assert evidence.collect(again, tmp_path / "elsewhere").read_text() == collected
    # a row that was made anew since then is not replaced by what was put back
    Results(study).append(row_of(plan.runs[0], chance) | {"weights": "others"})
    renewed = evidence.collect(study, results).read_text()
    assert renewed != collected
    assert evidence.collect(again, results).read_text() == renewed
    ids = {row["id"] for row in Results(again).rows()}
    assert ids == {run.id for run in plan.runs[:4]}
    before, after = (read_scores(plan, one) for one in (Results(study), Results(again)))
    assert [line[:4] for line in after.table.sort("key").rows()] == [
        line[:4] for line in before.table.sort("key").rows()
    ]


def test_rows_that_were_made_again_are_held_against_the_committed_ones(plan, tmp_path):
    def made(folder, factor):
        folder.mkdir(parents=True)
        (folder / "plan.yaml").write_text("name: known-pretraining\n")
        for run in plan.runs[:3]:
            row, chance = row_of(run, random.Random(1)), random.Random(2)
            scores = [score | {"value": chance.uniform(20, 30) * factor} for score in row["scores"]]
            Results(folder).append(row | {"scores": scores})
        return folder

    first, results = made(tmp_path / "first" / "known-pretraining", 1.0), tmp_path / "results"
    evidence.collect(first, results)
    cells = [line.split(" | ") for line in rows.compared(made(tmp_path / "second", 1.02), results).splitlines()[2:]]
    assert {(mean_of, largest) for *_, mean_of, largest in cells} == {("+2.00%", "+2.00% |")}
    assert sum(int(one[3]) for one in cells) == sum(len(row["scores"]) for row in Results(first).rows())
    # of what was only put back there is nothing to say
    again = tmp_path / "again" / "known-pretraining"
    assert evidence.restore(again, results) == 3
    (again / "plan.yaml").write_text("name: known-pretraining\n")
    assert "+" not in rows.compared(again, results)


RECIPES = {"temperature:temperature=1.0": -0.03, "random": 0.1, "quarter-c4": 0.0}
"""What was put into the made-up rows of the ablations, beside the study's recipe."""


@pytest.fixture
def ablated(monkeypatch, tmp_path):
    """The plan of ablations, a few of its recipes, with rows in which perplexity of the set says what comes of it."""
    plan = read_plan(rows.PLANS / "known-ablations.yaml", ["seeds=5", "proxies=[perplexity, vocabulary]"])
    chance, lines = random.Random(2), []
    for run in plan.runs:
        name = run.calibration.name if run.calibration else ""
        if name not in (*RECIPES, "selfgen", "drop-both"):
            continue
        worse = RECIPES.get(name, 0.0 if name == "selfgen" else 0.02)
        row = row_of(run, chance)
        for score in row["scores"]:
            score["value"] = exp(3 + worse + chance.gauss(0, 1e-4))
        lines.append(json.dumps(rows.compact(row | {"proxies": {"perplexity": worse, "vocabulary": chance.random()}})))
    cells = read(plan, lines, tmp_path / "known-ablations.jsonl")
    monkeypatch.setattr(evidence, "study", lambda name: (plan, cells))
    return cells


def line_of(table, name):
    return next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))


def test_a_recipe_is_held_against_the_studys(ablated):
    found = evidence.ablations_table()
    assert line_of(found, "temperature:temperature=1.0").count("| better |") == 2
    assert "-2.96%" in line_of(found, "temperature:temperature=1.0")
    assert line_of(found, "random").count("| worse |") == 2
    assert line_of(found, "quarter-c4").count("| the same |") == 2
    assert "`selfgen`" not in [line.split("|")[1].strip() for line in found.splitlines()]


def test_a_proxy_is_judged_by_its_ranks_and_by_what_it_would_have_chosen(ablated):
    found = evidence.proxies_table()
    perplexity = line_of(found, "perplexity")
    # three models, two patterns; two recipes, alike to the proxy, are never quite alike
    assert perplexity.count("+0.97 [") + perplexity.count("+1.00 [") == 6
    assert "| lower |" in perplexity
    assert perplexity.count("-2.96% [") + perplexity.count("-2.95% [") == 2
    assert "`repetition`" not in found


def test_the_best_recipe_is_chosen_by_some_seeds_and_judged_by_others(ablated):
    written, of_all = evidence.best_text().splitlines()
    assert "`temperature:temperature=1.0` is best by the seeds 0 to 1; by 3 others it gives -2.9" in written
    assert "temperature=1.0" in of_all


def test_claims_about_published_models_are_about_runs_of_a_plan():
    plans = {name: read_plan(rows.PLANS / f"{name}.yaml") for name in evidence.REAL}
    runs = {place_of(one) for plan in plans.values() for one in plan.runs}
    model = evidence.REAL["smollm2"].model
    for claim in evidence.asked_of(evidence.REAL["smollm2"]):
        for terms in claim.sums.values():
            assert {(term.model, term.calibration, term.how) for term in terms} <= runs
            assert sum(term.weight for term in terms) == pytest.approx(0)
    # of the others' plans each has what the claims in the README compare
    for other in {one.model for one in evidence.REAL.values()} - {model}:
        measured = {calibration for name, calibration, _ in runs if name == other}
        assert {"c4", "random", "selfgen", "selfgen-plain", "wikipedia"} <= measured


def test_all_ways_to_prune_are_judged_together_and_on_average():
    title = evidence.REAL["smollm2"].title
    claims = {one.says: one for one in evidence.asked_of(evidence.REAL["smollm2"])}
    asked = claims["Self-generated text is better than C4"].sums
    assert {f"{title}, {how}, wikitext2" for how in ("60%", "2:4", "sparsegpt, 60%")} < set(asked)
    assert len(asked) > 20
    mean = claims[f"Self-generated text is better than C4{evidence.OVER_ALL}"].sums[f"{title}, alpaca"]
    assert {(term.calibration, term.weight) for term in mean} == {("selfgen", 1 / 8), ("c4", -1 / 8)}
    assert len({term.how for term in mean}) == 8
    without = claims[f"Self-generated text is better than C4{evidence.OVER_ALL}"].sums[
        f"{title}, both texts, without SparseGPT"
    ]
    assert {round(term.weight, 6) for term in without} == {round(1 / 14, 6), -round(1 / 14, 6)}


def test_one_that_is_shown_to_be_worse_is_enough_against_a_claim_about_all():
    def overall(*verdicts, of_all=True):
        found = [evidence.Answer(str(i), None, verdict, True, 0.0) for i, verdict in enumerate(verdicts)]
        return rows.overall(evidence.Claim("x", {}, of_all=of_all), found)

    assert overall("holds", "does not hold here") == "**does not hold here**: shown to be worse in 1 of 2"
    assert overall("holds", "cannot be told") == "**cannot be told**: shown to be better in 1 of 2"
    assert overall("holds", "holds") == "**holds**"
    assert overall("holds", rows.SAME, of_all=False) == f"holds in 1 of 2; {rows.SAME} in 1 of 2"


def place_of(run):
    pruner = run.pruner if run.allocator in (None, "uniform") else f"{run.pruner} + {run.allocator}"
    how = evidence.How(pruner, run.pattern and percent(run.pattern), run.propagation)
    return run.model.name, run.calibration and run.calibration.name, how


@pytest.fixture(scope="module")
def tasks():
    """Rows of a plan with tasks and divergences, in which what the model wrote is better by a tenth, or two."""
    plan = read_plan(rows.PLANS / "smollm2-tasks.yaml", ["seeds=4"])
    better, chance, lines = {"selfgen": 0.1, "selfgen-plain": 0.2}, random.Random(3), []
    for run in plan.runs:
        quality = better.get(run.calibration.name if run.calibration else "", 0.0) + chance.gauss(0, 1e-3)
        told = [(f"arc_{one}", "acc", 0.4 + quality, True) for one in ("easy", "challenge")]
        told += [("alpaca", "perplexity", exp(3 - quality), False), ("alpaca", rows.KL, exp(-quality), False)]
        scores = [dict(zip(rows.SCORE, (*one[:3], 0.1, 9, one[3]), strict=True)) | {"items": []} for one in told]
        lines.append(json.dumps(rows.compact(row_of(run, chance) | {"scores": scores})))
    return plan, lines


def test_divergence_and_accuracy_are_asked_beside_perplexity(tasks, tmp_path):
    cells = read(*tasks, tmp_path / "smollm2-tasks.jsonl")
    study = evidence.REAL["smollm2-tasks"]
    title = study.title
    asked = evidence.asked_of(study._replace(texts=("alpaca", "alpaca, KL", "mean accuracy")))
    found = {one.name: one for claim in asked[:1] for one in evidence.answers(claim, cells, 0.01)}
    said = {name.removeprefix(f"{title}, 60%, "): evidence.told(one) for name, one in found.items()}
    assert {one.verdict for one in found.values()} == {"holds"}
    accuracy, unit, *_ = said["mean accuracy"].split()
    assert unit == "points"
    assert float(accuracy) == pytest.approx(10, abs=0.3)
    for text in ("alpaca", "alpaca, KL"):
        assert float(said[text].split("%")[0]) == pytest.approx(100 * (exp(-0.1) - 1), abs=0.3)
    # what four seeds with a spread of a thousandth could have shown
    assert 0 < found[f"{title}, 60%, mean accuracy"].least < 0.02


def test_a_study_has_a_page_that_says_of_which_rows_it_is(tasks, tmp_path, monkeypatch):
    plan, lines = tasks
    for name in ("RESULTS", "PAGES"):
        monkeypatch.setattr(pages, name, tmp_path)
    monkeypatch.setattr(pages, "read_plan", lambda file: plan)
    file = tmp_path / "smollm2-tasks.jsonl"
    file.write_text("\n".join(lines) + "\n")
    assert not pages.is_current("smollm2-tasks")
    page = pages.write_page("smollm2-tasks").read_text(encoding="utf-8")
    assert pages.is_current("smollm2-tasks")
    assert "selfgen beats" in page or "on selfgen" in page
    assert "calibrune study run plans/evidence/smollm2-tasks.yaml" in page
    file.write_text("\n".join(lines[:-1]) + "\n")
    assert not pages.is_current("smollm2-tasks")


def test_the_committed_pages_are_of_the_committed_rows():
    assert [name for name in pages.names() if not pages.is_current(name)] == []


def test_how_far_sources_are_apart_is_not_told_by_those_seeds_that_picked_them():
    chance = random.Random(4)
    noise = {name: {seed: chance.gauss(0, 0.05) for seed in range(40)} for name in LETTERS}

    class Alike:
        def by_seed(self, terms):
            return noise[terms[0].calibration]

    how, on = evidence.How("wanda", "60%"), {"m": ("d",)}
    kept, (found,) = spreads.spreads(Alike(), LETTERS, [how], on)
    assert (kept, sorted(found)) == (LETTERS, list(range(40)))
    # they do not differ, though the largest mean is far above the smallest
    assert evidence.t_interval(list(found.values())).holds(0.0)
    noise[LETTERS[0]] = {seed: value + 0.5 for seed, value in noise[LETTERS[0]].items()}
    assert evidence.t_interval(list(spreads.spreads(Alike(), LETTERS, [how], on)[1][0].values())).low > 0.4


def test_how_far_sources_are_apart_is_compared_between_ways_by_what_both_have():
    chance = random.Random(5)
    scale = {"60%": 1.0, "70%": 3.0}

    class Growing:
        def by_seed(self, terms):
            name, pattern = terms[0].calibration, terms[0].how.pattern
            if name == "h" and pattern == "70%":
                return {}
            seeds = range(10 if pattern == "60%" else 6)
            return {seed: scale[pattern] * 0.1 * LETTERS.index(name) + chance.gauss(0, 1e-3) for seed in seeds}

    low, high = (evidence.How("wanda", pattern) for pattern in scale)
    kept, found = spreads.spreads(Growing(), LETTERS, [high, low], {"m": ("d",)})
    assert kept == LETTERS[:-1]
    assert [list(one) for one in found] == [list(range(6))] * 2
    more = [found[0][seed] - found[1][seed] for seed in found[0]]
    (answer,) = rows.judge({"70% less 60%": more}, "higher", 0.01)
    assert answer.estimate.value == pytest.approx(1.2, abs=0.02)
    assert answer.verdict == "holds"
    assert rows.judge({"60% less 70%": [-one for one in more]}, "higher", 0.01)[0].verdict == "does not hold here"
    assert spreads.spreads(Growing(), LETTERS[:2], [high, low], {"m": ("d",)}) == ([], [])


def test_what_was_chosen_by_some_draws_is_judged_by_the_others(monkeypatch):
    chance = random.Random(6)

    class Chosen:
        def by_seed(self, terms):
            one, other = ({term.calibration for term in terms if term.weight * sign > 0} for sign in (1, -1))
            assert one == ({"selfgen"} if other == {"c4"} and one != {fresh.CHATS} else {fresh.CHATS})
            luck = -5.0 if other == {"selfgen"} else 0.0
            return {seed: (luck if seed in fresh.CHOSE else 0.1) + chance.gauss(0, 1e-3) for seed in range(9)}

    monkeypatch.setattr(fresh, "study", lambda name: (SimpleNamespace(margin=0.01), Chosen()))
    for claim, found in fresh.fresh_claims():
        assert claim.headline
        assert {one.verdict for one in found} == {"does not hold here"}
        assert [one.estimate.n for one in found] == [6] * (5 if claim.says == fresh.RECIPE else 10)


def test_all_models_that_answer_a_claim_are_judged_together():
    for claim, found in (*evidence.real_claims(), *evidence.growth_claims()):
        names = [one.name for one in found]
        assert len(names) == len(set(names))
        parts = [rows.of_models([(claim, found)], [title]) for title in (*evidence.published(), *evidence.TRAINED_HERE)]
        assert sum(len(answers) for part in parts for _, answers in part) == len(found)
    says = {claim.says: {one.name.split(",")[0] for one in found} for claim, found in evidence.real_claims()}
    assert says["Self-generated text is better than C4"] == set(evidence.published())


def test_the_texts_that_judge_it_had_no_part_in_choosing_it():
    new, old = (read_plan(rows.PLANS / f"{name}.yaml") for name in ("smollm2-fresh", "smollm2"))
    texts, chose = ({text for one in plan.evaluations for text in one.texts} for plan in (new, old))
    assert [re.search(r"(\w+)\.jsonl\.gz", text)[1] for text in sorted(texts)] == sorted(fresh.FRESH)
    assert not {text.split(":")[0] for text in texts} & {text.split(":")[0] for text in chose}
    assert not {spec.seed for spec in new.runs if spec.calibration} & set(fresh.CHOSE)
    assert {spec.calibration.name for spec in new.runs if spec.calibration} == {fresh.CHATS, *fresh.AGAINST}


def test_the_plan_reads_the_files_that_the_splits_write():
    from examples.known_pretraining import splits

    plans = [(rows.PLANS / f"{name}.yaml").read_text(encoding="utf-8") for name in (evidence.KNOWN, evidence.ABLATIONS)]
    named = re.findall(r"[\w-]+(?=\.jsonl\.gz)", "\n".join(plans))
    assert set(named) == set(json.loads((splits.HERE / "splits.json").read_text(encoding="utf-8")))
