"""From a recipe to a calibration set, with a record of everything that can change its tokens."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from calibrune.calibration.calibration_set import CalibrationSet, check_length
from calibrune.calibration.filters import Filter, Remark
from calibrune.calibration.tokenizers import describe_tokenizer
from calibrune.calibration.windows import GIVE_UP_AFTER, Windows, cut_windows
from calibrune.corpora.document import Corpus, Document
from calibrune.corpora.sampling import SAMPLER, documents_in_random_order
from calibrune.errors import CalibrationError, ConfigError
from calibrune.settings import settings


@settings
class CalibrationRecipe:
    """What a calibration set is made of, and how."""

    corpus: Corpus
    filters: tuple[Filter, ...] = ()
    """In the order in which the documents meet them."""
    windows: Windows = field(default_factory=Windows)
    n_samples: int = Field(default=128, ge=1)
    seq_len: int = Field(default=2048, ge=2)
    """Tokens in a sample."""
    seed: int = 0

    def __post_init__(self) -> None:
        for one in self.filters:
            if not is_dataclass(one):
                raise ConfigError(f"the filter {one} must be a dataclass, so that its settings can be recorded")

    def describe(self) -> dict[str, Any]:
        """The recipe as JSON."""
        return {
            "source": self.corpus.describe(),
            "filters": [_described(one) for one in self.filters],
            "windows": asdict(self.windows),
            "n_samples": self.n_samples,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "sampler": SAMPLER,
        }


def build(
    recipe: CalibrationRecipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int | None = None,
    context_length: int | None = None,
) -> CalibrationSet:
    """Draw documents, filter them, cut them into windows, and record how.

    The same recipe and tokenizer give the same fingerprint; `n_samples=64` gives the first half of `n_samples=128`.

    Args:
        recipe: what to build.
        tokenizer: of the model that is to be calibrated.
        vocab_size: of the model: ids beyond it are an error. None: not known.
        context_length: of the model: longer samples are an error, before anything is read. None: not known.

    Raises:
        CalibrationError: the corpus cannot give this set, or the model cannot read it.
        CorpusError: the corpus cannot be read.
    """
    check_length(recipe.seq_len, context_length)
    record = recipe.describe()
    dropped: Counter[str] = Counter()
    watch = _Watch(recipe.corpus.name, dropped, recipe.filters)
    documents = watch.coming(documents_in_random_order(recipe.corpus, recipe.seed))
    for one in recipe.filters:
        documents = one.keep(documents, dropped)
    cut = cut_windows(
        watch.staying(documents),
        tokenizer,
        recipe.windows,
        n_samples=recipe.n_samples,
        seq_len=recipe.seq_len,
        seed=recipe.seed,
        dropped=dropped,
        corpus=recipe.corpus.name,
    )
    used = dict.fromkeys(name for names in cut.document_ids for name in names)
    manifest = {
        **record,
        "tokenizer": describe_tokenizer(tokenizer),
        "documents_looked_at": watch.looked_at,
        "dropped": dict(dropped),
        "document_ids": cut.document_ids,
        "text_sha256": {name: watch.text_sha256[name] for name in used},
        **{kind: {name: remarks[name] for name in used if name in remarks} for kind, remarks in watch.remarks.items()},
        "versions": {package: _version(package) for package in ("calibrune", "transformers", "tokenizers", "torch")},
    }
    # through JSON, so that what is held equals what is loaded
    built = CalibrationSet(cut.input_ids, json.loads(json.dumps(manifest)))
    built.check_fits(vocab_size)
    return built


class _Watch:
    """Stands before and behind the filters: counts what comes, hashes what stays, ends a search that would not end."""

    def __init__(self, corpus: str, dropped: Counter[str], filters: Sequence[Filter]) -> None:
        self.looked_at = 0
        self.text_sha256: dict[str, str] = {}
        self._remarking = [one for one in filters if isinstance(one, Remark)]
        self.remarks: dict[str, dict[str, Any]] = {one.remark_name: {} for one in self._remarking}
        self._corpus = corpus
        self._dropped = dropped
        self._dropped_before = 0

    def coming(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            if self._dropped.total() - self._dropped_before >= GIVE_UP_AFTER:
                raise self._nothing_left(f"{GIVE_UP_AFTER:,} documents of {self._corpus!r} in a row")
            self.looked_at += 1
            yield document

    def staying(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self._dropped_before = self._dropped.total()
            self.text_sha256[document.id] = hashlib.sha256(document.text.encode()).hexdigest()[:16]
            for one in self._remarking:
                if (remark := one.remark(document)) is not None:
                    self.remarks[one.remark_name][document.id] = remark
            yield document
        if self.looked_at and not self.text_sha256:
            raise self._nothing_left(f"all {self.looked_at:,} documents of {self._corpus!r}")

    def _nothing_left(self, what: str) -> CalibrationError:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self._dropped.most_common())
        return CalibrationError(f"the filters dropped {what} ({reasons}): loosen them, or use another corpus")


def _described(one: Filter) -> dict[str, Any]:
    """A filter's own record where it has one, else its kind and its settings."""
    if hasattr(one, "describe"):
        own: dict[str, Any] = one.describe()
        return own
    return {"kind": type(one).__name__, **asdict(one)}  # type: ignore[call-overload]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
