"""What a task is: the one seam between text, model and use."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lm.data.packing import BucketRows, ConcatRows, FitRows, Rows, join
from lm.data.pipeline import DataTask
from lm.metrics import Mean, Metrics, Perplexity
from lm.models import MODELS, build_model
from lm.nn import moe
from lm.nn.losses import TokenLoss, cross_entropy
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError

# How documents fill rows of training: end to end and cut at the row's end; whole,
# several to a row; or one to a row, padded to a power of two.
PACKINGS = ("concat", "fit", "bucket")

# `Task.instead` of what learns to write, and of what learns vectors of words.
TO_GENERATE = "continue its texts with lm.generate"
TO_USE_VECTORS = (
    "write its vectors with tools.export_vectors, or score them with "
    "tools.evaluate_vectors"
)


class Task(DataTask, Protocol):
    """What is learned: features from text, and a loss from a model's outputs.

    Attributes:
        config: The task's options.
        architectures: Of the models that it is for.
        models: Their names; () means all of these architectures.
        instead: What to do with its model, where it neither predicts nor writes what it
            is asked for.
    """

    config: Any
    architectures: tuple[str, ...] = ("encoder", "decoder")
    models: tuple[str, ...] = ()
    instead: str = "fine-tune its model with another task, such as classify"

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the objective, summed over the batch, and metrics.

        The weight of the metric `loss` is what the objective is divided by once all
        microbatches are summed. Without `rng` dropout is off.
        """
        ...

    @staticmethod
    def resolve(config: Any, examples: Iterable[Mapping[str, Any]], skip: bool) -> Any:
        """Returns the config with all that the training examples decide.

        Args:
            config: The task's.
            examples: For training; a task that learns nothing of them reads none.
            skip: Whether a bad example is passed over.

        Raises:
            UserError: If the examples cannot be learned from.
        """
        del examples, skip
        return config

    def build_model(self, config: Any) -> nn.Module:
        """Returns the module of a model's config, with a head if the task has one.

        Raises:
            UserError: If the task is not for such a model.
        """
        fitting = self.models or [
            name
            for name, (_, module) in MODELS.items()
            if module.architecture in self.architectures
        ]
        if config.name not in fitting:
            raise UserError(
                f"task {self.config.name} is not for a {config.name} model; set "
                f"model.name to {' or '.join(fitting)}, or choose another task"
            )
        return build_model(config)


@runtime_checkable
class Predictive(Task, Protocol):
    """A task whose predictions are for people: what is evaluated, exported, served."""

    def encode_inputs(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """Encodes examples as `encode` does, but for what is to be predicted.

        Every text makes a document, however odd it is.
        """
        ...

    def predict(self, model: nn.Module, params: Params, batch: Batch) -> Batch:
        """Returns arrays of B rows each; a pure function, for `jax.jit`."""
        ...

    def decode(
        self, example: Mapping[str, Any], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[str, Any]:
        """Returns an example's prediction as JSON values.

        Args:
            example: As it was given to `encode_inputs`.
            outputs: Of `predict`, for each of the example's rows in their order.
        """
        ...

    def together(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """Returns the predictions of a whole split with what only all of them tell.

        They are scored as these, also a part of them.
        """
        del examples
        return [dict(prediction) for prediction in predictions]

    def score(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, float]:
        """Returns metrics of all predictions together, the most telling one first."""
        ...

    def text_of(self, example: Mapping[str, Any]) -> str:
        """Returns all of an example's text, by which it is known again."""
        return example["text"]

    def details(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Returns further sections of the report, as `lm.scorecard` names them."""
        del examples, predictions
        return {}


def encode_marked(
    tokenizer: Tokenizer, examples: Sequence[Mapping[str, Any]]
) -> list[dict[str, np.ndarray]]:
    """Encodes each text between the marks of its beginning and end, if there are any.

    A text of no tokens is dropped.
    """
    texts = tokenizer.encode_batch([example["text"] for example in examples])
    return [{"tokens": marked(tokenizer, ids)} if len(ids) else {} for ids in texts]


def marked(tokenizer: Tokenizer, *texts: np.ndarray) -> np.ndarray:
    """Puts a mark before the first of these ids and one after each, if there are any.

    BERT reads two texts as [CLS] a [SEP] b [SEP].
    """
    bos = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    eos = [tokenizer.eos_id] if tokenizer.eos_id >= 0 else []
    parts = [part for ids in texts for part in (ids, eos)]
    return np.concatenate([bos, *parts]).astype(np.int32)


def training_rows(sizes: np.ndarray, length: int, packing: str, seed: int) -> Rows:
    """Lays documents of these sizes [n] into rows of `length`; see `PACKINGS`."""
    if packing == "fit":
        return FitRows(sizes, (length,), seed)
    if packing == "bucket":
        return BucketRows(sizes, sides(length))
    return ConcatRows(sizes, length, seed)


def sides(length: int) -> tuple[int, ...]:
    """Returns the lengths that rows of up to `length` units are padded to.

    >>> sides(50)
    (16, 32, 50)
    """
    return (*(n for n in (2**i for i in range(4, 31)) if n < length), length)


def padded(
    columns: Mapping[str, np.ndarray], length: int, tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """Returns `inputs` and `segment_ids` [length] of one text, or of none."""
    tokens = [columns["tokens"]] if columns else []
    inputs, segment_ids, _ = join(tokens, length, max(tokenizer.pad_id, 0))
    return {"inputs": inputs, "segment_ids": segment_ids}


def apply(
    model: nn.Module,
    params: Params,
    batch: Batch,
    rng: Array | None,
    method: str | None = None,
    mutable: Any = False,
) -> Any:
    """Runs a model, or another method of it, with dropout where there is a key.

    With collections that are `mutable`, returns what is in them as well.
    """
    rngs = None if rng is None else {"dropout": rng}
    return model.apply(
        {"params": params},
        batch,
        deterministic=rng is None,
        rngs=rngs,
        method=method,
        mutable=mutable,
    )


def token_loss(
    model: nn.Module,
    params: Params,
    batch: Batch,
    rng: Array | None,
    z_loss: float = 0.0,
) -> tuple[Array, Metrics]:
    """Returns the summed cross-entropy of a batch's `targets`, and metrics.

    A target weighs its `loss_mask`, and nothing in a padded row. The objective has the
    losses of routers too, which weigh as much as the targets of their row.
    """
    weights = batch["loss_mask"] * batch["example_mask"][:, None]
    output, found = apply(model, params, batch, rng, mutable=[moe.COLLECTION])
    loss = cross_entropy(output.logits, batch["targets"], weights, z_loss)
    metrics = token_metrics(loss, weights, batch)
    routing = moe.total(found)
    if routing is None:
        return loss.objective, metrics
    rows = weights.sum(axis=1)
    metrics = {
        **metrics,
        "expert_balance": Mean(rows @ routing.balance, rows @ routing.layers),
        "expert_dropped": Mean(rows @ routing.dropped, rows @ routing.layers),
    }
    return loss.objective + rows @ routing.loss, metrics


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
