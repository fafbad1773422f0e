"""Rows of which tokens are left out, and queries made of them."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lm.nn.rows import close_up, cloze, drop_tokens

ROWS = np.array([[1, 5, 6, 7, 8, 9, 2, 0], [1, 5, 2, 0, 0, 0, 0, 0], [0] * 8])
SEGMENTS = (ROWS > 0).astype(np.int32)


def real(rows, segments):
    """Returns the tokens of each row, which stand at its beginning."""
    assert (np.diff(segments, axis=1) <= 0).all()
    return [row[seen > 0].tolist() for row, seen in zip(np.array(rows), segments)]


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1))
def test_closing_up_keeps_the_order(kept):
    segments = np.array(kept, np.int32)
    rows = np.arange(segments.size).reshape(segments.shape)
    expected = [row[seen > 0].tolist() for row, seen in zip(rows, segments)]
    assert real(*close_up(rows, segments)) == expected


@given(st.integers(0, 99), st.floats(0, 1))
def test_dropped_tokens_are_some_of_a_row_and_never_the_first(seed, rate):
    found = real(*drop_tokens(ROWS, SEGMENTS, jax.random.key(seed), rate))
    for before, after in zip(real(ROWS, SEGMENTS), found):
        rest = iter(before)
        assert after[:1] == before[:1] and all(token in rest for token in after)


def test_the_share_of_dropped_tokens_is_the_rate():
    rows = np.ones((100, 101), np.int32)
    _, segments = drop_tokens(rows, rows, jax.random.key(0), 0.3)
    assert 0.28 < 1 - (segments.sum() - 100) / 100**2 < 0.32


@given(st.integers(0, 999), st.integers(3, 8))
def test_a_cloze_is_a_span_of_its_text_between_its_marks(seed, length):
    texts, queries = cloze(ROWS, SEGMENTS, jax.random.key(seed), length)
    assert queries[0].shape == (3, length)
    for row, text, query in zip(real(ROWS, SEGMENTS), real(*texts), real(*queries)):
        if not row:
            assert text == query == []
            continue
        first, *span, last = query
        assert [first, last] == [row[0], row[-1]]
        assert 1 <= len(span) <= min(length - 2, (len(row) - 1) // 2)
        begin = row.index(span[0])
        assert row[begin : begin + len(span)] == span
        rest = row[:begin] + row[begin + len(span) :]
        assert text in (row, rest)


def test_a_span_is_mostly_taken_out():
    rows = np.tile(ROWS[:1], (1000, 1))
    segments = np.tile(SEGMENTS[:1], (1000, 1))
    (texts, _), _ = cloze(rows, segments, jax.random.key(0), 8)
    assert 0.85 < (np.array(texts) == rows).all(axis=1).mean() * -1 + 1 < 0.95
