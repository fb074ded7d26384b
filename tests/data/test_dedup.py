"""Near copies go, different documents stay, and short documents are compared exactly."""

import numpy as np
import pytest

from sparsecod_jax.data import dedup
from sparsecod_jax.data.dedup import DedupIndex, near


def words(seed: int, count: int) -> list[str]:
    return [f"w{n}" for n in np.random.default_rng(seed).integers(0, 500, count)]


def kept(*documents: str) -> list[bool]:
    """Which of `documents`, one after the other, are kept."""
    index = DedupIndex()
    verdicts = []
    for document in documents:
        hashes = near(document)
        is_new = not index.is_duplicate(hashes)
        if is_new:
            index.add(hashes)
        verdicts.append(is_new)
    return verdicts


@pytest.mark.parametrize("seed", range(5))
def test_near_copy_goes_and_a_different_document_stays(seed):
    original = words(seed, 600)
    copy = list(original)
    for position in (50, 200, 400):
        copy[position] = "changed"
    texts = [" ".join(text) for text in (original, copy, words(seed + 100, 600))]
    assert kept(*texts) == [True, False, True]


@pytest.mark.parametrize(("shared", "stays"), [(0.25, True), (0.75, False)])
def test_half_of_the_grams_decides(shared, stays):
    original, other = words(1, 4000), words(2, 4000)
    cut = int(4000 * shared)
    mixed = original[:cut] + other[cut:]
    assert kept(" ".join(original), " ".join(mixed)) == [True, stays]


def test_same_phrases_in_another_order_are_another_document():
    phrases = [" ".join(words(seed, 10)) for seed in range(80)]
    shuffled = [phrases[n] for n in np.random.default_rng(0).permutation(80)]
    assert kept(" ".join(phrases), " ".join(shuffled)) == [True, True]


def test_share_is_of_the_new_document_over_all_kept_ones():
    first, second = words(1, 2000), words(2, 2000)
    assert kept(" ".join(first + second), " ".join(first[:1000])) == [True, False]
    texts = [" ".join(text) for text in (first, second, first[:1000] + second[:1000])]
    assert kept(*texts) == [True, True, False]


def test_case_and_punctuation_do_not_matter():
    text = words(1, 300)
    assert kept(" ".join(text), ", ".join(text).upper() + "!") == [True, False]


def test_short_documents_are_compared_exactly():
    texts = ("To be or not", "to be, or not", "To be or not", "to be or")
    assert kept(*texts) == [True, True, False, True]
    # A few shared grams are no evidence.
    sentence = " ".join(words(7, 20))
    assert kept(f"{sentence} one", f"{sentence} two") == [True, True]


def test_vowel_signs_and_operators_are_part_of_the_text():
    syllables = ["कि", "की", "कु", "कू", "के", "कै", "को", "कौ"]
    rng = np.random.default_rng(0)
    hindi = [" ".join(rng.choice(syllables, 200)) for _ in range(6)]
    assert kept(*hindi) == [True] * 6
    assert kept(*syllables) == [True] * 8
    signs = "+-*/%&|<>=!^"
    code = [" ".join(f"x{n} {sign} y{n}" for n in range(100)) for sign in signs]
    assert kept(*code) == [True] * 12


def test_hashes_that_were_merged_are_found_too(monkeypatch):
    monkeypatch.setattr(dedup, "RECENT", 100)
    documents = [" ".join(words(seed, 200)) for seed in range(40)]
    assert kept(*documents, *documents) == [True] * 40 + [False] * 40


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(dedup, "RECENT", 100)
    monkeypatch.setattr(dedup, "MOST", 200)
    documents = [" ".join(words(seed, 400)) for seed in range(40)]
    index = DedupIndex()
    for document in documents:
        index.add(near(document))
    assert index.full
    assert index.is_duplicate(near(documents[0]))
    assert not index.is_duplicate(near(documents[-1])), "later ones are not remembered"


def test_documents_without_words():
    assert kept("!!!", "???", "!!!", "😀", "😢") == [True, True, False, True, True]


def test_fingerprints_are_sorted_unique_and_about_one_in_eight_grams():
    hashes = near(" ".join(words(3, 8000)))
    assert hashes.dtype == np.uint64
    assert np.all(hashes[1:] > hashes[:-1])
    assert 850 < hashes.size < 1150
