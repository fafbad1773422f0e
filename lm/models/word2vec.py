"""Word2Vec: a vector for every word, and one for every word as a neighbour.

Mikolov et al. (2013a), https://arxiv.org/abs/1301.3781, and (2013b),
https://arxiv.org/abs/1310.4546. A word is read as it stands alone, so heads over the
model are those of a bag of words. Axes: B batch, T time, D emb_dim, V vocab.
"""

from dataclasses import dataclass

import flax.linen as nn

from lm.nn.base import ModelConfig, Output, TokenEmbedder
from lm.nn.layers import Embed
from lm.nn.losses import Logits
from lm.types import Array, Batch


@dataclass(frozen=True)
class Config(ModelConfig):
    """Two tables.

    The first begins small and the second at zero, as in
    https://github.com/tmikolov/word2vec; `tie_embeddings` makes them one.
    """

    name: str = "word2vec"
    emb_dim: int = 100
    max_len: int = 512
    tie_embeddings: bool = False
    embed_stddev: float = 0.003


class Model(nn.Module):
    """The tables."""

    config: Config
    architecture = "encoder"

    def setup(self):
        """Declares the tables."""
        config = self.config
        self.embedder = TokenEmbedder(config)
        if not config.tie_embeddings:
            # Rows are words, or inner nodes of their Huffman tree.
            self.context = Embed(
                config.vocab_size, config.emb_dim, stddev=0.0, dtype=config.dtype
            )

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps `inputs` [B, T] to vectors [B, T, D] and logits of neighbours.

        Their softmax is p(w_O | w_I) of (2013b), equation 2.
        """
        hidden = self.hidden(batch, deterministic)
        return Output(hidden, Logits(hidden, self._contexts.embedding))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the vectors v of words [B, T, D]."""
        return self.embedder(batch["inputs"], deterministic)

    def contexts(self, ids: Array) -> Array:
        """Returns the vectors v' of neighbours or inner nodes: [...] to [..., D]."""
        return self._contexts(ids)

    @property
    def _contexts(self) -> Embed:
        return self.embedder.token if self.config.tie_embeddings else self.context
