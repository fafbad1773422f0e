"""Sums over words and their neighbours, as products of small matrices.

A row is cut into blocks of P words; those of a block and their neighbours, Q = P + 2 W
in all, make a band of the matrix of all pairs. Ji et al. (2016),
https://arxiv.org/abs/1604.04661, is the idea of making matrix products of it.
Axes: B batch, T time, D emb_dim, W reach, N blocks, P words of a block, Q words around
it, K noise words, J inner nodes of a path.
"""

import jax.numpy as jnp
import numpy as np

from lm.types import Array

# Small enough that most of a band are neighbours, large enough for a matrix product.
BLOCK = 32


def log_sigmoid_loss(scores: Array) -> Array:
    """Returns -log σ(scores) in float32."""
    scores = scores.astype(jnp.float32)
    # Half the time of jax.nn.softplus, with its gradient.
    return jnp.maximum(-scores, 0) + jnp.log1p(jnp.exp(-jnp.abs(scores)))


def blocks(x: Array) -> Array:
    """Cuts [B, T, …] into [B, N, P, …]; the end is filled up with zeros."""
    spare = -x.shape[1] % BLOCK
    x = jnp.pad(x, ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(x.shape[0], -1, BLOCK, *x.shape[2:])


def around(x: Array, reach: int) -> Array:
    """Returns the words of each block and `reach` more on both sides.

    Maps [B, T, …] to [B, N, Q, …]; beyond the row's ends are zeros.

    >>> around(jnp.arange(1, 41)[None], 2).shape
    (1, 2, 36)
    >>> around(jnp.arange(1, 41)[None], 2)[0, 1, :5].tolist()
    [31, 32, 33, 34, 35]
    """
    T = x.shape[1]
    number = -(-T // BLOCK)
    more = -(-2 * reach // BLOCK)  # blocks that the words after one reach into
    end = (number + more) * BLOCK - reach - T
    rest = ((0, 0),) * (x.ndim - 2)
    parts = blocks(jnp.pad(x, ((0, 0), (reach, end), *rest)))
    shifted = [parts[:, i : i + number] for i in range(more + 1)]
    return jnp.concatenate(shifted, axis=2)[:, :, : BLOCK + 2 * reach]


def neighbours(windows: Array, segments: Array, reach: int) -> Array:
    """Returns which pairs of words are neighbours, bool [B, N, P, Q].

    Word q is one of p if it is another, of the same text, and no more than the window
    of p away.

    Args:
        windows: How far each word's window reaches, at most `reach` [B, T].
        segments: The text that it is of, 0 for padding [B, T].
        reach: W.
    """
    segment = blocks(segments)[..., None]
    away = np.arange(BLOCK + 2 * reach)[None] - reach - np.arange(BLOCK)[:, None]
    away = np.abs(away)[None, None]
    is_near = (away > 0) & (away <= blocks(windows)[..., None])
    same = segment == around(segments, reach)[:, :, None]
    return is_near & same & (segment > 0)


def pair_scores(words: Array, others: Array, reach: int) -> Array:
    """Returns the products of words and those around: [B, N, P, Q].

    Args:
        words: [B, T, D].
        others: [B, T, D].
        reach: W.
    """
    return jnp.einsum("BNPD,BNQD->BNPQ", blocks(words), around(others, reach))


def means(words: Array, near: Array, reach: int) -> Array:
    """Returns the mean of each word's neighbours [B, T, D], 0 where it has none.

    Args:
        words: [B, T, D].
        near: Of `neighbours`, [B, N, P, Q].
        reach: W.
    """
    B, T, D = words.shape
    share = near / jnp.maximum(near.sum(axis=-1, keepdims=True), 1)
    share = share.astype(words.dtype)
    mean = jnp.einsum("BNPQ,BNQD->BNPD", share, around(words, reach))
    return mean.reshape(B, -1, D)[:, :T]


def counts(near: Array, length: int) -> Array:
    """Returns how many neighbours each word has, float32 [B, T]."""
    number = near.sum(axis=-1, dtype=jnp.float32)
    return number.reshape(near.shape[0], -1)[:, :length]
