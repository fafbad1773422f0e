"""How documents are laid into rows: packed, bucketed or in windows.

A document is so many units long, for example tokens. A layout says which pieces of
which documents make a row; it sees lengths alone, so a row can be looked up by its
number without reading any text.

Every layout drops documents of no units and puts every other unit into exactly one
row of an epoch (`WindowRows`: scores it in exactly one row). All pieces of a row fit
into its capacity side by side; each is to be attended to alone (see `join`).

Axes: n documents, m pieces, C capacities.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from lm.data.fit import pack
from lm.types import UserError

# What random numbers are for: with one seed, different uses draw different ones.
CONCAT, FIT, ROWS, BATCHES, MIXTURE, FEATURES = range(1, 7)

T = TypeVar("T")


class Piece(NamedTuple):
    """Units [start, stop) of document `doc`.

    Those before `score_from` are context and carry no loss.
    """

    doc: int
    start: int
    stop: int
    score_from: int


class Rows(Protocol):
    """A layout of documents in rows."""

    @property
    def num_rows(self) -> int:
        """Rows of an epoch, the same in every epoch."""
        ...

    @property
    def groups(self) -> np.ndarray | None:
        """The bucket of each row [num_rows], where a batch may only hold one's rows.

        Otherwise None. Rows of a bucket have one capacity.
        """
        ...

    def pieces(self, epoch: int, row: int) -> list[Piece]:
        """Returns what a row holds; a pure function of its arguments."""
        ...

    def capacity(self, row: int) -> tuple[int, ...]:
        """Returns the sizes that a row is padded to."""
        ...


class ConcatRows:
    """Documents end to end, in another order every epoch, cut at every row's end.

    No row but the last of an epoch is padded.

    >>> rows = ConcatRows(np.array([3, 2]), length=4, seed=-1)
    >>> rows.pieces(epoch=0, row=0)
    [Piece(doc=0, start=0, stop=3, score_from=0),
     Piece(doc=1, start=0, stop=1, score_from=0)]
    >>> rows.pieces(epoch=0, row=1)
    [Piece(doc=1, start=1, stop=2, score_from=1)]
    """

    groups = None

    def __init__(self, sizes: np.ndarray, length: int, seed: int):
        """Lays out documents.

        Args:
            sizes: Units of each document [n].
            length: Units of a row.
            seed: Of the order; a negative one keeps the documents' own.
        """
        self._docs = _narrow(np.flatnonzero(sizes))
        self._sizes = _narrow(np.asarray(sizes)[self._docs])
        self._length = length
        self._seed = seed
        self._epochs = EpochCache(self._order)
        self.num_rows = -(-int(self._sizes.sum(dtype=np.int64)) // length)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns an epoch's documents [n] and where each begins [n + 1]."""
        order = permutation(len(self._docs), self._seed, CONCAT, epoch)
        begins = np.zeros(len(order) + 1, np.int64)
        np.cumsum(self._sizes[order], out=begins[1:])
        return self._docs[order], begins

    def pieces(self, epoch: int, row: int) -> list[Piece]:
        """See `Rows`."""
        docs, begins = self._epochs(epoch)
        start = row * self._length
        stop = min(start + self._length, int(begins[-1]))
        first = int(np.searchsorted(begins, start, side="right")) - 1
        last = int(np.searchsorted(begins, stop, side="left"))
        edges = begins[first : last + 1].tolist()
        found = []
        for i, doc in enumerate(docs[first:last].tolist()):
            low = max(start - edges[i], 0)
            found.append(Piece(doc, low, min(stop, edges[i + 1]) - edges[i], low))
        return found

    def capacity(self, row: int) -> tuple[int, ...]:
        """See `Rows`."""
        return (self._length,)


class _Table:
    """Rows that are the same in every epoch: a table of pieces, and where rows end."""

    def __init__(self, pieces: np.ndarray, ends: np.ndarray, capacities: np.ndarray):
        """Keeps the table.

        Args:
            pieces: The fields of `Piece` [m, 4], row by row.
            ends: Number of pieces up to the end of each row [num_rows].
            capacities: Capacities of each bucket [buckets, C].
        """
        self.num_rows = len(ends)
        self.groups: np.ndarray | None = None
        self._pieces = pieces
        self._ends = ends
        self._capacities = [tuple(c) for c in capacities.tolist()]

    def pieces(self, epoch: int, row: int) -> list[Piece]:
        """See `Rows`."""
        start = self._ends[row - 1] if row else 0
        return [Piece(*p) for p in self._pieces[start : self._ends[row]].tolist()]

    def capacity(self, row: int) -> tuple[int, ...]:
        """See `Rows`."""
        return self._capacities[0 if self.groups is None else self.groups[row]]


