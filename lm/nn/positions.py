"""Where a token stands: rotary and sinusoidal codes, T5's relative buckets.

Learned absolute positions are an `lm.nn.layers.Embed`. Axes: B batch, T query
time, S key time, N heads, H head_dim, D emb_dim.
"""

import math

import jax.numpy as jnp

from lm.types import Array


def rotate(x: Array, positions: Array, theta: float = 10_000.0) -> Array:
    """Rotates pairs of features by angles proportional to the position.

    RoPE, Su et al. (2021), https://arxiv.org/abs/2104.09864, equation 34, with the
    pairs (i, i + H/2) as in GPT-NeoX and Llama. The product of two rotated vectors
    depends only on the difference of their positions.

    Args:
        x: [B, T, N, H], H even.
        positions: [B, T] int.
        theta: Base of the geometric series of wave lengths.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (
        positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None]
    )
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def sinusoidal(positions: Array, emb_dim: int, theta: float = 10_000.0) -> Array:
    """Returns sine and cosine codes [B, T, D], Vaswani et al. (2017), section 3.5.

    The sines fill the first half of the features and the cosines the second, a
    permutation of the paper's interleaving.

    Args:
        positions: [B, T] int.
        emb_dim: D, even.
        theta: Base of the geometric series of wave lengths.
    """
    half = emb_dim // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, :, None].astype(jnp.float32) * frequency[None, None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def relative_bucket(
    distance: Array, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Array:
    """Returns T5's bucket of each key-minus-query distance, in [0, num_buckets).

    Raffel et al. (2020), https://arxiv.org/abs/1910.10683, section 2.1: near
    distances have a bucket each, farther ones share buckets that widen
    logarithmically up to `max_distance`. With `bidirectional`, keys behind and
    ahead have half of the buckets each, otherwise keys ahead fall into bucket 0.
    """
    base = 0
    if bidirectional:
        num_buckets //= 2
        base = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    ratio /= math.log(max_distance / exact)
    far = exact + (ratio * (num_buckets - exact)).astype(jnp.int32)
    far = jnp.minimum(far, num_buckets - 1)
    return base + jnp.where(distance < exact, distance, far)


def toeplitz(values: Array, T: int, S: int) -> Array:
    """Returns [N, T, S] of values [N, T + S]: at [t, s] the value (s - t) mod (T + S).

    Copies and cuts alone: a row of T + S - 1 begins one place earlier than the last in
    a repetition of T + S.
    """
    N, size = values.shape
    repeated = jnp.broadcast_to(values[:, None], (N, T, size)).reshape(N, T * size)
    return repeated[:, : T * (size - 1)].reshape(N, T, size - 1)[:, :, :S]
