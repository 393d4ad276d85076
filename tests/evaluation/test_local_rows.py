"""Rows from a folder: what is missing or makes no sense is named by file, line and field before anything is scored."""

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'calibrune[evaluate]'")

from calibrune.errors import CorpusError
from calibrune.evaluation.local_rows import LocalRows
from calibrune.evaluation.tasks import load_tasks, parse_tasks


def write(folder: Path, name: str, *rows: object) -> None:
    path = folder / "evals" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


PIQA = {"goal": "Open a door.", "sol1": "Push it.", "sol2": "Eat it.", "label": 0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            (PIQA, {key: value for key, value in PIQA.items() if key != "sol2"}),
            r"validation.jsonl, line 2: .*'sol2' is missing; there are: goal, sol1, label",
        ),
        ((PIQA, "\n", PIQA | {"label": "0"}), "line 3: the field 'label' is a str, a int is needed"),
        ((PIQA, "{oh\n"), "line 2: no JSON"),
        (([1],), "line 1: a row is a JSON object, found list"),
        ((), r"needs the rows of its validation split, and .*validation.jsonl has none; check --data"),
    ],
)  # fmt: skip
def test_a_row_that_lacks_something_is_named_by_file_line_and_field(rows, message, tmp_path):
    write(tmp_path, "piqa/validation.jsonl", *rows)
    with pytest.raises(CorpusError, match=message):
        load_tasks(parse_tasks("piqa"), LocalRows(tmp_path))


def test_examples_need_rows_of_their_own(tmp_path):
    write(tmp_path, "piqa/validation.jsonl", PIQA)
    with pytest.raises(CorpusError, match=r"train split, and there is no train.jsonl .*num_fewshot=0 needs none"):
        load_tasks(parse_tasks("piqa:num_fewshot=2"), LocalRows(tmp_path))
    assert load_tasks(parse_tasks("piqa"), LocalRows(tmp_path))[0].tasks["piqa"].eval_docs[0]["sol2"] == "Eat it."


BOOLQ = {"passage": "Doors open.", "question": "do doors open", "label": 1}
HELLASWAG = {
    "activity_label": "Doors",
    "ctx_a": "A man",
    "ctx_b": "",
    "endings": ["sits.", "eats.", "runs."],
    "label": "2",
}
WINOGRANDE = {"sentence": "The door and the wall: _ opens.", "option1": "door", "option2": "wall", "answer": "1"}
CHOICES = {"text": ["Push.", "Eat.", "Sing."], "label": ["1", "2", "3"]}
ARC = {"question": "How?", "choices": CHOICES, "answerKey": "3"}
MMLU = {"question": "How?", "choices": ["Push.", "Eat.", "Sing.", "Run."], "answer": 3, "subject": "anatomy"}
GOOD = {
    "boolq": ("boolq/validation", BOOLQ),
    "piqa": ("piqa/validation", PIQA),
    "hellaswag": ("hellaswag/validation", HELLASWAG),
    "winogrande": ("winogrande/validation", WINOGRANDE),
    "arc_easy": ("arc_easy/test", ARC),
    "arc_challenge": ("arc_challenge/test", ARC),
    "mmlu_anatomy": ("mmlu/test", MMLU),
}


@pytest.mark.parametrize("task", GOOD)
def test_good_rows_of_every_set_are_read(task, tmp_path):
    file, row = GOOD[task]
    write(tmp_path, f"{file}.jsonl", row, row)
    assert len(load_tasks(parse_tasks(task), LocalRows(tmp_path))[0].tasks[task].eval_docs) == 2


