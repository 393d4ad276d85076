"""Text that the model to be pruned writes itself: a corpus like any other (Ji et al., 2025, arXiv 2410.17711).

Texts are written in batches of a fixed schedule, and every finished batch is kept on disk: a run that was killed goes
on with the batch it was at, and gives what an uninterrupted one gives.
"""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import transformers
from annotated_types import Ge

from calibrune.corpora.document import Corpus, Document
from calibrune.corpora.sampling import documents_in_random_order
from calibrune.errors import CorpusError
from calibrune.lm.generation import GeneratedText, Sampling, end_token_ids, generate
from calibrune.lm.loading import LanguageModel, cache_folder, compute, weights_fingerprint
from calibrune.seeds import seed_for
from calibrune.settings import settings

log = logging.getLogger(__name__)

FORMAT = 1
"""Counts changes of the generator that change what is written for the same settings."""


@settings
class SelfGeneration:
    """Texts that the model writes, each from a short prompt; as many as are read."""

    model: LanguageModel
    prompts: Corpus | Literal["bos", "random"] = "random"
    """Where the first tokens come from: a corpus's documents; or the model alone, from its beginning-of-sequence token
    or from a random first token. Where the tokenizer begins a text with BOS, so does every prompt."""
    prefix_tokens: Annotated[int, Ge(1)] = 2
    """First tokens of each document that make a prompt (BOS not counted); the study found 1 to 4 best."""
    sampling: Sampling = Sampling()
    max_new_tokens: Annotated[int, Ge(1)] = 2048
    """Longest continuation; cut to what the model's context holds."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Texts written side by side; changes the texts by rounding only."""
    n_texts: Annotated[int, Ge(1)] | None = None
    """Stop after so many texts; None: as many as are read. Fewer are the first of more, up to rounding."""
    seed: int = 0

    @property
    def name(self) -> str:
        return "selfgen"

    @property
    def in_random_order(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        """All that can change a text: weights, prompts, settings, versions."""
        return {
            "kind": "self-generated text",
            "name": self.name,
            "model": self.model.source | {"weights": weights_fingerprint(self.model.model)},
            "prompts": self.prompts if isinstance(self.prompts, str) else self.prompts.describe(),
            "prefix_tokens": None if isinstance(self.prompts, str) else self.prefix_tokens,
            "sampling": asdict(self.sampling),
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "n_texts": self.n_texts,
            "end_token_ids": list(self._end_ids),
            "seed": self.seed,
            "engine": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "compute": compute(self.model.model),
            "format": FORMAT,
            "licence": "the model's own; no text of anybody's but the prompts' first tokens",
        }

    def documents(self) -> Iterator[Document]:
        """Write texts, batch by batch; batches that an earlier run finished are read back."""
        # more texts of the same kind begin with the same full batches
        record = json.dumps(self.describe() | {"n_texts": None}, sort_keys=True)
        folder = cache_folder() / "generated" / hashlib.sha256(record.encode()).hexdigest()[:16]
        prompts = itertools.islice(self._prompts(), self.n_texts)
        for number in itertools.count():
            batch = list(itertools.islice(prompts, self.batch_size))
            if not batch:
                return
            # the size is in the name: texts written beside others are the same up to rounding only
            file = folder / f"batch-{number:05d}-of-{len(batch)}.json"
            texts = _read(file, batch) or self._write(file, batch)
            for (document_id, _), text in zip(batch, texts, strict=True):
                words = self.model.tokenizer.decode(text.token_ids, skip_special_tokens=True)
                yield Document(words, document_id, text.token_ids, text.perplexity)

    def _write(self, file: Path, batch: list[tuple[str, list[int]]]) -> list[GeneratedText]:
        texts = generate(
            self.model.model,
            [prompt for _, prompt in batch],
            [seed_for(self.seed, "generation", document_id) for document_id, _ in batch],
            max_new_tokens=self._room(),
            sampling=self.sampling,
            end_ids=self._end_ids,
            pad_id=self.model.tokenizer.pad_token_id or 0,
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}.unfinished")
        unfinished.write_text(json.dumps([asdict(text) for text in texts]))
        unfinished.replace(file)
        return texts

    @property
    def _end_ids(self) -> tuple[int, ...]:
        return end_token_ids(self.model.model, self.model.tokenizer.eos_token_id)

    def _room(self) -> int:
        """Tokens that a continuation can have: the same for every text, whatever the other prompts of its batch."""
        context = self.model.context_length
        longest = len(_beginning(self.model)) + (1 if isinstance(self.prompts, str) else self.prefix_tokens)
        if context is not None and longest >= context:
            raise CorpusError(
                f"prompts of {longest} tokens leave no room in the model's context of {context}; "
                f"use fewer prefix_tokens (the study found 1 to 4 best)"
            )
        return self.max_new_tokens if context is None else min(self.max_new_tokens, context - longest)

    def _prompts(self) -> Iterator[tuple[str, list[int]]]:
        """Endless (document id, prompt); a corpus that ends is begun again, for another draw of each prompt."""
        begin = _beginning(self.model)
        if self.prompts == "bos":
            first = begin or [self.model.tokenizer.bos_token_id]
            if first == [None]:
                raise CorpusError(
                    "prompts='bos' was asked for, but the tokenizer has no BOS token; use prompts='random'"
                )
            yield from ((f"bos/{i}", first) for i in itertools.count())
        elif self.prompts == "random":
            ordinary = sorted(
                set(range(min(self.model.vocab_size, len(self.model.tokenizer))))
                - set(self.model.tokenizer.all_special_ids)
            )
            for i in itertools.count():
                place = seed_for(self.seed, "first token", str(i)) % len(ordinary)
                yield f"random/{i}", [*begin, ordinary[place]]
        else:
            for draw in itertools.count():
                found = False
                for document in documents_in_random_order(self.prompts, self.seed):
                    ids = self._tokens(document)
                    if ids:
                        found = True
                        yield f"{document.id}/{draw}", [*begin, *ids]
                if not found:
                    raise CorpusError(
                        f"{self.prompts.name!r} has no document with a token in it; it cannot give prompts"
                    )

    def _tokens(self, document: Document) -> list[int]:
        # a document's first k tokens lie in its first characters; a whole book need not be tokenized for them
        text = document.text[: 64 * self.prefix_tokens]
        ids: list[int] = self.model.tokenizer(text, add_special_tokens=False).input_ids
        return ids[: self.prefix_tokens]


def _beginning(model: LanguageModel) -> list[int]:
    """What the tokenizer puts before every text: BOS, or nothing."""
    bos = model.tokenizer.bos_token_id
    return [bos] if bos is not None and model.tokenizer("a").input_ids[0] == bos else []


def _read(file: Path, batch: list[tuple[str, list[int]]]) -> list[GeneratedText] | None:
    """The finished texts of these prompts; None where there are none, or the file is damaged or of other prompts."""
    try:
        texts = [
            GeneratedText(tuple(row["token_ids"]), row["prompt_length"], tuple(row["log_probs"]), row["finished"])
            for row in json.loads(file.read_text())
        ]
        begins = [list(text.token_ids[: text.prompt_length]) for text in texts]
        complete = all(len(text.token_ids) == text.prompt_length + len(text.log_probs) for text in texts)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        log.warning("%s is damaged (%s); its texts are written anew", file.name, error)
        return None
    return texts if complete and begins == [prompt for _, prompt in batch] else None
