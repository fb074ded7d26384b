"""Which documents are near-duplicates of an earlier one?

A document is dropped when at least half of its 13-grams stand in documents kept before it. A gram is
of words and of signs that are no sentence marks, so that vowel signs and operators count. Grams are
sampled by hash, one in SAMPLING, which estimates the share without bias; a document with fewer than
FEWEST sampled grams, of some hundred words, is dropped only if the very same text was kept before.
"""

import hashlib
import re
import zlib

import numpy as np

GRAM = 13
SAMPLING = 8
OVERLAP = 0.5
FEWEST = 8  # sampled grams that tell a share
RECENT = 2**20  # hashes that wait to be sorted in among the others
MOST = (
    2**27
)  # hashes in memory, 1 GiB, and as much again for moments: some billion words

# A word goes on over what is not ASCII, so that marks that combine with a letter are part of it. Every other sign is a word of its own
# but those that copies of a text often change.
_WORD = re.compile(r"(?:\w|[^\x00-\x7f\s‘’“”«»…])+|[^\w\s.,;:?\"'‘’“”«»…]")


def near(text: str) -> np.ndarray:
    """Sorted unique 64-bit hashes that stand for a document: its sampled 13-grams, or one of the whole text."""
    words = np.array(
        [zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], np.uint64
    )
    grams = np.zeros(max(len(words) - GRAM + 1, 0), np.uint64)
    for offset in range(GRAM):
        grams = _mix(grams ^ words[offset : offset + len(grams)])
    sampled = np.unique(grams[grams % np.uint64(SAMPLING) == 0])
    return sampled if len(sampled) >= FEWEST else exact(text)


def exact(text: str) -> np.ndarray:
    """One 64-bit hash of the whole text."""
    return np.frombuffer(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint64
    )


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijective scrambling of 64-bit words (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class DedupIndex:
    """The hashes of the documents kept so far, the first MOST of them: `full` tells that later ones are not remembered."""

    def __init__(self):
        self._sorted = np.zeros(0, np.uint64)
        self._recent: set[int] = set()
        self.full = False

    def is_duplicate(self, hashes: np.ndarray) -> bool:
        """Whether at least OVERLAP of `hashes` were kept before."""
        places = np.searchsorted(self._sorted, hashes)
        known = np.zeros(len(hashes), bool)
        inside = places < len(self._sorted)
        known[inside] = self._sorted[places[inside]] == hashes[inside]
        recent = sum(h in self._recent for h in hashes[~known].tolist())
        return int(known.sum()) + recent >= OVERLAP * len(hashes)

    def add(self, hashes: np.ndarray) -> None:
        if self.full:
            return
        self._recent.update(hashes.tolist())
        if len(self._recent) >= RECENT:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.concatenate([self._sorted, recent])
            self._sorted.sort(kind="stable")
            self._recent = set()
            self.full = len(self._sorted) >= MOST
