"""Convolutions over time: the neighbours of a token, side by side.

A convolution is a matmul of these with a kernel [W, D, F], which is an `Einsum`.
Axes: B batch, T time, W width, D features.
"""

import jax.numpy as jnp

from lm.types import Array


def windows(
    x: Array,
    segments: Array | None,
    width: int,
    causal: bool = False,
    dilation: int = 1,
) -> Array:
    """Returns each token's window of tokens, with zeros beyond its own text.

    Collobert et al. (2011), https://arxiv.org/abs/1103.0398, section 3.2.2.

    Args:
        x: [B, T, D].
        segments: [B, T] which text a token is of, or None for one a row.
        width: W.
        causal: Whether the window ends with the token; else the token stands in its
            middle, of an even width before it.
        dilation: The distance of two tokens of a window (Yu & Koltun 2016,
            https://arxiv.org/abs/1511.07122, eq. 2).

    Returns:
        [B, T, W, D].
    """
    T = x.shape[1]
    before = (width - 1 if causal else (width - 1) // 2) * dilation
    after = (width - 1) * dilation - before

    def shifted(x: Array, i: int) -> Array:
        sides = [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, sides)[:, i * dilation : i * dilation + T]

    parts = [shifted(x, i) for i in range(width)]
    if segments is not None:
        same = [shifted(segments, i) == segments for i in range(width)]
        parts = [jnp.where(s[:, :, None], part, 0) for s, part in zip(same, parts)]
    return jnp.stack(parts, axis=2)


def last_inputs(x: Array, lengths: Array, number: int) -> Array:
    """Returns the last tokens of each row, with zeros before its first.

    They are what a causal convolution needs of the past.

    Args:
        x: [B, T, D].
        lengths: [B] tokens of each row.
        number: How many.

    Returns:
        [B, number, D].
    """
    places = lengths[:, None] - number + jnp.arange(number)[None]
    taken = jnp.take_along_axis(x, jnp.maximum(places, 0)[:, :, None], axis=1)
    return jnp.where(places[:, :, None] >= 0, taken, 0)
