"""The texts that perplexity is measured on: named ones, a file, and some that every Python brings along."""

import hashlib
import platform
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from calibrune.calibration.spec import parse_spec
from calibrune.corpora.files import FileCorpus
from calibrune.errors import ConfigError, CorpusError
from calibrune.evaluation.agreement import agreement
from calibrune.evaluation.perplexity import Bos, Perplexity, TextPerplexity, WindowPerplexity
from calibrune.evaluation.presets import KINDS, Preset, take_protocol
from calibrune.evaluation.score import Score
from calibrune.evaluation.tasks import harness_version
from calibrune.evaluation.word_perplexity import WordPerplexity, wikitext_pages
from calibrune.lm.hub import hub_file
from calibrune.lm.loading import LanguageModel
from calibrune.settings import defaults, nearest, settings, taken


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named set of texts for evaluation, and how the literature measures on it."""

    file: str | None
    """Its name in the data folder; None: the texts come with Python."""
    protocol: Perplexity
    note: str
    """What a reader of the number must know."""
    hub: tuple[str, str] | None = None
    """The hub's dataset and the file in it; None: the texts come with Python."""


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
        hub=("allenai/c4", "en/c4-validation.00000-of-00008.json.gz"),
        protocol=WindowPerplexity(join=" "),
        note="C4 (en): from the hub its first validation file, as the papers read it. A data folder may have the head "
        "of the train split instead: only for models that were not calibrated on the same documents.",
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


@settings
class Reading:
    """How much of a text is read, and from where in its rows."""

    records: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many rows, before they are joined."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many windows, texts or documents."""
    text_field: str = "text"
    """The field or column that holds the text; as for calibration data."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTexts:
    """Texts in hand, with the protocol to measure on them and where they came from."""

    name: str
    """As asked for, less folders: `wikitext2`, `wikitext2:harness-word`, `rows.jsonl:stride=512`."""
    texts: tuple[str, ...]
    """In the order of the source, empty ones included."""
    protocol: Perplexity
    source: dict[str, Any]
    """The file's name and hash, or the Python version; a note; the preset that was asked for."""
    limit: int | None = None
    """Of windows, texts or documents, where the SPEC or its preset sets one."""
    said: frozenset[str] = frozenset()
    """The protocol's settings that the SPEC or its preset names, so that nothing else may change them."""

    def fitted(self, lm: LanguageModel, seq_len: int | None = None, bos: Bos | None = None) -> "EvaluationTexts":
        """With windows as asked for, and no longer than the model can read; what a SPEC says itself stays.

        Raises:
            ConfigError: a preset's windows are longer than the model's context.
        """
        if not isinstance(self.protocol, WindowPerplexity):
            return self
        own, context = self.protocol.seq_len, lm.context_length
        if (preset := self.source.get("preset")) and context is not None and own > context:
            raise ConfigError(
                f"{preset} measures windows of {own:,} tokens, and the model's context has {context:,}; use "
                f"protocol=windows:seq_len={context}, which is another number"
            )
        asked: dict[str, Any] = {"seq_len": seq_len or min(own, context or own), "bos": bos or self.protocol.bos}
        changes = {name: value for name, value in asked.items() if name not in self.said}
        return replace(self, protocol=replace(self.protocol, **changes))

    def scores(self, lm: LanguageModel, limit: int | None = None) -> tuple[Score, ...]:
        """The protocol's score; where single texts are averaged, by both averages, the protocol's own first."""
        limit = self._at_most(limit)
        if isinstance(self.protocol, TextPerplexity):
            both = self.protocol.both(lm, self.texts, limit)
            scores = [both.pop(self.protocol.average), *both.values()]
        else:
            scores = [self.protocol.score(lm, self.texts, limit)]
        return self._from_here(*scores)

    def agreement(self, lm: LanguageModel, dense: LanguageModel, limit: int | None = None) -> tuple[Score, ...]:
        """KL divergence from the dense model and top-1 agreement with it, on what `scores` measures."""
        return self._from_here(*agreement(lm, dense, self.texts, self.protocol, self._at_most(limit)))

    def asked(self, limit: int | None = None) -> dict[str, Any]:
        """All but the models that can change what `scores` and `agreement` give, as JSON."""
        texts = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode("utf-8", "surrogatepass")
            texts.update(b"%d " % len(encoded) + encoded)
        return {
            "protocol": self.protocol.describe(),
            "limit": self._at_most(limit),
            "texts": texts.hexdigest(),
            "dataset": self.name,
            "source": self.source,
        }

    def _at_most(self, limit: int | None) -> int | None:
        return min((one for one in (limit, self.limit) if one is not None), default=None)

    def _from_here(self, *scores: Score) -> tuple[Score, ...]:
        where = {"dataset": self.name, "source": self.source}
        return tuple(replace(score, protocol={**score.protocol, **where}) for score in scores)


