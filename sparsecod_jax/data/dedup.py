"""Which documents are near-duplicates of an earlier one?

A document is dropped when at least half of its word 13-grams stand in documents kept before it. Grams are sampled by hash, one in
SAMPLING, which estimates the share without bias; a document too short for a sampled gram is compared whole.
"""

import hashlib
import re
import zlib

import numpy as np

GRAM = 13
SAMPLING = 8
OVERLAP = 0.5

_WORD = re.compile(r"\w+")


def fingerprint(text: str) -> np.ndarray:
    """Sorted unique 64-bit hashes that stand for a document: its sampled 13-grams, or one hash of the whole text."""
    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], np.uint64)
    grams = np.zeros(max(len(words) - GRAM + 1, 0), np.uint64)
    for offset in range(GRAM):
        grams = _mix(grams ^ words[offset : offset + len(grams)])
    sampled = np.unique(grams[grams % np.uint64(SAMPLING) == 0])
    if len(sampled):
        return sampled
    whole = hashlib.blake2b((" ".join(_WORD.findall(text.lower())) or text).encode(), digest_size=8).digest()
    return np.frombuffer(whole, np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijective scrambling of 64-bit words (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class Seen:
    """The fingerprints of the documents kept so far."""

    def __init__(self):
        self._hashes: set[int] = set()

    def is_duplicate(self, hashes: np.ndarray) -> bool:
        """Whether at least OVERLAP of `hashes` were kept before."""
        return sum(h in self._hashes for h in hashes.tolist()) >= OVERLAP * len(hashes)

    def add(self, hashes: np.ndarray) -> None:
        self._hashes.update(hashes.tolist())
