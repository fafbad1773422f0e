"""Tag words: one label for each, for example its part of speech or an entity's.

Devlin et al. (2019), https://arxiv.org/abs/1810.04805, section 5.3: a word is tagged
where its first piece is. Axes: B batch, T time, C classes.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config import check_choice, check_range
from lm.data.packing import BucketRows, FitRows, Rows, join
from lm.data.pipeline import Pieces
from lm.metrics import Mean, Metrics
from lm.nn.heads import ChainHead, TokenHead
from lm.tasks import labels as labels_lib
from lm.tasks import scores, text_scores
from lm.tasks.base import Predictive, apply, marked, sides
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError

# What tags look like: B-egins, I-nside or E-nds an entity of some type, or is a
# S-ingle word of one, or O-utside.
SCHEMES = {"none": ".+", "bio": "O|[BI]-.+", "bioes": "O|[BIES]-.+"}

# Texts with the most mistakes that a report shows.
WORST = 20


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        length: T, tokens of a row; a longer text is read in windows that overlap.
        words: The field of an example that has its words, a list.
        tags: The field with the tag of each word.
        scheme: `bio` or `bioes`, if tags are those of entities, else `none`. As in
            conlleval, an I- or E- that no B- went before begins an entity, too.
        separator: What is between words in a text: a space, or nothing, as in Chinese,
            where every character is a word.
        labels: The tags; () finds them in the training split.
        counts: Training words of each tag; found with them.
        dropout_rate: Of the states.
        class_weights: `none`, or `balanced`: tags weigh the same in total.
        label_smoothing: Share of the target that all tags divide between them.
        crf: Whether the tags of a text are predicted together, by a conditional random
            field (Lafferty et al. 2001), of which the likeliest are taken (Viterbi).
    """

    name: str = "tag"
    length: int = 128
    words: str = "words"
    tags: str = "tags"
    scheme: str = "none"
    separator: str = " "
    labels: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    dropout_rate: float = 0.0
    class_weights: str = "none"
    label_smoothing: float = 0.0
    crf: bool = False

    def __post_init__(self):
        check_choice("task.scheme", self.scheme, tuple(SCHEMES))
        check_choice("task.separator", self.separator, (" ", ""))
        check_choice("task.class_weights", self.class_weights, labels_lib.CLASS_WEIGHTS)
        check_range("task.length", self.length, 3)
        check_range("task.dropout_rate", self.dropout_rate, 0, 1)
        check_range("task.label_smoothing", self.label_smoothing, 0, 1)
        if self.crf and (self.label_smoothing or self.class_weights != "none"):
            raise UserError(
                "task.label_smoothing and task.class_weights are of each word alone; "
                "leave them out or set task.crf=False"
            )


