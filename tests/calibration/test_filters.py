from collections import Counter
from itertools import count, islice
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrune.calibration.filters import FILTERS, Filter, LengthFilter, PerplexityFilter
from calibrune.corpora.document import Document
from calibrune.errors import CalibrationError, ConfigError
from calibrune.settings import defaults

HIGHEST, NOT_A_NUMBER = "perplexity among the highest 0.2", "perplexity is not a number"


def scored(*perplexities: float | None) -> list[Document]:
    return [Document("text", f"toy:{row}", perplexity=p) for row, p in enumerate(perplexities)]


def kept_rows(of: Filter, documents: list[Document]) -> tuple[list[int], Counter[str]]:
    dropped: Counter[str] = Counter()
    return [int(d.id.removeprefix("toy:")) for d in of.keep(documents, dropped)], dropped


def test_the_highest_fifth_goes_and_the_order_stays():
    # int(0.2 * 5) = 1 of each group of five: 9.0 of the first, inf of the second
    documents = scored(3.0, 9.0, 1.0, 2.0, 4.0, 8.0, 7.0, inf, 6.0, 5.0)
    assert kept_rows(PerplexityFilter(among=5), documents) == ([0, 2, 3, 4, 5, 6, 8, 9], {HIGHEST: 2})
    # compared all at once, inf and 9.0 are the two of ten
    assert kept_rows(PerplexityFilter(among=None), documents)[0] == [0, 2, 3, 4, 5, 6, 8, 9]
    assert kept_rows(PerplexityFilter(among=None, drop_highest=0.3), documents)[0] == [0, 2, 3, 4, 6, 8, 9]


def test_not_a_number_has_a_reason_of_its_own_and_poisons_nothing():
    documents = scored(nan, 3.0, 9.0, nan, 1.0, 2.0, 4.0)
    assert kept_rows(PerplexityFilter(), documents) == ([1, 4, 5, 6], {HIGHEST: 1, NOT_A_NUMBER: 2})


def test_of_equal_perplexities_the_later_goes_at_either_end():
    documents = scored(*[5.0] * 10)
    assert kept_rows(PerplexityFilter(drop_highest=0.3), documents)[0] == list(range(7))
    both = PerplexityFilter(drop_highest=0.2, drop_lowest=0.1)
    assert kept_rows(both, documents) == (list(range(7)), {HIGHEST: 2, "perplexity among the lowest 0.1": 1})


def test_both_tails_can_go():
    documents = scored(1.0, 50.0, 7.0, 6.0)
    assert kept_rows(PerplexityFilter(drop_highest=0.25, drop_lowest=0.25), documents)[0] == [2, 3]


perplexities = st.lists(st.one_of(st.floats(1), st.just(nan), st.just(inf), st.sampled_from([2.0, 3.0])), max_size=40)


@given(values=perplexities, fraction=st.floats(0, 0.99), among=st.integers(1, 12))
def test_exactly_the_fraction_of_every_group_goes_ties_or_not(values, fraction, among):
    kept, dropped = kept_rows(PerplexityFilter(drop_highest=fraction, among=among), scored(*values))
    comparable = [row for row, value in enumerate(values) if value == value]
    assert kept == sorted(kept)
    for start in range(0, len(comparable), among):
        group = comparable[start : start + among]
        stays = [row for row in group if row in kept]
        goes = [row for row in group if row not in kept]
        assert len(goes) == int(fraction * len(group)) < len(group)
        assert not goes or max(values[row] for row in stays) <= min(values[row] for row in goes)
    assert dropped.total() + len(kept) == len(values)


def test_an_endless_corpus_is_read_group_by_group():
    endless = (Document("text", str(i), perplexity=float(i)) for i in count())
    kept = islice(PerplexityFilter(among=10).keep(endless, Counter()), 8)
    assert [d.id for d in kept] == [str(i) for i in range(8)]
    assert next(endless).id == "10"


def test_where_none_goes_by_its_rank_none_waits_for_others():
    endless = (Document("text", str(i), perplexity=float(i)) for i in count())
    assert next(PerplexityFilter(drop_highest=0.0, max_perplexity=9.0).keep(endless, Counter())).id == "0"
    assert next(endless).id == "1"


def test_documents_without_a_perplexity_are_an_error_that_says_what_to_do():
    with pytest.raises(CalibrationError, match="'toy:1' has none: calibrate on self-generated text"):
        kept_rows(PerplexityFilter(), scored(2.0, None))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"drop_highest": 1.0}, "drop_highest cannot be 1.0"),
        ({"drop_highest": -0.1}, "drop_highest cannot be -0.1"),
        ({"drop_highest": 0.5, "drop_lowest": 0.5}, "leave nothing"),
        ({"among": 0}, "among cannot be 0"),
        ({"drop_high": 0.1}, "did you mean 'drop_highest'"),
    ],
)
def test_impossible_settings_are_errors(settings, says):
    with pytest.raises(ConfigError, match=says):
        PerplexityFilter(**settings)


def test_short_documents_go():
    documents = [Document("long enough", "toy:0"), Document("short", "toy:1")]
    assert kept_rows(LengthFilter(min_chars=6), documents) == ([0], {"fewer than 6 characters": 1})


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_says_what_it_is_and_shares_no_option_with_another(name, tmp_path):
    made = FILTERS[name](evals=tmp_path) if name == "contamination" else FILTERS[name]()
    assert isinstance(made, Filter)
    assert FILTERS[name].__doc__
    others = {option for other, kind in FILTERS.items() if other != name for option in defaults(kind)}
    assert not others & defaults(FILTERS[name]).keys()
