"""Heads: what a task puts on top of a backbone.

Parameters are `backbone/…`, named as the backbone alone names them, and `head/…`.
Axes: B batch, T time, D emb_dim, C outputs.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lm.nn import layers
from lm.nn.base import last_token
from lm.nn.crf import Chains
from lm.nn.dropout import Dropout
from lm.nn.layers import Einsum, declare
from lm.types import Array, Batch

POOLINGS = ("first", "last", "mean", "max")

# Of the layer before the outputs: BERT's and RoBERTa's is tanh, DistilBERT's relu,
# ELECTRA's gelu.
ACTIVATIONS = ("tanh", "relu", "gelu")


def pool(hidden: Array, segment_ids: Array, how: str) -> Array:
    """Makes one vector of a row's states.

    Args:
        hidden: [B, T, D].
        segment_ids: [B, T], 0 where the row is padded, on the right.
        how: `first` ([CLS]: Devlin et al. 2019), `last`, `mean` or `max` of those that
            are not padding.

    Returns:
        [B, D]; zeros for a row of padding, unless it is the first that is taken.
    """
    real = (segment_ids > 0)[:, :, None]
    if how == "first":
        return hidden[:, 0]
    if how == "last":
        return last_token(hidden, real[:, :, 0])[:, 0] * real.any(axis=1)
    if how == "max":
        low = jnp.where(real, hidden, jnp.finfo(hidden.dtype).min).max(axis=1)
        return jnp.where(real.any(axis=1), low, 0)
    count = jnp.maximum(real.sum(axis=1), 1)
    return jnp.where(real, hidden, 0).sum(axis=1) / count


class PooledHead(nn.Module):
    """Some numbers for a whole row, for example one for each class.

    Attributes:
        backbone: A model of `lm.models`.
        num_outputs: C.
        pooling: As in `pool`.
        dropout_rate: Of the pooled vector.
        activation: Of the layers between, of D units, one of `ACTIVATIONS`; `none`
            means that there are no such layers.
        use_bias: Whether the outputs have one.
        num_layers: How many are between.
    """

    backbone: Any
    num_outputs: int
    pooling: str = "first"
    dropout_rate: float = 0.0
    activation: str = "none"
    use_bias: bool = True
    num_layers: int = 1

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True) -> Array:
        """Maps a batch of the backbone's to outputs [B, C], float32."""
        hidden = self.backbone.hidden(batch, deterministic)
        segments = batch.get("segment_ids", jnp.ones(hidden.shape[:2], jnp.int32))
        pooled = pool(hidden.astype(jnp.float32), segments, self.pooling)
        if self.activation != "none":
            D, stddev = pooled.shape[-1], self.backbone.config.init_stddev
            # The table of all models, in which an export has its own.
            activate = {**layers.ACTIVATIONS, "tanh": jnp.tanh}[self.activation]
            for i in range(self.num_layers):
                name = f"dense_{i}" if i else "dense"
                dense = Einsum((D,), (D,), ("embed", None), True, stddev, name=name)
                pooled = activate(dense(pooled))
        return _outputs(self, pooled, deterministic, self.use_bias)


class TokenHead(nn.Module):
    """Some numbers for each token, for example one for each tag.

    Attributes:
        backbone: A model of `lm.models`.
        num_outputs: C.
        dropout_rate: Of the states.
    """

    backbone: Any
    num_outputs: int
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True) -> Array:
        """Maps a batch of the backbone's to outputs [B, T, C], float32."""
        hidden = self.backbone.hidden(batch, deterministic)
        return _outputs(self, hidden.astype(jnp.float32), deterministic)


class ChainHead(TokenHead):
    """Tags that are predicted together: what is for each token, and what follows what.

    Huang et al. (2015), https://arxiv.org/abs/1508.01991. Its own parameters are
    `head/…`, as those of `TokenHead`, and `transitions`, `begin` and `end`.
    """

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True) -> Chains:
        """Maps a batch to the scores of tags.

        `segment_ids` [B, T] are the documents of tokens, and `loss_mask` [B, T] is 0
        for those that have no tag; by default all are of one document.
        """
        C, zeros = self.num_outputs, nn.initializers.zeros
        documents = batch.get("segment_ids", jnp.ones_like(batch["inputs"]))
        if "loss_mask" in batch:
            documents = jnp.where(batch["loss_mask"] > 0, documents, 0)
        return Chains(
            super().__call__(batch, deterministic),
            declare(self, "transitions", zeros, (None, "outputs"), (C, C)),
            declare(self, "begin", zeros, ("outputs",), (C,)),
            declare(self, "end", zeros, ("outputs",), (C,)),
            documents,
        )


class SpanHead(nn.Module):
    """Some numbers for several spans of a row together.

    Attributes:
        backbone: A model of `lm.models`.
        num_outputs: C.
        num_spans: S.
        pooling: Of each span, as in `pool`.
        dropout_rate: Of the pooled vectors.
    """

    backbone: Any
    num_outputs: int
    num_spans: int
    pooling: str = "first"
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool = True) -> Array:
        """Maps a batch of the backbone's to outputs [B, C], float32.

        `spans` [B, S, 2] are the places where the spans start and, not in them, stop;
        by default they are empty.
        """
        hidden = self.backbone.hidden(batch, deterministic).astype(jnp.float32)
        B, T, _ = hidden.shape
        spans = batch.get("spans", jnp.zeros((B, self.num_spans, 2), jnp.int32))
        places = jnp.arange(T)[None]

        def pooled(span: Array) -> Array:
            start, stop = span[:, :1], span[:, 1:]
            # What `pool` is given begins with the span.
            order = (places + start) % T
            moved = jnp.take_along_axis(hidden, order[:, :, None], axis=1)
            return pool(moved, places < stop - start, self.pooling)

        states = [pooled(spans[:, i]) for i in range(self.num_spans)]
        return _outputs(self, jnp.concatenate(states, axis=-1), deterministic)


def _outputs(
    module: Any, states: Array, deterministic: bool, use_bias: bool = True
) -> Array:
    """Drops out and projects."""
    states = Dropout(module.dropout_rate)(states, deterministic)
    D, C = states.shape[-1], module.num_outputs
    stddev = module.backbone.config.init_stddev
    axes = ("embed", "outputs")
    return Einsum((D,), (C,), axes, use_bias, stddev, name="head")(states)
