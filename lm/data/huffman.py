"""Huffman codes: common words have short ones.

Axes: V vocab, J inner nodes on the way from the root to a word.
"""

import heapq
from typing import NamedTuple

import numpy as np


class Paths(NamedTuple):
    """The way from the root to each word.

    Attributes:
        nodes: Inner nodes, from the root on, int32 [V, J].
        signs: 1 where the way goes left from the node and -1 where it goes right; 0
            after its end, and everywhere of a word that has no code: int8 [V, J].
    """

    nodes: np.ndarray
    signs: np.ndarray


def huffman_paths(counts: np.ndarray) -> Paths:
    """Returns the paths of the code whose words are the shortest on average.

    Huffman (1952), https://doi.org/10.1109/JRPROC.1952.273898. Words that are never
    there have no code, and a word that is alone has an empty one.

    Args:
        counts: How often each word is there [V].

    >>> paths = huffman_paths(np.array([0, 5, 1, 2]))
    >>> paths.signs.tolist()
    [[0, 0], [-1, 0], [1, 1], [1, -1]]
    >>> paths.nodes[2:].tolist()
    [[1, 0], [1, 0]]
    """
    V = len(counts)
    words = np.flatnonzero(counts).tolist()
    # Inner node i is V + i; of equal counts, the one that was there first is taken.
    heap = [(int(counts[word]), word) for word in words]
    heapq.heapify(heap)
    parents = np.full(2 * V, -1)
    signs = np.zeros(2 * V, np.int8)
    for node in range(V, V + len(words) - 1):
        total = 0
        for sign in (1, -1):
            count, child = heapq.heappop(heap)
            parents[child], signs[child] = node, sign
            total += count
        heapq.heappush(heap, (total, node))
    steps = []
    at = np.arange(V)
    while (parents[at] >= 0).any():
        steps.append((parents[at] - V, signs[at]))
        at = np.where(parents[at] >= 0, parents[at], at)
    if not steps:
        return Paths(np.zeros((V, 0), np.int32), np.zeros((V, 0), np.int8))
    # From the leaves up, each word's steps come first: reversed, they end the rows.
    nodes, turns = (np.stack(part[::-1], axis=1) for part in zip(*steps))
    order = np.argsort(turns == 0, axis=1, kind="stable")
    nodes, turns = (np.take_along_axis(part, order, axis=1) for part in (nodes, turns))
    return Paths(np.where(turns == 0, 0, nodes).astype(np.int32), turns)
