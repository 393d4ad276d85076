"""A dataset of the hub as a corpus: the head of its stream, pinned to a commit and kept on disk.

The rows that were looked at are kept (`CALIBRUNE_CACHE`), so a set can be drawn again when the hub is out of reach or
the dataset has gone, and the passes that sampling takes cost one download.
"""

import difflib
import gzip
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from huggingface_hub import dataset_info
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from pydantic import Field

from calibrune.corpora.document import Document
from calibrune.durable import keeping, sync, write_whole
from calibrune.errors import ConfigError, CorpusError
from calibrune.lm.hub import TIMEOUT, HTTPError, first_line
from calibrune.lm.loading import cache_folder
from calibrune.progress import track
from calibrune.settings import settings

log = logging.getLogger(__name__)

FORMAT = 1
"""Counts changes of what is kept of a row."""

INSTEAD = "a source of `calibrune list sources`, another dataset (hub/OWNER/NAME), or a local file of documents"

_ALPACA = (
    "Below is an instruction that describes a task{with_input}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n{output}"
)


@settings
class HubCorpus:
    """The first rows of a dataset of the hub."""

    dataset: str
    """Its id on the hub: "allenai/c4"."""
    config: str | None = None
    """Which of the dataset's configurations; needed where it has several and names none as the default."""
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit; None: the newest. The commit that was read is recorded."""
    text_field: str = "text"
    """The column that holds the text."""
    template: str = ""
    """Instead of `text_field`: text with columns in braces, "{question}\\n{answer}"; or "alpaca", Stanford's prompt."""
    files: str | None = None
    """Which of the repository's files, as a pattern ("data/part-00*.jsonl.zst"); None: those that its card names. A
    repository of ten thousands of files takes minutes to list."""
    article_begins: str = ""
    """A regular expression: a row that it matches begins a document, and the rows until the next are its lines. Rows of
    WikiText are lines. If not given, each row is a document."""
    scan: int = Field(default=20_000, ge=1)
    """Rows that are looked at, from the first: the sample is of these."""
    name: str = ""
    """What the corpus is called in tables and errors; if not given, the dataset's id."""
    licence: str = "see the dataset's card"
    instead: str = INSTEAD
    """What the errors advise where the dataset is not to be had."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.dataset)
        try:
            re.compile(self.article_begins)
        except re.error as error:
            raise ConfigError(f"article_begins={self.article_begins!r} is no regular expression ({error})") from None
        if self.files and (self.files.startswith("/") or "://" in self.files or ".." in self.files.split("/")):
            raise ConfigError(f"files={self.files!r} leads out of the repository; name files in it")
        if self.template and self.template != "alpaca" and not _braced(self.template):
            raise ConfigError(
                f"template={self.template!r} names no column in braces, as '{{question}} {{answer}}' does, nor is it "
                f"'alpaca'"
            )

    @property
    def in_random_order(self) -> bool:
        return False

    def documents(self) -> Iterator[Document]:
        """Yield the documents with the ids `"{dataset}[/{config}]/{split}:{row, from 0}"`.

        Raises:
            CorpusError: the dataset is not to be had, not what was asked for, damaged, or has no text in these rows.
        """
        prefix = "/".join(part for part in (self.dataset, self.config, self.split) if part)
        found = False
        for number, text in self._articles():
            if text and not text.isspace():
                found = True
                yield Document(text, f"{prefix}:{number}")
        if not found:
            raise CorpusError(f"the {self.kept.rows:,} rows of {prefix} that were looked at have no text in them")

    def describe(self) -> dict[str, Any]:
        """Dataset, commit, what is read of it, how many rows were looked at and their hash, licence."""
        return {
            "kind": "hub dataset",
            "name": self.name,
            **self._asked(),
            "revision": self.revision,
            "commit": self.kept.commit,
            "article_begins": self.article_begins or None,
            "scan": self.scan,
            "rows_looked_at": min(self.kept.rows, self.scan),
            "rows_sha256": self._rows_hash,
            "licence": self.licence,
        }

    @cached_property
    def kept(self) -> "KeptRows":
        """The rows on this machine, fetched if they are not there yet.

        Raises:
            CorpusError: as for `documents`, but for the text.
        """
        folder = cache_folder() / "hub" / hashlib.sha256(json.dumps([FORMAT, self._asked()]).encode()).hexdigest()[:16]
        # a commit never changes, so what is kept of it needs no hub
        pinned = self.revision if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision) else None
        if pinned and (kept := KeptRows.find(folder / pinned, self.scan)):
            return kept
        ref = folder / f"ref-{hashlib.sha256((self.revision or '').encode()).hexdigest()[:8]}"
        try:
            commit = self._commit()
        except CorpusError as error:
            known = ref.read_text() if ref.is_file() else ""
            if known and (kept := KeptRows.find(folder / known, self.scan)):
                log.warning("%s; its rows at commit %s are read from the cache", str(error).split(":")[0], known[:12])
                return kept
            raise
        kept = KeptRows.find(folder / commit, self.scan) or self._fetch(folder / commit)
        with keeping("the commit that was read", ref):
            write_whole(ref, commit.encode())
        return kept

    def _asked(self) -> dict[str, Any]:
        """What decides the rows, but for the commit."""
        return {
            "dataset": self.dataset,
            "config": self.config,
            "split": self.split,
            "text_field": None if self.template else self.text_field,
            "template": self.template or None,
            "files": self.files,
        }

    @cached_property
    def _rows_hash(self) -> str:
        digest = hashlib.sha256()
        for text in self.kept.texts(self.scan):
            digest.update(json.dumps(text).encode())
        return digest.hexdigest()

    def _articles(self) -> Iterator[tuple[int, str | None]]:
        """(row that it begins at, text) of each document, blank ones too."""
        rows = enumerate(self.kept.texts(self.scan))
        if not self.article_begins:
            yield from rows
            return
        begins = re.compile(self.article_begins)
        start, lines = 0, list[str]()
        for number, text in rows:
            if lines and begins.search(text or ""):
                yield start, "".join(lines)
                start, lines = number, []
            lines.append(text or "")
        yield start, "".join(lines)

    def _commit(self) -> str:
        """Ask the hub for the commit of the revision; it answers soon, or it is away."""
        what = f"the dataset {self.dataset!r}"
        try:
            commit = dataset_info(self.dataset, revision=self.revision, timeout=TIMEOUT).sha
        except GatedRepoError as said:
            raise CorpusError(
                f"{what} is gated: accept its terms on the hub and set HF_TOKEN, or use {self.instead}"
            ) from said
        except RevisionNotFoundError as said:
            raise CorpusError(f"{what} has no revision {self.revision!r} on the hub: check it") from said
        except (RepositoryNotFoundError, HFValidationError) as said:
            raise CorpusError(
                f"there is no dataset {self.dataset!r} on the hub: it was removed or renamed, or is private and needs "
                f"HF_TOKEN; use {self.instead}"
            ) from said
        except (OSError, HTTPError) as said:
            raise CorpusError(
                f"{what} cannot be read: the hub cannot be reached ({first_line(said)}), and its rows are not in the "
                f"local cache; use a local file of documents, or rows that were fetched before"
            ) from said
        assert commit is not None
        return commit

    def _fetch(self, folder: Path) -> "KeptRows":
        """Stream the rows into the cache."""
        unfinished = folder / f".{os.getpid()}.unfinished"
        n = 0
        with keeping(f"the rows of {self.dataset!r}", folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with gzip.open(unfinished, "wt", encoding="utf-8", compresslevel=4) as file:
                    for text in self._fetched(folder.name):
                        file.write(json.dumps(text) + "\n")
                        n += 1
                kept = folder / (f"all-{n}.jsonl.gz" if n < self.scan else f"first-{n}.jsonl.gz")
                sync(unfinished)
                unfinished.replace(kept)
                sync(folder)
            finally:
                unfinished.unlink(missing_ok=True)
        return KeptRows(kept)

    def _fetched(self, commit: str) -> Iterator[str | None]:
        """The texts of the rows, from the hub; what goes wrong there is a `CorpusError`."""
        n = 0
        with _streaming(self) as datasets:
            try:
                rows = islice(self._stream(datasets, commit), self.scan)
                for row in track(rows, f"fetching rows of {self.name}", total=self.scan, unit="row"):
                    yield self._text(row, n)
                    n += 1
            except (LocalEntryNotFoundError, ConnectionError, TimeoutError, HTTPError) as said:
                raise CorpusError(
                    f"the hub stopped answering after {n:,} rows of {self.dataset!r} ({first_line(said)}): "
                    f"try again, or use {self.instead}"
                ) from said
            except (OSError, EOFError, ValueError, zlib.error, datasets.exceptions.DatasetsError) as said:
                raise CorpusError(
                    f"the dataset {self.dataset!r} cannot be read after {n:,} rows ({_cause(said)}): its files are "
                    f"damaged, or not of a kind that `datasets` reads; use {self.instead}"
                ) from said

    def _stream(self, datasets: Any, commit: str) -> Iterator[Mapping[str, Any]]:
        what = f"the dataset {self.dataset!r}"
        options = {"revision": commit, "streaming": True} | ({"data_files": self.files} if self.files else {})
        try:
            splits = datasets.load_dataset(self.dataset, self.config, **options)
        except ValueError as said:
            # configurations are the one thing that it complains of in words alone
            if not re.search("[Cc]onfig", str(said)):
                raise
            configs = datasets.get_dataset_config_names(self.dataset, revision=commit)
            asked = f"has no config {self.config!r}" if self.config else "needs a config"
            raise CorpusError(f"{what} {asked}: {_choices(self.config or '', configs)}") from said
        except datasets.exceptions.DataFilesNotFoundError as said:
            asked = f"has no files {self.files!r}" if self.files else "has no files that `datasets` reads"
            raise CorpusError(f"{what} {asked} at {commit[:12]}: check it on the hub, or use {self.instead}") from said
        if self.split not in splits:
            raise CorpusError(f"{what} has no split {self.split!r}: {_choices(self.split, list(splits))}")
        stream = splits[self.split]
        # of Parquet only these columns are fetched, where the columns are known beforehand
        if stream.features and self._columns <= stream.features.keys():
            stream = stream.select_columns(sorted(self._columns))
        return iter(stream)

    @property
    def _columns(self) -> set[str]:
        if self.template == "alpaca":
            return {"instruction", "input", "output"}
        return _braced(self.template) or {self.text_field}

    def _text(self, row: Mapping[str, Any], number: int) -> str | None:
        if missing := sorted(self._columns - row.keys()):
            raise CorpusError(
                f"the dataset {self.dataset!r} has no column {missing[0]!r}, only "
                f"{', '.join(map(repr, row)) or 'none at all'}: say which one holds the text (text_field), or give a "
                f"template"
            )
        if self.template:
            return _filled(self.template, row)
        text = row[self.text_field]
        if text is not None and not isinstance(text, str):
            raise CorpusError(
                f"the column {self.text_field!r} of {self.dataset!r} holds {type(text).__name__}, not text, in row "
                f"{number:,}: name a column of text"
            )
        return text


class KeptRows(NamedTuple):
    """Rows of one commit on this machine: one JSON string, or null, a line."""

    path: Path

    @classmethod
    def find(cls, folder: Path, scan: int) -> "KeptRows | None":
        """Rows that are enough: at least `scan` of them, or all that there are."""
        found = [cls(path) for path in sorted(folder.glob("*-*.jsonl.gz"))]
        return next((kept for kept in found if kept.path.name.startswith("all-") or kept.rows >= scan), None)

    @property
    def commit(self) -> str:
        return self.path.parent.name

    @property
    def rows(self) -> int:
        return int(self.path.name.split("-")[1].split(".")[0])

    def texts(self, n: int) -> Iterator[str | None]:
        """The texts of the first `n` rows."""
        try:
            with gzip.open(self.path, "rt", encoding="utf-8") as file:
                yield from map(json.loads, islice(file, n))
                for _ in file:  # to the end, where the hash of all is
                    pass
        except (OSError, EOFError, ValueError, zlib.error) as said:
            raise CorpusError(
                f"{self.path} is damaged ({first_line(said)}): delete it, and it is fetched anew"
            ) from said


@contextmanager
def _streaming(corpus: HubCorpus) -> Iterator[Any]:
    """The library `datasets`, told for a while not to wait for minutes for a hub that went away."""
    try:
        import datasets
    except ImportError:
        raise CorpusError(
            f"the dataset {corpus.dataset!r} needs the package datasets, which is not installed: "
            f"pip install 'calibrune[hub]', or use a local file of documents"
        ) from None
    settings_of, patient = datasets.config, {"STREAMING_READ_MAX_RETRIES": 2, "STREAMING_OPEN_MAX_RETRIES": 2}
    before = {name: getattr(settings_of, name) for name in patient}
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        for name, value in patient.items():
            setattr(settings_of, name, value)
        yield datasets
    finally:
        for name, value in before.items():
            setattr(settings_of, name, value)
        if bars:
            datasets.enable_progress_bars()


def _braced(template: str) -> set[str]:
    """The columns that a template names: of "{messages[0]}" it is messages."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name]
    except ValueError as error:
        raise ConfigError(f"template={template!r} cannot be read ({error}): write a column as {{name}}") from None
    return {re.split(r"[.\[]", name)[0] for name in names}


def _filled(template: str, row: Mapping[str, Any]) -> str:
    if template != "alpaca":
        try:
            return template.format(**{name: "" if value is None else value for name, value in row.items()})
        except (LookupError, AttributeError, ValueError) as error:
            raise CorpusError(f"template={template!r} does not fit a row ({error!r}): check its columns") from None
    given = row["input"] or ""
    return _ALPACA.format(
        with_input=", paired with an input that provides further context" if given else "",
        instruction=row["instruction"] or "",
        input=f"### Input:\n{given}\n\n" if given else "",
        output=row["output"] or "",
    )


def _choices(asked: str, known: list[str]) -> str:
    near = difflib.get_close_matches(asked, known, n=1)
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12:,} more" if len(known) > 12 else "")
    return f"did you mean {near[0]!r}?" if near else f"choose one of {shown or 'none at all'}"


def _cause(error: BaseException) -> str:
    """The first line of the error at the bottom: `datasets` wraps what the reader of a file said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
