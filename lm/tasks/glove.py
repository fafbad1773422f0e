"""Learn vectors from how often words stand near each other.

Pennington et al. (2014), https://aclanthology.org/D14-1162, section 3. The counts are
those of `tools.count_cooccurrences`. A unit of a row is a *cell*: a word i, a word j
and their count X. Axes: B batch, T cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lm.config import check_range
from lm.data.cooccurrence import CELL
from lm.data.packing import ConcatRows, Rows, WindowRows
from lm.data.pipeline import Pieces
from lm.metrics import Mean, Metrics
from lm.tasks.base import TO_USE_VECTORS, Task
from lm.text.tokenizers import Tokenizer
from lm.types import Array, Batch, Params, UserError

# Numbers of a cell in a document's tokens; those of its count are a float32's bits.
_SIZE = 3


@dataclass(frozen=True)
class Config:
    """Options of the task.

    Attributes:
        length: T, cells of a row.
        max_count: x_max, from which on all counts weigh 1.
        alpha: α, the power of a smaller count that it weighs.
    """

    name: str = "glove"
    length: int = 1024
    max_count: float = 100.0
    alpha: float = 0.75

    def __post_init__(self):
        check_range("task.length", self.length, 1)
        check_range("task.alpha", self.alpha, 0)
        if not self.max_count > 0:
            raise UserError(
                f"task.max_count must be above 0, not {self.max_count}; try 100"
            )


@dataclass(frozen=True)
class GloVe(Task):
    """The task. It reads no text but counts."""

    config: Config
    tokenizer: Tokenizer
    overlap = 0
    architectures = ("encoder",)
    models = ("glove",)
    instead = TO_USE_VECTORS

    @property
    def encoding(self) -> str:
        """See `DataTask`."""
        return "cells"

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, np.ndarray] | UserError]:
        """Reads blocks of cells."""
        return [self._encode(example) for example in examples]

    def _encode(self, example: Mapping[str, Any]) -> dict[str, np.ndarray] | UserError:
        where = getattr(example, "where", "data.sources")
        if not {"cells", "tokenizer"} <= example.keys():
            return UserError(
                f"{where} has no counts; set data.sources='FOLDER/cells.parquet?text=' "
                "of a folder that tools.count_cooccurrences wrote"
            )
        if example["tokenizer"] != self.tokenizer.fingerprint:
            return UserError(
                f"{where} was counted with another tokenizer; set data.tokenizer to "
                "it, or count again with tools.count_cooccurrences"
            )
        return {"tokens": np.frombuffer(example["cells"], np.int32)}

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays out the cells, which are in random order already."""
        length = _SIZE * self.config.length
        if train:
            return ConcatRows(lengths["tokens"], length, seed)
        return WindowRows(lengths["tokens"], length, length)

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes a row: `inputs`, `targets`, `counts` and `loss_mask`, [T] each."""
        del rng
        found = [np.zeros(0, np.int32), *(columns["tokens"] for _, columns in pieces)]
        cells = np.concatenate(found).view(CELL)
        spare = (0, capacity[0] // _SIZE - len(cells))
        return {
            "inputs": np.pad(cells["row"], spare),
            "targets": np.pad(cells["column"], spare),
            "counts": np.pad(cells["count"], spare, constant_values=1),
            "loss_mask": np.pad(np.ones(len(cells), np.float32), spare),
        }

    def loss(
        self, model: nn.Module, params: Params, batch: Batch, rng: Array | None
    ) -> tuple[Array, Metrics]:
        """Returns J = Σ f(X) (w_i · w̃_j + b_i + b̃_j - log X)², eq. 8, and metrics.

        They are its mean over all cells, and `error`, the mean of the squares where
        each weighs f(X) = min(1, (X / x_max)^α), eq. 9.
        """
        del rng
        config, counts = self.config, batch["counts"]
        weights = batch["loss_mask"] * batch["example_mask"][:, None]
        words = batch["inputs"], batch["targets"]
        scores: Any = model.apply({"params": params}, *words, method="scores")
        errors = jnp.square(scores - jnp.log(counts))
        factors = weights * jnp.minimum((counts / config.max_count) ** config.alpha, 1)
        objective = (factors * errors).sum()
        return objective, {
            "loss": Mean(objective, weights.sum()),
            "error": Mean(objective, factors.sum()),
        }
