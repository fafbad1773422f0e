"""Scaled dot-product attention in one function, with a kernel for each backend.

`softmax(Q Kᵀ / √d_k) V`, Vaswani et al. (2017), https://arxiv.org/abs/1706.03762,
equation 1. XLA runs everywhere and has every option; cuDNN's flash attention
runs on GPUs and Splash (a Pallas kernel) on TPUs, where the options allow.

Axes: B batch, T query time, S key time, N query heads, K key/value heads,
G = N / K query heads per key/value head, H head_dim.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import NamedSharding, PartitionSpec

from lm.nn.dropout import drop
from lm.nn.platform import platform
from lm.sharding import constrain, parts
from lm.types import Array

_ATTENDED = "attended"

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

# Finite, so that a row that may attend to nothing (padding) has no NaN.
MASKED = -1e30

# A query block looks only at the keys that causality leaves it: with n blocks
# (n + 1) / 2n of the scores are computed. More blocks mean more, smaller matmuls.
MIN_CAUSAL_BLOCK = 64
MAX_CAUSAL_BLOCKS = 4


@flax.struct.dataclass
class Mask:
    """Who attends to whom, as causes rather than a [T, S] matrix.

    Attributes:
        query_segments: [B, T] int; a query sees only keys of its own segment. [B, 1]
            is one of all queries.
        key_segments: [B, S] int.
        query_index: [B, T] int, where each query stands among the keys; None means
            that query t stands at key t.
        prefix: [B, S] bool, keys that their whole segment sees despite `causal`.
        causal: Whether a query sees only keys at or before its own place.
        window: If positive, a query sees only keys less than `window` away.
        is_global: Scalar bool, whether the window is off, or None where it is on.
    """

    query_segments: Array | None = None
    key_segments: Array | None = None
    query_index: Array | None = None
    prefix: Array | None = None
    is_global: Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    window: int = flax.struct.field(pytree_node=False, default=0)

    def dense(self, queries: range, keys: range) -> Array | None:
        """Returns the block [B | 1, T | 1, S] of the mask, True = attend, or None."""
        allowed = None
        if self.causal or self.window:
            if self.query_index is None:
                index = jnp.arange(queries.start, queries.stop)[None]
            else:
                index = self.query_index[:, queries.start : queries.stop]
            distance = index[:, :, None] - jnp.arange(keys.start, keys.stop)[None, None]
            if self.causal:
                allowed = distance >= 0
                if self.prefix is not None:
                    allowed |= self.prefix[:, None, keys.start : keys.stop]
            if self.window:
                near = jnp.abs(distance) < self.window
                if self.is_global is not None:
                    near |= self.is_global
                allowed = _and(allowed, near)
        if self.query_segments is not None and self.key_segments is not None:
            own = self.query_segments
            if own.shape[1] > 1:
                own = own[:, queries.start : queries.stop]
            same = own[:, :, None] == self.key_segments[:, None, keys.start : keys.stop]
            allowed = _and(allowed, same)
        return allowed


def _and(a: Array | None, b: Array) -> Array:
    return b if a is None else a & b


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Mask,
    *,
    bias: Array | None = None,
    scale: float = 0.0,
    softcap: float = 0.0,
    dropout_rate: float = 0.0,
    dropout_rng: Array | None = None,
    implementation: str = "auto",
) -> Array:
    """Returns softmax(Q Kᵀ · scale + bias) V, masked; [B, T, N, H].

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H], N a multiple of K: with K = N multi-head attention, with
            K = 1 multi-query (Shazeer 2019, https://arxiv.org/abs/1911.02150), else
            grouped-query (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).
        value: [B, S, K, H].
        mask: Who attends to whom.
        bias: [1 | B, N, T, S], added to the scaled scores.
        scale: 0 means 1 / √H.
        softcap: If positive, scores become softcap · tanh(scores / softcap)
            (Gemma 2, https://arxiv.org/abs/2408.00118), before the bias.
        dropout_rate: Of the attention probabilities; needs `dropout_rng`.
        dropout_rng: A key, or None for no dropout.
        implementation: `auto` picks by platform and options; or `xla`, `cudnn`,
            `splash` (which runs interpreted, and slowly, off a TPU).

    Raises:
        ValueError: If the named implementation lacks an option that is asked for.
    """
    drops = dropout_rate > 0 and dropout_rng is not None
    if parts("length") > 1:  # queries stay where they are, keys are gathered
        axes = ("batch", None, "act_kv_heads", "head_dim")
        key, value = constrain(key, *axes), constrain(value, *axes)
    scale = scale or query.shape[-1] ** -0.5
    lacking = {
        "xla": "",
        "cudnn": _cudnn_lacks(query, softcap, drops),
        "splash": _splash_lacks(query, key, mask, bias, drops),
    }
    if implementation == "auto":
        best = {"gpu": "cudnn", "tpu": "splash"}.get(platform(), "xla")
        implementation = "xla" if lacking[best] else best
    if lacking[implementation]:
        raise ValueError(f"{implementation} attention has no {lacking[implementation]}")
    if implementation == "cudnn":
        return _cudnn(query, key, value, mask, bias, scale)
    if implementation == "splash":
        return _splash(query * scale, key, value, mask, softcap)
    rng = dropout_rng if drops else None
    out = _xla(query * scale, key, value, mask, bias, softcap, dropout_rate, rng)
    return checkpoint_name(out, _ATTENDED)


def keep_attention(primitive: Any, *operands: Any, **params: Any) -> bool:
    """A policy of `jax.checkpoint`: keeps what attention returns.

    The gradient also needs the sums of the scores, or it would run the kernel again:
    Splash gives them the same name, cuDNN none, so there it is the primitive.
    """
    named = jax.checkpoint_policies.save_only_these_names(_ATTENDED)
    is_cudnn = primitive.name.startswith("dot_product_attention_fwd")
    return is_cudnn or named(primitive, *operands, **params)


def _xla(query, key, value, mask, bias, softcap, dropout_rate, rng) -> Array:
    B, T, N, _ = query.shape
    S = key.shape[1]
    blocks = 1
    # Where devices share the queries of a row, a block would be one device's alone.
    is_whole = parts("length") == 1
    if (
        is_whole
        and mask.causal
        and mask.prefix is None
        and mask.query_index is None
        and T == S
    ):
        while (
            blocks < MAX_CAUSAL_BLOCKS
            and T % (2 * blocks) == 0
            and T // (2 * blocks) >= MIN_CAUSAL_BLOCK
        ):
            blocks *= 2
    size = T // blocks
    outputs = []
    for start in range(0, T, size):
        queries = range(start, start + size)
        keys = range(S)
        if blocks > 1:
            has_window = mask.window and mask.is_global is None
            first = max(0, start - mask.window + 1) if has_window else 0
            keys = range(first, start + size)
        outputs.append(
            _attend(
                query[:, queries.start : queries.stop],
                key[:, keys.start : keys.stop],
                value[:, keys.start : keys.stop],
                mask.dense(queries, keys),
                None if bias is None else _block(bias, queries, keys),
                softcap,
                dropout_rate,
                rng,
                ((0, 0, start, keys.start), (B, N, T, S)),
            )
        )
    return outputs[0] if blocks == 1 else jnp.concatenate(outputs, axis=1)


def _block(bias: Array, queries: range, keys: range) -> Array:
    return bias[:, :, queries.start : queries.stop, keys.start : keys.stop]


def _attend(query, key, value, allowed, bias, softcap, dropout_rate, rng, block):
    """One block: [B, T, N, H] from scaled queries and all the keys they may see."""
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    # All G · T queries of a head of keys are one matrix, so that both products are what
    # a phone has, and the scores, which are the most, are never transposed. An axis
    # that devices share stays as it is.
    rows = (-1,) if parts("length") == 1 else (N // K, T)
    scores = jnp.einsum(
        "BK...H,BKSH->BK...S",
        query.swapaxes(1, 2).reshape(B, K, *rows, H),
        key.swapaxes(1, 2),
        preferred_element_type=jnp.float32,
    ).reshape(B, N, T, S)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores += bias
    if allowed is not None:  # added, as a phone has no fast choice of [T, S] a head
        scores += jnp.where(allowed, 0, MASKED)[:, None]
    weights = jax.nn.softmax(scores, axis=-1)
    if rng is not None:
        weights = drop(rng, dropout_rate, weights, block=block)
    weights = weights.astype(value.dtype).reshape(B, K, *rows, S)
    out = jnp.einsum("BK...S,BKSH->BK...H", weights, value.swapaxes(1, 2))
    return out.reshape(B, N, T, H).swapaxes(1, 2)


def _cudnn_lacks(query: Array, softcap: float, drops: bool) -> str:
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{query.dtype} (bfloat16 and float16 only)"
    if query.shape[-1] > 128 or query.shape[-1] % 8:
        return f"head_dim {query.shape[-1]} (multiples of 8 up to 128)"
    if parts("length") > 1:
        return "rows that devices share"
    return "softcap" if softcap else "dropout" if drops else ""


def _cudnn(query, key, value, mask: Mask, bias, scale: float) -> Array:
    T, S = query.shape[1], key.shape[1]
    # What is known to be causal is half the work; the rest is a matrix to the kernel.
    causal = mask.causal and mask.prefix is None and mask.query_index is None
    if causal:
        mask = dataclasses.replace(mask, causal=False)
    dense = mask.dense(range(T), range(S))
    if dense is not None:
        dense = jnp.broadcast_to(dense[:, None], (dense.shape[0], 1, T, S))
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias,
        dense,
        scale=scale,
        is_causal=causal,
        implementation="cudnn",
    )


def _splash_lacks(query, key, mask: Mask, bias, drops: bool) -> str:
    T, S, shards = query.shape[1], key.shape[1], parts("length")
    if T % (128 * shards) or S % 128:
        return f"lengths {T} and {S} (multiples of {128 * shards} and 128 only)"
    if mask.prefix is not None or mask.query_index is not None:
        return "prefix or cache"
    if mask.is_global is not None:
        return "windows of some layers alone"
    return "bias" if bias is not None else "dropout" if drops else ""


def _splash(query: Array, key: Array, value: Array, mask: Mask, softcap: float):
    T, S, H = query.shape[1], key.shape[1], query.shape[3]

    shards = parts("length")
    # The same for all heads, of which a device has some.
    kernel = _splash_kernel(T, S, mask, softcap, shards)

    def attend(kernel, query, key, value, query_segments, key_segments):
        """On one device: its rows, its heads and its queries."""
        segments = None
        if query_segments is not None:
            segments = splash_attention_kernel.SegmentIds(query_segments, key_segments)
        # The kernel wants multiples of 128; zeros add nothing to a product.
        pad = ((0, 0), (0, 0), (0, 0), (0, -H % 128))
        query, key, value = (
            jnp.pad(x, pad).swapaxes(1, 2) for x in (query, key, value)
        )
        in_axes = (0, 0, 0, None if segments is None else 0)
        attended: Array = jax.vmap(kernel, in_axes)(query, key, value, segments)
        return attended.swapaxes(1, 2)[..., :H]

    query_segments = mask.query_segments
    if query_segments is not None:
        query_segments = jnp.broadcast_to(query_segments, query.shape[:2])
    operands = (query, key, value, query_segments, mask.key_segments)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(kernel, *operands)
    # XLA cannot partition a Pallas call, so rows, heads and queries are split by hand.
    q_spec: Any = nn.logical_to_mesh_axes(("batch", "length", "act_heads", None))
    kv_spec = nn.logical_to_mesh_axes(("batch", None, "act_kv_heads", None))
    rows, length = q_spec[0], q_spec[1]
    segment_specs = PartitionSpec(rows, length), PartitionSpec(rows)
    if query_segments is None:
        segment_specs = None, None
    queries = NamedSharding(mesh, PartitionSpec(None, length))  # pyright: ignore
    return jax.shard_map(
        attend,
        in_specs=(
            kernel.manual_sharding_spec(queries),
            *(q_spec, kv_spec, kv_spec, *segment_specs),
        ),
        out_specs=q_spec,
        check_vma=False,
    )(kernel, *operands)


def _splash_kernel(T: int, S: int, mask: Mask, softcap: float, shards: int):
    # The kernel's own default, 128, leaves a TPU's matrix unit waiting.
    q = next(size for size in (512, 256, 128) if T // shards % size == 0)
    kv = next(size for size in (512, 256, 128) if S % size == 0)
    if mask.window:
        ahead = 0 if mask.causal else mask.window - 1
        one = splash_attention_mask.LocalMask((T, S), (mask.window - 1, ahead), 0)
    elif mask.causal:
        one = splash_attention_mask.CausalMask((T, S))
    else:
        one = splash_attention_mask.FullMask((T, S))
        shards = 1  # the same for all queries
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([one]),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=q,
            block_kv=kv,
            block_kv_compute=kv,
            block_q_dkv=q,
            block_kv_dkv=kv,
            block_kv_dkv_compute=kv,
            block_q_dq=q,
            block_kv_dq=kv,
        ),
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name=_ATTENDED,
        head_shards=1,
        q_seq_shards=shards,
        interpret=platform() != "tpu",
    )