class FitRows(_Table):
    """Whole pieces, packed so that few rows hold them.

    Which pieces share a row is drawn once, for all epochs; see `lm.data.fit`.

    >>> rows = FitRows(np.array([[3], [2], [1]]), (4,), seed=-1)
    >>> [[piece.doc for piece in rows.pieces(0, row)] for row in range(rows.num_rows)]
    [[1], [0, 2]]
    """

    def __init__(
        self,
        sizes: np.ndarray,
        capacities: Sequence[int],
        seed: int,
        pieces: np.ndarray | None = None,
    ):
        """Packs documents, or parts of them.

        Args:
            sizes: What each document, or each of `pieces`, takes of each capacity
                [n, C] or, where C is 1, [n].
            capacities: What a row holds; of C numbers.
            seed: Of which pieces meet; a negative one keeps the documents' order.
            pieces: Document, start and stop of each piece [m, 3], from `cut`. By
                default each document is one, of `sizes[:, 0]` units; where C is 1, one
                longer than a row is cut.

        Raises:
            UserError: If a piece does not fit into a row.
        """
        limits = np.array([capacities], np.int64)
        table, sizes = _whole_pieces(sizes, limits[0], pieces)
        rows = pack(sizes, limits[0], permutation(len(sizes), seed, FIT))
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum(np.bincount(rows)) if len(rows) else np.zeros(0, np.int64)
        super().__init__(table[order], ends, limits)


class BucketRows(_Table):
    """One piece a row, padded to the smallest boundary that holds it.

    >>> rows = BucketRows(np.array([3, 9, 2]), boundaries=(4, 8))
    >>> [rows.capacity(row) for row in range(rows.num_rows)]
    [(4,), (8,), (4,), (4,)]
    >>> rows.pieces(epoch=0, row=2)
    [Piece(doc=1, start=8, stop=9, score_from=8)]
    """

    def __init__(
        self,
        sizes: np.ndarray,
        boundaries: Sequence[int] | Sequence[tuple[int, ...]],
        pieces: np.ndarray | None = None,
    ):
        """Lays out documents, or parts of them.

        Args:
            sizes: As in `FitRows`.
            boundaries: Capacities to choose from, in rising order; of C numbers each.
            pieces: As in `FitRows`.

        Raises:
            UserError: If a piece does not fit into the largest boundary.
        """
        limits = np.array(boundaries, np.int64).reshape(len(boundaries), -1)
        table, sizes = _whole_pieces(sizes, limits[-1], pieces)
        super().__init__(table, np.arange(1, len(table) + 1), limits)
        groups = np.full(len(sizes), len(limits) - 1, np.int16)
        for bucket in reversed(range(len(limits) - 1)):
            groups[(sizes <= limits[bucket]).all(axis=1)] = bucket
        self.groups = groups


