"""Seeds are derived, never shared: by hand, and by property."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrune.seeds import rank_of, seed_for

SEEDS = st.integers(-(2**200), 2**200)
LABELS = st.lists(st.text(), max_size=4)


def test_a_seed_is_the_head_of_a_hash_of_seed_and_label():
    by_hand = hashlib.sha256(b"7\x1fcalibration\x1fwindows").hexdigest()[:14]
    assert seed_for(7, "calibration", "windows") == int(by_hand, 16)


def test_these_numbers_never_change():
    # every recorded study depends on them
    assert seed_for(0, "calibration", "windows") == 24682163559162190
    assert rank_of(0, "c4.jsonl:1") == 4847947488464572542


@given(SEEDS, LABELS)
def test_a_seed_fits_every_generator(run_seed, label):
    assert 0 <= seed_for(run_seed, *label) < 2**56
    assert seed_for(run_seed, *label) == seed_for(run_seed, *label)


@given(SEEDS, SEEDS, LABELS, LABELS)
def test_another_seed_or_label_is_another_seed(a, b, label, other):
    assert (seed_for(a, *label) == seed_for(b, *other)) == ((a, label) == (b, other))


@pytest.mark.parametrize(
    ("label", "other"),
    [
        (("a\x1fb",), ("a", "b")),
        (("a\x1f", "b"), ("a", "\x1fb")),
        (("a\x1e", "b"), ("a", "\x1eb")),
        (("a\x1eub",), ("a\x1fb",)),
        (("",), ()),
    ],
)
def test_the_parts_of_a_label_do_not_run_together(label, other):
    assert seed_for(0, *label) != seed_for(0, *other)


@given(SEEDS, st.text())
def test_every_seed_ranks_every_document(run_seed, document_id):
    assert 0 <= rank_of(run_seed, document_id) < 2**64


@given(SEEDS, SEEDS)
def test_another_seed_is_another_order(a, b):
    ids = [f"c4:{row}" for row in range(20)]
    orders = [sorted(ids, key=lambda document_id, seed=seed: rank_of(seed, document_id)) for seed in (a, b)]
    assert (orders[0] == orders[1]) == (a == b)


def test_every_place_in_the_order_is_about_as_likely():
    # the chance of a document among 4 to come first is 1/4; 1,000 seeds are within 5 standard errors of it
    first = [min("abcd", key=lambda document_id, seed=seed: rank_of(seed, document_id)) for seed in range(1000)]
    assert all(180 < first.count(document_id) < 320 for document_id in "abcd")


def test_a_file_name_that_is_not_unicode_has_a_seed_and_a_rank():
    name = b"caf\xe9.txt:1".decode("utf-8", "surrogateescape")
    assert seed_for(0, name) != seed_for(0, "café.txt:1")
    assert rank_of(0, name) != rank_of(0, "café.txt:1")


def test_numpys_integers_are_the_same_seeds():
    # as the rows of a results table come back
    seed = np.int64(3)
    assert seed_for(int(seed), "x") == seed_for(seed, "x")
    assert rank_of(int(seed), "x") == rank_of(seed, "x")
