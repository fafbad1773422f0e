"""A recurrent decoder that predicts the next token: LSTM, GRU or RNN.

Mikolov et al. (2010), https://doi.org/10.21437/Interspeech.2010-343; with LSTM and
dropout between layers Zaremba et al. (2014), https://arxiv.org/abs/1409.2329.
Axes: B batch, T time, D emb_dim, R units, V vocab, L layers.
"""

from dataclasses import dataclass

import flax.linen as nn

from lm.nn.base import Head, Output, TokenEmbedder, last_token
from lm.nn.layers import Einsum
from lm.nn.recurrent import RecurrentConfig, Stack, State, document_starts
from lm.types import Array, Batch


@dataclass(frozen=True)
class Config(RecurrentConfig):
    """The layers' options.

    With `tie_embeddings` states are projected to D first if they have another size.
    """

    name: str = "rnn"


class Model(nn.Module):
    """The decoder."""

    config: Config
    architecture = "decoder"

    def setup(self):
        """Declares the parts."""
        config = self.config
        self.embedder = TokenEmbedder(config)
        self.decoder = Stack(config)
        if config.tie_embeddings and config.units != config.emb_dim:
            self.transform = Einsum(
                (config.units,),
                (config.emb_dim,),
                ("embed", None),
                True,
                config.init_stddev,
                config.dtype,
            )
        self.head = Head(config)

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps a batch to hidden states and next-token logits, [B, T, …].

        Args:
            batch: `inputs` [B, T]; optionally `positions` and `segment_ids` [B, T] of
                packed rows.
            deterministic: Whether dropout is off.
        """
        return self._output(self.hidden(batch, deterministic))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the final states [B, T, R] alone; as `__call__`."""
        x = self.embedder.token(batch["inputs"])
        return self.decoder(x, document_starts(batch), deterministic)[0]

    def prefill(self, batch: Batch, cache_len: int) -> tuple[Array, State]:
        """Reads prompts; returns the logits [B, V] of what follows, and the state.

        Args:
            batch: `inputs` [B, T], padded on the right; `segment_ids` [B, T], 0 where
                padded.
            cache_len: A state has the same size whatever it has read.
        """
        del cache_len
        real = batch["segment_ids"] > 0
        hidden, state = self.extend(batch["inputs"], None, real)
        return self._output(last_token(hidden, real)).logits.dense()[:, 0], state

    def step(
        self, tokens: Array, positions: Array, cache: State
    ) -> tuple[Array, State]:
        """Reads one token [B] of each row; as `prefill`. Positions are of no use."""
        del positions
        hidden, state = self.extend(tokens[:, None], cache)
        return self._output(hidden).logits.dense()[:, 0], state

    def extend(
        self, inputs: Array, state: State | None, real: Array | None = None
    ) -> tuple[Array, State]:
        """Reads more tokens [B, T]; returns what is said of them, and the new state.

        Args:
            inputs: [B, T].
            state: Of what was read before, [L, B, R] each.
            real: [B, T] bool, where tokens are none of padding.
        """
        return self.decoder(self.embedder.token(inputs), None, True, state, real)

    def _output(self, hidden: Array) -> Output:
        states = self.transform(hidden) if hasattr(self, "transform") else hidden
        return Output(hidden, self.head(states, self.embedder.token.embedding))