def evaluation_texts(spec: str, data: Path | None = None, protocol: Perplexity | None = None) -> EvaluationTexts:
    """The texts that a SPEC names: an entry of `DATASETS`, or any file that `FileCorpus` reads.

    Args:
        spec: the name or the path, and options: `wikitext2:stride=512`, `c4:protocol=pruning-papers-2048`,
            `rows.jsonl:text_field=body:protocol=texts`. They are the settings of `Reading`, `protocol` (of `PRESETS`,
            or one of `KINDS`), and the settings of that. A name wins over a file of the same name.
        data: the folder that has the named files, in it or in its `corpora/`; None: from the hub.
        protocol: how to measure, instead of the dataset's own way (for a file: `WindowPerplexity()`).

    Raises:
        ConfigError: there is no such name and no such file, no such option or protocol, or it cannot have that value.
        CorpusError: the file is not in the folder, the hub cannot be reached, or the file cannot be read.
    """
    name, options = parse_spec(spec) if spec.strip() else (spec, {})
    dataset = DATASETS.get(name)
    note = {} if dataset is None else {"note": dataset.note}
    if dataset is None and not Path(name).is_file():
        raise ConfigError(f"there is no evaluation text {name!r}, and no such file{nearest(name, DATASETS)}")
    asked = options.get("protocol")
    said = frozenset(options)
    chosen, reading, preset = protocol_of(spec, protocol)
    if isinstance(chosen, WordPerplexity):
        harness_version()  # says what to install before anything is read
    file = _find(name, dataset, data) if dataset else Path(name)
    texts = _texts(file, reading)
    if isinstance(chosen, WordPerplexity) and name == "wikitext2":
        texts = wikitext_pages(texts)
    source: dict[str, Any] = {"python": platform.python_version()}
    if file is not None:
        source = _file(file, reading).describe()
    if reading.records is not None:
        source["records"] = reading.records
    if preset is not None:
        source["preset"] = asked
        said = frozenset(field.name for field in fields(chosen))  # type: ignore[arg-type]
    return EvaluationTexts(
        # a text can be asked for in several ways at once, and each has its line
        name=(name if dataset else Path(name).name) + spec.removeprefix(name).replace(":protocol=", ":"),
        texts=texts,
        protocol=chosen,
        source={**source, **note},
        limit=reading.limit,
        said=said,
    )


def protocol_of(spec: str, protocol: Perplexity | None = None) -> tuple[Perplexity, Reading, Preset | None]:
    """How a SPEC has its text measured and read, and the preset that it names; no file is looked for.

    Arguments are those of `evaluation_texts`.

    Raises:
        ConfigError: there is no such option or protocol, or it cannot have that value.
    """
    name, options = parse_spec(spec)
    own = DATASETS[name].protocol if name in DATASETS else WindowPerplexity()
    chosen, preset = take_protocol(options, protocol or own, name)
    reading = Reading(**dict(preset.reads.get(name, {}) if preset else {}) | taken(options, Reading))
    if options:
        wrong = next(iter(options))
        known = [option for group in text_options(chosen).values() for option in group]
        raise ConfigError(f"the text {name!r} has no option {wrong!r}{nearest(wrong, known)}")
    return chosen, reading, preset


def text_options(protocol: Perplexity) -> dict[str, dict[str, Any]]:
    """The options of a text that is measured so, with their defaults, by what they are about."""
    kind = next((name for name, one in KINDS.items() if isinstance(protocol, one)), None)
    own = {field: getattr(protocol, field) for field in defaults(type(protocol))} if kind else {}
    return {"protocol": {"protocol": kind, **own}, "reading": defaults(Reading)}


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
    return _texts(path, Reading())


def _texts(path: Path | None, reading: Reading) -> tuple[str, ...]:
    if path is None:
        return tuple(python_documentation()[: reading.records])
    rows = islice(_file(path, reading).rows(), reading.records)
    texts = tuple(text for _, text in rows if text is not None)
    if not any(map(str.strip, texts)):
        raise CorpusError(f"{path} has no text in it, so there is nothing to measure on; name another file")
    return texts


def _file(path: Path, reading: Reading) -> FileCorpus:
    return FileCorpus(path=path, text_field=reading.text_field)


def _find(name: str, dataset: Dataset, data: Path | None) -> Path | None:
    """The dataset's file: in the data folder where one is given, else from the hub. None: it comes with Python."""
    if dataset.file is None or dataset.hub is None:
        return None
    if data is None:
        try:
            return hub_file("dataset", *dataset.hub, None, CorpusError).path
        except CorpusError as error:
            raise CorpusError(f"{error}: --data DIR, a folder with {dataset.file} in it") from error
    places = [data / "corpora" / str(dataset.file), data / str(dataset.file)]
    for path in places:
        if path.is_file():
            return path
    raise CorpusError(f"{name} was looked for in {places[0]} and {places[1]} and is in neither; check --data")
