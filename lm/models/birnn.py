"""A recurrent encoder that reads in both directions: LSTM, GRU or RNN.

Schuster & Paliwal (1997), https://doi.org/10.1109/78.650093; Graves & Schmidhuber
(2005), https://doi.org/10.1016/j.neunet.2005.06.042. Axes: B batch, T time, D emb_dim,
R units, M masked positions.
"""

from dataclasses import dataclass

import flax.linen as nn

from lm.nn.base import Head, Output, TokenEmbedder, predicting
from lm.nn.layers import Einsum
from lm.nn.recurrent import RecurrentConfig, Stack, document_starts
from lm.types import Array, Batch


@dataclass(frozen=True)
class Config(RecurrentConfig):
    """The layers' options."""

    name: str = "birnn"


class Model(nn.Module):
    """The encoder and its masked-token head."""

    config: Config
    architecture = "encoder"

    def setup(self):
        """Declares the parts."""
        config = self.config
        self.embedder = TokenEmbedder(config)
        self.encoder = Stack(config, both=True)
        self.transform = Einsum(
            (2 * config.units,),
            (config.emb_dim,),
            ("embed", None),
            True,
            config.init_stddev,
            config.dtype,
        )
        self.head = Head(config, use_bias=True)

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps a batch to hidden states [B, T, 2 R] and logits.

        Args:
            batch: `inputs` [B, T]; optionally `positions` and `segment_ids` [B, T] of
                packed or padded rows, and `masked_positions` [B, M], the places whose
                logits [B, M, V] are wanted instead of all T.
            deterministic: Whether dropout is off.
        """
        hidden = self.hidden(batch, deterministic)
        states = self.transform(predicting(hidden, batch))
        return Output(hidden, self.head(states, self.embedder.token.embedding))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the final states [B, T, 2 R] alone; as `__call__`."""
        x = self.embedder.token(batch["inputs"])
        return self.encoder(x, document_starts(batch), deterministic)[0]
