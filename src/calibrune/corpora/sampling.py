"""The documents of a corpus in the seed's random order, in bounded memory."""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from calibrune.corpora.document import Corpus, Document
from calibrune.errors import CorpusError
from calibrune.progress import track
from calibrune.seeds import rank_of

SAMPLER = "keyed-hash-1"
"""Version of the order in which documents are drawn; a change of order is a new version."""

FIRST_CHUNK = 64_000_000
"""Characters that are held at once in the first pass that fetches documents; every further pass holds twice as many."""


def documents_in_random_order(corpus: Corpus, seed: int, *, first_chunk: int = FIRST_CHUNK) -> Iterator[Document]:
    """Yield the documents by the keyed hash of seed and id; of equal hashes, the one that the corpus yields first.

    The first documents of one seed are the same however many are asked for, and each seed has an order of its own.
    A first pass over the corpus keeps 16 bytes per document; further passes fetch the documents chunk by chunk. A
    corpus whose order is already random is passed on as it comes, and may be endless.

    Args:
        corpus: yields the same documents at every call.
        seed: of the calibration set, or of the run.
        first_chunk: characters to hold at once; at least one document is held, however long.

    Raises:
        CorpusError: the corpus changed while it was read.
    """
    if corpus.in_random_order:
        yield from corpus.documents()
        return
    ranks, lengths = array("Q"), array("Q")
    for document in track(corpus.documents(), f"ranking the documents of {corpus.name}", unit="doc"):
        ranks.append(rank_of(seed, document.id))
        lengths.append(len(document.text))
    order = np.argsort(np.frombuffer(ranks, dtype=np.uint64), kind="stable").tolist()
    start, budget = 0, first_chunk
    while start < len(order):
        end, held = start + 1, lengths[order[start]]
        while end < len(order) and held + lengths[order[end]] <= budget:
            held += lengths[order[end]]
            end += 1
        wanted = order[start:end]
        fetched = _fetch(corpus.documents(), set(wanted))
        for index in wanted:
            if index not in fetched or rank_of(seed, fetched[index].id) != ranks[index]:
                raise CorpusError(f"the documents of {corpus.name!r} changed while they were read; start again")
            yield fetched.pop(index)
        start, budget = end, 2 * budget


def _fetch(documents: Iterable[Document], wanted: set[int]) -> dict[int, Document]:
    fetched: dict[int, Document] = {}
    for index, document in enumerate(documents):
        if index in wanted:
            fetched[index] = document
            if len(fetched) == len(wanted):
                break
    return fetched
