"""Word2Vec: a vector for every word, and one for every word as a neighbour.

Mikolov et al. (2013a), https://arxiv.org/abs/1301.3781, and (2013b),
https://arxiv.org/abs/1310.4546. A word is read as it stands alone, so heads over the
model are those of a bag of words. Axes: B batch, T time, D emb_dim, V vocab,
M masked positions.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config import check_range
from lm.nn.base import ModelConfig, Output, TokenEmbedder, predicting
from lm.nn.layers import Embed
from lm.nn.losses import Logits
from lm.text.ngrams import Ngrams, all_ngrams
from lm.text.tokenizer import Tokenizer
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

    def ngrams(self, tokenizer: Tokenizer) -> Ngrams | None:
        """Returns the n-grams of all words, `numbers` of [V]; None without buckets."""
        if not self.ngram_buckets:
            return None
        options = (self.ngram_buckets, self.min_ngram, self.max_ngram)
        found = all_ngrams(tokenizer, *options)
        spare = self.vocab_size - len(found.numbers)
        return found._replace(numbers=np.pad(found.numbers, (0, spare)))


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
            batch: `inputs` [B, T]; with `ngram_buckets` also `ngrams`, an
                `lm.text.ngrams.Ngrams`, else words are their own vectors alone;
                optionally `masked_positions` [B, M], whose logits alone are wanted.
            deterministic: Whether dropout is off.
        """
        if self.config.ngram_buckets and self.is_initializing():
            self.ngram(jnp.zeros((1,), jnp.int32))
        hidden = self.hidden(batch, deterministic)
        states = predicting(hidden, batch)
        return Output(hidden, Logits(states, self._contexts.embedding))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the vectors v of words [B, T, D]; as `__call__`."""
        if "ngrams" not in batch:
            return self.embedder(batch["inputs"], deterministic)
        words = self.word_vectors(batch["ngrams"])[batch["inputs"]]
        return self.embedder.dropout(words.astype(self.config.dtype), deterministic)

    def contexts(self, ids: Array) -> Array:
        """Returns the vectors v' of neighbours or inner nodes: [...] to [..., D]."""
        return self._contexts(ids)

    def word_vectors(self, ngrams: Ngrams | None = None) -> Array:
        """Returns the vectors v of all words, float32 [V, D].

        Args:
            ngrams: With `ngram_buckets`, the n-grams of all words.
        """
        own = self.embedder.token.embedding
        if ngrams is None:
            return own
        parts = self.ngram.embedding[ngrams.buckets]
        sums = jax.ops.segment_sum(
            parts, ngrams.words, len(own), indices_are_sorted=True
        )
        return (own + sums) / (1 + ngrams.numbers)[:, None]

    @property
    def _contexts(self) -> Embed:
        return self.embedder.token if self.config.tie_embeddings else self.context