@pytest.mark.parametrize(
    ("task", "change", "says"),
    [
        ("boolq", {"label": 2}, "'label' is 2, and the choices are counted from 0 to 1"),
        ("boolq", {"label": True}, "'label' is a bool, a int is needed"),
        ("boolq", {"passage": " "}, "'passage' is empty"),
        ("piqa", {"label": 5}, "'label' is 5, and the choices are counted from 0 to 1"),
        ("piqa", {"label": -1}, "'label' is -1, and"),
        ("piqa", {"sol1": ""}, "'sol1' is empty"),
        ("hellaswag", {"label": "3"}, "'label' is '3', and the choices are counted from 0 to 2"),
        ("hellaswag", {"label": ""}, "'label' is '', and"),
        ("hellaswag", {"endings": ["a", None]}, "'endings' has None in it, where a text that is not empty is needed"),
        ("hellaswag", {"endings": ["a"]}, "'endings' has 1 of them, and a question needs two choices or more"),
        ("winogrande", {"answer": "3"}, "'answer' is '3', and the options are '1' and '2'"),
        ("winogrande", {"sentence": "No gap."}, "'sentence' has no _ in it"),
        ("winogrande", {"option2": ""}, "'option2' is empty"),
        ("arc_easy", {"choices": {"texts": ["a"]}}, "'choices' needs a list 'text', and has: texts"),
        ("arc_easy", {"choices": {}}, "'choices' needs a list 'text', and has: nothing"),
        ("arc_easy", {"choices": {"text": ["a", "b"]}}, "'choices' needs a list 'label', and has: text"),
        ("arc_easy", {"choices": CHOICES | {"text": ["a", "b"]}}, "'choices' has 3 labels, and 2 texts for them"),
        ("arc_challenge", {"choices": CHOICES | {"text": ["a"]}}, "'choices' has 1 of them"),
        ("arc_challenge", {"answerKey": "Z"}, "'answerKey' is 'Z', and the labels are: 1, 2, 3"),
        ("mmlu_anatomy", {"answer": 9}, "'answer' is 9, and the choices are counted from 0 to 3"),
        ("mmlu_anatomy", {"choices": ["a", "b"]}, "'choices' has 2 of them, and the prompt asks for four"),
        ("mmlu_anatomy", {"question": ""}, "'question' is empty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("line", [1, 4])
def test_a_row_that_makes_no_sense_is_named_by_file_line_and_field(task, change, says, line, tmp_path):
    file, row = GOOD[task]
    write(tmp_path, f"{file}.jsonl", *[row] * (line - 1), row | change, row)
    with pytest.raises(CorpusError) as found:
        load_tasks(parse_tasks(task), LocalRows(tmp_path))
    assert f"{file}.jsonl, line {line}: the field {says}" in str(found.value)


def test_fewer_rows_than_examples_are_said_before_anything_is_scored(tmp_path):
    write(tmp_path, "mmlu/test.jsonl", MMLU)
    write(tmp_path, "mmlu/dev.jsonl", *[MMLU] * 3, MMLU | {"subject": "astronomy"})
    says = r"takes 5 examples from .*dev.jsonl, which has 3 rows of the subject 'anatomy'.*ask for num_fewshot=3"
    with pytest.raises(CorpusError, match=says.replace("subject", "subset")):
        load_tasks(parse_tasks("mmlu_anatomy:num_fewshot=5"), LocalRows(tmp_path))
    load_tasks(parse_tasks("mmlu_anatomy:num_fewshot=3"), LocalRows(tmp_path))


def test_an_empty_file_is_told_from_a_missing_one(tmp_path):
    with pytest.raises(CorpusError) as missing:
        load_tasks(parse_tasks("piqa"), LocalRows(tmp_path))
    folders = f"{tmp_path / 'evals' / 'piqa'} or {tmp_path / 'piqa'}"
    assert f"there is no validation.jsonl (or validation.jsonl.zst, validation.jsonl.gz) in {folders}" in str(
        missing.value
    )
    write(tmp_path, "mmlu/test.jsonl", MMLU)
    with pytest.raises(
        CorpusError, match=r"rows of the subset 'astronomy' of its test split, and .*test.jsonl has none"
    ):
        load_tasks(parse_tasks("mmlu_astronomy"), LocalRows(tmp_path))
