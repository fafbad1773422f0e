"""Metrics as (total, weight) pairs, divided once at the end.

A mean of means over batches of unequal weight is wrong, and padded rows must
not count: so a step returns sums, sums are added, and `compute` divides.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from lm.types import Array


class Mean(NamedTuple):
    """A weighted mean before its division."""

    total: Array
    weight: Array


Metrics = Mapping[str, Mean]


def merge(a: Metrics, b: Metrics) -> Metrics:
    """Adds the totals and the weights of two sets with the same names."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def compute(metrics: Metrics, prefix: str = "") -> dict[str, float]:
    """Divides on the host; a metric of zero weight is NaN.

    >>> compute({"loss": Mean(6.0, 3.0)}, prefix="train/")
    {'train/loss': 2.0}
    """
    return {
        prefix + name: float(np.float64(total) / weight) if weight else float("nan")
        for name, (total, weight) in sorted(metrics.items())
    }
