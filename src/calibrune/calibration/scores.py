"""Perplexities of documents by a model, kept on disk: a document is scored once, whatever percentile is asked for."""

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import Field

from calibrune.calibration.tokenizers import describe_tokenizer
from calibrune.calibration.windows import Frame, tokenize
from calibrune.corpora.document import Document
from calibrune.durable import append, keeping, parsed, sealed, unsealed
from calibrune.lm.likelihood import text_log_likelihoods
from calibrune.lm.loading import LanguageModel, cache_folder, weights_fingerprint
from calibrune.progress import progress_bar
from calibrune.settings import settings

log = logging.getLogger(__name__)

WRITTEN_AT_ONCE = 16
"""Documents between two writes to the cache: a killed run loses no more."""

FORMAT = 1
"""Counts changes of the scorer that change a score."""


@settings
class DocumentScorer:
    """Scores documents by exp of the mean negative log-likelihood of their tokens under a model.

    Every token counts but those of the prefix and what the tokenizer puts before a text; without BOS before it, a
    text's first token cannot be predicted and does not count either. A document without a token that counts has nan.
    """

    model: LanguageModel
    skip_tokens: int = Field(default=0, ge=0)
    """First tokens of every document that do not count: its prompt, where a model wrote the rest."""
    own_tokens: bool = True
    """Whether the exact tokens that a document may bring are of this model's tokenizer; else its text is scored."""
    max_tokens: int = Field(default=2048, ge=2)
    """Longer documents are scored by their first so many tokens; cut to the model's context."""

    def describe(self) -> dict[str, Any]:
        """All that can change a score but rounding, as JSON."""
        return dict(self._record)

    @cached_property
    def _record(self) -> dict[str, Any]:
        return {
            "model": self.model.source["name"],
            "weights": weights_fingerprint(self.model.model),
            "tokenizer": describe_tokenizer(self.model.tokenizer)["sha256"],
            "dtype": str(self.model.model.dtype).removeprefix("torch."),
            "skip_tokens": self.skip_tokens,
            "own_tokens": self.own_tokens,
            "max_tokens": min(self.max_tokens, self.model.context_length or self.max_tokens),
            "format": FORMAT,
        }

    def score(self, documents: Sequence[Document]) -> list[float]:
        """A perplexity for every document, in their order; those that the cache has are not computed again."""
        known = self._known
        keys = [self._key(document) for document in documents]
        missing = {key: document for key, document in zip(keys, documents, strict=True) if key not in known}
        waiting = iter(missing.items())
        with progress_bar("scoring documents", total=len(missing), unit="doc") as bar:
            while portion := dict(islice(waiting, WRITTEN_AT_ONCE)):
                self._compute(portion)
                bar.update(len(portion))
        return [known[key] for key in keys]

    def _compute(self, missing: dict[str, Document]) -> None:
        texts = [self._token_ids(document) for document in missing.values()]
        likelihoods = text_log_likelihoods(self.model.model, [ids for ids, _ in texts])
        found = {}
        for key, (_, first), values in zip(missing, texts, likelihoods, strict=True):
            scored = values[max(first - 1, 0) :].double()
            found[key] = float(scored.mean().neg().exp()) if len(scored) else float("nan")
        self._known.update(found)
        with keeping(f"the scores of {len(missing)} documents", self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._file.with_suffix(".lock")):
                # in one line: scored beside others, a document's score differs by rounding, so they are lost together
                append(self._file, f"{json.dumps(sealed({'scores': found}))}\n".encode())

    def _token_ids(self, document: Document) -> tuple[list[int], int]:
        """The tokens to score, and how many at their start do not count."""
        own = document.token_ids if self.own_tokens else None
        body = list(own) if own is not None else tokenize(self.model.tokenizer, document.text)
        before = list(self._frame.before)
        if body[: len(before)] == before:
            body = body[len(before) :]
        limit = min(self.max_tokens, self.model.context_length or self.max_tokens)
        return [*before, *body][:limit], len(before) + self.skip_tokens

    def _key(self, document: Document) -> str:
        own = document.token_ids if self.own_tokens else None
        content = document.text if own is None else repr(own)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:24]

    @cached_property
    def _frame(self) -> Frame:
        return Frame.of(self.model.tokenizer)

    @cached_property
    def _file(self) -> Path:
        key = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]
        return cache_folder() / "scores" / f"{key}.jsonl"

    @cached_property
    def _known(self) -> dict[str, float]:
        """What the cache has; a line that a killed run left half is passed over."""
        known: dict[str, float] = {}
        if self._file.exists():
            for line in self._file.read_bytes().splitlines():
                try:
                    known |= {key: float(value) for key, value in unsealed(parsed(line))["scores"].items()}
                except (ValueError, TypeError, KeyError, AttributeError):
                    log.warning("a damaged line in the cache of scores %s is passed over", self._file.name)
        return known
