"""What a task is: the one seam between text, model and use."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lm.data.packing import BucketRows, ConcatRows, FitRows, Piece, Rows
from lm.metrics import Mean, Metrics, Perplexity
from lm.nn.losses import TokenLoss
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params

# How documents fill rows of training: end to end and cut at the row's end; whole,
# several to a row; or one to a row, padded to a power of two.
PACKINGS = ("concat", "fit", "bucket")

# The pieces of one row: where each comes from, and the document's columns, of which
# `tokens` is cut to the piece.
Pieces = Sequence[tuple[Piece, Mapping[str, np.ndarray]]]


class Task(Protocol):
    """What is learned: features from text, and a loss from a model's outputs.

    Attributes:
        overlap: Units that a piece needs beyond its end: 1 where the target of a
            token is the next one.
        encoding: What `encode` depends on besides the tokenizer; stored columns are
            reused as long as it stays the same.
    """

    overlap: int

    @property
    def encoding(self) -> str:
        """See the class."""
        ...

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """Turns examples into int32 columns, once; an empty dict drops an example."""
        ...

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays documents, whose columns have these lengths, into rows."""
        ...

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes one row of a batch; no pieces make a row of padding."""
        ...

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the objective, summed over the batch, and metrics.

        The weight of the metric `loss` is what the objective is divided by once all
        microbatches are summed. Without `rng` dropout is off.
        """
        ...


def encode_marked(
    tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
) -> list[dict[str, np.ndarray]]:
    """Encodes each text between the marks of its beginning and end, if there are any.

    A text of no tokens is dropped.
    """
    bos = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    eos = [tokenizer.eos_id] if tokenizer.eos_id >= 0 else []
    texts = tokenizer.encode_batch([example["text"] for example in examples])
    return [
        {"tokens": np.concatenate([bos, ids, eos]).astype(np.int32)} if len(ids) else {}
        for ids in texts
    ]


def training_rows(sizes: np.ndarray, length: int, packing: str, seed: int) -> Rows:
    """Lays documents of these sizes [n] into rows of `length`; see `PACKINGS`."""
    if packing == "fit":
        return FitRows(sizes, (length,), seed)
    if packing == "bucket":
        sides = [n for n in (2**i for i in range(4, 31)) if n < length]
        return BucketRows(sizes, (*sides, length))
    return ConcatRows(sizes, length, seed)


def apply(model: nn.Module, params: Params, batch: Batch, rng: Array | None) -> Any:
    """Runs a model, with dropout where there is a key for it."""
    rngs = None if rng is None else {"dropout": rng}
    return model.apply({"params": params}, batch, deterministic=rng is None, rngs=rngs)


def token_weights(batch: Batch) -> Array:
    """Returns the weight of each target, 0 in padded tokens and in padded rows."""
    return batch["loss_mask"] * batch["example_mask"][:, None]


def token_metrics(loss: TokenLoss, weights: Array, batch: Batch) -> Metrics:
    """Returns loss, perplexity, accuracy and, where texts are counted, bits.

    Bits per byte and per character do not depend on the tokenizer: the batch's
    `num_bytes` and `num_chars` [B] count the text that its targets stand for.
    """
    weight = weights.sum()
    metrics = {
        "loss": Mean(loss.cross_entropy, weight),
        "perplexity": Perplexity(loss.cross_entropy, weight),
        "accuracy": Mean(loss.correct, weight),
    }
    for name, count in (("bits_per_byte", "num_bytes"), ("bits_per_char", "num_chars")):
        if count in batch:
            total = (batch[count] * batch["example_mask"]).sum()
            metrics[name] = Mean(
                loss.cross_entropy / math.log(2), total.astype(jnp.float32)
            )
    return metrics
