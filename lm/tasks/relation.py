"""Tell the relation between two marked spans of a text.

Baldini Soares et al. (2019), https://arxiv.org/abs/1906.03158: the spans stand between
marks, and what the model makes of their first marks decides (section 3.2, "entity
start"). The marks are the characters `@` and `#`, as in Zhou & Chen (2022),
https://arxiv.org/abs/2102.01373, section 2.2: every tokenizer knows them, or writes its
unknown mark for both; the spans are told apart by their order in the head, too.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import numpy as np

from lm.data.pipeline import Pieces
from lm.nn.heads import SpanHead
from lm.tasks import classify, fields
from lm.tasks import labels as labels_lib
from lm.tasks.base import marked
from lm.tasks.classify import Classify
from lm.text.offsets import Placed, place
from lm.types import UserError

HEAD, TAIL = "@", "#"


@dataclass(frozen=True)
class Config(classify.Config):
    """Options of the task; `length` is with the marks, and `pooling` of each span.

    Attributes:
        head: The field of an example that has its first span: [start, stop) in the
            text, in characters, as a list or as JSON.
        tail: The field with its second span.
    """

    name: str = "relation"
    head: str = "head"
    tail: str = "tail"

    def __post_init__(self):
        super().__post_init__()
        if self.token_dropout_rate:
            raise UserError("task.token_dropout_rate is not for task.name=relation")


@dataclass(frozen=True)
class Relation(Classify):
    """The task. A row is one text; `spans` are the places of its spans with marks."""

    config: Config

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        return f"{super().encoding} {self.config.head} {self.config.tail}"

    def build_model(self, config: Any) -> nn.Module:
        """See `Task`."""
        head: Any = super().build_model(config)
        return SpanHead(
            head.backbone, head.num_outputs, 2, head.pooling, head.dropout_rate
        )

    def span_of(self, example: Mapping[str, Any], name: str) -> tuple[int, int]:
        """Returns where a span starts and stops, in characters.

        Raises:
            UserError: If the field is missing, or is no span of the text.
        """
        value = fields.listed(example, name)
        try:
            start, stop = map(operator.index, value)
        except (TypeError, ValueError):
            start = stop = -1
        if not 0 <= start < stop <= len(example["text"]):
            raise UserError(
                f"{labels_lib.where(example)}: {name!r} is {value!r:.40}, not [start, "
                f"stop) of a text of {len(example['text'])} characters; mend it"
            )
        return start, stop

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray] | UserError]:
        """Encodes texts and their labels; a UserError stands for what is wrong."""
        documents = []
        for example, placed in zip(examples, self._place(examples)):
            try:
                inputs = self._inputs(example, placed, self.config.long_texts == "cut")
                documents.append(inputs | {"label": self._target(example)})
            except UserError as error:
                documents.append(error)
        return documents

    def encode_inputs(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """See `Predictive`.

        Raises:
            UserError: If an example lacks a span.
        """
        return [
            self._inputs(example, placed, True)
            for example, placed in zip(examples, self._place(examples))
        ]

    def _place(self, examples: Sequence[Mapping[str, Any]]) -> list[Placed]:
        return place(self.tokenizer, [example["text"] for example in examples])

    def _inputs(
        self, example: Mapping[str, Any], placed: Placed, may_cut: bool
    ) -> dict[str, np.ndarray]:
        """Marks the spans; `spans` are the places of both with their marks [4]."""
        names = self.config.head, self.config.tail
        bounds = [placed.tokens(*self.span_of(example, name)) for name in names]
        tokens, places = insert(placed.ids, np.ravel(bounds), self._marks)
        room = self.config.length - 2
        if len(tokens) > room:
            if not may_cut:
                raise UserError(
                    f"{labels_lib.where(example)} has {len(tokens)} tokens with the "
                    f"marks of its spans, more than the {room} of task.length; raise "
                    "it, or set task.long_texts=cut"
                )
            kept = around(places.min(), places.max() + 1, len(tokens), room)
            tokens = tokens[kept]
            places = np.minimum(np.searchsorted(kept, places), room - 1)
        places += int(self.tokenizer.bos_id >= 0)
        spans = (places + [0, 1, 0, 1]).astype(np.int32)
        return {"tokens": marked(self.tokenizer, tokens), "spans": spans}

    @functools.cached_property
    def _marks(self) -> np.ndarray:
        """The marks before and after the head and the tail [4]."""
        unknown = max(self.tokenizer.unk_id, 0)
        ids = [[unknown, *self.tokenizer.encode(mark)][-1] for mark in (HEAD, TAIL)]
        return np.repeat(ids, 2)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row: as `Classify`, with `spans` [2, 2]."""
        spans = [columns["spans"] for _, columns in pieces] or [np.zeros(4, np.int32)]
        row = super().features(pieces, capacity, rng)
        return row | {"spans": spans[0].reshape(2, 2)}


def insert(
    ids: np.ndarray, bounds: np.ndarray, marks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Puts marks where two spans start and stop.

    Args:
        ids: Of a text [n].
        bounds: First token and one after the last, of both spans [4].
        marks: For each bound [4].

    Returns:
        The text with marks [n + 4], and the places of the marks there [4].

    >>> tokens, places = insert(np.arange(3), np.array([2, 3, 0, 2]), np.arange(10, 14))
    >>> tokens.tolist(), places.tolist()
    ([12, 0, 1, 13, 10, 2, 11], [4, 6, 0, 3])
    """
    # Where spans meet, the one that comes first is closed before the other opens.
    turn = [0, 1, 2, 3] if bounds[0] <= bounds[2] else [2, 3, 0, 1]
    order = np.array(turn)[np.argsort(bounds[turn], kind="stable")]
    places = np.empty(4, np.int64)
    places[order] = bounds[order] + np.arange(4)
    return np.insert(ids, bounds[order], marks[order]), places


def around(start: int, stop: int, size: int, room: int) -> np.ndarray:
    """Chooses `room` of `size` tokens: those about [start, stop), or its both ends.

    >>> around(4, 6, size=10, room=4).tolist(), around(1, 9, 10, 4).tolist()
    ([3, 4, 5, 6], [1, 2, 7, 8])
    """
    if stop - start > room:
        half = room // 2
        return np.r_[start : start + room - half, stop - half : stop]
    first = np.clip((start + stop - room) // 2, 0, size - room)
    return np.arange(first, first + room)
