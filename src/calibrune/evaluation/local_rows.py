"""The rows of evaluation sets from a local folder, in the place of the hub's.

A task of the harness names a dataset of the hub, a subset and its splits. Here these names lead to files; prompts,
metrics and everything else stay the harness's. A row has the fields that the task's own code reads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrune.corpora.unpacking import unpacked
from calibrune.durable import parsed, sha256_of
from calibrune.errors import CorpusError
from calibrune.evaluation import row_checks

ENDINGS = (".jsonl.gz", ".jsonl.zst", ".jsonl")


@dataclass(frozen=True)
class LocalSet:
    """Where the rows of a dataset lie, and what each must have."""

    folder: str
    """In the data folder, or in its `evals/`; one file a split: `validation.jsonl.gz`, ..."""
    fields: Mapping[str, type | tuple[type, ...]] = field(default_factory=dict)
    """What the harness reads of a row, and of which type."""
    subset_field: str | None = None
    """The field that tells the subsets apart, where one file has them all."""
    check: row_checks.Check = lambda row: iter(())
    """What else is wrong with a row whose fields are there."""


_ARC = {"question": str, "choices": dict, "answerKey": str}

LOCAL_SETS: dict[tuple[str, str | None], LocalSet] = {
    ("aps/super_glue", "boolq"): LocalSet(
        "boolq", {"passage": str, "question": str, "label": int}, check=row_checks.boolq
    ),
    ("baber/piqa", None): LocalSet(
        "piqa", {"goal": str, "sol1": str, "sol2": str, "label": int}, check=row_checks.piqa
    ),
    ("Rowan/hellaswag", None): LocalSet(
        "hellaswag",
        {"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": list, "label": (int, str)},
        check=row_checks.hellaswag,
    ),
    ("allenai/winogrande", "winogrande_xl"): LocalSet(
        "winogrande",
        {"sentence": str, "option1": str, "option2": str, "answer": str},
        check=row_checks.winogrande,
    ),
    ("allenai/ai2_arc", "ARC-Easy"): LocalSet("arc_easy", _ARC, check=row_checks.arc),
    ("allenai/ai2_arc", "ARC-Challenge"): LocalSet("arc_challenge", _ARC, check=row_checks.arc),
}
"""By dataset and subset; MMLU, whose subsets are many, is in `local_set`."""


def local_set(dataset: str, subset: str | None) -> LocalSet:
    """Where a dataset of the hub is looked for: a known place, or `owner--name` or `owner--name--subset`.

    >>> local_set("EleutherAI/lambada_openai", "default").folder
    'EleutherAI--lambada_openai--default'
    """
    if dataset == "cais/mmlu":
        fields = {"question": str, "choices": list, "answer": int, "subject": str}
        return LocalSet("mmlu", fields, "subject", row_checks.mmlu)
    unknown = LocalSet("--".join([*dataset.split("/"), *([subset] if subset else [])]))
    return LOCAL_SETS.get((dataset, subset), unknown)


@dataclass
class LocalRows:
    """Rows by dataset, subset and split, from a folder; each file is read once."""

    data: Path
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files that were read, by their path in the folder."""
    _rows: dict[Path, list[dict[str, Any]]] = field(default_factory=dict)

    def rows(self, dataset: str, subset: str | None, split: str) -> list[dict[str, Any]] | None:
        """The rows of a split; None where there is no file for it.

        Raises:
            CorpusError: a row cannot be read, lacks a field, or has one of another type, or with a value that the
                task has no meaning for (`row_checks`).
        """
        where = local_set(dataset, subset)
        path = self.find(where, split)
        if path is None:
            return None
        if path not in self._rows:
            self.files[str(path.relative_to(self.data))] = sha256_of(path)
            self._rows[path] = list(_read(path, where))
        rows = self._rows[path]
        return [row for row in rows if row[where.subset_field] == subset] if where.subset_field else rows

    def find(self, where: LocalSet, split: str) -> Path | None:
        """The file of a split; None where there is none."""
        places = (folder / f"{split}{ending}" for folder in self.folders(where) for ending in ENDINGS)
        return next(filter(Path.is_file, places), None)

    def folders(self, where: LocalSet) -> tuple[Path, Path]:
        """Where the files of a set are looked for, in this order."""
        return self.data / "evals" / where.folder, self.data / where.folder


def _read(path: Path, where: LocalSet) -> Iterator[dict[str, Any]]:
    with unpacked(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = parsed(line)
            except ValueError as error:
                raise CorpusError(f"{path}, line {number}: no JSON ({error}); each line is one row") from None
            if not isinstance(row, dict):
                raise CorpusError(f"{path}, line {number}: a row is a JSON object, found {type(row).__name__}")
            if wrong := next(_wrong(row, where), None):
                raise CorpusError(f"{path}, line {number}: {wrong}")
            yield row


def _wrong(row: dict[str, Any], where: LocalSet) -> Iterator[str]:
    for name, kinds in where.fields.items():
        if name not in row:
            yield f"the field {name!r} is missing; there are: {_names(row)}"
        # to Python True is a number, and to the harness it would be choice 1
        elif not isinstance(row[name], kinds) or isinstance(row[name], bool):
            yield f"the field {name!r} is a {type(row[name]).__name__}, a {_kind(kinds)} is needed"
    yield from where.check(row)


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def _kind(kinds: type | tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
