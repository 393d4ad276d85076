"""From a recipe to a calibration set, with a record of everything that can change its tokens."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, field, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from calibrune.calibration.calibration_set import CalibrationSet, check_length
from calibrune.calibration.filters import ByGroup, Filter, Remark, describe_filter
from calibrune.calibration.mixture import Mixture
from calibrune.calibration.tokenizers import describe_tokenizer
from calibrune.calibration.windows import GIVE_UP_AFTER, CutWindows, Frame, Placed, Windows, cut_windows
from calibrune.corpora.document import Corpus, Document
from calibrune.corpora.generated import SelfGeneration
from calibrune.corpora.pace import Reader
from calibrune.corpora.sampling import SAMPLER, documents_in_random_order
from calibrune.errors import CalibrationError, ConfigError
from calibrune.settings import class_record, settings

ADDED_TOKENS = 4
"""At most so many tokens do windows put around a text."""


@settings
class CalibrationRecipe:
    """What a calibration set is made of, and how."""

    corpus: Corpus | Mixture
    filters: tuple[Filter, ...] = ()
    """In the order in which the documents meet them."""
    windows: Windows = field(default_factory=Windows)
    n_samples: int = Field(default=128, ge=1, le=1_000_000)
    seq_len: int = Field(default=2048, ge=2)
    """Tokens in a sample."""
    seed: int = 0

    def __post_init__(self) -> None:
        parts = self.corpus.parts if isinstance(self.corpus, Mixture) else ()
        for one in (*self.filters, *(own for part in parts for own in part.filters)):
            if not is_dataclass(one):
                raise ConfigError(f"the filter {one} must be a dataclass, so that its settings can be recorded")

    def describe(self) -> dict[str, Any]:
        """The recipe as JSON."""
        return {
            "source": class_record(self.corpus) | self.corpus.describe(),
            "filters": [describe_filter(one) for one in self.filters],
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
        ConfigError: the texts that a model may write cannot be enough.
        CalibrationError: the corpus cannot give this set, or the model cannot read it.
        CorpusError: the corpus cannot be read.
    """
    check_length(recipe.seq_len, context_length)
    recipe = _planned(recipe)
    record = _recordable(recipe.describe())
    if isinstance(recipe.corpus, Mixture):
        drawn = _mixed(recipe, tokenizer, [part["source"] for part in record["source"]["parts"]])
    else:
        drawn = _drawn(recipe, tokenizer)
    manifest = {
        **record,
        "tokenizer": describe_tokenizer(tokenizer),
        "special_tokens": _special_tokens(tokenizer, recipe.windows, drawn.cut),
        **drawn.facts,
        "document_ids": drawn.cut.document_ids,
        "text_sha256": drawn.text_sha256,
        **drawn.remarks,
        "versions": {package: _version(package) for package in ("calibrune", "transformers", "tokenizers", "torch")},
    }
    # through JSON, so that what is held equals what is loaded
    built = CalibrationSet(drawn.cut.input_ids, json.loads(json.dumps(manifest)), drawn.cut.attention_mask)
    built.check_fits(vocab_size)
    return built


def _recordable(record: dict[str, Any]) -> dict[str, Any]:
    """The record as JSON has it; what cannot be recorded is told before hours of drawing, not after."""
    try:
        read_back: dict[str, Any] = json.loads(json.dumps(record))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the recipe cannot be recorded as JSON ({error}): give the corpus or filter a `describe` that returns JSON"
        ) from None
    return read_back


class _Drawn(NamedTuple):
    """Windows, and what became of the documents on the way to them."""

    cut: CutWindows
    text_sha256: dict[str, str]
    """Of the documents that are in a window, by id."""
    remarks: dict[str, dict[str, Any]]
    """What filters remarked on those documents, by the kind of remark and the id."""
    facts: dict[str, Any]
    """For the manifest."""


