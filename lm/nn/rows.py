"""Rows of tokens with some of them left out.

Axes: B batch, T time of texts, Q of queries.
"""

import jax
import jax.numpy as jnp

from lm.types import Array

# How often a span that is made a query is taken out of its text: Lee et al. (2019),
# https://arxiv.org/abs/1906.00300, section 9.2.
TAKEN_OUT = 0.9

# Tokens and their segment ids, 0 where a row is padded: [B, T] each.
Rows = tuple[Array, Array]


def close_up(inputs: Array, segments: Array) -> Rows:
    """Moves padding, whose segment id is 0, to the end of every row [B, T]."""
    order = jnp.argsort(segments == 0, axis=1, stable=True)
    inputs = jnp.take_along_axis(inputs, order, axis=1)
    return inputs, jnp.take_along_axis(segments, order, axis=1)


def drop_tokens(inputs: Array, segments: Array, rng: Array, rate: float) -> Rows:
    """Leaves out a share of the tokens of each row [B, T], but never the first.

    Iyyer et al. (2015), https://doi.org/10.3115/v1/P15-1162, section 3. Which are left
    out depends on `rng` and the shape, not on what they are.
    """
    is_kept = jax.random.bernoulli(rng, 1 - rate, inputs.shape)
    is_kept |= jnp.arange(inputs.shape[1])[None] == 0
    return close_up(inputs, jnp.where(is_kept, segments, 0))


def cloze(inputs: Array, segments: Array, rng: Array, length: int) -> tuple[Rows, Rows]:
    """Makes a query of a span of every text, which mostly is taken out of it.

    The inverse cloze task of Lee et al. (2019), https://arxiv.org/abs/1906.00300. A
    span has up to half of a text's tokens; the first and last are marks, of both.

    Args:
        inputs: [B, T].
        segments: [B, T], 0 where padded.
        rng: What spans are drawn with.
        length: Q.

    Returns:
        Texts [B, T] and queries [B, Q], with their segment ids.
    """
    B, T = inputs.shape
    size_rng, start_rng, out_rng = jax.random.split(rng, 3)
    place = jnp.arange(T)[None]
    end = (segments > 0).sum(axis=1, keepdims=True) - 1
    room = jnp.maximum(end - 1, 0)
    size = jax.random.randint(size_rng, (B, 1), 1, length - 1)
    size = jnp.minimum(size, (room + 1) // 2)
    share = jax.random.uniform(start_rng, (B, 1))
    start = 1 + (share * (room - size + 1)).astype(int)
    is_span = (place >= start) & (place < start + size)
    is_query = is_span | (place == 0) | (place == end)
    queries = close_up(inputs, jnp.where(is_query, segments, 0))
    is_out = jax.random.bernoulli(out_rng, TAKEN_OUT, (B, 1)) & is_span
    texts = close_up(inputs, jnp.where(is_out, 0, segments))
    return texts, (queries[0][:, :length], queries[1][:, :length])
