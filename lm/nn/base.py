"""What the house asks of every model, and the parts that all of them share.

Axes: B batch, T time, D emb_dim, V vocab, M masked positions.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from lm.config import check_choice, check_range
from lm.nn.dropout import Dropout
from lm.nn.layers import Embed, declare
from lm.nn.losses import Logits
from lm.sharding import constrain
from lm.types import Array, Batch


@dataclass(frozen=True)
class ModelConfig:
    """What every model has; those of `lm.models` add their own.

    Attributes:
        name: Which model it is, in `lm.models.MODELS`.
        vocab_size: V, rows of the embedding.
        emb_dim: D.
        max_len: The longest row.
        dropout_rate: Of what the model says.
        tie_embeddings: Whether the vocabulary head is the embedding.
        init_stddev: Of kernels; 0 means 1 / √fan_in.
        embed_stddev: Of embeddings.
        embedding_from: Word vectors that the embedding begins with: a file in a format
            of word2vec or GloVe, or a workdir, whose tokens may be others.
        dtype: Of the arithmetic, `float32` or `bfloat16`; parameters are float32.
    """

    name: str = ""
    vocab_size: int = 8192
    emb_dim: int = 128
    max_len: int = 256
    dropout_rate: float = 0.0
    tie_embeddings: bool = True
    init_stddev: float = 0.0
    embed_stddev: float = 0.02
    embedding_from: str = ""
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("model.dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("vocab_size", "emb_dim", "max_len"):
            check_range(f"model.{name}", getattr(self, name), 1)
        for name in ("init_stddev", "embed_stddev"):
            check_range(f"model.{name}", getattr(self, name), 0)
        check_range("model.dropout_rate", self.dropout_rate, 0, 1)

    @property
    def position_limit(self) -> int | None:
        """Tokens of the longest row that the parameters allow; None means any."""
        return None

    def mixing_flops(self, length: int, source_length: int) -> float:
        """Returns the FLOPs of a training step on a row that meet no kernel.

        Such as the products of queries and keys; `lm.train.perf` adds those with
        kernels.

        Args:
            length: T of the row.
            source_length: Of what its encoder reads, or 0.
        """
        del length, source_length
        return 0.0


def replace_known(config: Any, **changes: Any) -> Any:
    """Returns a config with those changes for which it has a field.

    >>> replace_known(ModelConfig(), dtype="bfloat16", num_heads=4).dtype
    'bfloat16'
    """
    known = {field.name for field in dataclasses.fields(config)} & changes.keys()
    return dataclasses.replace(config, **{name: changes[name] for name in known})


@flax.struct.dataclass
class Output:
    """What a model returns.

    Attributes:
        hidden: [B, T, D] final states.
        logits: Over the vocabulary, of the positions that predict.
    """

    hidden: Array
    logits: Logits


class TokenEmbedder(nn.Module):
    """Token embedding and dropout, of models that need no table of positions."""

    config: ModelConfig

    def setup(self):
        """Declares the table."""
        config = self.config
        self.token = Embed(
            config.vocab_size,
            config.emb_dim,
            stddev=config.embed_stddev,
            dtype=config.dtype,
        )
        self.dropout = Dropout(config.dropout_rate)

    def __call__(self, ids: Array, deterministic: bool) -> Array:
        """Maps ids [B, T] to [B, T, D]."""
        x = self.dropout(self.token(ids), deterministic)
        return constrain(x, "batch", "length", "act_embed")


class Head(nn.Module):
    """The vocabulary head, kept as the factors of its logits.

    Attributes:
        config: The model's.
        use_bias: Whether each token has one.
        softcap: If positive, caps the logits.
    """

    config: ModelConfig
    use_bias: bool = False
    softcap: float = 0.0

    @nn.compact
    def __call__(self, states: Array, table: Array) -> Logits:
        """Returns the logits of states [B, T, D], or [B, T, E].

        `table` [V, D] is the embedding; without `config.tie_embeddings` the head has
        a kernel of its own.
        """
        config = self.config
        kernel, bias = table, None
        if not config.tie_embeddings:
            init = nn.initializers.normal(config.init_stddev or config.emb_dim**-0.5)
            shape = (config.vocab_size, states.shape[-1])
            kernel = declare(self, "kernel", init, ("vocab", "embed"), shape)
        if self.use_bias:
            zeros, shape = nn.initializers.zeros, (config.vocab_size,)
            bias = declare(self, "bias", zeros, ("vocab",), shape)
        return Logits(states, kernel, bias, self.softcap)


def row_positions(ids: Array, positions: Array | None) -> Array:
    """Returns `positions`, or 0, 1, 2, … for rows that hold one document each."""
    if positions is not None:
        return positions
    return jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)


def last_token(states: Array, real: Array) -> Array:
    """Returns the states [B, 1, D] of each row's last token; of padding, the first.

    Args:
        states: [B, T, D].
        real: [B, T] bool, where tokens are none of padding, which is on the right.
    """
    last = jnp.maximum(real.sum(axis=1) - 1, 0)
    return jnp.take_along_axis(states, last[:, None, None], axis=1)


def predicting(hidden: Array, batch: Batch) -> Array:
    """Returns those of the states [B, T, D] whose tokens are to be predicted.

    They are [B, M, D] where the batch has `masked_positions` [B, M], else all.
    """
    if "masked_positions" not in batch:
        return hidden
    places = batch["masked_positions"][:, :, None]
    return jnp.take_along_axis(hidden, places, axis=1)