@dataclass(frozen=True)
class Tag(Predictive):
    """The task. Training packs several texts into a row; a word is scored once."""

    config: Config
    tokenizer: Tokenizer
    overlap = 0

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        config = self.config
        made_of = (config.words, config.tags, config.scheme, config.separator)
        return f"bos words eos {made_of} {config.labels}"

    @staticmethod
    def resolve(
        config: Config, examples: Iterable[Mapping[str, Any]], skip: bool
    ) -> Config:
        """Finds the labels; see `Task`."""
        labels_of = functools.partial(Tag.labels_of, config)
        labels, counts = labels_lib.find(examples, labels_of, config.labels, skip)
        return dataclasses.replace(config, labels=labels, counts=counts)

    @staticmethod
    def labels_of(config: Config, example: Mapping[str, Any]) -> Sequence[str]:
        """Returns the tags of an example's words.

        Raises:
            UserError: If it has no words, not a tag for each, or a tag that is none.
        """
        where = labels_lib.where(example)
        fields = [
            labels_lib.field(example, name) for name in (config.words, config.tags)
        ]
        for name, value in zip((config.words, config.tags), fields):
            if not isinstance(value, list | tuple) or not value:
                raise UserError(
                    f"{where}: {name!r} is {value!r:.40}, not a list of one or more; "
                    "mend it, or name another field in the task's config"
                )
        words, tags = fields
        if len(words) != len(tags):
            raise UserError(
                f"{where} has {len(words)} {config.words!r} but {len(tags)} "
                f"{config.tags!r}; each word needs one"
            )
        for tag in tags:
            is_label = isinstance(tag, str | int)
            if not (is_label and re.fullmatch(SCHEMES[config.scheme], str(tag))):
                raise UserError(
                    f"{where} has the tag {tag!r}, which task.scheme={config.scheme} "
                    "does not know; mend it, or set another scheme"
                )
        return [str(tag) for tag in tags]

    def words_of(self, example: Mapping[str, Any]) -> list[str]:
        """Returns an example's words; those of its text, if it has the text alone."""
        words = example.get(self.config.words)
        if isinstance(words, list | tuple):
            return [str(word) for word in words]
        words = str(example.get("text") or "").split()
        return words if self.config.separator else list("".join(words))

    def build_model(self, config: Any) -> nn.Module:
        """See `Task`."""
        head = ChainHead if self.config.crf else TokenHead
        return head(
            super().build_model(config),
            len(self.config.labels),
            self.config.dropout_rate,
        )

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray] | UserError]:
        """Encodes words and their tags; a UserError stands for what is wrong."""
        ids = {name: number for number, name in enumerate(self.config.labels)}
        documents = []
        for example, inputs in zip(examples, self.encode_inputs(examples)):
            try:
                tags = self.labels_of(self.config, example)
                numbers = [labels_lib.index(example, tag, ids) for tag in tags]
            except UserError as error:
                documents.append(error)
            else:
                label = np.zeros_like(inputs["tokens"])
                label[inputs["is_word"] > 0] = numbers
                documents.append(inputs | {"label": label})
        return documents

    def encode_inputs(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """See `Predictive`; `is_word` is 1 where a word's first piece is."""
        documents = []
        for pieces in self._pieces([self.words_of(example) for example in examples]):
            tokens = marked(self.tokenizer, np.concatenate([_NO_IDS, *pieces]))
            sizes = [int(self.tokenizer.bos_id >= 0), *map(len, pieces)]
            is_word = np.zeros_like(tokens)
            is_word[np.cumsum(sizes)[:-1]] = 1
            documents.append({"tokens": tokens, "is_word": is_word})
        return documents

    def _pieces(self, texts: Sequence[list[str]]) -> list[list[np.ndarray]]:
        """Encodes words, each as where it stands in its text."""
        before = f"a{self.config.separator}" if self.config.separator else ""
        first = self._encode({word for words in texts for word in words[:1]}, "")
        inside = self._encode({word for words in texts for word in words[1:]}, before)
        return [
            [
                *(first[word] for word in words[:1]),
                *(inside[word] for word in words[1:]),
            ]
            for words in texts
        ]

    def _encode(self, words: Iterable[str], before: str) -> dict[str, np.ndarray]:
        """Returns one or more ids of each word when it follows `before`."""
        words, tokenizer = list(words), self.tokenizer
        cut = len(tokenizer.encode(before.strip()))
        found = tokenizer.encode_batch([before + word for word in words])
        # A tokenizer may drop a word, such as a control character, altogether.
        unk_id = tokenizer.unk_id if tokenizer.unk_id >= 0 else max(tokenizer.pad_id, 0)
        unknown = np.array([unk_id], np.int32)
        return {
            word: ids[cut:] if len(ids) > cut else unknown
            for word, ids in zip(words, found)
        }

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays out windows: packed to train on, else one a row."""
        length = self.config.length
        pieces = windows(lengths["tokens"], length)
        sizes = pieces[:, 2] - pieces[:, 1]
        if train:
            return FitRows(sizes, (length,), seed, pieces)
        return BucketRows(sizes, sides(length), pieces)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row; `loss_mask` is 1 where a word's tag is wanted."""
        (length,) = capacity
        tokens, targets, wanted = [], [], []
        for piece, columns in pieces:
            tokens.append(columns["tokens"])
            is_word = columns["is_word"]
            label = columns.get("label", np.zeros_like(is_word))
            targets.append(label[piece.start : piece.stop])
            here = scored(piece.start, piece.stop, len(is_word), self.config.length)
            wanted.append(is_word[piece.start : piece.stop] * here)
        pad_id = max(self.tokenizer.pad_id, 0)
        inputs, segment_ids, positions = join(tokens, length, pad_id)
        return {
            "inputs": inputs,
            "targets": join(targets, length)[0],
            "segment_ids": segment_ids,
            "positions": positions,
            "loss_mask": join(wanted, length)[0].astype(np.float32),
        }

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns the summed loss of the words, and metrics."""
        config, targets = self.config, batch["targets"]
        logits = apply(model, params, batch, rng)
        mask = batch["loss_mask"] * batch["example_mask"][:, None]
        if config.crf:
            log_likelihood = logits.log_likelihood(targets)
            total = -(batch["example_mask"] * log_likelihood).sum()
            right = logits.best() == targets
            return total, {
                "loss": Mean(total, mask.sum()),
                "accuracy": Mean((mask * right).sum(), mask.sum()),
            }
        weights = mask
        if config.class_weights == "balanced":
            weights *= jnp.asarray(labels_lib.balanced(config.counts))[targets]
        log_probs = jax.nn.log_softmax(logits)
        of_target = jnp.take_along_axis(log_probs, targets[:, :, None], axis=-1)
        share = config.label_smoothing
        losses = -(1 - share) * of_target[:, :, 0] - share * log_probs.mean(axis=-1)
        total = (weights * losses).sum()
        right = logits.argmax(axis=-1) == targets
        return total, {
            "loss": Mean(total, weights.sum()),
            "accuracy": Mean((mask * right).sum(), mask.sum()),
        }

    def predict(self, model: nn.Module, params: Params, batch: Batch) -> Batch:
        """Returns `label` (or -1) and its `probability` [B, T] of each token."""
        outputs = apply(model, params, batch, None)
        if self.config.crf:
            label, probabilities = outputs.best(), outputs.marginals()
            chosen = jax.nn.one_hot(label, probabilities.shape[-1])
            probability = (chosen * probabilities).sum(axis=-1)
        else:
            probabilities = jax.nn.softmax(outputs)
            label, probability = (
                f(probabilities, axis=-1) for f in (jnp.argmax, jnp.max)
            )
        wanted = batch["loss_mask"] > 0
        return {
            "label": jnp.where(wanted, label, -1),
            "probability": jnp.where(wanted, probability, 0),
        }

    def decode(
        self, example: Mapping[str, Any], outputs: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[str, Any]:
        """Returns `words`, the `tags` and `probabilities` of each, and `entities`.

        An entity has `type` and `text` and is of the words [`start`, `stop`). There are
        none if the scheme is `none`.
        """
        config, words = self.config, self.words_of(example)
        found = [
            (config.labels[label], probability)
            for output in outputs
            for label, probability in zip(
                output["label"].tolist(), output["probability"].tolist()
            )
            if label >= 0
        ][: len(words)]
        tags = [tag for tag, _ in found]
        prediction = {
            "words": words,
            "tags": tags,
            "probabilities": [probability for _, probability in found],
        }
        if config.scheme == "none":
            return prediction
        return prediction | {
            "entities": [
                {
                    "type": type_,
                    "start": start,
                    "stop": stop,
                    "text": config.separator.join(words[start:stop]),
                }
                for type_, start, stop in text_scores.entities(tags, self.config.scheme)
            ]
        }

    def score(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, float]:
        """See `Predictive`; `lm.tasks.text_scores` has the details."""
        return text_scores.tagging(
            *self._tags(examples, predictions), self.config.scheme
        )

    def details(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Returns scores of each class, mistaken ones, and texts of most mistakes."""
        gold, predicted = self._tags(examples, predictions)
        right, made, names = text_scores.outcomes(gold, predicted, self.config.scheme)
        places = [np.flatnonzero(np.array(a) != b) for a, b in zip(gold, predicted)]
        worst = sorted(range(len(places)), key=lambda i: -len(places[i]))[:WORST]
        per_class = scores.per_class(right, made, names)
        if self.config.scheme != "none":
            # Of an entity that a side lacks the class is -1: the last.
            names = [*names, "no entity"]
            right, made = right % len(names), made % len(names)
        matrix = scores.confusion(right, made, names)
        return {
            "per_class": per_class,
            "confusion": {"labels": names, "matrix": matrix},
            "worst": [
                {
                    "text": self.text_of(examples[i]),
                    "gold": self._tagged(examples[i], gold[i], places[i]),
                    "predicted": self._tagged(examples[i], predicted[i], places[i]),
                }
                for i in worst
                if len(places[i])
            ],
        }

    def _tagged(
        self, example: Mapping[str, Any], tags: Sequence[str], places: np.ndarray
    ) -> list[str]:
        """Returns `word/tag` of some words."""
        words = self.words_of(example)
        return [f"{words[place]}/{tags[place]}" for place in places]

    def _tags(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
        """Returns the tags of each text that are right, and those predicted."""
        gold = [self.labels_of(self.config, example) for example in examples]
        return gold, [prediction["tags"] for prediction in predictions]


_NO_IDS = np.zeros(0, np.int32)


def windows(sizes: np.ndarray, length: int) -> np.ndarray:
    """Cuts texts into windows of at most `length` tokens, of which a quarter overlap.

    Args:
        sizes: Tokens of each text [n].
        length: Tokens of a window.

    Returns:
        Text, start and stop of each window [m, 3], in the texts' order.

    >>> windows(np.array([3, 0, 15]), length=8).tolist()
    [[0, 0, 3], [2, 0, 8], [2, 6, 14], [2, 12, 15]]
    """
    stride = length - 2 * (length // 8)
    count = 1 + -(-np.maximum(sizes - length, 0) // stride)
    count = np.where(sizes, count, 0)
    texts = np.repeat(np.arange(len(sizes)), count)
    number = np.arange(len(texts)) - np.repeat(np.cumsum(count) - count, count)
    starts = number * stride
    stops = np.minimum(starts + length, sizes[texts])
    return np.stack([texts, starts, stops], axis=1)


def scored(start: int, stop: int, size: int, length: int) -> np.ndarray:
    """Returns which tokens of a window are not better seen by another one [T].

    These are all but an eighth of `length` at an end that is not the text's, so that
    each token of the text is of one window.

    >>> [scored(*window, size=15, length=8).astype(int).tolist()
    ...  for window in ((0, 8), (6, 14), (12, 15))]
    [[1, 1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1, 0], [0, 1, 1]]
    """
    places = np.arange(start, stop)
    low = start + length // 8 if start else 0
    high = stop - length // 8 if stop < size else size
    return (places >= low) & (places < high)
