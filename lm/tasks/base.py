"""What a task is: the one seam between text, model and use."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lm.data.packing import BucketRows, ConcatRows, FitRows, Rows
from lm.data.pipeline import DataTask
from lm.metrics import Mean, Metrics, Perplexity
from lm.nn.losses import TokenLoss, cross_entropy
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params

# How documents fill rows of training: end to end and cut at the row's end; whole,
# several to a row; or one to a row, padded to a power of two.
PACKINGS = ("concat", "fit", "bucket")


class Task(DataTask, Protocol):
    """What is learned: features from text, and a loss from a model's outputs."""

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


def token_loss(
    model: nn.Module,
    params: Params,
    batch: Batch,
    rng: Array | None,
    z_loss: float = 0.0,
) -> tuple[Array, Metrics]:
    """Returns the summed cross-entropy of a batch's `targets`, and metrics.

    A target weighs its `loss_mask`, and nothing in a padded row.
    """
    weights = batch["loss_mask"] * batch["example_mask"][:, None]
    logits = apply(model, params, batch, rng).logits
    loss = cross_entropy(logits, batch["targets"], weights, z_loss)
    return loss.objective, token_metrics(loss, weights, batch)


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
