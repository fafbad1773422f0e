"""What a task is whose predictions are written token by token."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lm.data.packing import join
from lm.tasks.base import Task
from lm.text.tokenizers import Tokenizer

# Examples that a report shows.
WORST = 20


@runtime_checkable
class Generative(Task, Protocol):
    """A task whose model continues a prompt, or answers one if it has an encoder.

    `lm.completion.Writer` makes its predictions. While training it is evaluated by
    the loss of its tokens alone.

    Attributes:
        tokenizer: The task's.
        prefix_lm: Whether a decoder reads its prompt in both directions.
    """

    tokenizer: Tokenizer
    prefix_lm: bool

    @property
    def decoding(self) -> Mapping[str, Any]:
        """Options of `lm.decoding.Config`."""
        ...

    def prompt(self, example: Mapping[str, Any]) -> np.ndarray:
        """Returns the tokens [n] that the model reads, at least one.

        Every text makes some, however odd it is.
        """
        ...

    def target_of(self, example: Mapping[str, Any]) -> str:
        """Returns what should be predicted.

        Raises:
            UserError: If the example lacks it.
        """
        ...

    def score(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, float]:
        """Returns metrics of all predictions together, the most telling one first.

        The text of a prediction is its `prediction`.
        """
        ...

    def text_of(self, example: Mapping[str, Any]) -> str:
        """Returns what an example asks, by which it is known again."""
        return self.tokenizer.decode(self.prompt(example))

    def details(
        self,
        examples: Sequence[Mapping[str, Any]],
        predictions: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Returns further sections of the report, as `lm.scorecard` names them.

        The worst examples are those whose scores, of each alone, sum to least.
        """
        found = []
        for example, prediction in zip(examples, predictions):
            row = {
                "text": self.text_of(example),
                "gold": self.target_of(example),
                "predicted": prediction["prediction"],
            }
            found.append((sum(self.score([example], [prediction]).values()), row))
        found.sort(key=operator.itemgetter(0))
        return {"worst": [row for _, row in found[:WORST]]}


def next_token_row(
    texts: Sequence[np.ndarray], length: int, pad_id: int
) -> dict[str, np.ndarray]:
    """Makes a decoder's row, without its `loss_mask`.

    Args:
        texts: Tokens of each text, at least one.
        length: Tokens of the row; a text takes one less than it has.
        pad_id: What fills the rest of it.

    >>> row = next_token_row([np.array([5, 6, 7])], 3, pad_id=0)
    >>> row["inputs"].tolist(), row["targets"].tolist()
    ([5, 6, 0], [6, 7, 0])
    """
    inputs, segment_ids, positions = join([t[:-1] for t in texts], length, pad_id)
    targets, _, _ = join([t[1:] for t in texts], length, pad_id)
    return {
        "inputs": inputs,
        "targets": targets,
        "segment_ids": segment_ids,
        "positions": positions,
    }
