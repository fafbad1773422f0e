"""A bag of embeddings: no token knows of another until a head pools them.

Iyyer et al. (2015), https://doi.org/10.3115/v1/P15-1162, the deep averaging network:
the mean of the embeddings (eq. 6), hidden layers, a softmax. Pooling and hidden layers
are those of the task: `task.pooling=mean task.hidden=relu task.hidden_layers=2`; the
paper's dropout of words is `task.token_dropout_rate`. Axes: B batch, T time, D emb_dim.
"""

from dataclasses import dataclass

import flax.linen as nn

from lm.nn.base import Head, ModelConfig, Output, TokenEmbedder, predicting
from lm.types import Array, Batch


@dataclass(frozen=True)
class Config(ModelConfig):
    """What every model has."""

    name: str = "feed_forward"


class Model(nn.Module):
    """The embeddings."""

    config: Config
    architecture = "encoder"

    def setup(self):
        """Declares the parts."""
        self.embedder = TokenEmbedder(self.config)
        self.head = Head(self.config, use_bias=True)

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps a batch to embeddings [B, T, D] and logits.

        Args:
            batch: `inputs` [B, T]; optionally `masked_positions` [B, M], the places
                whose logits [B, M, V] are wanted instead of all T.
            deterministic: Whether dropout is off.
        """
        hidden = self.hidden(batch, deterministic)
        states = predicting(hidden, batch)
        return Output(hidden, self.head(states, self.embedder.token.embedding))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the embeddings [B, T, D] alone; as `__call__`."""
        return self.embedder(batch["inputs"], deterministic)
