import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.text.phrases import Phrases

WORDS = ["new", "york", "los", "angeles", "is", "a", "city", "of", "the"]


def corpus(number=200):
    """Random words, in which two pairs stand together always and others by chance."""
    rng = random.Random(0)
    for _ in range(number):
        words = rng.choices(WORDS[4:], k=12)
        place = rng.randrange(12)
        words[place:place] = rng.choice((["New", "York"], ["los", "Angeles"]))
        yield " ".join(words)


def test_words_that_stand_together_are_joined_and_no_others():
    texts = list(corpus())
    phrases = Phrases(texts, threshold=4.0)
    for text in texts:
        expected = text.replace("New York", "New_York")
        assert phrases.join(text) == expected.replace("los Angeles", "los_Angeles")


def test_the_score_is_equation_6():
    texts = list(corpus())
    words = " ".join(texts).lower().split()
    pair = sum("new york" in text.lower() for text in texts)
    expected = (pair - 5) / (words.count("new") * words.count("york")) * len(words)
    assert Phrases(texts).score("new", "york") == pytest.approx(expected)
    assert Phrases(texts, discount=pair).score("new", "york") == 0


def test_phrases_grow():
    texts = [text.replace("city", "New York city") for text in corpus()]
    first = Phrases(texts, threshold=4.0)
    joined = [first.join(text) for text in texts]
    second = Phrases(joined, threshold=4.0)
    assert second.join(first.join("a New York city")) == "a New_York_city"


def test_the_rarest_are_forgotten_where_there_are_too_many():
    texts = [*corpus(), *(f"x{i} y{i}" for i in range(500))]
    few = Phrases(texts, threshold=4.0, max_counted=200)
    assert few.score("new", "york") > 4
    assert few.join("New York x7 y7") == "New_York x7 y7"


@given(st.text())
def test_texts_change_in_nothing_but_spaces(text):
    phrases = Phrases(corpus(), threshold=4.0)
    for one in (text, f"{text} new \n york, {text}"):
        joined = phrases.join(one)
        assert "".join(joined.replace("_", "").split()) == "".join(
            one.replace("_", "").split()
        )
