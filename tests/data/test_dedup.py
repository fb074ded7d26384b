"""Near copies go, different documents stay, and short documents are compared whole."""

import numpy as np
import pytest

from sparsecod_jax.data.dedup import Seen, fingerprint


def words(seed: int, count: int) -> list[str]:
    return [f"w{n}" for n in np.random.default_rng(seed).integers(0, 500, count)]


def kept(*documents: str) -> list[bool]:
    """Which of `documents`, one after the other, are kept."""
    seen, verdicts = Seen(), []
    for document in documents:
        hashes = fingerprint(document)
        verdicts.append(not seen.is_duplicate(hashes))
        if verdicts[-1]:
            seen.add(hashes)
    return verdicts


@pytest.mark.parametrize("seed", range(5))
def test_near_copy_goes_and_a_different_document_stays(seed):
    original = words(seed, 600)
    copy = list(original)
    for place in (50, 200, 400):
        copy[place] = "changed"
    assert kept(" ".join(original), " ".join(copy), " ".join(words(seed + 100, 600))) == [True, False, True]


@pytest.mark.parametrize(("shared", "stays"), [(0.25, True), (0.75, False)])
def test_half_of_the_grams_decides(shared, stays):
    original, other = words(1, 4000), words(2, 4000)
    cut = int(4000 * shared)
    assert kept(" ".join(original), " ".join(original[:cut] + other[cut:])) == [True, stays]


def test_same_phrases_in_another_order_are_another_document():
    phrases = [" ".join(words(seed, 10)) for seed in range(80)]
    shuffled = [phrases[n] for n in np.random.default_rng(0).permutation(80)]
    assert kept(" ".join(phrases), " ".join(shuffled)) == [True, True]


def test_share_is_of_the_new_document_over_all_kept_ones():
    first, second = words(1, 2000), words(2, 2000)
    assert kept(" ".join(first + second), " ".join(first[:1000])) == [True, False]
    assert kept(" ".join(first), " ".join(second), " ".join(first[:1000] + second[:1000])) == [True, True, False]


def test_case_and_punctuation_do_not_matter():
    text = words(1, 300)
    assert kept(" ".join(text), ", ".join(text).upper() + "!") == [True, False]


def test_short_documents_are_compared_whole():
    assert kept("To be or not", "to be, or not", "to be or", "to be or not to be") == [True, False, True, True]


def test_documents_without_words_are_compared_as_they_are():
    assert kept("!!!", "???", "!!!", "😀", "😢") == [True, True, False, True, True]


def test_fingerprints_are_sorted_unique_and_about_one_in_eight_grams():
    hashes = fingerprint(" ".join(words(3, 8000)))
    assert hashes.dtype == np.uint64
    assert np.all(hashes[1:] > hashes[:-1])
    assert 850 < hashes.size < 1150
