"""Learning to rank: weights of pooling, and choices."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.models import bert, build_model
from lm.nn.ranking import Encoder, choose, may_meet
from lm.train.state import init_params

ROWS = np.array([[1, 5, 6, 7, 8, 9, 2, 0], [1, 5, 2, 0, 0, 0, 0, 0]])
SEGMENTS = (ROWS > 0).astype(np.int32)


def test_weights_of_attention_pooling_are_a_softmax_over_real_tokens():
    config = bert.Config(
        vocab_size=12, emb_dim=8, num_layers=1, num_heads=1, max_len=8, init_stddev=0.5
    )
    backbone = build_model(config)
    model = Encoder(backbone, "attention")
    params = jax.jit(init_params, static_argnums=0)(model, 0)
    batch = {"inputs": ROWS, "segment_ids": SEGMENTS}
    vectors = jax.jit(model.apply)({"params": params}, batch)
    hidden = jax.jit(lambda p, b: backbone.apply({"params": p}, b, method="hidden"))
    states = hidden(params["backbone"], batch)
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
