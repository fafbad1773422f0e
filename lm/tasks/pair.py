"""Put pairs of texts into classes: entailment, similarity, duplicates.

All is as in `lm.tasks.classify`, but for two texts in a row: Devlin et al. (2019),
https://arxiv.org/abs/1810.04805, section 4.1 and figure 4a.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.config import check_range
from lm.data.packing import join
from lm.data.pipeline import Pieces
from lm.tasks import classify, fields
from lm.tasks.base import marked
from lm.tasks.classify import Classify
from lm.types import UserError


@dataclass(frozen=True)
class Config(classify.Config):
    """Options of the task; `length` is that of both texts with their marks.

    Attributes:
        text_b: The field of an example that has its second text.
    """

    name: str = "pair"
    text_b: str = "text_b"

    def __post_init__(self):
        super().__post_init__()
        check_range("task.length", self.length, 5)


@dataclass(frozen=True)
class Pair(Classify):
    """The task. A row is two texts, [CLS] a [SEP] b [SEP], of `type_ids` 0 and 1."""

    config: Config

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        return f"{super().encoding} {self.config.text_b}"

    def texts(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns both texts.

        Raises:
            UserError: If the second is missing, or is no text.
        """
        config = self.config
        return example["text"], fields.text(example, config.text_b, config.label)

    def text_of(self, example: Mapping[str, Any]) -> str:
        """See `Predictive`."""
        return "\n".join(self.texts(example))

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray] | UserError]:
        """Encodes pairs and their labels; a UserError stands for what is wrong."""
        return encode_checked(examples, self.texts, super().encode)

    def encode_inputs(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray]]:
        """See `Predictive`; of two texts that do not fit, the longer is cut first.

        Raises:
            UserError: If an example lacks the second text.
        """
        pairs = [self.texts(example) for example in examples]
        firsts, seconds = (
            self.tokenizer.encode_batch([pair[i] for pair in pairs]) for i in (0, 1)
        )
        documents = []
        for first, second in zip(firsts, seconds):
            first, second = cut_longest(first, second, self.config.length - 3)
            tokens = marked(self.tokenizer, first, second)
            types = np.zeros_like(tokens)
            types[len(marked(self.tokenizer, first)) :] = 1
            documents.append({"tokens": tokens, "type_ids": types})
        return documents

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row: as `Classify`, with `type_ids`."""
        types = [columns["type_ids"] for _, columns in pieces]
        type_ids, _, _ = join(types, *capacity)
        return super().features(pieces, capacity, rng) | {"type_ids": type_ids}


def cut_longest(
    a: np.ndarray, b: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """Drops the last token of the longer one, or else of `b`, until both fit.

    >>> a, b = cut_longest(np.arange(9), np.arange(3), room=6)
    >>> a.tolist(), b.tolist()
    ([0, 1, 2], [0, 1, 2])
    """
    of_b = min(len(b), max(room - len(a), room // 2))
    return a[: room - of_b], b[:of_b]


def encode_checked(
    examples: Sequence[Mapping[str, Any]],
    check: Callable[[Mapping[str, Any]], Any],
    encode: Callable[[Sequence[Mapping[str, Any]]], Sequence[Any]],
) -> list[Any]:
    """Encodes all examples at once but those that `check` raises a UserError about.

    Returns:
        What `encode` makes of each, or the error.
    """
    errors = [_error(check, example) for example in examples]
    fine = [example for example, error in zip(examples, errors) if not error]
    documents = iter(encode(fine))
    return [error or next(documents) for error in errors]


def _error(
    check: Callable[[Mapping[str, Any]], Any], example: Mapping[str, Any]
) -> UserError | None:
    try:
        check(example)
    except UserError as error:
        return error
