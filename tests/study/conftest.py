"""A tiny model on disk, and small corpora and tasks in the form of the shared data."""

import json
from pathlib import Path

import pytest
from tiny_models import tiny_model, tiny_tokenizer

WORDS = "the cat sat on a mat and saw that no dog was in sight so it slept until noon then ate some fish".split()


def text(seed: int, n: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * i * (seed + 3) + i) % len(WORDS)] for i in range(n))


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """`model/` and `data/`."""
    folder = tmp_path_factory.mktemp("study")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for i, name in enumerate(("one", "two")):
        write_lines(folder / f"data/corpora/{name}.jsonl", [{"text": text(i * 40 + n, 60)} for n in range(30)])
    write_lines(folder / "data/corpora/alpaca.jsonl.gz.plain", [{"text": text(n, 9)} for n in range(6)])
    return folder
