import random
import tracemalloc
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.text import overlap
from lm.text.dedup import shingles
from lm.text.overlap import find_overlap
from lm.types import UserError

VOCABULARY = [a + b for a in ("ba", "ko", "ri", "tu", "le") for b in ("ma", "sen", "x")]
CHINESE = "这条河发源于小城北面的群山，在流向大海的路上，推动着九座古老的水车。"


def words(seed, size=60):
    return random.Random(seed).choices(VOCABULARY, k=size)


def document(seed, size=60):
    return " ".join(words(seed, size))


def changed(seed, places):
    """Changes words that are 3 apart, each of which is in 3 shingles of its own."""
    text = words(seed)
    for place in range(places):
        text[2 + 3 * place] = f"new{place}"
    return " ".join(text)


def jaccard(a, b):
    a, b = set(shingles(a)), set(shingles(b))
    return len(a & b) / len(a | b)


@given(st.lists(st.text(max_size=3), max_size=20), st.lists(st.text(max_size=3)))
def test_short_texts_are_found_if_and_only_if_they_are_equal(train, held_out):
    def same(text):
        text = unicodedata.normalize("NFKC", text).casefold()
        return "".join(unicodedata.normalize("NFKC", text).split())

    # Without white space inside, which some of these characters are.
    train, held_out = list(map(same, train)), list(map(same, held_out))
    found = find_overlap(train, held_out)
    assert [o.index for o in found] == [
        index for index, text in enumerate(held_out) if text in train
    ]
    for o in found:
        assert (o.kind, o.similarity) == ("exact", 1)
        assert o.train_text == held_out[o.index]
        assert o.train_index == train.index(o.train_text)


@pytest.mark.parametrize(
    "a, b",
    [
        ("Straße", "STRASSE"),
        ("Ｗｉｄｅ", "wide"),
        ("cafe\u0301", "CAFÉ"),
        ("ﬁne", "fine"),
        (" two\u00a0\n words\t", "two words"),
        ("", " "),
    ],
)
def test_case_width_and_white_space_make_no_difference(a, b):
    for train, held_out in ((a, b), (b, a)):
        assert [o.kind for o in find_overlap([train], [held_out])] == ["exact"]


def test_punctuation_makes_a_difference():
    assert find_overlap(["Good!"], ["Good.", "Good"]) == []
    text = document(0)
    (near,) = find_overlap([text], [text + "!"])
    assert near == (0, "near", 1.0, 0, text)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.7, 0.8, 0.9, 1.0]))
def test_what_is_near_is_as_similar_as_is_said(seed, threshold):
    train = [document(seed + n // 4) for n in range(20)]
    held_out = [changed(seed + n // 4, n) for n in range(20)]
    for o in find_overlap(train, held_out, threshold):
        similarity = jaccard(train[o.train_index], held_out[o.index])
        assert o.similarity == similarity >= threshold


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_most_near_duplicates_are_found(threshold):
    pairs = [(document(n), changed(n, n % 12)) for n in range(400)]
    train, held_out = zip(*pairs)
    near = {n for n, pair in enumerate(pairs) if jaccard(*pair) >= threshold}
    found = {o.index for o in find_overlap(train, held_out, threshold)}
    assert 100 < len(near) < 300
    assert found <= near and len(found) >= 0.9 * len(near)


def test_short_texts_are_near_none():
    size = overlap.LEAST_SHINGLES + 2  # words, each of them another one
    text = [f"w{n}" for n in range(size)]
    assert find_overlap([" ".join(text)], [" ".join(text[:-1])], 0.5) == []
    assert find_overlap(["ha " * 100], ["ha " * 90]) == []
    (o,) = find_overlap([" ".join(text[:-1])], [" ".join(text)], 0.5)
    assert o.similarity == pytest.approx(7 / 8)


def test_an_equal_text_counts_before_a_near_one_and_the_first_of_each():
    text, near = document(1), changed(1, 1)
    train = ["other", near, document(2), text.upper(), text, near]
    held_out = [text, "none", text.title(), changed(1, 1) + " more"]
    assert [o[:2] + o[3:4] for o in find_overlap(train, held_out)] == [
        (0, "exact", 3),
        (2, "exact", 3),
        (3, "near", 1),
    ]
    # Whichever comes first.
    assert find_overlap([text, near], [text])[0][:4] == (0, "exact", 1.0, 0)


def test_chinese():
    text = CHINESE * 2
    train = [text, CHINESE[::-1]]
    held_out = [text.replace("小城", "古城", 1), text.replace("，", "")]
    assert [(o.kind, o.train_index) for o in find_overlap(train, held_out)] == [
        ("near", 0),
        ("near", 0),
    ]


def test_nothing_to_compare():
    assert find_overlap([], ["a"]) == find_overlap(["a"], []) == []


def test_training_texts_are_read_once_and_not_kept():
    def train():
        yield from (document(seed) for seed in range(3_000))

    held_out = [document(10**6)]
    find_overlap(iter([document(0)]), held_out)  # what is loaded only once
    tracemalloc.start()
    assert find_overlap(train(), held_out) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("threshold", [0, 0.4, 1.1, float("nan")])
def test_thresholds_that_make_no_sense(threshold):
    with pytest.raises(UserError, match="from 0.5 to 1"):
        find_overlap([], [], threshold)


def test_progress_is_on_standard_error(capsys, monkeypatch):
    monkeypatch.setattr(overlap.cli.Status, "every_seconds", -1)
    find_overlap(["a", "b"], ["c"])
    out, err = capsys.readouterr()
    assert out == "" and "2 training texts" in err
