"""Bin packing by best fit, on the histogram of sizes.

Krell et al. 2021, https://arxiv.org/abs/2107.02027, here for any number of
capacities. The time grows with the number of different sizes, not of pieces.

Axes: m pieces, k kinds (different sizes), C capacities.
"""

import numpy as np

# Rows that stay open while packing: more fill hardly better and cost more.
_MAX_OPEN = 1024

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
    closed: list[_Bins] = []
    open_bins: list[_Bins] = []
    room = np.zeros((0, len(limit)), np.int64)
    share = kinds / limit
    for kind in np.lexsort((-share.sum(axis=1), -share.max(axis=1))).tolist():
        size, left = kinds[kind], int(counts[kind])
        needs = size > 0
        while left:
            fits = np.flatnonzero((room >= size).all(axis=1))
            if len(fits):
                best = int(fits[(room[fits] / limit).sum(axis=1).argmin()])
                number, content = open_bins.pop(best)
                space, room = room[best], np.delete(room, best, axis=0)
            else:
                number, content, space = left, (), limit
            each = min(left, int((space[needs] // size[needs]).min()))
            full = min(number, left // each)
            left -= full * each
            split = [(full, each)]
            if full < number and left:
                split.append((1, left))
                number, left = number - 1, 0
            if content and full < number:
                split.append((number - full, 0))
            for part, held in split:
                added = ((kind, held),) if held else ()
                open_bins.append((part, content + added))
                room = np.concatenate([room, [space - size * held]])
        if len(open_bins) > _MAX_OPEN:
            fullest = (room / limit).sum(axis=1).argsort(kind="stable")
            closed += [open_bins[i] for i in fullest[: _MAX_OPEN // 2]]
            kept = fullest[_MAX_OPEN // 2 :]
            open_bins, room = [open_bins[i] for i in kept], room[kept]
    return closed + open_bins
