"""A tiny model on disk, small corpora in the place of the shared ones, and a small plan."""

from pathlib import Path

import pytest
from study_data import write_corpus
from tiny_models import tiny_model, tiny_tokenizer

PLAN = """
name: small
models: [MODEL]
calibration:
  - {source: corpora/one.jsonl.gz, name: one}
  - {source: corpora/two.jsonl.gz, name: two}
  - {source: selfgen, name: selfgen, among: 8, batch_size: 4}
samples: 4
seq_len: 24
pruners: [magnitude, wanda]
patterns: [60%]
seeds: 2
evaluations:
  - {perplexity: corpora/texts.jsonl.gz, limit: 4, seq_len: 16}
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """`model/`, `data/corpora/` and `plan.yaml`."""
    folder = tmp_path_factory.mktemp("study")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for seed, name in enumerate(("one", "two", "texts")):
        write_corpus(folder / f"data/corpora/{name}.jsonl.gz", seed)
    (folder / "plan.yaml").write_text(PLAN.replace("MODEL", str(folder / "model")))
    return folder
