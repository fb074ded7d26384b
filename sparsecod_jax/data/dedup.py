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

GRAM = 13  # words
SAMPLING = 8  # one gram in so many is remembered
OVERLAP = 0.5  # share of known grams from which a document is a duplicate
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
    count = max(len(words) - GRAM + 1, 0)
    grams = np.zeros(count, np.uint64)
    # Each pass adds the next word to all grams; mixing in between makes the order count.
    for offset in range(GRAM):
        next_words = hashed[offset : offset + count]
        grams = _mix(grams ^ next_words)
    # Sampling by the hash itself selects the same grams in every document.
    is_sampled = grams % np.uint64(SAMPLING) == 0
    sampled = np.unique(grams[is_sampled])
    # A share of few grams would be a guess.
    if len(sampled) < MIN_GRAMS:
        return exact(text)
    return sampled


def exact(text: str) -> np.ndarray:
    """The fingerprint of a document that only exact copies share: one 64-bit hash."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijective scrambling of 64-bit words.

    It is the finaliser of splitmix64 (Steele, Lea and Flood, 2014).
    """
    # Arithmetic is modulo 2**64, so that products may overflow.
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class DedupIndex:
    """The hashes of the documents kept so far.

    Most hashes are in a sorted array, which takes a fraction of the memory of a set.
    Recent ones wait in a set until they are merged into it.

    Attributes:
      full: MOST hashes are in memory; later documents are not remembered.
    """

    def __init__(self):
        self._sorted = np.zeros(0, np.uint64)
        self._recent: set[int] = set()
        self.full = False

    def is_duplicate(self, hashes: np.ndarray) -> bool:
        """Whether at least OVERLAP of these hashes were kept before.

        Args:
          hashes: unique ones of a document, uint64, in any order.
        """
        positions = np.searchsorted(self._sorted, hashes)
        # A hash above all others has the position after the last one.
        inside = positions < len(self._sorted)
        known = np.zeros(len(hashes), bool)
        known[inside] = self._sorted[positions[inside]] == hashes[inside]
        unknown = hashes[~known].tolist()
        in_recent = sum(value in self._recent for value in unknown)
        in_sorted = int(known.sum())
        return in_sorted + in_recent >= OVERLAP * len(hashes)

    def add(self, hashes: np.ndarray) -> None:
        """Remembers the hashes of a document that is kept."""
        if self.full:
            return
        self._recent.update(hashes.tolist())
        if len(self._recent) >= RECENT:
            self._merge_recent()
            self.full = len(self._sorted) >= MOST

    def _merge_recent(self) -> None:
        """Sorts the recent hashes into the others: seldom, as it takes a second."""
        count = len(self._recent)
        recent = np.fromiter(self._recent, np.uint64, count)
        self._sorted = np.concatenate([self._sorted, recent])
        # In place, to save memory.
        self._sorted.sort(kind="stable")
        self._recent = set()
