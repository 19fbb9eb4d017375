"""Near-duplicates: what banded hashes find against brute force, exact similarities, the seed and large buckets."""

from itertools import combinations

import numpy as np
import pytest

from codes.train.near_duplicates import (
    WHOLE_BUCKET,
    MinHash,
    banding,
    jaccard,
    miss_probability,
    near_duplicates,
    shingles,
    words,
)


def variants(seed, texts=60, words_each=100):
    """Texts of random words, and for each a copy in which up to nine words are replaced."""
    generator = np.random.default_rng(seed)
    made = []
    for place in range(texts):
        text = [f"w{number}" for number in generator.integers(0, 5000, words_each)]
        copy = list(text)
        for number in generator.integers(0, words_each, place % 10):
            copy[number] = f"x{generator.integers(0, 5000)}"
        made += [" ".join(text), " ".join(copy)]
    return made


def found_in(texts, sides=None, threshold=0.8, size=3, seed=1):
    sign = MinHash(threshold, size, seed=seed)
    keys = np.stack([sign(text) for text in texts])
    sides = np.zeros(len(texts), int) if sides is None else sides
    return near_duplicates(keys, sides, texts.__getitem__, threshold=threshold, size=size)


def brute_force(texts, threshold, size=3):
    sets = [shingles(text, size) for text in texts]
    pairs = ((i, j, jaccard(sets[i], sets[j])) for i, j in combinations(range(len(texts)), 2))
    return {(i, j): similarity for i, j, similarity in pairs if similarity >= threshold}


def test_words_are_those_of_any_script_and_signs_are_none():
    assert words("Don't STOP: 3.5%!") == ["don", "t", "stop", "3", "5"]
    assert words("水的沸点 is 100度") == ["水", "的", "沸", "点", "is", "100", "度"]
    assert words("Straße über_uns") == ["strasse", "über", "uns"]


def test_a_text_shorter_than_a_shingle_is_one_and_one_without_words_is_its_own():
    assert shingles("a b c d", 3) == {("a", "b", "c"), ("b", "c", "d")}
    assert shingles("a b", 3) == {("a", "b")}
    assert shingles(" ?? ", 3) == {("??",)}
    assert jaccard(shingles("a b c d", 3), shingles("a b c e", 3)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_the_bands_miss_few_pairs_at_the_threshold_and_one_row_more_would_miss_too_many(threshold):
    bands, rows = banding(threshold)
    assert bands * rows <= 128
    assert miss_probability(threshold, bands, rows) <= 0.01
    if rows < 128:
        assert miss_probability(threshold, 128 // (rows + 1), rows + 1) > 0.01


def test_two_texts_agree_in_a_band_as_often_as_their_similarity_says():
    one, other = "a b c d e f g h i j k l", "a b c d e f g h i j x y"
    similarity = jaccard(shingles(one, 1), shingles(other, 1))
    agreements = []
    for seed in range(60):
        sign = MinHash(0.8, 1, seed=seed)
        agreements.append((sign(one) == sign(other)).mean())
    rows = banding(0.8)[1]
    # 60 x 21 bands: a standard error of 0.012 around 10/14 to the power of 6, 0.133.
    assert np.mean(agreements) == pytest.approx(similarity**rows, abs=0.04)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_the_found_pairs_are_true_and_connect_what_brute_force_connects(threshold):
    texts = variants(3)
    expected = brute_force(texts, threshold)
    found = found_in(texts, threshold=threshold)
    assert 20 < len(expected) < 120
    assert {(i, j): similarity for i, j, similarity in found.pairs} == expected
    assert found.clusters() == [list(pair) for pair in sorted(expected)]


def test_across_sides_every_text_with_a_near_duplicate_there_is_in_a_pair():
    base = " ".join(f"w{i}" for i in range(60))
    texts = [base, f"{base} a", f"{base} b", f"{base} a c", "something else entirely here", base + " d"]
    sides = np.array([0, 0, 0, 0, 0, 1])
    found = found_in(texts, sides)
    assert {pair[:2] for pair in found.pairs if 5 in pair[:2]} == {(0, 5), (1, 5), (2, 5), (3, 5)}
    # Within a side a chain of pairs is enough.
    assert len([pair for pair in found.pairs if 5 not in pair[:2]]) == 3


def test_a_bucket_of_many_like_texts_is_connected_without_comparing_all_of_its_pairs():
    base = " ".join(f"w{i}" for i in range(80))
    texts = [f"{base} {number}" for number in range(5 * WHOLE_BUCKET)]
    sides = np.arange(len(texts)) % 5 == 0
    found = found_in(texts, sides.astype(int))
    assert found.large_buckets > 0
    assert found.compared < 5 * len(texts)
    assert len(found.clusters()) == 1
    across = [pair for pair in found.pairs if sides[pair[0]] != sides[pair[1]]]
    assert {text for pair in across for text in pair[:2]} == set(range(len(texts)))


def test_the_same_seed_finds_the_same_and_the_order_of_texts_does_not_count():
    texts = variants(5, texts=20)
    one, again = found_in(texts, seed=4), found_in(texts, seed=4)
    assert one == again
    backwards = found_in(texts[::-1], seed=4)
    last = len(texts) - 1
    assert {(last - j, last - i) for i, j, _ in backwards.pairs} == {pair[:2] for pair in one.pairs}
    assert not np.array_equal(MinHash(0.8, 3, seed=4)(texts[0]), MinHash(0.8, 3, seed=5)(texts[0]))


def test_a_very_long_text_is_signed_in_parts_as_it_would_be_whole(monkeypatch):
    text = " ".join(f"w{i % 997}" for i in range(3000))
    whole = MinHash(0.8, 3, seed=1)(text)
    monkeypatch.setattr("codes.train.near_duplicates.SHINGLES_AT_A_TIME", 64)
    assert np.array_equal(MinHash(0.8, 3, seed=1)(text), whole)
