import pickle
import random
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.text import dedup
from lm.text.dedup import Deduplicator, Duplicate, fingerprint
from lm.types import UserError

WORDS = [
    a + b for a in ("ba", "ko", "ri", "tu", "le") for b in ("ma", "sen", "dro", "x")
]
CHINESE = "这条河发源于小城北面的群山，在流向大海的路上，推动着九座古老的水车。" * 2
OTHER_CHINESE = (
    "春天积雪融化的时候，河水会漫过草地；住在那里的人从来没有把这当作不幸。" * 2
)


def document(seed, size=80):
    return random.Random(seed).choices(WORDS, k=size)


def kept(texts, threshold=0.8):
    seen = Deduplicator(threshold)
    return [seen.add(fingerprint(text)) is None for text in texts]


def jaccard(a, b):
    a, b = set(dedup.shingles(a)), set(dedup.shingles(b))
    return len(a & b) / len(a | b)


@given(st.integers(0, 10**6), st.integers(0, 79))
def test_one_changed_word_is_a_near_duplicate(seed, place):
    words = document(seed)
    changed = [*words[:place], "changed", *words[place + 1 :]]
    texts = [" ".join(words), " ".join(changed)]
    assert jaccard(*texts) >= 0.85
    assert kept(texts) == [True, False]


@given(st.lists(st.integers(0), unique=True, max_size=20))
def test_unrelated_documents_are_kept(seeds):
    assert all(kept([" ".join(document(seed)) for seed in seeds]))


def test_case_and_punctuation_make_no_difference_but_order_does():
    words = document(1)
    text = " ".join(words)
    assert kept([text, ", ".join(words).upper() + "!"]) == [True, False]
    assert kept([text, " ".join(sorted(words))]) == [True, True]


def test_chinese():
    changed = CHINESE.replace("小城", "古城", 1)
    texts = [CHINESE, OTHER_CHINESE, changed, CHINESE.replace("，", "")]
    assert kept(texts) == [True, True, False, False]


@given(st.lists(st.integers(0, 6), max_size=30))
def test_the_first_of_equals_is_kept(seeds):
    texts = [" ".join(document(seed)) for seed in seeds]
    expected = [seed not in seeds[:i] for i, seed in enumerate(seeds)]
    assert kept(texts) == kept(texts, threshold=0) == expected


def test_a_near_duplicate_names_the_document_that_was_kept():
    seen = Deduplicator(0.8)
    for seed in range(20):
        seen.add(fingerprint(" ".join(document(seed))))
        seen.add(fingerprint(" ".join(document(seed))))
    found = seen.add(fingerprint(" ".join([*document(7), "more"])))
    assert found == Duplicate(is_exact=False, kept=7)


def test_what_was_dropped_drops_nothing():
    # Each text is close to the one before; the third is not to the first.
    chain = [" ".join(document(0, 120)[i * 10 : i * 10 + 80]) for i in range(3)]
    assert jaccard(chain[0], chain[1]) > 0.7 and jaccard(chain[0], chain[2]) < 0.65
    assert kept(chain, threshold=0.7) == [True, False, True]


def test_exact_duplicates_alone():
    words = document(3)
    near = " ".join([*words, "more"])
    assert kept([" ".join(words), near, near], threshold=0) == [True, True, False]
    assert fingerprint(near, near=False).sketch is None


@pytest.mark.parametrize("text", ["", "。", "?!", " "])
def test_texts_without_words_are_no_near_duplicates(text):
    assert fingerprint(text).sketch is None
    assert kept([text, text + ".", text]) == [True, True, False]


def test_texts_shorter_than_a_shingle():
    assert kept(["a", "A", "b", "a b", "a, b"]) == [True, False, True, True, False]


def pair(similarity, seed, size=400):
    """Makes two sketches of this Jaccard similarity."""
    names = [f"{seed}-{i}" for i in range(size)]
    shared, rest = names[: int(similarity * size)], names[int(similarity * size) :]
    sides = []
    for part in (rest[::2], rest[1::2]):
        sketch = dedup.RMinHash(dedup.SKETCH_SIZE, dedup.SEED)
        sketch.update(shared + part)
        sides.append(dedup.Fingerprint(repr(part).encode(), sketch))
    return sides


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_pairs_above_the_threshold_are_found_and_those_below_are_not(threshold):
    def found(similarity):
        seen = [Deduplicator(threshold) for _ in range(50)]
        pairs = [pair(similarity, seed) for seed in range(50)]
        return sum(
            s.add(a) is None and s.add(b) is not None for s, (a, b) in zip(seen, pairs)
        )

    margin = 4 * (threshold * (1 - threshold) / dedup.SKETCH_SIZE) ** 0.5
    assert found(min(threshold + margin, 0.99)) >= 48
    assert found(threshold - margin) <= 2


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_are_as_few_as_the_recall_allows(threshold):
    bands = dedup.num_bands(threshold)
    assert dedup.SKETCH_SIZE % bands == 0
    assert dedup.candidate_probability(threshold, bands) >= dedup.LEAST_RECALL
    if bands > 1:
        fewer = dedup.candidate_probability(threshold, bands // 2)
        assert fewer < dedup.LEAST_RECALL


def test_fingerprints_travel_between_processes():
    mark = fingerprint(" ".join(document(5)))
    seen = Deduplicator(0.8)
    seen.add(pickle.loads(pickle.dumps(mark)))
    near = fingerprint(" ".join([*document(5), "more"]))
    assert seen.add(pickle.loads(pickle.dumps(near))) == Duplicate(False, 0)


def test_texts_are_not_kept():
    text = " ".join(document(6))
    references = sys.getrefcount(text)
    seen = Deduplicator(0.8)
    seen.add(fingerprint(text))
    assert sys.getrefcount(text) == references


def test_a_document_leaves_little_memory():
    tracemalloc.start()
    seen = Deduplicator(0)
    for number in range(10_000):
        seen.add(fingerprint(str(number), near=False))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 200 * 10_000


@pytest.mark.parametrize("threshold", [-1, 0.05, 1.5, float("nan")])
def test_thresholds_that_make_no_sense(threshold):
    with pytest.raises(UserError, match="0.1 to 1"):
        Deduplicator(threshold)
