"""BERT: an encoder that predicts masked tokens.

Devlin et al. (2019), https://arxiv.org/abs/1810.04805. Axes: B batch, T time,
D emb_dim, M masked positions.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from lm.config import check_range
from lm.nn.attention import Mask
from lm.nn.base import Head, Output, predicting, row_positions
from lm.nn.layers import ACTIVATIONS, Einsum, Embed
from lm.nn.transformer import (
    GATED,
    Context,
    Embedder,
    Stack,
    TransformerConfig,
    make_norm,
)
from lm.types import Array, Batch


@dataclass(frozen=True)
class Config(TransformerConfig):
    """The stack's options; the defaults are those of the paper.

    Attributes:
        num_types: Kinds of segment that `type_ids` tell apart; 0 (DistilBERT) means
            that they are not told.
        token_dim: E, of the tables, which are then projected to D (ALBERT, ELECTRA); 0
            means D.
    """

    name: str = "bert"
    num_types: int = 2
    token_dim: int = 0
    position_encoding: str = "learned"
    norm: str = "layer"
    norm_position: str = "post"
    norm_eps: float = 1e-12
    activation: str = "gelu"
    use_bias: bool = True
    init_stddev: float = 0.02
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_range("model.num_types", self.num_types, 0)
        check_range("model.token_dim", self.token_dim, 0)


class Model(nn.Module):
    """The encoder and its masked-token head."""

    config: Config
    architecture = "encoder"

    def setup(self):
        """Declares the parts."""
        config = self.config
        D = config.emb_dim
        E = config.token_dim or D
        use_norm = config.norm_position == "post"
        self.embedder = Embedder(config, use_norm, config.token_dim)
        if config.num_types:
            self.type = Embed(
                config.num_types,
                E,
                ("types", "embed"),
                config.embed_stddev,
                config.dtype,
            )
        self.encoder = Stack(config, config.num_layers, causal=False)
        self.transform = Einsum(
            (D,), (E,), ("embed", None), True, config.init_stddev, config.dtype
        )
        self.transform_norm = make_norm(config)
        self.head = Head(config, True, config.logit_softcap)

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps a batch to hidden states [B, T, D] and logits.

        Args:
            batch: `inputs` [B, T]; optionally `positions` and `segment_ids` [B, T] of
                packed rows, `type_ids` [B, T], and `masked_positions` [B, M], the
                places whose logits [B, M, V] are wanted instead of all T.
            deterministic: Whether dropout is off.
        """
        hidden = self.hidden(batch, deterministic)
        states = self.transform(predicting(hidden, batch))
        activation = self.config.activation
        states = ACTIVATIONS[GATED.get(activation, activation)](states)
        states = self.transform_norm(states)
        logits = self.head(states, self.embedder.token.embedding)
        return Output(hidden, logits)

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the final states [B, T, D] alone; as `__call__`."""
        inputs = batch["inputs"]
        segments = batch.get("segment_ids")
        positions = row_positions(inputs, batch.get("positions"))
        types = None
        if self.config.num_types:
            types = self.type(batch.get("type_ids", jnp.zeros_like(inputs)))
        x = self.embedder(inputs, positions, deterministic, types)
        queries = segments
        if segments is not None and "positions" not in batch:
            # One document a row: a mask of keys, [B, 1, T], hides its padding.
            segments = jnp.minimum(segments, 1)
            queries = jnp.ones_like(segments[:, :1])
        mask = Mask(queries, segments, window=self.config.window)
        context = Context(mask, positions, deterministic=deterministic)
        return self.encoder(x, context)[0]
