"""How often words stand near each other, counted in bounded memory.

Two words that are d words apart, d = 1, …, window, add 1 / d to the counts of both
(i, j) and (j, i): Pennington et al. (2014), https://aclanthology.org/D14-1162, section
4.2. Of a word and itself both are the same, and it counts twice.

What does not fit into memory is written to disk as a sorted *run*. The runs are merged,
and the counts then shuffled, a part of them at a time:

    tokens ─ pairs ─ add, spill ─ merge ─ mirror ─ shuffle ─ blocks

Axes: n tokens, c cells, which are the counts above 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

# A cell as it is kept: the words that it is of, and their count.
CELL = np.dtype([("row", "<i4"), ("column", "<i4"), ("count", "<f4")])

# A pair as it is counted: i · V + j of i <= j, and the sum of 1 / d.
_PAIR = np.dtype([("key", "<i8"), ("weight", "<f8")])

# A sort needs its input, its order and its output.
_COPIES = 4


def pairs(
    texts: Sequence[np.ndarray],
    window: int,
    vocab_size: int,
    most: int = 1 << 20,
    power: float = 1,
) -> Iterator[np.ndarray]:
    """Yields the pairs of some texts, a part at a time, in which each is once.

    Args:
        texts: Tokens of each text.
        window: How far apart two words may be.
        vocab_size: V.
        most: Pairs of a part before equal ones are summed, about.
        power: Words that are d apart add 1 / d^power.

    >>> [part.tolist() for part in pairs([np.array([1, 2, 1])], 2, 10)]
    [[(11, 0.5), (12, 2.0)]]
    """
    tokens = np.concatenate([np.zeros(0, np.int64), *texts]).astype(np.int64)
    text = np.repeat(np.arange(len(texts)), [len(ids) for ids in texts])
    window = min(window, max([1, *map(len, texts)]))
    size = max(most // window, 1)
    for start in range(0, len(tokens), size):
        found = []
        for distance in range(1, window + 1):
            stop = min(start + size, len(tokens) - distance)
            second = np.arange(start, stop) + distance
            second = second[text[second - distance] == text[second]]
            a, b = tokens[second - distance], tokens[second]
            part = np.zeros(len(second), _PAIR)
            part["key"] = np.minimum(a, b) * vocab_size + np.maximum(a, b)
            part["weight"] = 1 / distance**power
            found.append(part)
        yield _combine(np.concatenate(found))


def _combine(found: np.ndarray) -> np.ndarray:
    """Returns pairs in rising order, the weights of the same one summed."""
    # The sort finds parts that are in order already.
    found = found[np.argsort(found["key"], kind="stable")]
    keys = found["key"]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    combined = found[starts]
    if len(starts):
        combined["weight"] = np.add.reduceat(found["weight"], starts)
    return combined


class Counter:
    """Counts pairs, and writes to a folder what does not fit into memory.

    Attributes:
        spilled: Runs that are on disk.
    """

    def __init__(self, folder: Path, memory: int):
        """Starts with nothing counted.

        Args:
            folder: For the runs; whoever made it removes it.
            memory: Bytes to use, about.
        """
        self.spilled: list[Path] = []
        self._folder = folder
        self._most = max(memory // (_PAIR.itemsize * _COPIES), 2)
        self._parts: list[np.ndarray] = []
        self._size = 0

    def add(
        self,
        texts: Sequence[np.ndarray],
        window: int,
        vocab_size: int,
        power: float = 1,
    ) -> None:
        """Counts the pairs of some texts; see `pairs`."""
        for found in pairs(texts, window, vocab_size, self._most // 2, power):
            self._parts.append(found)
            self._size += len(found)
            if self._size > self._most:
                self._compact()
                if self._size > self._most // 2:
                    self._spill()

    @property
    def most_pairs(self) -> int:
        """Different pairs so far, or more."""
        on_disk = sum(path.stat().st_size for path in self.spilled)
        return on_disk // _PAIR.itemsize + self._size

    def _compact(self) -> None:
        self._parts = [_combine(np.concatenate([np.zeros(0, _PAIR), *self._parts]))]
        self._size = len(self._parts[0])

    def _spill(self) -> None:
        path = self._folder / f"{len(self.spilled)}.run"
        self._parts[0].tofile(path)
        self.spilled.append(path)
        self._parts, self._size = [], 0

    def merged(self) -> Iterator[np.ndarray]:
        """Yields all pairs, each once, in rising order, a part at a time."""
        self._compact()
        self._spill()
        # Room for more than there is would be asked for too.
        size = max(min(self._most, self.most_pairs) // len(self.spilled), 1)
        starts = [0] * len(self.spilled)
        while True:
            # Read, not mapped: what is mapped stays in memory.
            heads = [
                np.fromfile(path, _PAIR, size, offset=start * _PAIR.itemsize)
                for path, start in zip(self.spilled, starts)
            ]
            ends = [head["key"][-1] for head in heads if len(head)]
            if not ends:
                return
            # Up to here no run has anything left to add.
            cuts = [np.searchsorted(h["key"], min(ends), "right") for h in heads]
            yield _combine(np.concatenate([h[:cut] for h, cut in zip(heads, cuts)]))
            starts = [start + int(cut) for start, cut in zip(starts, cuts)]


def kept_share(counts: np.ndarray, limit: float) -> np.ndarray:
    """Returns how likely subsampling keeps each word, float64 [V].

    (√(f / t) + 1) · t / f of a word whose share of all is f, at most 1, as in
    https://github.com/tmikolov/word2vec, `word2vec.c`; equation 5 of Mikolov et al.
    (2013), https://arxiv.org/abs/1310.4546, has √(t / f).

    Args:
        counts: How often each word is in the texts [V].
        limit: t; 0 keeps all.
    """
    if not limit:
        return np.ones(len(counts))
    share = counts / max(counts.sum(), 1)
    ratio = limit / np.maximum(share, limit)
    return np.minimum(np.sqrt(ratio) + ratio, 1)


def mirrored(
    found: np.ndarray, vocab_size: int, kept: np.ndarray | None = None
) -> np.ndarray:
    """Returns the cells of pairs: (i, j) and (j, i).

    Args:
        found: Pairs.
        vocab_size: V.
        kept: How likely each word is kept [V]; counts are those expected of the words
            that are. None keeps all.

    >>> (found,) = pairs([np.array([1, 2, 1])], window=2, vocab_size=10)
    >>> mirrored(found, vocab_size=10).tolist()
    [(1, 1, 1.0), (1, 2, 2.0), (2, 1, 2.0)]
    """
    row, column = np.divmod(found["key"], vocab_size)
    weight = found["weight"] * np.where(row == column, 2, 1)
    if kept is not None:
        weight *= kept[row] * kept[column]
    cells = np.zeros(len(found), CELL)
    cells["row"], cells["column"], cells["count"] = row, column, weight
    others = cells[row != column]
    others["row"], others["column"] = others["column"].copy(), others["row"].copy()
    return np.concatenate([cells, others])


def shuffled(
    parts: Iterable[np.ndarray], total: int, folder: Path, memory: int, seed: int
) -> Iterator[np.ndarray]:
    """Yields cells in a random order, all orders alike likely, a part at a time.

    Each cell goes to a random file, and each file is then shuffled in memory.

    Args:
        parts: Cells.
        total: How many there are, or more.
        folder: For the files; whoever made it removes it.
        memory: Bytes to use, about.
        seed: Of the order.
    """
    rng = np.random.default_rng(seed)
    number = -(-total * CELL.itemsize * _COPIES // memory) or 1
    paths = [folder / f"{i}.cells" for i in range(number)]
    for cells in parts:
        goes_to = rng.integers(number, size=len(cells))
        order = np.argsort(goes_to, kind="stable")
        ends = np.cumsum(np.bincount(goes_to, minlength=number))
        for path, some in zip(paths, np.split(cells[order], ends[:-1])):
            with path.open("ab") as file:
                some.tofile(file)
    for path in paths:
        if path.exists():
            yield rng.permutation(np.fromfile(path, CELL))
            path.unlink()


def in_blocks(parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yields cells in blocks of `size`, but for the last.

    >>> [len(block) for block in in_blocks([np.zeros(3), np.zeros(4)], 2)]
    [2, 2, 2, 1]
    """
    left = np.zeros(0, CELL)
    for part in parts:
        left = np.concatenate([left, part]) if len(left) else part
        for start in range(0, len(left) - size + 1, size):
            yield left[start : start + size]
        left = left[len(left) - len(left) % size :]
    if len(left):
        yield left
