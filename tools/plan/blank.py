"""Batches as shapes, of a task whose texts and tokenizer are not there."""

import collections
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm import sharding
from lm.tasks import Task
from lm.text.tokenizer import Marks, Tokenizer, mark_names
from lm.train.config import Config
from lm.types import UserError

SENTINELS = 100  # as T5 has


class BlankTokenizer(Tokenizer):
    """As many tokens as a model has, all marks among them; it reads no text."""

    def __init__(self, vocab_size: int):
        """Makes it.

        Raises:
            UserError: If the marks alone are more.
        """
        names = mark_names(min(SENTINELS, max(0, vocab_size - 16)))
        if vocab_size <= len(names):
            raise UserError(
                f"model.vocab_size {vocab_size} leaves no room for marks; raise it"
            )
        tokens = names + [str(i) for i in range(len(names), vocab_size)]
        special = range(len(names))
        pieces = [b"" if i in special else b"a" for i in range(vocab_size)]
        marks = Marks(*special[:5], sentinels=tuple(special[5:]))
        super().__init__("blank", tokens, pieces, special, marks, lossless=True)
        self.counts = np.ones(vocab_size, np.int64)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.zeros(0, np.int32) for _ in texts]

    def _mapping(self) -> Any:
        return self.vocab_size

    def _files(self) -> dict[str, bytes]:
        return {}


def batch_shapes(config: Config, task: Task, mesh: Mesh) -> dict[str, Any]:
    """Returns a training batch as shapes with shardings.

    Rows are as long as the longest that the task makes.
    """
    length = config.task.length
    sizes = {"target": getattr(config.task, "targets_length", length)}
    sizes |= {"query": getattr(config.task, "query_length", length), "question": 8}
    columns = collections.defaultdict(lambda: np.array([length]))
    columns |= {name: np.array([size]) for name, size in sizes.items()}
    rows = task.rows(columns, True, 0)
    capacity = max(rows.capacity(row) for row in range(rows.num_rows))
    row = task.features([], capacity, np.random.default_rng(0))
    row |= {"example_mask": np.zeros((), np.float32)}
    where = sharding.batch_sharding(mesh, config.mesh)

    def of_batch(value: Any) -> jax.ShapeDtypeStruct:
        shape = (config.batch_size, *np.shape(value))
        return jax.ShapeDtypeStruct(shape, np.asarray(value).dtype, sharding=where)

    return {name: of_batch(value) for name, value in row.items()}
