import numpy as np
import pytest

from lm.data.pipeline import Corpus
from lm.data.store import Store


@pytest.fixture(scope="session")
def make_rows():
    """Makes a task's rows of an epoch from texts that are in no file."""

    def make_rows(task, texts, *, train=True, seed=0, epoch=0):
        documents = task.encode([{"text": text} for text in texts])
        tokens = [document["tokens"] for document in documents if document]
        offsets = np.cumsum([0, *map(len, tokens)])
        values = np.concatenate([np.zeros(0, np.int32), *tokens])
        store = Store(len(tokens), "", {"tokens": values}, {"tokens": offsets})
        corpus = Corpus([store])
        rows = task.rows(corpus.lengths(), train, seed)
        rng = np.random.default_rng((seed + 1, epoch))
        return [
            task.features(
                [(p, corpus.cut(p, task.overlap)) for p in rows.pieces(epoch, row)],
                rows.capacity(row),
                rng,
            )
            for row in range(rows.num_rows)
        ]

    return make_rows
