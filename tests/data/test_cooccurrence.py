import collections

import numpy as np
import pytest

from lm.data.cooccurrence import (
    CELL,
    Counter,
    in_blocks,
    kept_share,
    mirrored,
    pairs,
    shuffled,
)

V = 7


def texts_of(seed, longest=40):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, longest, 12)
    return [rng.integers(0, V, size).astype(np.int32) for size in sizes]


def by_hand(texts, window, power=1):
    """Each word's neighbours to both sides, one by one."""
    counts = collections.defaultdict(float)
    for ids in texts:
        for i, word in enumerate(ids.tolist()):
            for j in range(max(0, i - window), min(len(ids), i + window + 1)):
                if i != j:
                    counts[word, int(ids[j])] += abs(i - j) ** -power
    return counts


def as_dict(cells):
    found = {(r, c): x for r, c, x in cells.tolist()}
    assert len(found) == len(cells)
    return found


def count(texts, window, folder, memory):
    counter = Counter(folder, memory)
    for i in range(0, len(texts), 5):
        counter.add(texts[i : i + 5], window, V)
    parts = list(counter.merged())
    return counter, parts


@pytest.mark.parametrize("window", [1, 3, 10, 100])
@pytest.mark.parametrize("memory", [1 << 20, 1500, 64])
def test_counts_are_those_by_hand_whatever_the_memory(window, memory, tmp_path):
    texts = texts_of(window)
    counter, parts = count(texts, window, tmp_path, memory)
    assert (len(counter.spilled) > 1) == (memory < 1 << 20)
    keys = np.concatenate([part["key"] for part in parts])
    assert (np.diff(keys) > 0).all()
    assert counter.most_pairs >= len(keys)
    cells = np.concatenate([mirrored(part, V) for part in parts])
    found, expected = as_dict(cells), by_hand(texts, window)
    assert found.keys() == expected.keys()
    for cell, value in expected.items():
        assert found[cell] == pytest.approx(value, rel=1e-6)
    if memory < 1 << 20:  # no part is longer than memory allows
        assert max(map(len, parts)) <= max(memory // 16, len(counter.spilled))


@pytest.mark.parametrize("power", [0, 0.5])
@pytest.mark.parametrize("limit", [0, 0.02, 0.05])
def test_far_words_and_frequent_words_count_as_told(power, limit):
    texts = texts_of(3)
    share = np.bincount(np.concatenate(texts), minlength=V)
    kept = kept_share(share, limit)
    parts = pairs(texts, 5, V, power=power)
    found = as_dict(np.concatenate([mirrored(part, V, kept) for part in parts]))
    expected = by_hand(texts, 5, power=float(power))
    assert found.keys() == expected.keys()
    for (i, j), value in expected.items():
        assert found[i, j] == pytest.approx(value * kept[i] * kept[j], rel=1e-6)
    assert kept.min() == 1 if not limit else (kept <= 1).all() and kept.min() < 1


def test_no_pair_is_of_two_texts_and_none_is_lost_at_a_parts_end():
    texts = [np.array([1, 2]), np.array([3]), np.array([4, 5, 6])]
    for most in (1, 2, 3, 100):
        found = np.concatenate(list(pairs(texts, 2, V, most)))
        weights = collections.Counter()
        for key, weight in found.tolist():
            weights[divmod(key, V)] += weight
        assert weights == {(1, 2): 1, (4, 5): 1, (5, 6): 1, (4, 6): 0.5}
    assert list(pairs([], 2, V)) == []


def test_large_vocabularies_do_not_overflow():
    large = 1 << 30
    (found,) = pairs([np.array([large - 2, large - 1], np.int32)], 1, large)
    assert mirrored(found, large)["column"].tolist() == [large - 1, large - 2]


def cells_of(size):
    cells = np.zeros(size, CELL)
    cells["row"], cells["count"] = np.arange(size), 1
    return cells


@pytest.mark.parametrize("memory", [1 << 20, 1000])
def test_shuffling_keeps_all_and_depends_on_the_seed(memory, tmp_path):
    def shuffle(seed):
        parts = in_blocks([cells_of(500)], 64)
        found = list(shuffled(parts, 500, tmp_path, memory, seed))
        assert (len(found) > 1) == (memory == 1000)
        return np.concatenate(found)["row"].tolist()

    first = shuffle(0)
    assert sorted(first) == list(range(500)) != first
    assert first == shuffle(0) != shuffle(1)
    assert not list(tmp_path.iterdir())


def test_every_place_is_alike_likely(tmp_path):
    places = np.zeros((6, 6))
    for seed in range(300):
        parts = list(shuffled([cells_of(6)], 6, tmp_path, 150, seed))
        order = np.concatenate(parts)["row"]
        places[np.arange(6), order] += 1
    # Binomial(300, 1/6): 50 with a deviation of 6.5.
    assert places.min() > 25 and places.max() < 75
