"""From prompts to finished texts: the legs of a text, and the two schedules in which an engine writes many."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from calibrune.corpora.engines.engine import Session
from calibrune.corpora.journal import Journal
from calibrune.lm.generation import GeneratedText, Sampling
from calibrune.seeds import seed_for


@dataclass(frozen=True)
class Request:
    """A text that is wanted."""

    id: str
    """Of its document: what its chance is drawn from."""
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Leg:
    """A stretch that the model writes itself, and the tokens that a chat template puts behind it."""

    room: int
    """Longest stretch, in tokens."""
    end_ids: tuple[int, ...]
    """Tokens that end it."""
    then: tuple[int, ...] = ()
    """What follows, from the template's own end of a turn on; nothing where there is no template."""


@dataclass(frozen=True)
class Written:
    """Texts that are finished."""

    texts: list[tuple[Request, GeneratedText]]
    new: bool
    """Whether they were written now; else an earlier run did."""


@dataclass(frozen=True)
class Writer:
    """Writes texts of one kind: one leg for a plain text, two for every exchange of a chat."""

    session: Session
    legs: tuple[Leg, ...]
    sampling: Sampling
    seed: int

    def write(self, requests: Sequence[Request]) -> list[GeneratedText]:
        """Write these texts side by side, leg by leg."""
        texts = [GeneratedText(request.prompt, len(request.prompt), (), False) for request in requests]
        for number, leg in enumerate(self.legs):
            # the first leg's seeds are those of texts that have no other
            label = () if number == 0 else (str(number),)
            drawn = self.session.complete(
                [text.token_ids for text in texts],
                [seed_for(self.seed, "generation", request.id, *label) for request in requests],
                max_new_tokens=leg.room,
                sampling=self.sampling,
                end_ids=leg.end_ids,
            )
            last = number == len(self.legs) - 1
            texts = [_joined(text, more, leg, last) for text, more in zip(texts, drawn, strict=True)]
        return texts

    def in_batches(self, requests: Iterable[Request], size: int, journal: Journal) -> Iterator[Written]:
        """Every request with its text, on a fixed schedule of batches.

        A batch is kept when all of it is finished, and one of which a text is missing is repeated: so a resumed run
        does the very arithmetic of an uninterrupted one.
        """
        rest = iter(requests)
        for number in itertools.count():
            batch = list(itertools.islice(rest, size))
            if not batch:
                return
            # the size is in the key: texts written beside others are the same up to rounding only
            keys = [f"{number}-of-{len(batch)}:{request.id}" for request in batch]
            texts = [journal.read(key, request.prompt) for key, request in zip(keys, batch, strict=True)]
            new = None in texts
            if new:
                written = dict(zip(keys, self.write(batch), strict=True))
                journal.append(written)
                # what was there already, or came from another process meanwhile, is what every later run will read
                texts = [journal.read(key, of.prompt) or written[key] for key, of in zip(keys, batch, strict=True)]
            yield Written([(of, text) for of, text in zip(batch, texts, strict=True) if text is not None], new)

    def in_flight(self, requests: Iterable[Request], at_once: int, journal: Journal) -> Iterator[Written]:
        """The same in the requests' order, up to `at_once` of the missing ones under way; each is kept once finished.

        Where one fails for good, those under way are waited for and kept before the error goes on.
        """
        waiting: deque[tuple[Request, GeneratedText | Future[GeneratedText]]] = deque()

        def finish(request: Request) -> GeneratedText:
            (text,) = self.write([request])
            journal.append({request.id: text})
            # another process may have been first, and its text is the one that every run will read
            return journal.read(request.id, request.prompt) or text

        pool = ThreadPoolExecutor(at_once, thread_name_prefix="calibrune-writing")
        rest = iter(requests)
        try:
            while True:
                for request in itertools.islice(rest, 2 * at_once - len(waiting)):
                    found = journal.read(request.id, request.prompt)
                    waiting.append((request, found or pool.submit(finish, request)))
                if not waiting:
                    return
                request, text = waiting.popleft()
                new = isinstance(text, Future)
                yield Written([(request, text.result() if isinstance(text, Future) else text)], new)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _joined(text: GeneratedText, more: GeneratedText, leg: Leg, last: bool) -> GeneratedText:
    """The text with what the model wrote, and with what the template puts behind that."""
    drawn, scores = more.token_ids[len(text.token_ids) :], more.log_probs
    behind: tuple[int, ...] = ()
    if leg.then and (more.finished or not last):
        behind = leg.then
        if more.finished and drawn[-1] == behind[0]:
            behind = behind[1:]
        elif more.finished:  # ended, but not as the template ends a turn
            drawn, scores = drawn[:-1], scores[:-1]
    return GeneratedText(
        (*text.token_ids, *drawn, *behind),
        text.prompt_length,
        (*text.log_probs, *scores, *(None for _ in behind)),
        more.finished,
    )