class WindowRows(_Table):
    """For evaluation: documents in their order, long ones in overlapping windows.

    A document of more than `length` units is cut into windows that begin `stride`
    units apart; all but its first have `length - stride` units of context, and every
    unit is scored exactly once. Windows that fit together share a row.

    >>> rows = WindowRows(np.array([7]), length=4, stride=2)
    >>> [rows.pieces(epoch=0, row=row)[0] for row in range(rows.num_rows)]
    [Piece(doc=0, start=0, stop=4, score_from=0),
     Piece(doc=0, start=2, stop=6, score_from=4),
     Piece(doc=0, start=4, stop=7, score_from=6)]
    """

    def __init__(self, sizes: np.ndarray, length: int, stride: int):
        """Lays out documents.

        Args:
            sizes: Units of each document [n].
            length: Units of a row.
            stride: New units of a window, from 1 to `length`.
        """
        if not 1 <= stride <= length:
            raise ValueError(f"stride {stride} is not from 1 to length {length}")
        sizes = np.asarray(sizes, np.int64)
        windows = np.where(sizes, 1 + -(-np.maximum(sizes - length, 0) // stride), 0)
        docs = np.repeat(np.arange(len(sizes)), windows)
        starts = _count_up(windows) * stride
        stops = np.minimum(starts + length, sizes[docs])
        scored = np.where(starts > 0, starts + length - stride, 0)
        table = _narrow(np.stack([docs, starts, stops, scored], axis=1))
        ends = _next_fit(stops - starts, length)
        super().__init__(table, ends, np.array([[length]]))


def cut(sizes: np.ndarray, length: int) -> np.ndarray:
    """Cuts documents into pieces of at most `length` units.

    Args:
        sizes: Units of each document [n].
        length: Units of a piece.

    Returns:
        Document, start and stop of each piece [m, 3], in the documents' order.

    >>> cut(np.array([5, 0, 2]), length=3).tolist()
    [[0, 0, 3], [0, 3, 5], [2, 0, 2]]
    """
    sizes = np.asarray(sizes, np.int64)
    count = -(-sizes // length)
    docs = np.repeat(np.arange(len(sizes)), count)
    starts = _count_up(count) * length
    stops = np.minimum(starts + length, sizes[docs])
    return _narrow(np.stack([docs, starts, stops], axis=1))


def join(
    pieces: Sequence[np.ndarray], length: int, pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts the tokens of several pieces into one row.

    Args:
        pieces: Tokens of each piece, at most `length` in all.
        length: Tokens of the row.
        pad_id: What fills the rest of it.

    Returns:
        tokens, segment_ids (1, 2, … and 0 for padding) and positions (from 0 in each
        piece), int32 [length] each.

    >>> tokens, segment_ids, positions = join([np.array([7, 8]), np.array([9])], 4)
    >>> tokens.tolist(), segment_ids.tolist(), positions.tolist()
    ([7, 8, 9, 0], [1, 1, 2, 0], [0, 1, 0, 0])
    """
    tokens = np.full(length, pad_id, np.int32)
    segment_ids = np.zeros(length, np.int32)
    positions = np.zeros(length, np.int32)
    at = 0
    for number, piece in enumerate(pieces, 1):
        end = at + len(piece)
        tokens[at:end] = piece
        segment_ids[at:end] = number
        positions[at:end] = np.arange(len(piece))
        at = end
    return tokens, segment_ids, positions


def permutation(size: int, seed: int, use: int, *keys: int) -> np.ndarray:
    """Returns the order of [0, size) that belongs to a seed, a use and further keys.

    A negative seed keeps the natural order.
    """
    order = np.arange(size, dtype=_dtype(size))
    if seed >= 0:
        np.random.default_rng((seed, use, *keys)).shuffle(order)
    return order


class EpochCache(Generic[T]):
    """Computes a value for an epoch once, and keeps those of the last two.

    Threads that ask for the same epoch wait for one of them to compute it.
    """

    def __init__(self, compute: Callable[[int], T]):
        """Takes the function of an epoch's number."""
        self._compute = compute
        self._kept: dict[int, T] = {}
        self._lock = threading.Lock()

    def __call__(self, epoch: int) -> T:
        """Returns the value of an epoch."""
        with self._lock:
            if epoch not in self._kept:
                while len(self._kept) > 1:
                    del self._kept[next(iter(self._kept))]
                self._kept[epoch] = self._compute(epoch)
            return self._kept[epoch]


def _whole_pieces(
    sizes: np.ndarray, limit: np.ndarray, pieces: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the table of pieces [m, 4] and what each takes [m, C]."""
    sizes = np.asarray(sizes, np.int64)
    sizes = sizes.reshape(-1, len(limit))
    if pieces is None and sizes.shape[1] == 1:
        pieces = cut(sizes[:, 0], int(limit[0]))
        sizes = (pieces[:, 2] - pieces[:, 1]).astype(np.int64)[:, None]
    elif pieces is None:
        docs = np.flatnonzero(sizes.any(axis=1))
        sizes = sizes[docs]
        pieces = np.stack([docs, np.zeros_like(docs), sizes[:, 0]], axis=1)
    if (sizes > limit).any():
        worst = int((sizes / limit).max(axis=1).argmax())
        raise UserError(
            f"document {pieces[worst, 0]} takes {tuple(sizes[worst].tolist())} but a "
            f"row holds {tuple(limit.tolist())}; lengthen the rows or cut the document"
        )
    return _narrow(np.concatenate([pieces, pieces[:, 1:2]], axis=1)), sizes


def _next_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """Returns where rows end [num_rows] if each takes pieces in order while they fit.

    >>> _next_fit(np.array([2, 2, 1, 4]), length=4).tolist()
    [2, 3, 4]
    """
    begins = np.concatenate([[0], np.cumsum(sizes)])
    # The row that begins with piece i would end before piece `after[i]`.
    after = (np.searchsorted(begins, begins[:-1] + length, side="right") - 1).tolist()
    ends = []
    end = 0
    while end < len(after):
        end = after[end]
        ends.append(end)
    return np.array(ends, np.int64)


def _count_up(counts: np.ndarray) -> np.ndarray:
    """Numbers the members of each group.

    >>> _count_up(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(counts)
    return np.arange(int(counts.sum())) - np.repeat(ends - counts, counts)


def _dtype(size: int) -> type[np.integer]:
    return np.int32 if size <= np.iinfo(np.int32).max else np.int64


def _narrow(values: np.ndarray) -> np.ndarray:
    """Halves the memory of integers that are small enough for it."""
    return values.astype(_dtype(int(values.max(initial=0))))
