"""GPT: a decoder that predicts the next token.

Radford et al. (2019), "Language models are unsupervised multitask learners"; with
other options of the stack, the decoders that followed (Llama, Gemma, Qwen).
Axes: B batch, T time, D emb_dim, V vocab, S cache length.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from lm.nn.attention import Mask
from lm.nn.base import Head, Output, last_token, row_positions
from lm.nn.transformer import (
    Context,
    Embedder,
    Stack,
    TransformerConfig,
    init_cache,
)
from lm.types import Array, Batch, PyTree


@dataclass(frozen=True)
class Config(TransformerConfig):
    """The stack's options; the defaults are a small modern decoder."""

    name: str = "gpt"


class Model(nn.Module):
    """The decoder."""

    config: Config
    architecture = "decoder"

    def setup(self):
        """Declares the parts."""
        config = self.config
        self.embedder = Embedder(config)
        self.decoder = Stack(config, config.num_layers, causal=True)
        self.head = Head(config, softcap=config.logit_softcap)

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps a batch to hidden states and next-token logits, [B, T, …].

        Args:
            batch: `inputs` [B, T]; optionally `positions` and `segment_ids` [B, T] of
                packed rows, and `prefix_mask` [B, T], tokens that their document
                sees in both directions.
            deterministic: Whether dropout is off.
        """
        return self._output(self.hidden(batch, deterministic))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the final states [B, T, D] alone; as `__call__`."""
        segments = batch.get("segment_ids")
        mask = Mask(
            segments,
            segments,
            prefix=batch.get("prefix_mask"),
            causal=True,
            window=self.config.window,
        )
        positions = row_positions(batch["inputs"], batch.get("positions"))
        x = self.embedder(batch["inputs"], positions, deterministic)
        context = Context(mask, positions, deterministic=deterministic)
        return self.decoder(x, context)[0]

    def prefill(self, batch: Batch, cache_len: int) -> tuple[Array, PyTree]:
        """Reads prompts; returns the logits [B, V] of what follows, and the cache.

        Args:
            batch: `inputs` [B, T], padded on the right; `segment_ids` [B, T], 0 where
                padded; optionally `prefix_mask` [B, T], as in `__call__`.
            cache_len: S, the longest prompt with its continuation.
        """
        inputs = batch["inputs"]
        real = batch["segment_ids"] > 0
        positions = row_positions(inputs, None)
        cache = {
            "attention": init_cache(
                self.config, self.config.num_layers, inputs.shape[0], cache_len
            )
        }
        # Padding is written past the end of the cache, that is, nowhere.
        index = jnp.where(real, positions, cache_len)
        prefix = batch.get("prefix_mask")
        if prefix is not None:
            prefix = jnp.pad(prefix, ((0, 0), (0, cache_len - prefix.shape[1])))
        hidden, cache = self.extend(inputs, positions, index, cache, prefix)
        return self._output(last_token(hidden, real)).logits.dense()[:, 0], cache

    def step(
        self, tokens: Array, positions: Array, cache: PyTree
    ) -> tuple[Array, PyTree]:
        """Reads one token [B] of each row at its position [B]; as `prefill`."""
        positions = positions[:, None]
        hidden, cache = self.extend(tokens[:, None], positions, positions, cache)
        return self._output(hidden).logits.dense()[:, 0], cache

    def extend(
        self,
        inputs: Array,
        positions: Array,
        index: Array,
        cache: PyTree,
        prefix: Array | None = None,
    ) -> tuple[Array, PyTree]:
        """Reads more tokens of each row; returns their states and the new cache.

        Args:
            inputs: [B, T].
            positions: Of the tokens in their text [B, T].
            index: Where their keys go in the cache [B, T].
            cache: As of `prefill`.
            prefix: Places of the cache [B, S] that are seen in both directions.
        """
        window = self.config.window
        mask = Mask(query_index=index, prefix=prefix, causal=True, window=window)
        x = self.embedder(inputs, positions, True)
        return self.decoder(x, Context(mask, positions), cache)

    def _output(self, hidden: Array) -> Output:
        return Output(hidden, self.head(hidden, self.embedder.token.embedding))
