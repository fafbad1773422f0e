"""Put texts into classes: one, several or none of them, or a number.

Devlin et al. (2019), https://arxiv.org/abs/1810.04805, section 4.1, with a choice of
poolings. Axes: B batch, T time, C classes.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config import check_choice, check_range
from lm.data.packing import BucketRows, Rows
from lm.data.pipeline import Pieces
from lm.metrics import Mean, Metrics
from lm.nn.heads import ACTIVATIONS, POOLINGS, PooledHead
from lm.nn.rows import drop_tokens
from lm.tasks import fields, scores
from lm.tasks import labels as labels_lib
from lm.tasks.base import Predictive, apply, marked, padded, sides
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError

KINDS = ("one", "several", "number")

# Examples with the highest loss that a report shows.
WORST = 20


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        length: T of the longest row; the rest of a longer text is cut off.
        label: The field of an example that has its label, a list of them or a number.
        kind: How many of the classes are right for a text: `one`; `several` (or none),
            each judged alone; or there are no classes but a `number`.
        labels: The classes; () finds them in the training split.
        counts: Training examples of each class; found with them.
        moments: Of `number`: the mean and the standard deviation by which the one
            that the model learns is standardised; () finds them in the training split.
        thresholds: Of `several`: the least probability of each class that counts; ()
            means 0.5; `lm.evaluate --tune-thresholds` finds good ones.
        pooling: As in `lm.nn.heads.pool`.
        hidden: The activation of a layer between the pooled states and the outputs:
            `tanh`, `relu`, `gelu`; or `none`.
        hidden_layers: How many such layers there are.
        head_bias: Whether the outputs have a bias, as all but the decoders' of
            transformers have.
        dropout_rate: Of the pooled states.
        token_dropout_rate: The share of tokens that training leaves out, all but the
            first of a row (Iyyer et al. 2015, https://doi.org/10.3115/v1/P15-1162).
        class_weights: `none`, or `balanced`: classes weigh the same in total.
        label_smoothing: Share of the target that all classes divide between them
            (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7).
        long_texts: `cut`, or `refuse` (see `data.bad_rows`).
    """

    name: str = "classify"
    length: int = 256
    label: str = "label"
    kind: str = "one"
    labels: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    moments: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    pooling: str = "first"
    hidden: str = "none"
    hidden_layers: int = 1
    head_bias: bool = True
    dropout_rate: float = 0.0
    token_dropout_rate: float = 0.0
    class_weights: str = "none"
    label_smoothing: float = 0.0
    long_texts: str = "cut"

    def __post_init__(self):
        check_choice("task.kind", self.kind, KINDS)
        check_choice("task.pooling", self.pooling, POOLINGS)
        check_choice("task.hidden", self.hidden, ("none", *ACTIVATIONS))
        check_choice("task.class_weights", self.class_weights, labels_lib.CLASS_WEIGHTS)
        check_choice("task.long_texts", self.long_texts, ("cut", "refuse"))
        check_range("task.length", self.length, 3)
        check_range("task.hidden_layers", self.hidden_layers, 1)
        check_range("task.dropout_rate", self.dropout_rate, 0, 1)
        check_range("task.token_dropout_rate", self.token_dropout_rate, 0, 1)
        check_range("task.label_smoothing", self.label_smoothing, 0, 1)
        if self.kind != "one" and (
            self.label_smoothing or self.class_weights != "none"
        ):
            raise UserError(
                "task.label_smoothing and task.class_weights are for task.kind=one"
            )
        for name, kind in (("thresholds", "several"), ("moments", "number")):
            if getattr(self, name) and self.kind != kind:
                raise UserError(f"task.{name} is for task.kind={kind}")
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise UserError(f"task.thresholds must be from 0 to 1: {self.thresholds}")
        if self.moments:
            is_pair = len(self.moments) == 2 and np.isfinite(self.moments).all()
            if not (is_pair and self.moments[1] > 0):
                raise UserError(
                    "task.moments must be a mean and a standard deviation above 0, not "
                    f"{self.moments}"
                )


