"""Chance has a name: every draw's seed is derived from the run's seed and a label that says what the draw is for."""

import hashlib
from operator import index


def seed_for(run_seed: int, *label: str) -> int:
    """A seed for one purpose of one run, independent of all others; in [0, 2**56).

    >>> seed_for(0, "calibration", "windows") == seed_for(0, "calibration", "windows")
    True
    >>> seed_for(0, "calibration", "windows") == seed_for(0, "bootstrap")
    False
    """
    # a separator inside a part is escaped: no two labels make the same text
    parts = [part.replace("\x1e", "\x1e\x1e").replace("\x1f", "\x1eu") for part in label]
    text = "\x1f".join([str(index(run_seed)), *parts])
    return int.from_bytes(hashlib.sha256(_bytes(text)).digest()[:7], "big")


def rank_of(run_seed: int, document_id: str) -> int:
    """Where a document stands in the seed's random order of all documents; lower comes first.

    A keyed hash instead of a shuffle: the order of two documents depends on nothing but the seed and their ids, so
    every version of every library draws the same sample, and a smaller sample is a part of a larger one.
    """
    seed = index(run_seed)
    fits = -(2**127) <= seed < 2**127
    key = seed.to_bytes(16, "big", signed=True) if fits else hashlib.sha256(f"{seed:x}".encode()).digest()
    return int.from_bytes(hashlib.blake2b(_bytes(document_id), key=key, digest_size=8).digest(), "big")


def _bytes(text: str) -> bytes:
    # a file name that is not UTF-8 comes from the system with lone surrogates
    return text.encode("utf-8", "surrogatepass")
