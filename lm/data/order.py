"""Which row comes when: pure functions of a seed and a number.

Nothing is remembered from one batch to the next, so a run resumes at any row at once,
and hosts, threads and prefetching cannot change what comes.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lm.data.packing import BATCHES, MIXTURE, ROWS, EpochCache, Rows, permutation
from lm.types import UserError

# Rows (or batches, where they are bucketed) over which a mixture is exact.
BLOCK = 1024


class Draw(NamedTuple):
    """One row of a batch.

    Attributes:
        number: Of the row in the whole stream; its random numbers come from it.
        corpus: Which of several corpora it is of.
        epoch: Which pass over that corpus.
        row: Which row of its layout.
    """

    number: int
    corpus: int
    epoch: int
    row: int


class Order(Protocol):
    """What each batch holds."""

    def batch(self, number: int) -> list[Draw]:
        """Returns the rows of a batch: all of one capacity, at most a batch's."""
        ...


class OnePass:
    """All rows in their order, once; the last batch of a bucket may be short."""

    def __init__(self, rows: Rows, batch_size: int):
        self._batches = []
        for members in _members(rows):
            cuts = range(batch_size, len(members), batch_size)
            self._batches += np.split(members, cuts) if len(members) else []

    @property
    def num_batches(self) -> int:
        """How many batches hold all rows."""
        return len(self._batches)

    def batch(self, number: int) -> list[Draw]:
        """See `Order`."""
        return [Draw(row, 0, 0, row) for row in self._batches[number].tolist()]


