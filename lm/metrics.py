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

    def compute(self) -> float:
        """Divides; NaN where the weight is zero."""
        return float(np.float64(self.total) / self.weight) if self.weight else np.nan


class Perplexity(Mean):
    """The exponential of a mean of nats."""

    def compute(self) -> float:
        """Returns exp(total / weight), infinite where that overflows."""
        with np.errstate(over="ignore"):
            return float(np.exp(super().compute()))


Metrics = Mapping[str, Mean]


def merge(a: Metrics, b: Metrics) -> Metrics:
    """Adds the totals and the weights of two sets with the same names."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def compute(metrics: Metrics, prefix: str = "") -> dict[str, float]:
    """Divides every metric, on the host.

    >>> compute({"loss": Mean(6.0, 3.0)}, prefix="train/")
    {'train/loss': 2.0}
    """
    return {prefix + name: metrics[name].compute() for name in sorted(metrics)}
