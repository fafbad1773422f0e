"""The few layers that own parameters.

Parameters are float32 and carry logical axis names; the arithmetic runs in the
config's `dtype`, cast at the einsum. Axes: B batch, T time, D emb_dim, V vocab.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.nn.platform import platform
from lm.sharding import constrain, parts
from lm.types import Array


def gelu(x: Array) -> Array:
    """Hendrycks & Gimpel (2016), https://arxiv.org/abs/1606.08415, in float32.

    `jax.nn.gelu` asks for erfc, whose tail is exact; it takes twice as long as erf.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def _normal(stddev: float):
    return nn.initializers.truncated_normal(stddev)


def declare(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
) -> Array:
    """Returns a float32 parameter of a module; its axes have logical names."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape)


class Einsum(nn.Module):
    """Contracts the last axes of the input with a kernel of named axes.

    Attributes:
        in_shape: Sizes of the axes that are contracted, the input's last ones.
        out_shape: Sizes of the axes that replace them.
        axes: Logical names of the kernel's axes, `in_shape` then `out_shape`.
        use_bias: Whether to add a bias of `out_shape`.
        stddev: Of the kernel at initialisation; 0 means 1 / √fan_in.
        dtype: Of the arithmetic.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    use_bias: bool = False
    stddev: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., *in_shape] to [..., *out_shape]."""
        fan_in = math.prod(self.in_shape)
        init = _normal(self.stddev or fan_in**-0.5)
        shape = (*self.in_shape, *self.out_shape)
        kernel = declare(self, "kernel", init, self.axes, shape)
        # What is sharded along `embed` is gathered for each use, in the dtype of the
        # arithmetic. XLA left alone would send parts around between parts of a matmul,
        # each of which reads and writes the whole result again.
        gathered = [None if axis == "embed" else axis for axis in self.axes]
        # One matmul of two axes: XLA has no faster form for any of our shapes. But on a
        # TPU it would copy from one layout into another, and what devices share along
        # two axes would have to be gathered before they are one.
        apart = platform() == "tpu" or parts("length") > 1
        leading = x.shape[: x.ndim - len(self.in_shape)]

        def project(x: Array, kernel: Array) -> Array:
            kernel = constrain(kernel.astype(self.dtype), *gathered)
            x = x.astype(self.dtype)
            if apart:
                return jnp.tensordot(x, kernel, len(self.in_shape))
            return x.reshape(-1, fan_in) @ kernel.reshape(fan_in, -1)

        if parts("embed") > 1:  # gathered again for the backward pass, and not kept
            project = jax.checkpoint(project, prevent_cse=False)
        y = project(x, kernel)
        if self.use_bias:
            axes = self.axes[len(self.in_shape) :]
            bias = declare(self, "bias", nn.initializers.zeros, axes, self.out_shape)
            rows = len(leading) if apart else 1
            y += bias.astype(self.dtype).reshape(*[1] * rows, *y.shape[rows:])
        return y.reshape(*leading, *self.out_shape)


class Embed(nn.Module):
    """A table of vectors, [num_embeddings, D]."""

    num_embeddings: int
    features: int
    axes: tuple[str | None, ...] = ("vocab", "embed")
    stddev: float = 0.02
    dtype: str = "float32"

    def setup(self):
        """Declares the table."""
        shape = (self.num_embeddings, self.features)
        init = _normal(self.stddev)
        self.embedding = declare(self, "embedding", init, self.axes, shape)

    def __call__(self, ids: Array) -> Array:
        """Maps ids [...] to vectors [..., D]."""
        # Cast after the lookup, so that gradients of a token that stands in many places
        # add up in float32; a GPU also takes up to 50 times as long in bfloat16.
        return self.embedding[ids].astype(self.dtype)


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, statistics in float32.

    Ba et al. (2016), https://arxiv.org/abs/1607.06450; Zhang & Sennrich (2019),
    https://arxiv.org/abs/1910.07467.

    Attributes:
        kind: `layer` or `rms`.
        use_bias: Whether a `layer` norm has a bias.
        eps: Added to the variance or to the mean square.
        offset: Added to the scale, which begins at 1 less.
        dtype: Of the result.
    """

    kind: str = "rms"
    use_bias: bool = False
    eps: float = 1e-6
    offset: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [..., D] to [..., D]."""
        shape = (x.shape[-1],)

        def vector(name: str, init) -> Array:
            # A vector is not worth sharding.
            weights = declare(self, name, init, ("norm",), shape)
            return weights.reshape((1,) * (x.ndim - 1) + shape)

        x = standardise(x, self.kind, self.eps)
        x *= vector("scale", nn.initializers.constant(1 - self.offset)) + self.offset
        if self.kind == "layer" and self.use_bias:
            x += vector("bias", nn.initializers.zeros)
        return x.astype(self.dtype)


def standardise(x: Array, kind: str, eps: float) -> Array:
    """Returns what a `Norm` multiplies by its scale, float32, of [..., D]."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).mean(axis=-1, keepdims=True)
    if kind == "layer":  # E[x²] - E[x]² reads x once
        mean = x.mean(axis=-1, keepdims=True)
        x, square = x - mean, jnp.maximum(square - jnp.square(mean), 0)
    return x * jax.lax.rsqrt(square + eps)
