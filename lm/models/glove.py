"""GloVe: word vectors whose products are the logarithms of co-occurrence counts.

Pennington et al. (2014), https://aclanthology.org/D14-1162. Axes: B batch, T cells of a
row, D emb_dim, V vocab.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from lm.nn.base import ModelConfig, TokenEmbedder
from lm.nn.layers import declare
from lm.types import Array, Batch


@dataclass(frozen=True)
class Config(ModelConfig):
    """What every model has; T is only a matter of how cells are laid into rows."""

    name: str = "glove"
    emb_dim: int = 100
    max_len: int = 1 << 20
    tie_embeddings: bool = False
    embed_stddev: float = 0.003

    def mixing_flops(self, length: int, source_length: int) -> float:
        """See `ModelConfig`: a product of two vectors for each cell."""
        del source_length
        return 6.0 * self.emb_dim * length


class Model(nn.Module):
    """Two vectors and two biases for each word: as one that is read, and as context."""

    config: Config
    architecture = "vectors"

    def setup(self):
        """Declares the parts."""
        self.embedder = TokenEmbedder(self.config)
        self.context = TokenEmbedder(self.config)
        shape, zeros = (self.config.vocab_size,), nn.initializers.zeros
        self.bias = declare(self, "bias", zeros, ("vocab",), shape)
        self.context_bias = declare(self, "context_bias", zeros, ("vocab",), shape)

    def __call__(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns w_i · w̃_j + b_i + b̃_j, eq. 7: [B, T], float32.

        Args:
            batch: `inputs` i [B, T] and `targets` j [B, T], by default the same.
            deterministic: Whether dropout is off.
        """
        rows, columns = batch["inputs"], batch.get("targets", batch["inputs"])
        words = self.embedder(rows, deterministic).astype(jnp.float32)
        contexts = self.context(columns, deterministic).astype(jnp.float32)
        products = (words * contexts).sum(axis=-1)
        return products + self.bias[rows] + self.context_bias[columns]

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the vectors of the words of a text: [B, T, D]."""
        del deterministic
        return self.word_vectors()[batch["inputs"]]

    def word_vectors(self) -> Array:
        """Returns W + W̃, which section 4.2 recommends: [V, D]."""
        return self.embedder.token.embedding + self.context.token.embedding
