from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrune.corpora.document import Document
from calibrune.corpora.sampling import documents_in_random_order
from calibrune.errors import CorpusError
from calibrune.seeds import rank_of


@given(lengths=st.lists(st.integers(0, 9), max_size=30), seed=st.integers(0, 5), first_chunk=st.integers(1, 60))
def test_the_order_is_that_of_the_ranks_however_small_the_chunks(in_memory, lengths, seed, first_chunk):
    corpus = in_memory(*("x" * n for n in lengths))
    drawn = list(documents_in_random_order(corpus, seed, first_chunk=first_chunk))
    assert drawn == sorted(corpus.documents(), key=lambda document: rank_of(seed, document.id))


def test_each_seed_has_an_order_of_its_own(in_memory):
    corpus = in_memory(*map(str, range(40)))
    orders = {tuple(d.id for d in documents_in_random_order(corpus, seed)) for seed in range(5)}
    assert len(orders) == 5
    assert len({order[0] for order in orders}) > 1


def test_chunks_double_so_that_the_passes_are_few(in_memory):
    corpus = in_memory(*["xxxx"] * 30)
    list(documents_in_random_order(corpus, 0, first_chunk=8))
    # ranked once, then fetched in chunks of 2, 4, 8, 16 documents
    assert corpus.read <= 30 * 5


def test_only_the_chunks_that_are_needed_are_fetched(in_memory):
    corpus = in_memory(*["xxxx"] * 30)
    list(islice(documents_in_random_order(corpus, 0, first_chunk=400), 3))
    assert corpus.read <= 30 * 2


def test_a_corpus_in_random_order_is_passed_on_as_it_comes(in_memory):
    class Endless(in_memory):
        in_random_order = True

        def documents(self):
            while True:
                yield from super().documents()

    assert [d.text for d in islice(documents_in_random_order(Endless("a", "b"), 0), 3)] == ["a", "b", "a"]


@pytest.mark.parametrize("later", [("a",), ("other", "documents")])
def test_a_corpus_that_changes_while_it_is_read_is_an_error(in_memory, later):
    class Changing(in_memory):
        def documents(self):
            texts, self.texts = self.texts, later
            return (Document(text, text) for text in texts)

    with pytest.raises(CorpusError, match="'toy' changed"):
        list(documents_in_random_order(Changing("a", "b"), 0))
