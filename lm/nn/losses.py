"""Cross-entropy over large vocabularies, without the logits.

Axes: B batch, T time, D emb_dim, V vocab.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lm import sharding
from lm.nn.platform import platform
from lm.types import Array

# Logits of one chunk: 16 MiB on a CPU, over all its devices, which share small caches,
# and 512 MiB or more on each device where matmuls are only fast if they are large.
CHUNK_ELEMENTS = 1 << 22
ACCELERATOR_CHUNK_ELEMENTS = 1 << 27


@flax.struct.dataclass
class Logits:
    """Logits kept as their factors; [B, T, V] need never exist at once.

    Attributes:
        states: [B, T, D].
        kernel: [V, D].
        bias: [V] or None.
        softcap: If positive, logits are softcap · tanh(raw / softcap).
    """

    states: Array
    kernel: Array
    bias: Array | None = None
    softcap: float = flax.struct.field(pytree_node=False, default=0.0)

    def dense(self) -> Array:
        """Returns the logits [B, T, V] in float32."""
        return _cap(_raw(self.states, self.kernel, self.bias), self.softcap)


def _raw(states: Array, kernel: Array, bias: Array | None) -> Array:
    logits = jnp.einsum(
        "...D,VD->...V",
        states,
        kernel.astype(states.dtype),
        preferred_element_type=jnp.float32,
    )
    return (
        logits
        if bias is None
        else logits + bias.reshape((1,) * (logits.ndim - 1) + (-1,))
    )


def _cap(raw: Array, softcap: float) -> Array:
    return softcap * jnp.tanh(raw / softcap) if softcap else raw


@flax.struct.dataclass
class TokenLoss:
    """Sums over the tokens of a batch.

    Attributes:
        objective: Scalar, Σ weight · (cross-entropy + z_loss · log² Z); the only
            field that has a gradient.
        cross_entropy: Scalar, Σ weight · cross-entropy in nats.
        correct: Scalar, Σ weight · [the target has the highest logit].
    """

    objective: Array
    cross_entropy: Array
    correct: Array


def cross_entropy(
    logits: Logits, targets: Array, weights: Array, z_loss: float = 0.0
) -> TokenLoss:
    """Returns the weighted sums of a batch's token losses.

    Logits exist for one chunk of time steps at a time. Under differentiation the
    same pass also forms the gradients (the loss is their only consumer, and linear
    in its cotangent), so nothing is stored or computed twice.

    Args:
        logits: Of [B, T] tokens.
        targets: [B, T] int.
        weights: [B, T] float; 0 excludes a token.
        z_loss: Weight of log² Z, which keeps the softmax's normaliser near 1
            (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, section 5).
    """
    weights = weights.astype(jnp.float32)
    bias = logits.bias
    objective, (total, correct) = _loss(  # pyright: ignore
        logits.states, logits.kernel, bias, targets, weights, logits.softcap, z_loss
    )
    return TokenLoss(
        objective, jax.lax.stop_gradient(total), jax.lax.stop_gradient(correct)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _loss(states, kernel, bias, targets, weights, softcap, z_loss):
    return _scan(states, kernel, bias, targets, weights, softcap, z_loss, False)[0]


def _forward(states, kernel, bias, targets, weights, softcap, z_loss):
    return _scan(states, kernel, bias, targets, weights, softcap, z_loss, True)


def _backward(softcap, z_loss, gradients, cotangents):
    scale = cotangents[0]
    scaled = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients)
    return (*scaled, None, None)


_loss.defvjp(_forward, _backward)


def _scan(states, kernel, bias, targets, weights, softcap, z_loss, differentiate):
    """Sums over chunks of time; with `differentiate`, the gradients as well."""
    B, T, D = states.shape
    V = kernel.shape[0]
    mesh = jax.sharding.get_abstract_mesh()
    parts = sharding.parts("batch")
    parts = parts if B % parts == 0 else 1
    elements = CHUNK_ELEMENTS
    if platform() != "cpu":
        # Each chunk reads and writes the kernel's gradient, so a large one asks for
        # large chunks: of D / 2 tokens, whose logits take half of its memory.
        half = kernel.size // sharding.parts("vocab") // 2
        elements = max(ACCELERATOR_CHUNK_ELEMENTS, half) * max(1, mesh.size)
    count = max(1, min(T, -(-B * T * V // elements)))
    # Without a rest where there is such a number, as of powers of two.
    count = next((n for n in range(count, 2 * count) if T % n == 0), count)
    size = -(-T // count)
    count = -(-T // size)
    # Gathered once, not for each chunk.
    cast = sharding.constrain(kernel.astype(states.dtype), "vocab", None)

    def chunks(x: Array) -> Array:
        """[B, T, …] to [count, B, size, …]: time is cut, so rows stay sharded.

        Chunk i has tokens i, i + count, …: where devices share a row's tokens, each has
        some of every chunk.
        """
        pad = [(0, 0), (0, count * size - T)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, pad).reshape(B, size, count, *x.shape[2:])
        return jnp.moveaxis(x, 2, 0)

    def step(carry, chunk) -> tuple[Any, Any]:
        x, target, weight = chunk
        raw = _raw(x, cast, bias)
        capped = _cap(raw, softcap)
        peak = capped.max(axis=-1, keepdims=True)
        exp = jnp.exp(capped - peak)
        normaliser = exp.sum(axis=-1, keepdims=True)
        log_z = (jnp.log(normaliser) + peak)[..., 0]
        at_target = jnp.take_along_axis(capped, target[..., None], axis=-1)[..., 0]
        token = log_z - at_target
        sums, (d_kernel, d_bias) = carry
        sums = (
            sums[0] + (weight * (token + z_loss * jnp.square(log_z))).sum(),
            sums[1] + (weight * token).sum(),
            sums[2] + (weight * (at_target >= peak[..., 0])).sum(),
        )
        if not differentiate:
            return (sums, (d_kernel, d_bias)), None
        factor = (weight * (1 + 2 * z_loss * log_z))[..., None] / normaliser
        hit = target[..., None] == jax.lax.broadcasted_iota(jnp.int32, (1, 1, V), 2)
        d_logits = exp * factor - jnp.where(hit, weight[..., None], 0)
        if softcap:
            d_logits *= 1 - jnp.square(capped / softcap)
        d_x = jnp.einsum("BTV,VD->BTD", d_logits.astype(cast.dtype), cast)
        # Each part of the rows has a sum of its own until the last chunk is done, or
        # all devices would add up a whole kernel for each.
        d_kernel += jnp.einsum(
            "PBTV,PBTD->PVD",
            d_logits.astype(x.dtype).reshape(parts, -1, *raw.shape[1:]),
            x.reshape(parts, -1, *x.shape[1:]),
            preferred_element_type=jnp.float32,
        )
        d_kernel = sharding.constrain(d_kernel, "batch", "vocab", None)
        if bias is not None:
            d_bias += d_logits.sum(axis=(0, 1))
        return (sums, (d_kernel, d_bias)), d_x

    zero = jnp.zeros((), jnp.float32)
    d_kernel = zero
    if differentiate:
        d_kernel = jnp.zeros((parts, *kernel.shape), jnp.float32)
        d_kernel = sharding.constrain(d_kernel, "batch", "vocab", None)
    d_bias = (
        jnp.zeros((V,), jnp.float32) if differentiate and bias is not None else zero
    )
    carry = ((zero, zero, zero), (d_kernel, d_bias))
    inputs = (chunks(states), chunks(targets), chunks(weights))
    if count == 1:
        carry, d_states = step(carry, jax.tree.map(lambda x: x[0], inputs))
        d_states = jax.tree.map(lambda x: x[None], d_states)
    else:
        carry, d_states = jax.lax.scan(step, carry, inputs)
    (objective, total, correct), (d_kernel, d_bias) = carry
    sums = (objective, (total, correct))
    if not differentiate:
        return sums, None
    d_kernel = sharding.constrain(d_kernel.sum(axis=0), "vocab", "embed")
    d_states = jnp.moveaxis(d_states, 0, 2).reshape(B, count * size, D)[:, :T]
    return sums, (
        d_states.astype(states.dtype),
        d_kernel.astype(kernel.dtype),
        None if bias is None else d_bias,
    )
