"""T5: an encoder-decoder that turns text into text.

Raffel et al. (2020), https://arxiv.org/abs/1910.10683, as version 1.1: gated GELU,
an untied head. Attention is scaled by 1 / √H here, which T5 folds into the initial
queries. Axes: B batch, T decoder time, S encoder time, D emb_dim, V vocab.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from lm.nn.attention import Mask
from lm.nn.base import Head, Output, last_token, row_positions
from lm.nn.dropout import Dropout
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
    """The stack's options; the defaults are those of T5 1.1.

    Attributes:
        num_encoder_layers: 0 means `num_layers`.
        num_decoder_layers: 0 means `num_layers`.
        scale_output: Whether the head's input is divided by √D (T5 1.0, whose head is
            the embedding).
    """

    name: str = "t5"
    num_encoder_layers: int = 0
    num_decoder_layers: int = 0
    scale_output: bool = False
    position_encoding: str = "relative"
    activation: str = "geglu"
    tie_embeddings: bool = False
    embed_stddev: float = 1.0
    dropout_rate: float = 0.1

    @property
    def encoder_layers(self) -> int:
        """Layers of the encoder."""
        return self.num_encoder_layers or self.num_layers

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.num_decoder_layers or self.num_layers

    def mixing_flops(self, length: int, source_length: int) -> float:
        """See `TransformerConfig`; the decoder's layers attend twice."""
        encoder, decoder = self.encoder_layers, self.decoder_layers
        return self.attention_flops(
            encoder, source_length, source_length
        ) + self.attention_flops(decoder, length, length + source_length)


class Model(nn.Module):
    """The encoder and the decoder, which share the token embedding."""

    config: Config
    architecture = "encoder_decoder"

    def setup(self):
        """Declares the parts."""
        config = self.config
        self.embedder = Embedder(config)
        self.encoder = Stack(config, config.encoder_layers, causal=False)
        self.decoder = Stack(config, config.decoder_layers, causal=True, cross=True)
        self.dropout = Dropout(config.dropout_rate)
        self.head = Head(config, softcap=config.logit_softcap)

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps a batch to the decoder's states and logits, [B, T, …].

        Args:
            batch: `encoder_inputs` [B, S], `inputs` [B, T]; optionally, for packed
                rows, `encoder_positions` and `encoder_segment_ids` [B, S],
                `positions` and `segment_ids` [B, T]. A document has the same segment
                number in both.
            deterministic: Whether dropout is off.
        """
        memory = self._encode(batch, deterministic)
        segments = batch.get("segment_ids")
        positions = row_positions(batch["inputs"], batch.get("positions"))
        context = Context(
            Mask(segments, segments, causal=True, window=self.config.window),
            positions,
            memory=memory,
            memory_mask=Mask(segments, batch.get("encoder_segment_ids")),
            deterministic=deterministic,
        )
        x = self.embedder(batch["inputs"], positions, deterministic)
        x, _ = self.decoder(x, context)
        return self._output(self.dropout(x, deterministic))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the encoder's states [B, T, D] of `inputs`, as an encoder would."""
        names = ("inputs", "positions", "segment_ids")
        read = {f"encoder_{name}": batch[name] for name in names if name in batch}
        return self._encode(read, deterministic)

    def prefill(self, batch: Batch, cache_len: int) -> tuple[Array, PyTree]:
        """Reads texts and the decoder's prompts; returns logits [B, V] and a cache.

        Args:
            batch: `encoder_inputs` and `encoder_segment_ids` [B, S]; `inputs` and
                `segment_ids` [B, T]. Both are padded on the right, where segment
                ids are 0.
            cache_len: The longest decoder prompt with its continuation.
        """
        config, inputs = self.config, batch["inputs"]
        rows, L = inputs.shape[0], config.decoder_layers
        memory = self._encode(batch, True)
        cache = {
            "attention": init_cache(config, L, rows, cache_len),
            "cross_attention": init_cache(config, L, rows, memory.shape[1]),
        }
        real = batch["segment_ids"] > 0
        positions = row_positions(inputs, None)
        index = jnp.where(real, positions, cache_len)
        sources = batch["encoder_segment_ids"]
        hidden, cache = self._cached(inputs, positions, index, sources, cache, memory)
        return self._output(last_token(hidden, real)).logits.dense()[:, 0], (
            cache,
            sources[None],
        )

    def step(
        self, tokens: Array, positions: Array, cache: PyTree
    ) -> tuple[Array, PyTree]:
        """Reads one token [B] of each row at its position [B]; as `prefill`."""
        layers, sources = cache
        positions = positions[:, None]
        hidden, layers = self._cached(
            tokens[:, None], positions, positions, sources[0], layers, None
        )
        return self._output(hidden).logits.dense()[:, 0], (layers, sources)

    def _encode(self, batch: Batch, deterministic: bool) -> Array:
        inputs = batch["encoder_inputs"]
        segments = batch.get("encoder_segment_ids")
        positions = row_positions(inputs, batch.get("encoder_positions"))
        x = self.embedder(inputs, positions, deterministic)
        mask = Mask(segments, segments, window=self.config.window)
        x, _ = self.encoder(x, Context(mask, positions, deterministic=deterministic))
        return self.dropout(x, deterministic)

    def _cached(
        self,
        inputs: Array,
        positions: Array,
        index: Array,
        sources: Array,
        cache: PyTree,
        memory: Array | None,
    ) -> tuple[Array, PyTree]:
        context = Context(
            Mask(query_index=index, causal=True, window=self.config.window),
            positions,
            memory=memory,
            # Every query belongs to its row's one document, segment 1.
            memory_mask=Mask(jnp.ones_like(inputs), sources),
        )
        return self.decoder(self.embedder(inputs, positions, True), context, cache)

    def _output(self, hidden: Array) -> Output:
        states = hidden
        if self.config.scale_output:
            states = states * self.config.emb_dim**-0.5
        return Output(hidden, self.head(states, self.embedder.token.embedding))
