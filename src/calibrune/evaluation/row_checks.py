"""What the harness takes for granted of a row, set by set: it scores a wrong answer key without a word, or breaks off.

Each check says what is wrong with a row, a sentence for each thing; the fields and their types were checked before.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Check = Callable[[dict[str, Any]], Iterator[str]]


def boolq(row: dict[str, Any]) -> Iterator[str]:
    """A question about a passage; the choices are no (0) and yes (1)."""
    yield from _filled(row, "passage", "question")
    yield from _counted(row, "label", 2)


def piqa(row: dict[str, Any]) -> Iterator[str]:
    """A goal and two solutions."""
    yield from _filled(row, "goal", "sol1", "sol2")
    yield from _counted(row, "label", 2)


def hellaswag(row: dict[str, Any]) -> Iterator[str]:
    """A beginning, whose second part may be empty, and its endings."""
    yield from _filled(row, "ctx_a")
    yield from _texts("endings", row["endings"])
    yield from _counted(row, "label", len(row["endings"]))


def winogrande(row: dict[str, Any]) -> Iterator[str]:
    """A sentence with a gap, and two options for it."""
    yield from _filled(row, "sentence", "option1", "option2")
    if "_" not in row["sentence"]:
        yield "the field 'sentence' has no _ in it, where the options go"
    if row["answer"] not in ("1", "2"):
        yield f"the field 'answer' is {row['answer']!r}, and the options are '1' and '2'"


def arc(row: dict[str, Any]) -> Iterator[str]:
    """A question, and choices with labels of their own, which are not always A to D."""
    yield from _filled(row, "question")
    parts = {name: row["choices"].get(name) for name in ("text", "label")}
    if wrong := next((name for name, part in parts.items() if not isinstance(part, list)), None):
        yield f"the field 'choices' needs a list {wrong!r}, and has: {', '.join(map(str, row['choices'])) or 'nothing'}"
        return
    texts, labels = parts["text"], parts["label"]
    yield from _texts("choices", texts)
    if len(texts) != len(labels):
        yield f"the field 'choices' has {len(labels)} labels, and {len(texts)} texts for them"
    if row["answerKey"] not in labels:
        yield f"the field 'answerKey' is {row['answerKey']!r}, and the labels are: {', '.join(map(str, labels))}"


def mmlu(row: dict[str, Any]) -> Iterator[str]:
    """A question and four choices, which the prompt calls A to D."""
    yield from _filled(row, "question")
    if len(row["choices"]) != 4:
        yield f"the field 'choices' has {len(row['choices'])} of them, and the prompt asks for four"
    yield from _texts("choices", row["choices"])
    yield from _counted(row, "answer", 4)


def _filled(row: dict[str, Any], *names: str) -> Iterator[str]:
    yield from (f"the field {name!r} is empty" for name in names if not row[name].strip())


def _texts(name: str, choices: Sequence[Any]) -> Iterator[str]:
    if len(choices) < 2:
        yield f"the field {name!r} has {len(choices)} of them, and a question needs two choices or more"
    wrong = [one for one in choices if not isinstance(one, str) or not one.strip()]
    if wrong:
        yield f"the field {name!r} has {wrong[0]!r} in it, where a text that is not empty is needed"


def _counted(row: dict[str, Any], name: str, n: int) -> Iterator[str]:
    """HellaSwag's label is a text of digits on the hub."""
    if str(row[name]) not in map(str, range(n)):
        yield f"the field {name!r} is {row[name]!r}, and the choices are counted from 0 to {n - 1}"
