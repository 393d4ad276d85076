"""The texts that perplexity is measured on: named ones, a file, and some that every Python brings along."""

import gzip
import hashlib
import json
import platform
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibrune.errors import ConfigError, CorpusError
from calibrune.evaluation.perplexity import Perplexity, TextPerplexity, WindowPerplexity
from calibrune.evaluation.score import Score
from calibrune.lm.loading import LanguageModel
from calibrune.settings import nearest

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named set of texts for evaluation, and how the literature measures on it."""

    file: str | None
    """Its name in the data folder; None: the texts come with Python."""
    protocol: Perplexity
    note: str
    """What a reader of the number must know."""


DATASETS = {
    "wikitext2": Dataset(
        file="wikitext2_test.jsonl.gz",
        protocol=WindowPerplexity(),
        note="WikiText-2 raw, test split. Ranks Wikipedia first as calibration data where accuracy ranks it last: "
        "never choose calibration data by it.",
    ),
    "c4": Dataset(
        file="c4.jsonl.gz",
        protocol=WindowPerplexity(join=" "),
        note="The head of C4's train split: only for models that were not calibrated on the same documents.",
    ),
    "alpaca": Dataset(
        file="alpaca.jsonl.gz",
        protocol=TextPerplexity(),
        note="Stanford Alpaca in its template, prompt and answer scored alike.",
    ),
    "python-docs": Dataset(
        file=None,
        protocol=WindowPerplexity(),
        note="The help topics of the running Python: technical English that differs between Python versions.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class EvaluationTexts:
    """Texts in hand, with the protocol to measure on them and where they came from."""

    name: str
    texts: tuple[str, ...]
    """In the order of the source, empty ones included."""
    protocol: Perplexity
    source: dict[str, Any]
    """The file's name and hash, or the Python version; a note."""

    def scores(self, lm: LanguageModel, limit: int | None = None) -> tuple[Score, ...]:
        """The protocol's score; where single texts are averaged, by both averages, the protocol's own first."""
        if isinstance(self.protocol, TextPerplexity):
            both = self.protocol.both(lm, self.texts, limit)
            scores = [both.pop(self.protocol.average), *both.values()]
        else:
            scores = [self.protocol.score(lm, self.texts, limit)]
        where = {"dataset": self.name, "source": self.source}
        return tuple(replace(score, protocol={**score.protocol, **where}) for score in scores)


def evaluation_texts(name: str, data: Path | None = None, protocol: Perplexity | None = None) -> EvaluationTexts:
    """The texts called `name`: an entry of `DATASETS`, or a .txt, .jsonl or .jsonl.gz file.

    Args:
        name: the name or the path; a name wins over a file of the same name.
        data: the folder that has the named files, in it or in its `corpora/`.
        protocol: how to measure, instead of the dataset's own way (for a file: `WindowPerplexity()`).

    Raises:
        ConfigError: there is no such name and no such file, or a named file is wanted and no folder was given.
        CorpusError: the file is not in the folder, or cannot be read.
    """
    if name not in DATASETS:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"there is no evaluation text {name!r}, and no such file{nearest(name, DATASETS)}")
        return EvaluationTexts(
            name=path.name, texts=read_texts(path), protocol=protocol or WindowPerplexity(), source=_pinned(path)
        )
    dataset = DATASETS[name]
    if dataset.file is None:
        texts = tuple(python_documentation())
        source: dict[str, Any] = {"python": platform.python_version()}
    else:
        path = _find(name, dataset.file, data)
        texts, source = read_texts(path), _pinned(path)
    return EvaluationTexts(
        name=name, texts=texts, protocol=protocol or dataset.protocol, source={**source, "note": dataset.note}
    )


def python_documentation() -> list[str]:
    """The help topics of Python's own documentation, in the order of their names: about 450 kB of English."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:
        raise CorpusError("this Python was installed without its help topics (pydoc_data); name a text file") from None
    return [topics[topic] for topic in sorted(topics)]


def read_texts(path: Path) -> tuple[str, ...]:
    """All texts of a file, empty ones included: the `text` of each JSON line, or a .txt file as one text.

    Raises:
        CorpusError: the file cannot be read, has no text in it, or a line of it has none.
    """
    if not path.name.endswith(SUFFIXES):
        raise CorpusError(f"cannot read {path.name}: evaluation texts are files ending in {', '.join(SUFFIXES)}")
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    texts = (text,) if path.suffix == ".txt" else tuple(_texts_of_lines(path, text))
    if not any(map(str.strip, texts)):
        raise CorpusError(f"{path} has no text in it, so there is nothing to measure on; name another file")
    return texts


def _texts_of_lines(path: Path, content: str) -> Iterator[str]:
    # not splitlines(), which also splits at the line separators of Unicode, allowed inside JSON strings
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise CorpusError(f'{path}, line {number}: wanted an object with a "text", got {line[:60]}')
        yield row["text"]


def _find(name: str, file: str, data: Path | None) -> Path:
    if data is None:
        raise ConfigError(
            f"{name} is read from a data folder with {file} in it, and none was given; say which (--data DIR); "
            f"python-docs needs none"
        )
    for path in (data / "corpora" / file, data / file):
        if path.is_file():
            return path
    raise CorpusError(f"{name}: there is no {file} in {data / 'corpora'} or {data}: name the folder that has it")


def _pinned(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
