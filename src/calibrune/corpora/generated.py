"""Text that the model to be pruned writes itself: a corpus like any other (Ji et al., 2025, arXiv 2410.17711).

Which texts there are is said here; what writes them is an engine (`corpora/engines/`). Every finished text is kept on
disk, and a run that was killed goes on where it was.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from calibrune.corpora.chat import Chat, Frame
from calibrune.corpora.document import Corpus, Document
from calibrune.corpora.engines import Engine, Session, Transformers
from calibrune.corpora.journal import Journal
from calibrune.corpora.pace import Pace, Reader
from calibrune.corpora.sampling import documents_in_random_order
from calibrune.corpora.writing import Leg, Request, Writer
from calibrune.errors import CorpusError
from calibrune.lm.generation import Sampling, end_token_ids
from calibrune.lm.loading import LanguageModel, cache_folder, weights_fingerprint
from calibrune.seeds import seed_for
from calibrune.settings import class_record, settings

FORMAT = 1
"""Counts changes of the generator that change what is written for the same settings."""


@settings
class SelfGeneration:
    """Texts that the model writes, each from a short prompt; as many as are read."""

    model: LanguageModel
    prompts: Corpus | Literal["bos", "random", "chat"] = "random"
    """Where the first tokens come from: a corpus's documents; or the model alone, from its beginning-of-sequence token,
    from a random first token, or from the chat template's opening of a user turn. Where the tokenizer begins a text
    with BOS, so does every prompt."""
    prefix_tokens: Annotated[int, Ge(1)] = 2
    """First tokens of each document that make a prompt (BOS not counted); the study found 1 to 4 best."""
    sampling: Sampling = Sampling()
    max_new_tokens: Annotated[int, Ge(1)] = 2048
    """Longest continuation, or answer of a chat; cut to what the model's context holds."""
    chat: Chat = Chat()
    """What a chat is like, for `prompts="chat"`."""
    engine: Engine = Transformers()
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 64
    """Texts that are written, and kept, together; changes the texts by rounding only. Of no account for a server."""
    n_texts: Annotated[int, Ge(1)] | None = None
    """Stop after so many texts; None: as many as are read. Fewer are the first of more, up to rounding."""
    seed: int = 0
    reader: Reader | None = None
    """How much will be read, for the plan and the time left; changes no text and is not recorded."""

    @property
    def name(self) -> str:
        return "selfgen"

    @property
    def in_random_order(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        """All that can change a text: weights, prompts, settings, versions."""
        return self._describe(self.engine.open(self.model))

    def _describe(self, session: Session) -> dict[str, Any]:
        from_corpus, from_chat = isinstance(self.prompts, Corpus), self.prompts == "chat"
        record = {
            "kind": "self-generated text",
            "name": self.name,
            "model": self.model.source | {"weights": self._weights},
            "prompts": (
                class_record(self.prompts) | self.prompts.describe()
                if isinstance(self.prompts, Corpus)
                else self.prompts
            ),
            "prefix_tokens": self.prefix_tokens if from_corpus else None,
            "sampling": asdict(self.sampling),
            "max_new_tokens": self.max_new_tokens if from_chat else self._legs()[0].room,
            "batch_size": self.batch_size if session.in_flight is None else None,
            "n_texts": self.n_texts,
            "end_token_ids": list(self._end_ids),
            "seed": self.seed,
            **class_record(self.engine),
            **session.describe(),
            "format": FORMAT,
            "licence": "the model's own; no text of anybody's but the prompts' first tokens",
        }
        if from_chat:
            record["chat"] = Frame.of(self.model, self.chat).describe(self.chat, self._end_ids)
        return record

    def expecting(self, reader: Reader) -> "SelfGeneration":
        """The same texts, planned for somebody who reads so much of them, by the model as it is then."""
        return replace(self, reader=reader)

    def documents(self) -> Iterator[Document]:
        """Write texts as they are read; those that an earlier run finished are read back.

        Raises:
            CorpusError: there are no prompts, or no room for texts.
            OutputError: the disk has too little room for what is planned.
            RunError: the engine failed for good, or a text cannot be kept; those before it are safe.
        """
        session = self.engine.open(self.model)
        # more texts of the same kind begin with the same ones
        record = json.dumps(self._describe(session) | {"n_texts": None}, sort_keys=True)
        journal = Journal(generated_folder() / f"{hashlib.sha256(record.encode()).hexdigest()[:16]}.jsonl")
        legs = self._legs()
        pace = Pace(self.reader, self.n_texts, sum(leg.room + len(leg.then) for leg in legs))
        pace.plan(journal)
        writer = Writer(session, legs, self.sampling, self.seed)
        requests = itertools.islice(self._requests(), self.n_texts)
        if session.in_flight is None:
            written = writer.in_batches(requests, self.batch_size, journal)
        else:
            written = writer.in_flight(requests, session.in_flight, journal)
        same: dict[int, int] = {}  # one number for all the tokens of an id: 5,000 texts are held by some filters
        for some in written:
            pace.note([len(text.log_probs) for _, text in some.texts], some.new)
            for request, text in some.texts:
                ids = tuple(same.setdefault(i, i) for i in text.token_ids)
                words = self.model.tokenizer.decode(ids, skip_special_tokens=True)
                yield Document(words, request.id, ids, text.perplexity, framed=self.prompts == "chat")

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text that can come of these settings, its prompt included."""
        prompt = len(Frame.of(self.model, self.chat).opening) if self.prompts == "chat" else self._longest_prompt
        return prompt + sum(leg.room + len(leg.then) for leg in self._legs())

    @property
    def _longest_prompt(self) -> int:
        return len(_beginning(self.model)) + (self.prefix_tokens if isinstance(self.prompts, Corpus) else 1)

    @property
    def _weights(self) -> str:
        # a model can be pruned between two uses of these settings, but not within what was planned
        return weights_fingerprint(self.model.model) if self.reader is None else self._weights_of_plan

    @cached_property
    def _weights_of_plan(self) -> str:
        return weights_fingerprint(self.model.model)

    @property
    def _end_ids(self) -> tuple[int, ...]:
        return end_token_ids(self.model.model, self.model.tokenizer.eos_token_id)

    def _legs(self) -> tuple[Leg, ...]:
        """What the model writes of a text: the same lengths for every text, whatever the other prompts of its batch."""
        context = self.model.context_length
        if self.prompts == "chat":
            frame = Frame.of(self.model, self.chat)
            return frame.legs(self.chat, max_new_tokens=self.max_new_tokens, end_ids=self._end_ids, context=context)
        longest = self._longest_prompt
        if context is not None and longest >= context:
            raise CorpusError(
                f"prompts of {longest} tokens leave no room in the model's context of {context}; "
                f"use fewer prefix_tokens (the study found 1 to 4 best)"
            )
        room = self.max_new_tokens if context is None else min(self.max_new_tokens, context - longest)
        return (Leg(room, self._end_ids),)

    def _requests(self) -> Iterator[Request]:
        return (Request(document_id, tuple(prompt)) for document_id, prompt in self._prompts())

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
        elif self.prompts == "chat":
            opening = list(Frame.of(self.model, self.chat).opening)
            yield from ((f"chat/{i}", opening) for i in itertools.count())
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
        ids: list[int] = self.model.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids[: self.prefix_tokens]


def _beginning(model: LanguageModel) -> list[int]:
    """What the tokenizer puts before every text: BOS, or nothing."""
    bos = model.tokenizer.bos_token_id
    return [bos] if bos is not None and model.tokenizer("a").input_ids[0] == bos else []


def generated_folder() -> Path:
    """Where generated texts are kept, a file for every request that has texts of its own."""
    return cache_folder() / "generated"
