"""Bin packing by best fit, on the histogram of sizes.

Krell et al. 2021, https://arxiv.org/abs/2107.02027, here for any number of
capacities. The time grows with the number of different sizes, not of pieces.

Axes: m pieces, k kinds (different sizes), C capacities.
"""

import numpy as np

# Different rows that stay open while packing: more fill hardly better and cost more.
MAX_OPEN = 1 << 13

# A number of equal rows, and which kinds of piece each holds, as (kind, how many).
_Bins = tuple[int, tuple[tuple[int, int], ...]]


def pack(sizes: np.ndarray, limit: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns the row of each piece.

    Args:
        sizes: What each piece takes of each capacity [m, C]; not all 0, and none more
            than a row holds.
        limit: What a row holds [C].
        order: Among pieces of equal size, which come first [m].

    Returns:
        Numbers of rows [m], from 0 without a gap.

    >>> pack(np.array([[3], [2], [1]]), np.array([4]), np.arange(3)).tolist()
    [1, 0, 1]
    """
    code = np.ravel_multi_index(tuple(sizes.T), tuple(limit + 1))
    _, sample, kind_of, counts = np.unique(
        code, return_index=True, return_inverse=True, return_counts=True
    )
    kinds = sizes[sample]
    by_kind = order[np.argsort(kind_of[order], kind="stable")]
    taken = np.cumsum(counts) - counts
    rows = np.zeros(len(sizes), np.int64)
    row = 0
    for number, content in _plan(kinds, counts, limit):
        for kind, each in content:
            chosen = by_kind[taken[kind] : taken[kind] + number * each]
            rows[chosen] = np.repeat(np.arange(row, row + number), each)
            taken[kind] += number * each
        row += number
    return rows


def _plan(kinds: np.ndarray, counts: np.ndarray, limit: np.ndarray) -> list[_Bins]:
    """Packs a histogram: large kinds first, each where least room remains.

    Args:
        kinds: What a piece of each kind takes [k, C].
        counts: Pieces of each kind [k].
        limit: What a row holds [C].

    Returns:
        The rows; equal ones together.
    """
    rows = _OpenRows(limit)
    share = kinds / limit
    for kind in np.lexsort((-share.sum(axis=1), -share.max(axis=1))).tolist():
        size, left = kinds[kind], int(counts[kind])
        needs = size > 0
        while left:
            number, content, room = rows.take(size) or (left, (), limit)
            each = min(left, int((room[needs] // size[needs]).min()))
            full = min(number, left // each)
            left -= full * each
            rows.put(full, (*content, (kind, each)), room - size * each)
            if full < number and left:
                rows.put(1, (*content, (kind, left)), room - size * left)
                number, left = number - 1, 0
            if content and full < number:
                rows.put(number - full, content, room)
    return rows.closed + rows.bins


class _OpenRows:
    """Rows that may take more, and the room in them."""

    def __init__(self, limit: np.ndarray):
        self.bins: list[_Bins] = []
        self.closed: list[_Bins] = []
        self._limit = limit
        self._room = np.zeros((len(limit), MAX_OPEN), np.int64)
        self._slack = np.zeros(MAX_OPEN)

    def take(self, size: np.ndarray) -> tuple[int, tuple, np.ndarray] | None:
        """Takes out the rows that hold `size` and have the least room, if any do."""
        number = len(self.bins)
        if not number:
            return None
        fits = (self._room[:, :number] >= size[:, None]).all(axis=0)
        slack = np.where(fits, self._slack[:number], np.inf)
        best = int(slack.argmin())
        if np.isinf(slack[best]):
            return None
        taken = (*self.bins[best], self._room[:, best].copy())
        last = self.bins.pop()
        if best < len(self.bins):
            self.bins[best] = last
            self._room[:, best] = self._room[:, number - 1]
            self._slack[best] = self._slack[number - 1]
        return taken

    def put(self, number: int, content: tuple, room: np.ndarray) -> None:
        """Adds rows; where there are too many, closes the fuller half."""
        if len(self.bins) == MAX_OPEN:
            order = self._slack.argsort(kind="stable")
            full, kept = order[: MAX_OPEN // 2], order[MAX_OPEN // 2 :]
            self.closed += [self.bins[i] for i in full]
            self.bins = [self.bins[i] for i in kept]
            self._room[:, : len(kept)] = self._room[:, kept]
            self._slack[: len(kept)] = self._slack[kept]
        at = len(self.bins)
        self.bins.append((number, content))
        self._room[:, at] = room
        self._slack[at] = (room / self._limit).sum()
