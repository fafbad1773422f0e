"""Learning to rank: weights of pooling, choices, and noise."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.models import bert, build_model
from lm.nn.ranking import Encoder, choose, close_up, cloze, drop_tokens, may_meet
from lm.train.state import init_params

ROWS = np.array([[1, 5, 6, 7, 8, 9, 2, 0], [1, 5, 2, 0, 0, 0, 0, 0], [0] * 8])
SEGMENTS = (ROWS > 0).astype(np.int32)


def real(rows, segments):
    """Returns the tokens of each row, which stand at its beginning."""
    assert (np.diff(segments, axis=1) <= 0).all()
    return [row[seen > 0].tolist() for row, seen in zip(np.array(rows), segments)]


@settings(deadline=None)  # the first compiles
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1))
def test_closing_up_keeps_the_order(kept):
    segments = np.array(kept, np.int32)
    rows = np.arange(segments.size).reshape(segments.shape)
    expected = [row[seen > 0].tolist() for row, seen in zip(rows, segments)]
    assert real(*close_up(rows, segments)) == expected


@settings(deadline=None)  # the first compiles
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


@settings(deadline=None)  # the first compiles
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


def test_weights_of_attention_pooling_are_a_softmax_over_real_tokens():
    config = bert.Config(
        vocab_size=12, emb_dim=8, num_layers=1, num_heads=1, max_len=8, init_stddev=0.5
    )
    backbone = build_model(config)
    model = Encoder(backbone, "attention")
    params = jax.jit(init_params, static_argnums=0)(model, 0)
    batch = {"inputs": ROWS[:2], "segment_ids": SEGMENTS[:2]}
    vectors = model.apply({"params": params}, batch)
    states = backbone.apply({"params": params["backbone"]}, batch, method="hidden")
    for vector, row, seen in zip(vectors, np.array(states), SEGMENTS):
        row = row[seen > 0]
        weights = np.exp(row @ params["head"]["kernel"])
        pooled = (weights / weights.sum() * row).sum(axis=0)
        np.testing.assert_allclose(
            vector, pooled / np.linalg.norm(pooled), rtol=1e-3, atol=1e-5
        )


def test_only_wrong_texts_of_real_rows_are_shown():
    ids = jnp.array([[1, 1], [2, 1], [1, 3], [4, 4], [0, 0]])
    mask = jnp.array([1.0, 1, 1, 1, 0])
    assert may_meet({"ids": ids, "example_mask": mask}).astype(int).tolist() == [
        [1, 0, 0, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_what_may_not_be_chosen_has_no_part():
    logits = jnp.array([[1.0, 9, 2], [1, 0, 2]])
    allowed = jnp.array([[True, False, True], [True, True, True]])
    losses, right = choose(logits, allowed, jnp.array([0, 2]))
    expected = [np.log1p(np.e), np.log(np.exp([1, 0, 2]).sum()) - 2]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert right.tolist() == [False, True]
    never, _ = choose(logits, jnp.zeros_like(allowed), jnp.array([0, 2]))
    assert np.isfinite(never).all()
