"""A recurrent encoder-decoder with attention, which turns text into text.

Bahdanau et al. (2015), https://arxiv.org/abs/1409.0473, with LSTM or GRU, in several
layers if wanted, of which the decoder's first attends. It begins with a state of zeros,
and the layer between states and logits has tanh in the place of maxout. Axes: B batch,
T decoder time, S encoder time, D emb_dim, R units, A attention_dim, V vocab, L layers.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.config import check_range
from lm.nn import attention
from lm.nn.base import Head, Output, TokenEmbedder, last_token
from lm.nn.layers import Einsum, declare
from lm.nn.losses import Logits
from lm.nn.recurrent import Reads, RecurrentConfig, Stack, State, document_starts
from lm.types import Array, Batch


@dataclass(frozen=True)
class Config(RecurrentConfig):
    """The layers' options; both sides have as many.

    Attributes:
        attention_dim: A, units that score what is attended to; 0 means R.
    """

    name: str = "seq2seq"
    attention_dim: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_range("model.attention_dim", self.attention_dim, 0)

    @property
    def attention_size(self) -> int:
        """A."""
        return self.attention_dim or self.units

    def mixing_flops(self, length: int, source_length: int) -> float:
        """See `ModelConfig`: scores and what they weigh, of each pair of tokens."""
        width = self.attention_size + 2 * self.units
        return 6.0 * width * length * source_length


@flax.struct.dataclass
class Memory:
    """What the encoder says of a source.

    Attributes:
        states: h, [B, S, 2 R].
        keys: U h, [B, S, A].
        documents: [B, S] int, the document of each token; 0 is padding.
    """

    states: Array
    keys: Array
    documents: Array


class Attention(nn.Module):
    """Additive attention: Bahdanau et al. (2015), equations 5 and 6, section A.1.2."""

    config: Config

    def setup(self):
        """Declares the parts."""
        config = self.config
        A, R = config.attention_size, config.units
        stddev, dtype = config.init_stddev, config.dtype
        axes = ("embed", None)
        self.key = Einsum((2 * R,), (A,), axes, True, stddev, dtype)
        init = nn.initializers.truncated_normal(stddev or R**-0.5)
        self.query_kernel = declare(self, "query_kernel", init, axes, (R, A))
        init = nn.initializers.truncated_normal(stddev or A**-0.5)
        self.score_kernel = declare(self, "score_kernel", init, axes, (A, 1))

    def __call__(self, states: Array, documents: Array) -> Memory:
        """Returns what can be attended to, of states [B, S, 2 R]."""
        return Memory(states, self.key(states), documents)

    def reads(self, memory: Memory, documents: Array) -> Reads:
        """Returns how the decoder reads, given the document [B, T] of each token."""
        dtype = self.config.dtype
        query_kernel, score_kernel = (
            kernel.astype(dtype) for kernel in (self.query_kernel, self.score_kernel)
        )

        def read(h: Array, document: Array) -> Array:
            query = jnp.dot(h.astype(dtype), query_kernel)
            energy = jnp.tanh(query[:, None] + memory.keys)
            scores = jnp.dot(energy, score_kernel)[:, :, 0].astype(jnp.float32)
            seen = memory.documents == document
            weights = jax.nn.softmax(jnp.where(seen, scores, attention.MASKED))
            return jnp.einsum("BS,BSM->BM", weights.astype(dtype), memory.states)

        return Reads(read, memory.states.shape[-1], documents.T[:, :, None])


class Model(nn.Module):
    """The encoder and the decoder, which share the token embedding."""

    config: Config
    architecture = "encoder_decoder"

    def setup(self):
        """Declares the parts."""
        config = self.config
        self.embedder = TokenEmbedder(config)
        self.encoder = Stack(config, both=True)
        self.cross_attention = Attention(config)
        self.decoder = Stack(config)
        says = config.units if config.num_layers > 1 else 3 * config.units
        self.transform = Einsum(
            (says + config.emb_dim,),
            (config.emb_dim,),
            ("embed", None),
            True,
            config.init_stddev,
            config.dtype,
        )
        self.head = Head(config)

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
        documents = batch.get("segment_ids", jnp.ones_like(batch["inputs"]))
        starts = document_starts(batch)
        hidden, states, _ = self._decode(
            batch["inputs"], memory, documents, starts, deterministic
        )
        return Output(hidden, self._logits(states))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the encoder's states [B, T, 2 R] of `inputs`, as an encoder would."""
        x = self.embedder.token(batch["inputs"])
        return self.encoder(x, document_starts(batch), deterministic)[0]

    def prefill(self, batch: Batch, cache_len: int) -> tuple[Array, Any]:
        """Reads texts and the decoder's prompts; returns logits [B, V] and a cache.

        Args:
            batch: `encoder_inputs` and `encoder_segment_ids` [B, S]; `inputs` and
                `segment_ids` [B, T]. Both are padded on the right, where segment
                ids are 0.
            cache_len: A state has the same size whatever it has read.
        """
        del cache_len
        real = batch["segment_ids"] > 0
        memory = self._encode(batch, True)
        _, states, state = self._decode(
            batch["inputs"], memory, jnp.ones_like(batch["inputs"]), real=real
        )
        logits = self._logits(last_token(states, real)).dense()[:, 0]
        # Rows are the second axis of a cache.
        return logits, (state, jax.tree.map(lambda leaf: leaf[None], memory))

    def step(self, tokens: Array, positions: Array, cache: Any) -> tuple[Array, Any]:
        """Reads one token [B] of each row; as `prefill`. Positions are of no use."""
        del positions
        state, kept = cache
        memory = jax.tree.map(lambda leaf: leaf[0], kept)
        inputs = tokens[:, None]
        _, states, state = self._decode(
            inputs, memory, jnp.ones_like(inputs), state=state
        )
        return self._logits(states).dense()[:, 0], (state, kept)

    def _encode(self, batch: Batch, deterministic: bool) -> Memory:
        inputs = batch["encoder_inputs"]
        starts = document_starts(batch, "encoder_")
        x = self.embedder.token(inputs)
        states, _ = self.encoder(x, starts, deterministic)
        documents = batch.get("encoder_segment_ids", jnp.ones_like(inputs))
        return self.cross_attention(states, documents)

    def _decode(
        self,
        inputs: Array,
        memory: Memory,
        documents: Array,
        starts: Array | None = None,
        deterministic: bool = True,
        state: State | None = None,
        real: Array | None = None,
    ) -> tuple[Array, Array, State]:
        """Reads tokens [B, T] of these documents; as `Stack`.

        Returns:
            What the decoder says, what logits are made of [B, T, D], and the new state.
        """
        x = self.embedder.token(inputs)
        reads = self.cross_attention.reads(memory, documents)
        hidden, state = self.decoder(x, starts, deterministic, state, real, reads)
        both = jnp.concatenate([hidden, x.astype(hidden.dtype)], axis=-1)
        return hidden, jnp.tanh(self.transform(both)), state

    def _logits(self, states: Array) -> Logits:
        return self.head(states, self.embedder.token.embedding)