@dataclass(frozen=True)
class Classify(Predictive):
    """The task. A row is one text."""

    config: Config
    tokenizer: Tokenizer
    overlap = 0

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        config = self.config
        made_of = (config.length, config.label, config.kind, config.long_texts)
        return f"bos tokens eos {made_of} {config.labels}{config.moments or ''}"

    @staticmethod
    def resolve(
        config: Config, examples: Iterable[Mapping[str, Any]], skip: bool
    ) -> Config:
        """Finds the labels, or the moments of a number; see `Task`."""
        if config.kind == "number":
            found = config.moments or labels_lib.moments(examples, config.label, skip)
            return dataclasses.replace(config, moments=found)
        labels_of = functools.partial(Classify.labels_of, config)
        labels, counts = labels_lib.find(examples, labels_of, config.labels, skip)
        if len(config.thresholds) not in (0, len(labels)):
            raise UserError(
                f"task.thresholds has {len(config.thresholds)} numbers, but there are "
                f"{len(labels)} labels; give one for each, or none"
            )
        return dataclasses.replace(config, labels=labels, counts=counts)

    @staticmethod
    def labels_of(config: Config, example: Mapping[str, Any]) -> Sequence[str]:
        """Returns the labels that an example has.

        A whole number or a truth value is the label that JSON writes for it: `1`,
        `true`. Of `several`, a text may be a JSON list of them; a blank one is none.

        Raises:
            UserError: If it lacks the field, or the field is no label.
        """
        several = config.kind == "several"
        read = fields.listed if several else labels_lib.field
        value = read(example, config.label)
        values = value if several and isinstance(value, list | tuple) else [value]
        if several and isinstance(value, str) and not value.strip():
            values = []
        for item in values:
            if not isinstance(item, str | int) or item == "":
                raise UserError(
                    f"{labels_lib.where(example)}: {config.label!r} is {item!r:.60}, "
                    f"which is no label; {_cure(config.kind, item)}"
                )
        return [item if isinstance(item, str) else json.dumps(item) for item in values]

    def build_model(self, config: Any) -> nn.Module:
        """See `Task`."""
        outputs = 1 if self.config.kind == "number" else len(self.config.labels)
        return PooledHead(
            super().build_model(config),
            outputs,
            self.config.pooling,
            self.config.dropout_rate,
            self.config.hidden,
            self.config.head_bias,
            self.config.hidden_layers,
        )

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray] | UserError]:
        """Encodes texts and their labels; a UserError stands for what is wrong."""
        documents = []
        for example, inputs in zip(examples, self.encode_inputs(examples)):
            try:
                if self.config.long_texts == "refuse":
                    self._check_length(example)
                documents.append(inputs | {"label": self._target(example)})
            except UserError as error:
                documents.append(error)
        return documents

    def encode_inputs(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """See `Predictive`."""
        ids = self.tokenizer.encode_batch([example["text"] for example in examples])
        room = self.config.length - 2
        return [{"tokens": marked(self.tokenizer, text[:room])} for text in ids]

    def texts(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns what a row is made of."""
        return (example["text"],)

    def _check_length(self, example: Mapping[str, Any]) -> None:
        texts = self.texts(example)
        size = sum(len(self.tokenizer.encode(text)) for text in texts)
        room = self.config.length - 1 - len(texts)
        if size > room:
            raise UserError(
                f"{labels_lib.where(example)} has {size} tokens, more than the {room} "
                "of task.length; raise it, or set task.long_texts=cut"
            )

    def _target(self, example: Mapping[str, Any]) -> np.ndarray:
        """Returns the numbers of the labels; of a number, the bits as an int32.

        They are those of a float32: how many standard deviations it is above the mean.
        """
        config = self.config
        if config.kind == "number":
            mean, deviation = self._moments
            number = labels_lib.number(example, config.label)
            return np.array([(number - mean) / deviation], np.float32).view(np.int32)
        ids = self._ids
        found = self.labels_of(config, example)
        numbers = [labels_lib.index(example, name, ids) for name in found]
        return np.array(numbers, np.int32)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.config.labels)}

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays out one text a row, padded to a power of two."""
        return BucketRows(lengths["tokens"], sides(self.config.length))

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row.

        `label` is an int of `one`, float32 [C] of `several`; of `number` a float32,
        standardised by `moments`.
        """
        (length,) = capacity
        columns = pieces[0][1] if pieces else {}
        found = columns.get("label", np.zeros(0, np.int32))
        match self.config.kind:
            case "several":
                label = np.zeros(len(self.config.labels), np.float32)
                label[found] = 1
            case "number":
                label = found.view(np.float32).sum()
            case _:
                label = found.sum(dtype=np.int32)
        row = padded(columns, length, self.tokenizer)
        return row | {"label": np.asarray(label)}

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed loss of the texts, and metrics.

        That of a `number` is its squared error in units of the training numbers'
        variance.
        """
        if rng is not None:
            batch = self._noise(batch, jax.random.fold_in(rng, 0))
        outputs = apply(model, params, batch, rng)
        label, mask = batch["label"], batch["example_mask"]
        weight = mask
        match self.config.kind:
            case "one":
                losses = self._cross_entropy(outputs, label)
                right = outputs.argmax(axis=-1) == label
                if self.config.class_weights == "balanced":
                    weight *= jnp.asarray(labels_lib.balanced(self.config.counts))[
                        label
                    ]
            case "several":
                losses = -jnp.where(
                    label > 0, nn.log_sigmoid(outputs), nn.log_sigmoid(-outputs)
                ).mean(axis=-1)
                right = ((outputs > 0) == (label > 0)).all(axis=-1)
            case _:
                losses = jnp.square(outputs[:, 0] - label)
                right = None
        total = (weight * losses).sum()
        metrics = {"loss": Mean(total, weight.sum())}
        if right is not None:
            metrics["accuracy"] = Mean((mask * right).sum(), mask.sum())
        return total, metrics

    def _noise(self, batch: Batch, rng: Array) -> Batch:
        """Leaves out tokens, with their types."""
        rate, segments = self.config.token_dropout_rate, batch["segment_ids"]
        if not rate:
            return batch
        batch = dict(batch)
        for name in ("inputs", "type_ids"):
            if name in batch:
                moved, left = drop_tokens(batch[name], segments, rng, rate)
                batch |= {name: moved, "segment_ids": left}
        return batch

    def _cross_entropy(self, logits: Array, label: Array) -> Array:
        log_probs = jax.nn.log_softmax(logits)
        of_label = jnp.take_along_axis(log_probs, label[:, None], axis=-1)[:, 0]
        share = self.config.label_smoothing
        return -(1 - share) * of_label - share * log_probs.mean(axis=-1)

    def predict(self, model: nn.Module, params: Params, batch: Batch) -> Batch:
        """Returns `probabilities` [B, C], or `value` [B] of `number`, standardised."""
        outputs = apply(model, params, batch, None)
        match self.config.kind:
            case "one":
                return {"probabilities": jax.nn.softmax(outputs)}
            case "several":
                return {"probabilities": jax.nn.sigmoid(outputs)}
        return {"value": outputs[:, 0]}

    def decode(
        self, example: Mapping[str, Any], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[str, Any]:
        """Returns `label`, `labels` or `value`, with `probabilities` of classes."""
        (output,) = outputs
        if self.config.kind == "number":
            mean, deviation = self._moments
            return {"value": mean + deviation * float(output["value"])}
        names = self.config.labels
        probabilities = dict(zip(names, output["probabilities"].tolist()))
        if self.config.kind == "one":
            best = max(names, key=lambda name: probabilities[name])
            return {"label": best, "probabilities": probabilities}
        least = dict(zip(names, self._thresholds))
        chosen = [name for name in names if probabilities[name] >= least[name]]
        return {"labels": chosen, "probabilities": probabilities}

    def score(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, float]:
        """See `Predictive`; `lm.tasks.scores` has the details."""
        gold, found = self._arrays(examples, predictions)
        match self.config.kind:
            case "one":
                return scores.classification(gold, found, self.config.labels)
            case "several":
                return scores.multilabel(gold, found, self._thresholds)
        return scores.regression(gold, found)

    def details(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """See `Predictive`."""
        gold, found = self._arrays(examples, predictions)
        names = self.config.labels
        sections: dict[str, Any] = {}
        match self.config.kind:
            case "one":
                chosen = found.argmax(axis=1)
                matrix = scores.confusion(gold, chosen, names)
                sections["confusion"] = {"labels": names, "matrix": matrix}
                sections["per_class"] = scores.per_class(gold, chosen, names)
                sure = found.max(axis=1)
                sections["calibration"] = scores.calibration(chosen == gold, sure)
                if len(names) == 2:
                    sections["roc"] = scores.roc(gold == 1, found[:, 1])
                of_gold = found[np.arange(len(gold)), gold]
                losses = -np.log(np.maximum(of_gold, 1e-12))
            case "several":
                chosen = found >= self._thresholds[None]
                sections["per_class"] = scores.per_class(gold, chosen, names)
                of_gold = np.where(gold, found, 1 - found)
                losses = -np.log(np.maximum(of_gold, 1e-12)).mean(axis=1)
            case _:
                losses = np.square(gold - found)
        worst = np.argsort(-losses, kind="stable")[:WORST]
        sections["worst"] = [
            _told(examples[i], predictions[i], self.config.label)
            | {"loss": float(losses[i])}
            for i in worst
        ]
        return sections

    def tuned(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> Config:
        """Returns the config with the best thresholds of `several` on some examples."""
        found = scores.best_thresholds(*self._arrays(examples, predictions))
        return dataclasses.replace(self.config, thresholds=tuple(found.tolist()))

    @property
    def _moments(self) -> tuple[float, ...]:
        # What is not resolved learns the number as it is.
        return self.config.moments or (0.0, 1.0)

    @functools.cached_property
    def _thresholds(self) -> np.ndarray:
        return np.array(self.config.thresholds or (0.5,) * len(self.config.labels))

    def _arrays(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns what is right and what is predicted, as `lm.tasks.scores` wants."""
        config, names = self.config, self.config.labels
        if config.kind == "number":
            gold = [labels_lib.number(example, config.label) for example in examples]
            return np.array(gold), np.array([p["value"] for p in predictions])
        found = [self.labels_of(config, example) for example in examples]
        rows = [[p["probabilities"][name] for name in names] for p in predictions]
        if config.kind == "one":
            gold = np.array([self._ids[name] for (name,) in found])
        else:
            gold = np.array([[name in some for name in names] for some in found])
        return gold, np.array(rows)


def _cure(kind: str, item: Any) -> str:
    """Returns what to do about what is no label."""
    if kind == "several":
        return 'mend it; several in a cell of a table are JSON, as ["a", "b"]'
    if isinstance(item, list | tuple):
        return "mend it, or set task.kind=several"
    if isinstance(item, float):
        return "mend it, or set task.kind=number"
    return "mend it"


def _told(
    example: Mapping[str, Any], prediction: Mapping[str, Any], label: str
) -> dict[str, Any]:
    """Returns an example and its prediction for people."""
    told = {"text": example["text"], "gold": example[label]}
    if "label" in prediction:
        name = prediction["label"]
        told |= {"predicted": name, "probability": prediction["probabilities"][name]}
    else:
        told["predicted"] = prediction.get("labels", prediction.get("value"))
    return told