def _drawn(
    recipe: CalibrationRecipe, tokenizer: PreTrainedTokenizerBase, is_own: Callable[[Document], bool] | None = None
) -> _Drawn:
    """The windows of a single corpus, or of those documents of it that a part of a mixture has for its own."""
    assert not isinstance(recipe.corpus, Mixture)
    dropped: Counter[str] = Counter()
    watch = _Watch(recipe.corpus.name, dropped, recipe.filters)
    documents = watch.coming(filter(is_own, documents_in_random_order(recipe.corpus, recipe.seed)))
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
    hashes = {name: watch.text_sha256[name] for name in used}
    remarks = {kind: {name: said[name] for name in used if name in said} for kind, said in watch.remarks.items()}
    return _Drawn(cut, hashes, remarks, {"documents_looked_at": watch.looked_at, "dropped": dict(dropped)})


def _mixed(recipe: CalibrationRecipe, tokenizer: PreTrainedTokenizerBase, sources: Sequence[dict[str, Any]]) -> _Drawn:
    """The windows of a mixture: those of each part by itself, dealt out in turns; `sources`: each part's record."""
    mixture = recipe.corpus
    assert isinstance(mixture, Mixture)
    turns = mixture.turns(recipe.n_samples)
    parts: dict[int, _Drawn] = {}
    for i, part in enumerate(mixture.parts):
        if n := turns.count(i):
            own = replace(recipe, corpus=part.corpus, filters=(*part.filters, *recipe.filters), n_samples=n)
            same = [p for p, source in enumerate(sources) if _documents_of(source) == _documents_of(sources[i])]
            parts[i] = _drawn(own, tokenizer, mixture.owning(i, same, recipe.seed) if len(same) > 1 else None)
    dealt = {i: iter(range(turns.count(i))) for i in parts}
    # files of one name can be in several parts, so an id alone is not enough
    places = [(i, mixture.names[i], next(dealt[i])) for i in turns]
    masks = {i: one.cut.attention_mask for i, one in parts.items()}
    full = torch.ones(recipe.seq_len, dtype=torch.bool)
    mask = torch.stack([full if (found := masks[i]) is None else found[row] for i, _, row in places])
    cut = CutWindows(
        torch.stack([parts[i].cut.input_ids[row] for i, _, row in places]),
        tuple(tuple(f"{name}/{of}" for of in parts[i].cut.document_ids[row]) for i, name, row in places),
        None if mask.all() else mask,
    )
    hashes = {f"{mixture.names[i]}/{of}": text for i, one in parts.items() for of, text in one.text_sha256.items()}
    remarks: dict[str, dict[str, Any]] = {}
    for i, one in parts.items():
        for kind, said in one.remarks.items():
            remarks.setdefault(kind, {}).update({f"{mixture.names[i]}/{of}": remark for of, remark in said.items()})
    dropped = sum((Counter(one.facts["dropped"]) for one in parts.values()), Counter[str]())
    facts = {
        "documents_looked_at": sum(one.facts["documents_looked_at"] for one in parts.values()),
        "dropped": dict(dropped),
        "parts": [{"name": mixture.names[i], "n_samples": turns.count(i), **one.facts} for i, one in parts.items()],
    }
    return _Drawn(cut, hashes, remarks, facts)


def _documents_of(source: dict[str, Any]) -> dict[str, Any]:
    """What of a source's record decides which documents it has: a longer scan of a dataset has those of a shorter."""
    about = ("scan", "rows_looked_at", "rows_sha256", "licence")
    return {key: value for key, value in source.items() if key not in about}


def _special_tokens(tokenizer: PreTrainedTokenizerBase, windows: Windows, cut: CutWindows) -> dict[str, Any]:
    """Where BOS and EOS were put, and in how many samples they are."""
    frame = Frame.of(tokenizer)
    placed = Placed.of(frame, windows)
    begin = 0 if frame.bos is None else int((cut.input_ids[:, 0] == frame.bos).sum())
    return {
        "before_document": list(placed.before),
        "after_document": list(placed.after),
        "window_begins": placed.window_begins,
        "eos": windows.eos_of_policy,
        "tokenizer_adds_bos": frame.bos is not None and frame.bos in frame.before,
        "tokenizer_adds_eos": frame.eos is not None and frame.eos in frame.after,
        "samples_that_begin_with_bos": begin,
    }