class Endless:
    """Epoch after epoch of one corpus, or of several in fixed shares.

    Without buckets row g of the stream does not depend on the batch size: batch s holds
    rows `first_row + s * batch_size` and on. With buckets a batch holds rows of one.
    """

    def __init__(
        self,
        corpora: Sequence[Rows],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        first_row: int = 0,
    ):
        """Prepares the stream.

        Args:
            corpora: The layouts.
            weights: The share of rows of each.
            batch_size: Rows of a batch.
            seed: Of the order; a negative one keeps the rows' own.
            first_row: Where to begin.

        Raises:
            UserError: If rows are bucketed and `first_row` is inside a batch, or a
                weight is too small.
        """
        self._batch_size = batch_size
        self._first_row = first_row
        self._mixture = Mixture(weights, seed)
        self._is_bucketed = any(rows.groups is not None for rows in corpora)
        if self._is_bucketed and first_row % batch_size:
            raise UserError(
                f"row {first_row} is not the first of a batch of {batch_size}; where "
                "rows are bucketed, go on with the batch_size that the run began with"
            )
        kind = _BucketStream if self._is_bucketed else _RowStream
        self._streams = [
            kind(rows, batch_size, seed, corpus) for corpus, rows in enumerate(corpora)
        ]

    def batch(self, number: int) -> list[Draw]:
        """See `Order`."""
        first = self._first_row + number * self._batch_size
        numbers = range(first, first + self._batch_size)
        if self._is_bucketed:
            corpus, index = self._mixture(first // self._batch_size)
            drawn = self._streams[corpus](index)
            return [Draw(n, corpus, *row) for n, row in zip(numbers, drawn)]
        draws = []
        for n in numbers:
            corpus, index = self._mixture(n)
            draws.append(Draw(n, corpus, *self._streams[corpus](index)[0]))
        return draws


class Mixture:
    """Assigns each number of a stream to one of several, in exact shares.

    Every block of 1,024 numbers holds the same count of each, shuffled.

    >>> mixture = Mixture([3, 1], seed=0)
    >>> drawn = [mixture(number) for number in range(2048)]
    >>> sum(which == 1 for which, _ in drawn)
    512
    >>> [index for which, index in drawn if which == 1] == list(range(512))
    True
    """

    def __init__(self, weights: Sequence[float], seed: int):
        """Rounds the shares to whole counts of a block.

        Raises:
            UserError: If the share of one is less than one in a block.
        """
        shares = np.array(weights, np.float64) / sum(weights) * BLOCK
        counts = np.floor(shares).astype(np.int64)
        largest = np.argsort(counts - shares, kind="stable")
        counts[largest[: BLOCK - counts.sum()]] += 1
        if not counts.all():
            least = weights[int(counts.argmin())]
            raise UserError(
                f"data.weights: {least} is less than 1/{BLOCK} of their sum; raise it, "
                "or leave the source out"
            )
        self._counts = counts.tolist()
        self._which = np.repeat(np.arange(len(counts)), counts)
        self._seed = seed
        self._blocks = EpochCache(self._block)

    def _block(self, block: int) -> tuple[list[int], list[int]]:
        """Returns which stream each number goes to, and the how-manieth of it it is."""
        if len(self._counts) == 1:
            return [0] * BLOCK, list(range(BLOCK))
        # Even a stream that keeps its order mixes its sources.
        order = permutation(BLOCK, max(self._seed, 0), MIXTURE, block)
        which = self._which[order]
        rank = np.zeros(BLOCK, np.int64)
        for stream, count in enumerate(self._counts):
            rank[which == stream] = np.arange(count)
        return which.tolist(), rank.tolist()

    def __call__(self, number: int) -> tuple[int, int]:
        """Returns the stream that `number` goes to, and the number there."""
        block, place = divmod(number, BLOCK)
        which, rank = self._blocks(block)
        stream = which[place]
        return stream, block * self._counts[stream] + rank[place]


class _RowStream:
    """Rows of one corpus, one at a time, in another order every epoch."""

    def __init__(self, rows: Rows, batch_size: int, seed: int, corpus: int):
        size = self._size = rows.num_rows
        self._epochs = EpochCache(
            lambda epoch: permutation(size, seed, ROWS, corpus, 0, epoch)
        )

    def __call__(self, index: int) -> list[tuple[int, int]]:
        epoch, place = divmod(index, self._size)
        return [(epoch, int(self._epochs(epoch)[place]))]


class _BucketStream:
    """Rows of one corpus, a batch of one bucket at a time.

    Each bucket is an endless stream of its own, epoch after epoch, cut into batches, so
    no row is left over at an epoch's end: the batch there begins the bucket's next. An
    epoch of the corpus has those batches of each bucket that begin in it, shuffled.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, corpus: int):
        self._batch_size = batch_size
        self._seed, self._corpus = seed, corpus
        self._members = [m for m in _members(rows) if len(m)]
        self._sizes = np.array([len(m) for m in self._members], np.int64)
        self._batches = EpochCache(self._epoch_batches)
        self._orders = [self._order_of(b) for b in range(len(self._members))]

    def _order_of(self, bucket: int) -> EpochCache[np.ndarray]:
        size, seed, corpus = len(self._members[bucket]), self._seed, self._corpus
        return EpochCache(
            lambda epoch: permutation(size, seed, ROWS, corpus, bucket, epoch)
        )

    def _before(self, epoch: int) -> np.ndarray:
        """Returns how many batches of each bucket begin before an epoch."""
        return -(-epoch * self._sizes // self._batch_size)

    def _epoch_batches(self, epoch: int) -> np.ndarray:
        """Returns (bucket, number within the bucket) of an epoch's batches [b, 2]."""
        first, last = self._before(epoch), self._before(epoch + 1)
        batches = [
            np.stack([np.full(stop - start, bucket), np.arange(start, stop)], axis=1)
            for bucket, (start, stop) in enumerate(zip(first.tolist(), last.tolist()))
        ]
        found = np.concatenate(batches)
        order = permutation(len(found), self._seed, BATCHES, self._corpus, epoch)
        return found[order]

    def __call__(self, index: int) -> list[tuple[int, int]]:
        # Never too early: an epoch's first batch comes after all rows before it.
        epoch = index * self._batch_size // int(self._sizes.sum())
        while (before := int(self._before(epoch).sum())) > index:
            epoch -= 1
        bucket, number = self._batches(epoch)[index - before].tolist()
        first = number * self._batch_size
        drawn = []
        for place in range(first, first + self._batch_size):
            epoch, rank = divmod(place, len(self._members[bucket]))
            member = self._orders[bucket](epoch)[rank]
            drawn.append((epoch, int(self._members[bucket][member])))
        return drawn


def _members(rows: Rows) -> list[np.ndarray]:
    """Returns the rows of each bucket, in order."""
    if rows.groups is None:
        return [np.arange(rows.num_rows)]
    by_group = np.argsort(rows.groups, kind="stable")
    return np.split(by_group, np.cumsum(np.bincount(rows.groups))[:-1])
