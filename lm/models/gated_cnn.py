"""A gated CNN: a decoder of causal convolutions.

Dauphin et al. (2017), https://arxiv.org/abs/1612.08083. A layer is
h(X) = (X * W + b) ⊗ σ(X * V + c) (eq. 1), added to its input; kernels see no future
token (section 2). A norm before each layer stands in for the paper's weight norm, and
layers may be dilated (van den Oord et al. 2016, https://arxiv.org/abs/1609.03499,
section 2.1), so that few of them see far. Axes: B batch, T time, D emb_dim, W width,
V vocab, L layers, C places of a cache.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import check_range
from lm.nn.base import Head, ModelConfig, Output, TokenEmbedder, last_token
from lm.nn.convolution import last_inputs, windows
from lm.nn.dropout import Dropout
from lm.nn.layers import Einsum, Norm
from lm.sharding import constrain
from lm.types import Array, Batch, PyTree, UserError


@dataclass(frozen=True)
class Config(ModelConfig):
    """Options of the model.

    Attributes:
        num_layers: L.
        width: W, of all kernels.
        dilations: Distances between the tokens of a window, layer by layer and round
            and round.
        dropout_rate: Of embeddings and of what layers add.
    """

    name: str = "gated_cnn"
    num_layers: int = 6
    width: int = 4
    dilations: tuple[int, ...] = (1,)

    def __post_init__(self):
        super().__post_init__()
        check_range("model.num_layers", self.num_layers, 1)
        check_range("model.width", self.width, 2)
        if not self.dilations or min(self.dilations) < 1:
            raise UserError(
                "model.dilations must be numbers of at least 1, such as 1,2,4; not "
                f"{self.dilations}"
            )

    def dilation(self, layer: int) -> int:
        """Returns that of a layer, from 0."""
        return self.dilations[layer % len(self.dilations)]

    @property
    def reach(self) -> int:
        """Tokens that the prediction of the next one depends on."""
        layers = range(self.num_layers)
        return 1 + (self.width - 1) * sum(map(self.dilation, layers))


class Layer(nn.Module):
    """A gated convolution, beside which its input is kept."""

    config: Config
    dilation: int

    def setup(self):
        """Declares the parts."""
        config = self.config
        W, D = config.width, config.emb_dim
        self.norm = Norm("layer", True, dtype=config.dtype)
        # X * W + b and X * V + c, side by side.
        axes = (None, "embed", None, "mlp")
        kernel = (config.init_stddev, config.dtype)
        self.conv = Einsum((W, D), (2, D), axes, True, *kernel)
        self.dropout = Dropout(config.dropout_rate)

    def __call__(
        self, x: Array, segments: Array | None, deterministic: bool
    ) -> tuple[Array, Array]:
        """Maps [B, T, D] to [B, T, D]; also returns what the convolution read."""
        read = self.norm(x)
        seen = windows(read, segments, self.config.width, True, self.dilation)
        return x + self.dropout(self._gated(seen), deterministic), read

    def step(self, x: Array, past: Array) -> tuple[Array, Array]:
        """Maps a token [B, D], and what was read before [B, C, D] to the new one."""
        read = self.norm(x)
        past = jnp.concatenate([past, read[:, None]], axis=1)
        span = (self.config.width - 1) * self.dilation + 1
        seen = past[:, -span :: self.dilation]
        return x + self._gated(seen[:, None])[:, 0], past[:, 1:]

    def _gated(self, seen: Array) -> Array:
        """Maps windows [B, T, W, D] to [B, T, D]."""
        both = self.conv(seen)
        out = both[:, :, 0] * jax.nn.sigmoid(both[:, :, 1])
        return constrain(out, "batch", "length", "act_embed")


class Model(nn.Module):
    """The decoder."""

    config: Config
    architecture = "decoder"

    def setup(self):
        """Declares the parts."""
        config = self.config
        self.embedder = TokenEmbedder(config)
        self.layers = [
            Layer(config, config.dilation(i)) for i in range(config.num_layers)
        ]
        self.final_norm = Norm("layer", True, dtype=config.dtype)
        self.head = Head(config)

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps a batch to hidden states and next-token logits, [B, T, …].

        Args:
            batch: `inputs` [B, T]; optionally `segment_ids` [B, T] of packed or padded
                rows.
            deterministic: Whether dropout is off.
        """
        return self._output(self.hidden(batch, deterministic))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns the final states [B, T, D] alone; as `__call__`."""
        return self._read(batch, deterministic)[0]

    def prefill(self, batch: Batch, cache_len: int) -> tuple[Array, PyTree]:
        """Reads prompts; returns the logits [B, V] of what follows, and the cache.

        The cache is what the layers last read, [L, B, C, D].

        Args:
            batch: `inputs` [B, T], padded on the right; `segment_ids` [B, T], 0 where
                padded.
            cache_len: Not needed: the cache has as many places as layers see.
        """
        del cache_len
        hidden, read = self._read(batch, True)
        real = batch["segment_ids"] > 0
        lengths = real.sum(axis=1)
        config = self.config
        C = (config.width - 1) * max(map(config.dilation, range(config.num_layers)))
        cache = jnp.stack([last_inputs(x, lengths, C) for x in read])
        return self._output(last_token(hidden, real)).logits.dense()[:, 0], cache

    def step(
        self, tokens: Array, positions: Array, cache: PyTree
    ) -> tuple[Array, PyTree]:
        """Reads one token [B] of each row; as `prefill`. Places do not matter."""
        del positions
        x, new = self.embedder(tokens[:, None], True)[:, 0], []
        for layer, past in zip(self.layers, cache):
            x, past = layer.step(x, past)
            new.append(past)
        hidden = self.final_norm(x)[:, None]
        return self._output(hidden).logits.dense()[:, 0], jnp.stack(new)

    def _read(self, batch: Batch, deterministic: bool) -> tuple[Array, list[Array]]:
        """Returns final states [B, T, D] and what each layer's convolution read."""
        x = self.embedder(batch["inputs"], deterministic)
        segments, reads = batch.get("segment_ids"), []
        for layer in self.layers:
            x, read = layer(x, segments, deterministic)
            reads.append(read)
        return self.final_norm(x), reads

    def _output(self, hidden: Array) -> Output:
        return Output(hidden, self.head(hidden, self.embedder.token.embedding))
