"""Where a token stands: rotary and sinusoidal codes, T5's relative buckets.

Learned absolute positions are an `lm.nn.layers.Embed`. Axes: B batch, T query
time, S key time, N heads, H head_dim, D emb_dim.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp

from lm.config import check_choice, check_range
from lm.types import Array

SCALINGS = ("none", "linear", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are slowed, so that long texts look like those trained on.

    Attributes:
        kind: `none`; `linear`, all alike (Chen et al. 2023,
            https://arxiv.org/abs/2306.15595); `llama3`, slow ones alone (Llama 3.1,
            https://arxiv.org/abs/2407.21783, section 3.4).
        factor: How much slower.
        low_turns: Of `llama3`: what turns less often in `original_len` is slowed.
        high_turns: What turns more often stays; in between, some of both.
        original_len: Tokens of the texts trained on.
    """

    kind: str = "none"
    factor: float = 1.0
    low_turns: float = 1.0
    high_turns: float = 4.0
    original_len: int = 8192

    def __post_init__(self):
        check_choice("model.rope_scaling.kind", self.kind, SCALINGS)
        check_range("model.rope_scaling.factor", self.factor, 1)
        check_range("model.rope_scaling.original_len", self.original_len, 1)
        check_range("model.rope_scaling.low_turns", self.low_turns, 0, self.high_turns)


def rotate(x: Array, positions: Array, frequencies: Array) -> Array:
    """Rotates pairs of features by angles proportional to the position.

    RoPE, Su et al. (2021), https://arxiv.org/abs/2104.09864, equation 34, with the
    pairs (i, i + R/2) as in GPT-NeoX and Llama. The product of two rotated vectors
    depends only on the difference of their positions.

    Args:
        x: [B, T, N, H], of which the first R features are rotated.
        positions: [B, T] int.
        frequencies: [R/2], as of `rotary_frequencies`.
    """
    half = frequencies.shape[0]
    angle = (
        positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    )
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half : 2 * half]
    rotated = (a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :])
    return jnp.concatenate(
        [part.astype(x.dtype) for part in rotated if part.shape[-1]], axis=-1
    )


def rotary_frequencies(
    size: int, theta: float = 10_000.0, scaling: RopeScaling = RopeScaling()
) -> Array:
    """Returns angles per place, [R/2], a geometric series from 1 to about 1 / theta.

    Args:
        size: R, even.
        theta: Base of the series.
        scaling: What is slowed.
    """
    half = size // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling.kind == "none":
        return frequencies
    slowed = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slowed
    # `apply_scaling` of https://github.com/meta-llama/llama-models.
    turns = scaling.original_len * frequencies / (2 * math.pi)
    width = scaling.high_turns - scaling.low_turns
    share = jnp.clip((turns - scaling.low_turns) / width, 0, 1)
    return share * frequencies + (1 - share) * slowed


def sinusoidal(positions: Array, emb_dim: int, theta: float = 10_000.0) -> Array:
    """Returns sine and cosine codes [B, T, D], Vaswani et al. (2017), section 3.5.

    The sines fill the first half of the features and the cosines the second, a
    permutation of the paper's interleaving.

    Args:
        positions: [B, T] int.
        emb_dim: D, even.
        theta: Base of the geometric series of wave lengths.
    """
    frequency = rotary_frequencies(emb_dim, theta)
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
