"""Small corpora and tasks in the form of the shared data."""

import gzip
import json
import random
from pathlib import Path

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "no", "dog", "so", "it", "slept", "until", "noon")


def write_corpus(path: Path, seed: int, rows: int = 40, words: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    with gzip.open(path, "wt") as file:
        for _ in range(rows):
            file.write(json.dumps({"text": " ".join(chance.choices(WORDS, k=words))}) + "\n")


def write_tasks(folder: Path) -> None:
    """Rows of ARC-e and PIQA."""
    arc = [
        {"id": str(i), "question": f"what sat {i}", "answerKey": "A",
         "choices": {"text": ["the cat", "the mat"], "label": ["A", "B"]}}
        for i in range(8)
    ]  # fmt: skip
    piqa = [{"goal": f"to sleep {i}", "sol1": "sit on a mat", "sol2": "saw a dog", "label": i % 2} for i in range(8)]
    for name, rows in {"arc_easy/test": arc, "arc_easy/validation": arc, "piqa/validation": piqa}.items():
        path = folder / "evals" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
