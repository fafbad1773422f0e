"""What learning to rank is made of: vectors, choices, and noise.

Axes: B batch, T time of texts, Q of queries, D emb_dim, K choices.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.nn import heads
from lm.nn.heads import pool
from lm.nn.layers import Einsum
from lm.types import Array, Batch

POOLINGS = (*heads.POOLINGS, "attention")

# How often a span that is made a query is taken out of its text: Lee et al. (2019),
# https://arxiv.org/abs/1906.00300, section 9.2.
TAKEN_OUT = 0.9

# Tokens and their segment ids, 0 where a row is padded: [B, T] each.
Rows = tuple[Array, Array]

# The logit of what may not be chosen; finite, so that what comes of it times 0 is 0.
_NEVER = -1e30


class Encoder(nn.Module):
    """A vector of length 1 for every row.

    Attributes:
        backbone: A model of `lm.models`.
        pooling: As in `lm.nn.heads.pool`; or `attention`: a mean, weighted by the
            softmax of a linear map of each state, `head` (Lin et al. 2017,
            https://arxiv.org/abs/1703.03130, with one such map and no hidden layer).
        dropout_rate: Of the pooled states.
    """

    backbone: Any
    pooling: str = "mean"
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True) -> Array:
        """Maps a batch of the backbone's to vectors [B, D], float32."""
        hidden = self.backbone.hidden(batch, deterministic).astype(jnp.float32)
        segments = batch.get("segment_ids", jnp.ones(hidden.shape[:2], jnp.int32))
        if self.pooling == "attention":
            D, stddev = hidden.shape[-1], self.backbone.config.init_stddev
            weigh = Einsum((D,), (1,), ("embed", "outputs"), stddev=stddev, name="head")
            scores = jnp.where(segments[:, :, None] > 0, weigh(hidden), _NEVER)
            pooled = (jax.nn.softmax(scores, axis=1) * hidden).sum(axis=1)
        else:
            pooled = pool(hidden, segments, self.pooling)
        pooled = nn.Dropout(self.dropout_rate)(pooled, deterministic=deterministic)
        square = jnp.square(pooled).sum(axis=-1, keepdims=True)
        return pooled * jax.lax.rsqrt(square + 1e-12)


def may_meet(batch: Batch) -> Array:
    """Returns which texts a query is shown, [B, B]: its own and those that are wrong.

    A text is not wrong if it is equal to the query's own, or the own one of an equal
    query, or padding.

    Args:
        batch: `ids` [B, 2] of queries and texts, and `example_mask` [B].
    """
    ids = batch["ids"]
    is_other = (ids[:, None] != ids[None]).all(axis=-1)
    is_real = batch["example_mask"][None] > 0
    return (is_other & is_real) | jnp.eye(len(ids), dtype=bool)


def choose(logits: Array, allowed: Array, own: Array) -> tuple[Array, Array]:
    """Returns cross-entropies [B], and whether the own choice has the highest logit.

    Args:
        logits: Of each choice [B, K].
        allowed: Which choices there are, [B, K].
        own: The right one of each row [B].
    """
    logits = jnp.where(allowed, logits, _NEVER)
    log_probs = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_probs, own[:, None], axis=1)[:, 0]
    return losses, logits.argmax(axis=1) == own


def close_up(inputs: Array, segments: Array) -> Rows:
    """Moves padding, whose segment id is 0, to the end of every row [B, T]."""
    order = jnp.argsort(segments == 0, axis=1, stable=True)
    inputs = jnp.take_along_axis(inputs, order, axis=1)
    return inputs, jnp.take_along_axis(segments, order, axis=1)


def drop_tokens(inputs: Array, segments: Array, rng: Array, rate: float) -> Rows:
    """Leaves out a share of the tokens of each row [B, T], but never the first."""
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
