"""Dropout: which numbers stay is a hash of where they stand.

A hash of an index and two random words costs a few integer operations, which XLA joins
with what is dropped out; JAX's own generator, made for any use of random numbers, took
more time on a CPU than the attention around it. Like that one, it gives the same
numbers however an array is laid out over devices.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.types import Array


class Dropout(nn.Module):
    """Sets a share of an array to 0, and scales the rest up to the same mean.

    Srivastava et al. (2014), https://jmlr.org/papers/v15/srivastava14a.html.

    Attributes:
        rate: The share.
        shared_axis: An axis along which the same numbers are kept; None for none.
    """

    rate: float
    shared_axis: int | None = None

    def __call__(self, x: Array, deterministic: bool) -> Array:
        """Maps [...] to [...]; needs a key, `dropout`, unless `deterministic`."""
        if deterministic or not self.rate:
            return x
        return drop(self.make_rng("dropout"), self.rate, x, self.shared_axis)


def drop(
    rng: Array,
    rate: float,
    x: Array,
    shared_axis: int | None = None,
    block: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Array:
    """Returns `x` with each number 0 with probability `rate`, else / (1 - rate).

    Args:
        rng: A key.
        rate: The share of zeros.
        x: [...].
        shared_axis: An axis along which the same numbers are kept; None for none.
        block: Where `x` begins in a larger array, and the shape of that: `x` becomes
            what it would be as a part of it.
    """
    shape = tuple(1 if axis == shared_axis else n for axis, n in enumerate(x.shape))
    start, whole = block or ((0,) * len(shape), shape)
    kept = _bits(rng, shape, start, whole) >= jnp.uint32(rate * 2**32)
    return jnp.where(kept, x / (1 - rate), 0)


def _bits(
    rng: Array, shape: tuple[int, ...], start: Sequence[int], whole: Sequence[int]
) -> Array:
    """Returns 32 bits for each number of an array [..., D], a block of another.

    The rows of D numbers have a hash each, so that no two of up to 2³² rows are alike.
    """
    row_word, column_word = jax.random.bits(rng, (2,))
    *indices, column = (
        jax.lax.broadcasted_iota(jnp.uint32, shape, axis) + jnp.uint32(begin)
        for axis, begin in enumerate(start)
    )
    row = jnp.uint32(0)
    for index, size in zip(indices, whole):
        row = row * jnp.uint32(size) + index
    return _hash(_hash(row ^ row_word) ^ (column + column_word))


def _hash(x: Array) -> Array:
    """lowbias32 of Wellons (2018), https://nullprogram.com/blog/2018/07/31/."""
    x ^= x >> 16
    x *= jnp.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= jnp.uint32(0x846CA68B)
    return x ^ x >> 16