def _planned(recipe: CalibrationRecipe) -> CalibrationRecipe:
    """The recipe, in which corpora that are still to be written know how much of them will be read.

    Raises:
        ConfigError: the texts that are allowed cannot be enough.
    """
    if not isinstance(recipe.corpus, Mixture):
        return replace(recipe, corpus=_expecting(recipe.corpus, recipe.filters, recipe.n_samples, recipe))
    turns = recipe.corpus.turns(recipe.n_samples)
    parts = (
        replace(part, corpus=_expecting(part.corpus, (*part.filters, *recipe.filters), turns.count(i), recipe))
        for i, part in enumerate(recipe.corpus.parts)
    )
    return replace(recipe, corpus=Mixture(parts=tuple(parts)))


def _expecting(corpus: Corpus, filters: Sequence[Filter], n_samples: int, recipe: CalibrationRecipe) -> Corpus:
    if not isinstance(corpus, SelfGeneration):
        return corpus
    tokens = n_samples * recipe.seq_len
    if corpus.n_texts is not None:
        # a sample of its own for each text needs texts; all else needs tokens, a few of which windows may add
        each = recipe.seq_len if recipe.windows.policy == "one_per_document" else corpus.longest_text + ADDED_TOKENS
        if corpus.n_texts * each < tokens:
            raise ConfigError(
                f"{n_samples} samples of {recipe.seq_len:,} tokens were asked for, and n_texts={corpus.n_texts} texts "
                f"of {corpus.longest_text:,} tokens at most cannot fill them: give n_texts={-(-tokens // each)} or "
                f"more, a larger max_new_tokens, or leave n_texts out"
            )
    kept, group = 1.0, 1
    for one in filters:
        if isinstance(one, ByGroup):
            kept *= one.share_kept
            group = max(group, one.group or corpus.n_texts or 1)
    return corpus.expecting(Reader(tokens, kept, group))


class _Watch:
    """Stands before and behind the filters: counts what comes, hashes what stays, ends a search that would not end."""

    def __init__(self, corpus: str, dropped: Counter[str], filters: Sequence[Filter]) -> None:
        self.looked_at = 0
        self.text_sha256: dict[str, str] = {}
        self._remarking = [one for one in filters if isinstance(one, Remark)]
        self.remarks: dict[str, dict[str, Any]] = {one.remark_name: {} for one in self._remarking}
        self._corpus = corpus
        self._dropped = dropped
        self._dropped_before = self._good_before = 0

    def coming(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            # a document that is not dropped may wait in a group of which nothing comes out until it is full
            if self.looked_at - self._dropped.total() > self._good_before:
                self._begin_to_count()
            elif self._dropped.total() - self._dropped_before >= GIVE_UP_AFTER:
                raise self._nothing_left(f"{GIVE_UP_AFTER:,} documents of {self._corpus!r} in a row")
            self.looked_at += 1
            yield document

    def staying(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self._begin_to_count()
            self.text_sha256[document.id] = hashlib.sha256(document.text.encode()).hexdigest()[:16]
            for one in self._remarking:
                if (remark := one.remark(document)) is not None:
                    self.remarks[one.remark_name][document.id] = remark
            yield document
        if self.looked_at and not self.text_sha256:
            raise self._nothing_left(f"all {self.looked_at:,} documents of {self._corpus!r}")

    def _begin_to_count(self) -> None:
        self._dropped_before = self._dropped.total()
        self._good_before = self.looked_at - self._dropped_before

    def _nothing_left(self, what: str) -> CalibrationError:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self._dropped.most_common())
        return CalibrationError(f"the filters dropped {what} ({reasons}): loosen them, or use another corpus")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
