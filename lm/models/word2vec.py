"""Word2Vec: a vector for every word, and one for every word as a neighbour.

Mikolov et al. (2013a), https://arxiv.org/abs/1301.3781, and (2013b),
https://arxiv.org/abs/1310.4546. A word is read as it stands alone, so heads over the
model are those of a bag of words. Axes: B batch, T time, D emb_dim, V vocab.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from lm.config import check_range
from lm.nn.base import ModelConfig, Output, TokenEmbedder, predicting
from lm.nn.layers import Embed
from lm.nn.losses import Logits
from lm.types import Array, Batch


@dataclass(frozen=True)
class Config(ModelConfig):
    """Two tables.

    The first begins small and the second at zero, as in
    https://github.com/tmikolov/word2vec; `tie_embeddings` makes them one.

    Attributes:
        ngram_buckets: If positive, a word's vector is the mean of its own and those of
            its character n-grams, which are hashed into so many (Bojanowski et al.
            2017, https://arxiv.org/abs/1607.04606; their mean as in fastText).
        min_ngram: The fewest characters of one; < and > stand around a word.
        max_ngram: The most.
    """

    name: str = "word2vec"
    emb_dim: int = 100
    max_len: int = 512
    tie_embeddings: bool = False
    embed_stddev: float = 0.003
    ngram_buckets: int = 0
    min_ngram: int = 3
    max_ngram: int = 6

    def __post_init__(self):
        super().__post_init__()
        check_range("model.ngram_buckets", self.ngram_buckets, 0)
        check_range("model.min_ngram", self.min_ngram, 1)
        check_range("model.max_ngram", self.max_ngram, self.min_ngram)


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
        if config.ngram_buckets:
            self.ngram = Embed(
                config.ngram_buckets,
                config.emb_dim,
                ("vocab", "embed"),
                config.embed_stddev,
                config.dtype,
            )

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps `inputs` [B, T] to vectors [B, T, D] and logits of neighbours.

        Their softmax is p(w_O | w_I) of (2013b), equation 2.

        Args:
            batch: `inputs` [B, T]; with `ngram_buckets` also `ngrams` [B, T, G], the
                buckets of each word's n-grams, -1 where it has less, else words are
                their own vectors alone; optionally `masked_positions` [B, M], whose
                logits alone are wanted.
            deterministic: Whether dropout is off.
        """
        hidden = self.hidden(batch, deterministic)
        states = predicting(hidden, batch)
        return Output(hidden, Logits(states, self._contexts.embedding))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the vectors v of words [B, T, D]; as `__call__`."""
        words = self.embedder(batch["inputs"], deterministic)
        if not self.config.ngram_buckets:
            return words
        ngrams = batch.get("ngrams", jnp.full((1, 1, 1), -1))
        is_one = (ngrams >= 0)[..., None]
        parts = jnp.where(is_one, self.ngram(jnp.maximum(ngrams, 0)), 0).sum(axis=-2)
        return (words + parts) / (1 + is_one.sum(axis=-2)).astype(words.dtype)

    def contexts(self, ids: Array) -> Array:
        """Returns the vectors v' of neighbours or inner nodes: [...] to [..., D]."""
        return self._contexts(ids)

    def word_vectors(self, ngrams: Array | None = None) -> Array:
        """Returns the vectors v of all words [V, D].

        Args:
            ngrams: With `ngram_buckets`, the buckets of each word's n-grams [V, G].
        """
        batch = {"inputs": jnp.arange(self.config.vocab_size)[None]}
        if ngrams is not None:
            batch["ngrams"] = ngrams[None]
        return self.hidden(batch)[0]

    @property
    def _contexts(self) -> Embed:
        return self.embedder.token if self.config.tie_embeddings else self.context
