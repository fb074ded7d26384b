"""Which documents are near-duplicates of an earlier one?

Deduplication: a document is dropped when at least half of its 13-grams occur in documents
kept before it. A gram consists of words and of signs other than sentence marks, so that
vowel signs and operators count. Grams are sampled by hash, one in SAMPLING, which
estimates the share without bias. A document with fewer than MIN_GRAMS sampled grams, of
about a hundred words, is dropped only if exactly the same text was kept before.
"""

import hashlib
import re
import zlib

import numpy as np

GRAM = 13
SAMPLING = 8
OVERLAP = 0.5
MIN_GRAMS = 8  # sampled grams from which a share can be estimated
RECENT = 2**20  # hashes that wait to be merged into the sorted ones
# Hashes in memory: 1 GiB, and twice that while they are merged; some billion words.
MOST = 2**27

# A word may contain any non-ASCII sign, so that marks that combine with a letter are part
# of it. Every other sign is a word of its own, except those that copies often change.
_WORD = re.compile(r"(?:\w|[^\x00-\x7f\s‘’“”«»…])+|[^\w\s.,;:?\"'‘’“”«»…]")


def near(text: str) -> np.ndarray:
    """The fingerprint of a document: sorted, unique 64-bit hashes.

    They are those of its sampled 13-grams, or one of the whole text where it is short.
    """
    words = _WORD.findall(text.lower())
    hashed = np.array([zlib.crc32(word.encode()) for word in words], np.uint64)
    grams = np.zeros(max(len(hashed) - GRAM + 1, 0), np.uint64)
    # Each pass adds the next word to all grams; mixing in between makes the order count.
    for offset in range(GRAM):
        next_words = hashed[offset : offset + len(grams)]
        grams = _mix(grams ^ next_words)
    sampled = np.unique(grams[grams % np.uint64(SAMPLING) == 0])
    if len(sampled) < MIN_GRAMS:
        return exact(text)
    return sampled


def exact(text: str) -> np.ndarray:
    """One 64-bit hash of the whole text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijective scrambling of 64-bit words.

    It is the finaliser of splitmix64 (Steele, Lea and Flood, 2014).
    """
    with np.errstate(over="ignore"):  # arithmetic is modulo 2**64
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class DedupIndex:
    """The hashes of the documents kept so far.

    `full` is set once MOST are in memory; later documents are not remembered.
    """

    def __init__(self):
        self._sorted = np.zeros(0, np.uint64)
        self._recent: set[int] = set()
        self.full = False

    def is_duplicate(self, hashes: np.ndarray) -> bool:
        """Whether at least OVERLAP of `hashes` were kept before."""
        positions = np.searchsorted(self._sorted, hashes)
        inside = positions < len(self._sorted)
        known = np.zeros(len(hashes), bool)
        known[inside] = self._sorted[positions[inside]] == hashes[inside]
        recent = sum(value in self._recent for value in hashes[~known].tolist())
        return int(known.sum()) + recent >= OVERLAP * len(hashes)

    def add(self, hashes: np.ndarray) -> None:
        if self.full:
            return
        self._recent.update(hashes.tolist())
        if len(self._recent) >= RECENT:
            self._merge_recent()
            self.full = len(self._sorted) >= MOST

    def _merge_recent(self) -> None:
        """Sorting seldom is cheaper than inserting; a stable sort is fast on sorted runs."""
        recent = np.fromiter(self._recent, np.uint64, len(self._recent))
        self._sorted = np.concatenate([self._sorted, recent])
        self._sorted.sort(kind="stable")
        self._recent = set()
