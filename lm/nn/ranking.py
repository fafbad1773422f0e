"""What learning to rank is made of: vectors and choices.

Axes: B batch, T time, D emb_dim, K choices.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.nn import heads
from lm.nn.dropout import Dropout
from lm.nn.heads import pool
from lm.nn.layers import Einsum
from lm.types import Array, Batch

POOLINGS = (*heads.POOLINGS, "attention")

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
        pooled = Dropout(self.dropout_rate)(pooled, deterministic)
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
