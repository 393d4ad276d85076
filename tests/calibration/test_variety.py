from collections import Counter
from itertools import combinations, count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrune.calibration.filters import ByGroup, VarietyFilter
from calibrune.corpora.document import Document
from calibrune.errors import ConfigError


def kept(of: VarietyFilter, *texts: str) -> tuple[list[int], int]:
    dropped: Counter[str] = Counter()
    stays = [int(one.id) for one in of.keep((Document(text, str(i)) for i, text in enumerate(texts)), dropped)]
    return stays, dropped.total()


def test_the_text_with_the_most_words_comes_first_and_then_what_adds_most_to_it():
    # 2 has five words, of which 0 has four; after it 1 adds two, 0 and 3 one each
    texts = ("a b c d x", "e f a", "A b, c d e!", "g")
    assert kept(VarietyFilter(drop_alike=0.5), *texts) == ([0, 1], 2)
    assert kept(VarietyFilter(drop_alike=0.25), *texts) == ([0, 1, 3], 1)
    assert kept(VarietyFilter(drop_alike=0.0), *texts) == ([0, 1, 2, 3], 0)


def test_words_of_earlier_groups_are_not_new():
    of = VarietyFilter(drop_alike=0.5, variety_among=2)
    assert kept(of, "a b c", "a", "a b c", "z") == ([0, 3], 2)


def test_a_long_text_does_not_win_by_its_length():
    texts = ("a a a a b c d e", "x y")
    assert kept(VarietyFilter(first_words=4), *texts)[0] == [1]
    assert kept(VarietyFilter(first_words=None), *texts)[0] == [0]


texts = st.lists(st.text("abcdef ", max_size=12), min_size=1, max_size=9)


@given(texts, st.floats(0, 0.99), st.integers(1, 5))
def test_exactly_the_fraction_of_every_group_goes_and_the_order_stays(texts, fraction, among):
    stays, n_dropped = kept(VarietyFilter(drop_alike=fraction, variety_among=among), *texts)
    assert stays == sorted(stays)
    assert len(stays) + n_dropped == len(texts)
    for start in range(0, len(texts), among):
        n = len(texts[start : start + among])
        assert sum(start <= i < start + among for i in stays) == n - int(fraction * n)


@given(texts, st.integers(1, 9))
def test_it_has_as_many_words_as_the_greedy_bound_says(texts, n):
    n = min(n, len(texts))
    stays, _ = kept(VarietyFilter(drop_alike=(len(texts) - n) / len(texts) + 1e-9), *texts)
    assert len(stays) == n
    of = [set(text.split()) for text in texts]
    best = max(len(set().union(*some)) for some in combinations(of, n))
    assert len(set().union(*(of[i] for i in stays))) >= (1 - 1 / 2.718281828) * best


def test_an_endless_corpus_is_read_group_by_group():
    endless = (Document(f"word{i}", str(i)) for i in count())
    assert len(list(islice(VarietyFilter(variety_among=4).keep(endless, Counter()), 2))) == 2
    assert next(endless).id == "4"


def test_what_must_be_written_is_known_beforehand():
    of = VarietyFilter(drop_alike=0.75, variety_among=32)
    assert isinstance(of, ByGroup)
    assert (of.share_kept, of.group) == (0.25, 32)


def test_dropping_all_is_an_error():
    with pytest.raises(ConfigError, match=r"drop_alike cannot be 1\.0"):
        VarietyFilter(drop_alike=1.0)
