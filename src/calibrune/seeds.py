"""Chance has a name: every draw's seed is derived from the run's seed and a label that says what the draw is for."""

import hashlib


def seed_for(run_seed: int, *label: str) -> int:
    """A seed for one purpose of one run, independent of all others; in [0, 2**56).

    >>> seed_for(0, "calibration", "windows") == seed_for(0, "calibration", "windows")
    True
    >>> seed_for(0, "calibration", "windows") == seed_for(0, "bootstrap")
    False
    """
    text = "\x1f".join([str(run_seed), *label])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def rank_of(run_seed: int, document_id: str) -> int:
    """Where a document stands in the seed's random order of all documents; lower comes first.

    A keyed hash instead of a shuffle: the order of two documents depends on nothing but the seed and their ids, so every
    version of every library draws the same sample, and a smaller sample is a part of a larger one.
    """
    key = run_seed.to_bytes(16, "big", signed=True)
    return int.from_bytes(hashlib.blake2b(document_id.encode(), key=key, digest_size=8).digest(), "big")
