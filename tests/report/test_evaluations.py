"""Scores and comparisons as text and as a page: what needs no model to be seen."""

from math import inf

import numpy as np

from calibrune.evaluation.paired import Evaluation, compare
from calibrune.evaluation.score import Score
from calibrune.report.evaluations import comparison_text, comparisons_table, evaluation_page, summary
from calibrune.report.page import Folded, Picture

RNG = np.random.default_rng(0)


def score(metric, items, *, value=None, higher=True, **protocol) -> Score:
    items = tuple(map(float, items))
    return Score(
        metric=metric, value=sum(items) / len(items) if value is None else value, stderr=None, n=len(items),
        higher_is_better=higher, items=items,
        protocol={"dataset": "mmlu", "limit": None, "harness": "0", "source": {}, **protocol},
    )  # fmt: skip


def evaluation(name, shift) -> Evaluation:
    right = np.arange(100) < 60 - shift
    losses = 2.0 + 0.01 * shift + np.arange(40) / 40
    return Evaluation(
        name,
        (
            score("acc", right, shots=0, documents=[1, 5]),
            score("acc", ~right, shots=5),
            score("perplexity", losses, value=float(np.exp(losses.mean())), higher=False),
            score("mean perplexity of texts", losses, higher=False),
            score("perplexity of a broken model", [1.0, inf], value=inf, higher=False),
        ),
        {"calibrune": "0"},
        f"calibrune evaluate {name}",
    )


MODELS = [evaluation("dense", 0), evaluation("same", 0), evaluation("worse", 30)]


def test_a_task_in_two_ways_is_two_rows_and_what_has_another_unit_another_axis():
    page = evaluation_page(MODELS, compare(MODELS))
    pictures = [section for section in page.sections if isinstance(section, Picture)]
    titles = ["accuracy", "perplexity", "mean perplexity of texts"]
    assert [one.alt.removeprefix("Paired differences of ").partition(",")[0] for one in pictures] == titles
    for row in ("mmlu acc: same", "mmlu acc: same (2)", "mmlu acc: worse", "mmlu acc: worse (2)"):
        assert row in pictures[0].svg
    assert "relative change of perplexity; left is better" in pictures[1].svg
    html = page.html()
    assert all(f"calibrune evaluate {one.model}" in html for one in MODELS)
    folded = [section for section in page.sections if isinstance(section, Folded)]
    assert len(folded) == 3  # those of the others are the same, and the perplexities share one
    assert ["documents", "1, 5"] in folded[0].table.rows


def test_the_text_names_for_every_model_what_is_shown_and_what_is_not():
    found = compare(MODELS)
    said = summary(found)
    assert said.startswith("same: no difference shown. worse: worse in mmlu acc, ")
    assert "better in mmlu acc" in said  # with five examples it is the other way round
    assert summary([one for one in found if one.difference is None]) == "Nothing could be compared."
    text = comparison_text(MODELS, found)
    assert "not compared: a value is not finite" in text
    assert all(one in text for one in ("same beside dense", "worse beside dense", "+35%"))
    assert "Not of all models" not in text
    fewer = [MODELS[0], Evaluation("short", MODELS[1].scores[:2])]
    assert "not compared everywhere: mmlu mean perplexity of texts" in " ".join(
        comparison_text(fewer, compare(fewer)).split()
    )


def test_a_number_of_each_unit_is_written_in_it():
    [accuracy, _, perplexity, mean, broken] = comparisons_table(compare(MODELS[::2])).cells
    assert accuracy[4] == "-0.3"
    assert perplexity[4] == "+35%"  # exp(0.3) - 1
    assert mean[4] == "+12.1%"  # 0.3 of 2.4875
    assert broken[2:7] == ["–", "–", "–", "–", "–"]


def test_the_page_of_one_model_draws_its_accuracies():
    page = evaluation_page(MODELS[:1])
    [picture] = [section for section in page.sections if isinstance(section, Picture)]
    assert "Scores of every task" in picture.alt
    assert page.title == "Scores of dense"
    assert page.footer == "calibrune 0"


def test_windows_that_are_too_few_for_blocks_are_said_under_the_table():
    losses = 2.0 + np.arange(24) / 40

    def said(n):
        one = score("perplexity", losses[:n], value=float(np.exp(losses[:n].mean())), higher=False, windows=n)
        both = [Evaluation("A", (one,)), Evaluation("B", (one,))]
        return " ".join(comparison_text(both, compare(both)).split())

    few = "Of mmlu perplexity: windows taken for independent, for there are fewer than 25, and so the intervals may be"
    assert few in said(24)
    losses = np.tile(losses, 2)
    assert "fewer than 25" not in said(30)
    assert "p (Holm)" in said(30)
