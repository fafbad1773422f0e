"""TextCNN: filters that look for short phrases, of which a head takes the largest.

Kim (2014), https://arxiv.org/abs/1408.5882. A feature is c_t = f(w · x_{t:t+h-1} + b)
(eq. 2), and its largest value stands for a text (section 2): `task.pooling=max`. The
paper's dropout of these is `task.dropout_rate`; `model.embedding_from` gives it vectors
that are trained further (non-static), with `optim.freeze=embedder` static ones.
Axes: B batch, T time, D emb_dim, F filters of a width, W width.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from lm.config import check_range
from lm.nn.base import Head, ModelConfig, Output, TokenEmbedder, predicting
from lm.nn.convolution import windows
from lm.nn.layers import ACTIVATIONS, Einsum
from lm.sharding import constrain
from lm.types import Array, Batch, UserError


@dataclass(frozen=True)
class Config(ModelConfig):
    """The defaults are those of the paper, but for the vectors' size.

    Attributes:
        widths: W of the filters, in tokens.
        num_filters: F, of each width.
    """

    name: str = "textcnn"
    widths: tuple[int, ...] = (3, 4, 5)
    num_filters: int = 100
    embed_stddev: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_range("model.num_filters", self.num_filters, 1)
        if (
            not self.widths
            or min(self.widths) < 1
            or len(set(self.widths)) < len(self.widths)
        ):
            raise UserError(
                "model.widths must be different numbers of at least 1, such as 3,4,5; "
                f"not {self.widths}"
            )


class Model(nn.Module):
    """The filters, and a head that predicts masked tokens of what they find."""

    config: Config
    architecture = "encoder"

    def setup(self):
        """Declares the parts."""
        config = self.config
        D, F = config.emb_dim, config.num_filters
        kernel = (config.init_stddev, config.dtype)
        self.embedder = TokenEmbedder(config)
        self.conv = [
            Einsum(
                (W, D), (F,), (None, "embed", "mlp"), True, *kernel, name=f"conv_{W}"
            )
            for W in config.widths
        ]
        found = F * len(config.widths)
        self.transform = Einsum((found,), (D,), ("mlp", "embed"), True, *kernel)
        self.head = Head(config, use_bias=True)

    def __call__(self, batch: Batch, deterministic: bool = True) -> Output:
        """Maps a batch to what the filters find, [B, T, F · widths], and logits.

        Args:
            batch: `inputs` [B, T]; optionally `segment_ids` [B, T] of packed or padded
                rows, and `masked_positions` [B, M], the places whose logits [B, M, V]
                are wanted instead of all T.
            deterministic: Whether dropout is off.
        """
        hidden = self.hidden(batch, deterministic)
        states = self.transform(predicting(hidden, batch))
        return Output(hidden, self.head(states, self.embedder.token.embedding))

    def hidden(self, batch: Batch, deterministic: bool = True) -> Array:
        """Returns what the filters find alone; as `__call__`."""
        x = self.embedder(batch["inputs"], deterministic)
        segments = batch.get("segment_ids")
        found = [
            conv(windows(x, segments, W))
            for W, conv in zip(self.config.widths, self.conv)
        ]
        found = ACTIVATIONS["relu"](jnp.concatenate(found, axis=-1))
        return constrain(found, "batch", "length", "act_mlp")
