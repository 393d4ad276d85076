"""The texts that perplexity is measured on: named ones, a file, and some that every Python brings along."""

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibrune.corpora.files import FileCorpus
from calibrune.errors import ConfigError, CorpusError
from calibrune.evaluation.perplexity import Bos, Perplexity, TextPerplexity, WindowPerplexity
from calibrune.evaluation.score import Score
from calibrune.lm.hub import hub_file
from calibrune.lm.loading import LanguageModel
from calibrune.settings import nearest


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named set of texts for evaluation, and how the literature measures on it."""

    file: str | None
    """Its name in the data folder; None: the texts come with Python."""
    protocol: Perplexity
    note: str
    """What a reader of the number must know."""
    hub: tuple[str, str] | None = None
    """The hub's dataset and the file in it; None: the hub does not have it as it is needed."""


DATASETS = {
    "wikitext2": Dataset(
        file="wikitext2_test.jsonl.gz",
        hub=("Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet"),
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
        hub=("tatsu-lab/alpaca", "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"),
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

    def with_windows(self, lm: LanguageModel, seq_len: int | None = None, bos: Bos = "tokenizer") -> "EvaluationTexts":
        """With windows of the length that is asked for, or that the model can read; the same if not so measured."""
        protocol = self.protocol
        if not isinstance(protocol, WindowPerplexity):
            return self
        length = seq_len or min(protocol.seq_len, lm.context_length or protocol.seq_len)
        return replace(self, protocol=replace(protocol, seq_len=length, bos=bos))

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
    """The texts called `name`: an entry of `DATASETS`, or any file that `FileCorpus` reads.

    Args:
        name: the name or the path; a name wins over a file of the same name.
        data: the folder that has the named files, in it or in its `corpora/`; None: from the hub, where it has them.
        protocol: how to measure, instead of the dataset's own way (for a file: `WindowPerplexity()`).

    Raises:
        ConfigError: there is no such name and no such file, or only a folder could have it and none was given.
        CorpusError: the file is not in the folder, the hub cannot be reached, or the file cannot be read.
    """
    if name in DATASETS:
        dataset = DATASETS[name]
        own, note = dataset.protocol, {"note": dataset.note}
        file = None if dataset.file is None else _find(name, dataset, data)
    else:
        own, note, file = WindowPerplexity(), {}, Path(name)
        if not file.is_file():
            raise ConfigError(f"there is no evaluation text {name!r}, and no such file{nearest(name, DATASETS)}")
        name = file.name
    texts = tuple(python_documentation()) if file is None else read_texts(file)
    source = {"python": platform.python_version()} if file is None else FileCorpus(path=file).describe()
    return EvaluationTexts(name=name, texts=texts, protocol=protocol or own, source={**source, **note})


def python_documentation() -> list[str]:
    """The help topics of Python's own documentation, in the order of their names: about 450 kB of English."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:
        raise CorpusError("this Python was installed without its help topics (pydoc_data); name a text file") from None
    return [topics[topic] for topic in sorted(topics)]


def read_texts(path: Path) -> tuple[str, ...]:
    """All texts of a file, empty ones included: of WikiText-2, whose rows are lines, the empty ones count.

    Raises:
        CorpusError: the file cannot be read, has no text in it, or a line of it has none.
    """
    texts = tuple(text for _, text in FileCorpus(path=path).rows() if text is not None)
    if not any(map(str.strip, texts)):
        raise CorpusError(f"{path} has no text in it, so there is nothing to measure on; name another file")
    return texts


def _find(name: str, dataset: Dataset, data: Path | None) -> Path:
    """The dataset's file: in the data folder where one is given, else from the hub."""
    if data is None:
        if dataset.hub is None:
            raise ConfigError(f"{name} is read from a data folder with {dataset.file} in it; say which: --data DIR")
        try:
            return hub_file("dataset", *dataset.hub, None, CorpusError).path
        except CorpusError as error:
            raise CorpusError(f"{error}: --data DIR, a folder with {dataset.file} in it") from error
    places = [data / "corpora" / str(dataset.file), data / str(dataset.file)]
    for path in places:
        if path.is_file():
            return path
    raise CorpusError(f"{name} was looked for in {places[0]} and {places[1]} and is in neither; check --data")
