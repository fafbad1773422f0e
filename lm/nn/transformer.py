"""One transformer stack, of which decoders, encoders and both are made.

Vaswani et al. (2017), https://arxiv.org/abs/1706.03762, with the options that its
descendants chose. Axes: B batch, T query time, S key time, D emb_dim, N query
heads, K key/value heads, H head_dim, F mlp_dim, L layers.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.config import check_choice, check_range
from lm.nn import pipeline
from lm.nn import positions as position_codes
from lm.nn.attention import (
    IMPLEMENTATIONS,
    Mask,
    dot_product_attention,
    keep_attention,
)
from lm.nn.base import ModelConfig
from lm.nn.dropout import Dropout
from lm.nn.layers import ACTIVATIONS, Einsum, Embed, Norm
from lm.nn.moe import COLLECTION, MixtureOfExperts
from lm.nn.positions import RopeScaling
from lm.sharding import constrain
from lm.types import Array, Params, PyTree, UserError

# Gated: activation(x W) * (x V), Shazeer (2020), https://arxiv.org/abs/2002.05202.
GATED = {"swiglu": "silu", "geglu": "gelu_tanh"}

POSITION_ENCODINGS = ("learned", "sinusoidal", "rotary", "relative", "none")

_POLICIES = jax.checkpoint_policies
REMAT_POLICIES = {
    "none": None,
    "full": _POLICIES.nothing_saveable,
    "attention": keep_attention,
    "dots": _POLICIES.dots_saveable,
    "dots_no_batch": _POLICIES.dots_with_no_batch_dims_saveable,
    "dots_attention": _POLICIES.save_from_both_policies(
        _POLICIES.dots_with_no_batch_dims_saveable, keep_attention
    ),
}


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """What every transformer here can be; models choose defaults of their own.

    Attributes:
        num_layers: L.
        num_heads: N.
        num_kv_heads: K; 0 means N (multi-head), 1 is multi-query.
        head_dim: H; 0 means D / N.
        mlp_dim: F; 0 means 4 D.
        max_len: Also the size of the table of learned positions.
        position_encoding: `learned`, `sinusoidal`, `rotary`, `relative` (T5) or
            `none`.
        position_offset: Rows of the table of learned positions before that of place 0
            (RoBERTa: 2).
        rope_theta: Base of the wave lengths of `rotary`.
        rope_local_theta: Of layers with a window, if `global_every`; 0 means the same,
            scaled as the others are.
        rope_fraction: Share of a head that is rotated (GPT-NeoX: 0.25).
        rope_scaling: How angles are slowed for longer texts.
        relative_buckets: Number of buckets of `relative`.
        relative_max_distance: Distance from which `relative` no longer tells apart.
        norm: `rms` or `layer`.
        norm_position: `pre` or `post` the sublayer, or `both` (Gemma 2).
        norm_eps: Added to the variance.
        norm_offset: Added to the scale (Gemma: 1, its scales begin at 0).
        parallel: Whether attention and MLP read the same states, and are added
            together (GPT-J, GPT-NeoX).
        qk_norm: Whether queries and keys are normalised over H (Henry et al. 2020,
            https://arxiv.org/abs/2010.04245).
        activation: `gelu`, `gelu_tanh`, `relu`, `silu`; gated: `swiglu`, `geglu`.
        num_experts: E, MLPs of a layer, of which a token meets few
            (`lm.nn.moe`); 0 means one, which all tokens meet.
        experts_per_token: How many it meets.
        expert_capacity_factor: Tokens that an expert takes of a group in training, over
            those that it would have if all had as many; 0 means all that want it.
        expert_group_size: Tokens of a row that compete for places; 0 means the row.
        expert_balance_weight: Of the loss of unequal experts, for each layer and token;
            of tasks that predict tokens.
        expert_z_weight: Of the router's log² Z, likewise.
        use_bias: Whether projections and layer norms have biases.
        qkv_bias: Whether queries, keys and values have them all the same (Qwen 2).
        scale_embeddings: Whether embeddings are multiplied by √D (Gemma).
        share_layers: Whether all layers have the same parameters (ALBERT).
        dropout_rate: Of embeddings and sublayer outputs.
        attention_dropout_rate: Of attention probabilities.
        window: If positive, tokens see only those less than `window` away.
        global_every: With a window, every so many layers one has none (Gemma 2: 2).
        attention_scale: Of products of queries and keys; 0 means 1 / √H (T5: 1).
        attention_softcap: If positive, caps attention scores.
        logit_softcap: If positive, caps the vocabulary logits.
        attention: `auto`, `xla`, `cudnn` or `splash`.
        scan_layers: Whether layers are stacked and scanned, so that compile time
            does not grow with L.
        scan_unroll: Layers that are compiled side by side in a scan: more take longer
            to compile and are faster to run, on a CPU; on a GPU if it is all of them.
        pipeline_microbatches: Parts of a batch, which follow each other through the
            stages of `mesh.pipeline`; 0 or 1 means none (`lm.nn.pipeline`).
        remat: What the backward pass recomputes: `none`, `full`, `attention` (all but
            what attention returns), `dots` (all but matmuls), `dots_no_batch` (all
            but the matmuls with parameters), `dots_attention` (all but these and
            what attention returns).
    """

    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 0
    head_dim: int = 0
    mlp_dim: int = 0
    position_encoding: str = "rotary"
    position_offset: int = 0
    rope_theta: float = 10_000.0
    rope_local_theta: float = 0.0
    rope_fraction: float = 1.0
    rope_scaling: RopeScaling = RopeScaling()
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm: str = "rms"
    norm_position: str = "pre"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    parallel: bool = False
    qk_norm: bool = False
    activation: str = "gelu_tanh"
    num_experts: int = 0
    experts_per_token: int = 2
    expert_capacity_factor: float = 1.25
    expert_group_size: int = 0
    expert_balance_weight: float = 0.01
    expert_z_weight: float = 0.0
    use_bias: bool = False
    qkv_bias: bool = False
    scale_embeddings: bool = False
    share_layers: bool = False
    attention_dropout_rate: float = 0.0
    window: int = 0
    global_every: int = 0
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    attention: str = "auto"
    scan_layers: bool = True
    scan_unroll: int = 1
    pipeline_microbatches: int = 0
    remat: str = "none"

    def __post_init__(self):
        super().__post_init__()
        for name, choices in {
            "position_encoding": POSITION_ENCODINGS,
            "norm": ("rms", "layer"),
            "norm_position": ("pre", "post", "both"),
            "activation": (*ACTIVATIONS, *GATED),
            "attention": IMPLEMENTATIONS,
            "remat": tuple(REMAT_POLICIES),
        }.items():
            check_choice(f"model.{name}", getattr(self, name), choices)
        for name in ("num_layers", "num_heads", "scan_unroll"):
            check_range(f"model.{name}", getattr(self, name), 1)
        for name in (
            *("num_kv_heads", "head_dim", "mlp_dim", "window", "global_every"),
            *("norm_eps", "position_offset", "rope_local_theta", "attention_scale"),
            *("attention_softcap", "logit_softcap", "num_experts"),
            *("expert_capacity_factor", "expert_group_size"),
            *("expert_balance_weight", "expert_z_weight", "pipeline_microbatches"),
        ):
            check_range(f"model.{name}", getattr(self, name), 0)
        check_range("model.attention_dropout_rate", self.attention_dropout_rate, 0, 1)
        check_range("model.rope_theta", self.rope_theta, 1)
        check_range("model.rope_fraction", self.rope_fraction, 0, 1 + 1e-9)
        check_range("model.relative_buckets", self.relative_buckets, 4)
        least = self.relative_buckets // 2 + 1
        check_range("model.relative_max_distance", self.relative_max_distance, least)
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise UserError(
                f"model.experts_per_token {self.experts_per_token} is not from 1 to "
                f"model.num_experts {self.num_experts}"
            )
        if self.position_encoding == "sinusoidal" and self.emb_dim % 2:
            raise UserError("model.emb_dim must be even for sinusoidal positions")
        if not self.head_dim and self.emb_dim % self.num_heads:
            raise UserError(
                f"model.emb_dim {self.emb_dim} does not divide by model.num_heads "
                f"{self.num_heads}; change one or set model.head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"model.num_heads {self.num_heads} does not divide by "
                f"model.num_kv_heads {self.kv_heads}"
            )
        if self.pipeline_microbatches > 1 and self.share_layers:
            raise UserError(
                "layers of a pipeline have parameters of their own; set "
                "model.share_layers=False or model.pipeline_microbatches=0"
            )
        if self.pipeline_microbatches > 1 and not self.scan_layers:
            raise UserError(
                "layers of a pipeline are stacked; set model.scan_layers=True or "
                "model.pipeline_microbatches=0"
            )
        if self.position_encoding == "rotary" and self.head_size % 2:
            raise UserError(
                f"rotary positions need an even head_dim, not {self.head_size}"
            )

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """H."""
        return self.head_dim or self.emb_dim // self.num_heads

    @property
    def mlp_size(self) -> int:
        """F."""
        return self.mlp_dim or 4 * self.emb_dim

    @property
    def position_limit(self) -> int | None:
        """See `ModelConfig`; positions that are not learned have no limit."""
        return self.max_len if self.position_encoding == "learned" else None

    def mixing_flops(self, length: int, source_length: int) -> float:
        """See `ModelConfig`: 12 · N · H · T for each token and layer."""
        del source_length
        return self.attention_flops(self.num_layers, length, length)

    def attention_flops(self, num_layers: int, queries: int, keys: int) -> float:
        """Returns the FLOPs of training attention between as many tokens of a row.

        Chowdhery et al. (2022), https://arxiv.org/abs/2204.02311, appendix B.
        """
        return 12.0 * self.num_heads * self.head_size * num_layers * queries * keys


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far.

    Attributes:
        key: [B, S, K, H]; of a whole stack, [L, B, S, K, H].
        value: The same.
    """

    key: Array
    value: Array

    def write(self, key: Array, value: Array, index: Array) -> "Cache":
        """Puts keys and values [B, T, K, H] at places [B, T] of one layer's cache."""
        rows = jnp.arange(index.shape[0])[:, None]
        # Places beyond the cache are those of padding: dropped.
        return dataclasses.replace(
            self,
            key=self.key.at[rows, index].set(key, mode="drop"),
            value=self.value.at[rows, index].set(value, mode="drop"),
        )


@flax.struct.dataclass
class Context:
    """What all layers of a stack share.

    Attributes:
        mask: Of self-attention.
        positions: [B, T] int, within each document.
        bias: [1 | B, N, T, S] of self-attention, or None.
        memory: [B, S, D] what cross-attention reads, or None.
        memory_mask: Of cross-attention.
        deterministic: Whether dropout is off.
    """

    mask: Mask
    positions: Array
    bias: Array | None = None
    memory: Array | None = None
    memory_mask: Mask = Mask()
    deterministic: bool = flax.struct.field(pytree_node=False, default=True)


def make_norm(
    config: TransformerConfig, name: str | None = None, kind: str = ""
) -> Norm:
    """Returns the config's norm, or another `kind`."""
    return Norm(
        kind or config.norm,
        config.use_bias,
        config.norm_eps,
        config.norm_offset,
        config.dtype,
        name=name,
    )


class Attention(nn.Module):
    """Projections around `dot_product_attention`, with an optional cache."""

    config: TransformerConfig
    num_layers: int
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: Array, context: Context, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """Returns the output [B, T, D] and the cache with this call's keys.

        With a cache, self-attention writes its keys at `mask.query_index` and reads
        the whole cache. Cross-attention makes its keys from `context.memory`, or
        takes the cache's where that is None.
        """
        config = self.config
        N, K, H, D = config.num_heads, config.kv_heads, config.head_size, config.emb_dim
        rotates = config.position_encoding == "rotary" and not self.cross
        frequencies = self._frequencies(context.mask.is_global) if rotates else None

        def project(name: str, heads: int, axis: str, inputs: Array) -> Array:
            y = Einsum(
                (D,),
                (heads, H),
                ("embed", axis, "head_dim"),
                config.use_bias or config.qkv_bias,
                config.init_stddev,
                config.dtype,
                name=name,
            )(inputs)
            y = constrain(y, "batch", "length", f"act_{axis}", "head_dim")
            if config.qk_norm and name != "value":
                y = make_norm(config, f"{name}_norm", kind="rms")(y)
            if frequencies is not None and name != "value":
                y = position_codes.rotate(y, context.positions, frequencies)
            return y

        query = project("query", N, "heads", x)
        mask = context.memory_mask if self.cross else context.mask
        if self.cross and context.memory is None:
            assert cache is not None
            key, value = cache.key, cache.value
        else:
            source = context.memory if self.cross else x
            assert source is not None
            key = project("key", K, "kv_heads", source)
            value = project("value", K, "kv_heads", source)
            if cache is not None and self.cross:
                cache = Cache(key, value)
            elif cache is not None:
                cache = cache.write(key, value, mask.query_index)
                key, value = cache.key, cache.value
        rate = config.attention_dropout_rate
        drops = rate > 0 and not context.deterministic
        out = dot_product_attention(
            query,
            key,
            value,
            mask,
            bias=None if self.cross else context.bias,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            dropout_rate=rate,
            dropout_rng=self.make_rng("dropout") if drops else None,
            implementation=config.attention,
        )
        out = constrain(out, "batch", "length", "act_heads", "head_dim")
        out = Einsum(
            (N, H),
            (D,),
            ("heads", "head_dim", "embed"),
            config.use_bias,
            residual_stddev(config, N * H, self.num_layers),
            config.dtype,
            name="out",
        )(out)
        return out, cache

    def _frequencies(self, is_global: Array | None) -> Array:
        """Returns those of rotary positions, [R/2]."""
        config = self.config
        size = 2 * round(config.rope_fraction * config.head_size / 2)
        make = functools.partial(position_codes.rotary_frequencies, size)
        frequencies = make(config.rope_theta, config.rope_scaling)
        if is_global is None or not config.rope_local_theta:
            return frequencies
        return jnp.where(is_global, frequencies, make(config.rope_local_theta))


def residual_stddev(config: TransformerConfig, fan_in: int, num_layers: int) -> float:
    """Initial deviation of kernels that add to the residual stream.

    Before normalisation ("pre"), scaled by 1 / √(2 L) so that the stream's variance
    does not grow with depth: Radford et al. (2019), section 2.3.
    """
    stddev = config.init_stddev or fan_in**-0.5
    return (
        stddev * (2 * num_layers) ** -0.5 if config.norm_position == "pre" else stddev
    )


class Mlp(nn.Module):
    """Two projections with an activation between, or three where it is gated.

    Attributes:
        config: The stack's.
        num_layers: L.
        rows: The logical axis of B.
    """

    config: TransformerConfig
    num_layers: int
    rows: str = "batch"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, T, D] to [B, T, D]."""
        config = self.config
        D, F = config.emb_dim, config.mlp_size

        def project(name: str) -> Array:
            return Einsum(
                (D,),
                (F,),
                ("embed", "mlp"),
                config.use_bias,
                config.init_stddev,
                config.dtype,
                name=name,
            )(x)

        if config.activation in GATED:
            activation = ACTIVATIONS[GATED[config.activation]]
            hidden = activation(project("wi_gate")) * project("wi")
        else:
            hidden = ACTIVATIONS[config.activation](project("wi"))
        hidden = constrain(hidden, self.rows, "length", "act_mlp")
        return Einsum(
            (F,),
            (D,),
            ("mlp", "embed"),
            config.use_bias,
            residual_stddev(config, F, self.num_layers),
            config.dtype,
            name="wo",
        )(hidden)


class Block(nn.Module):
    """One layer: self-attention, cross-attention where asked for, MLP."""

    config: TransformerConfig
    num_layers: int
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: Array, cache: PyTree, context: Context, is_global: Array | None = None
    ) -> tuple[Array, PyTree]:
        """Maps [B, T, D] to [B, T, D]; also returns the new caches and the `Routing`.

        `cache` is None or a dict of a `Cache` for each attention, by its name.
        `is_global` is a scalar, whether the layer is without a window; None of all.
        """
        config = self.config
        dropout = Dropout(config.dropout_rate)
        caches = cache or {}
        mask = dataclasses.replace(context.mask, is_global=is_global)
        context = dataclasses.replace(context, mask=mask)
        read = x

        def residual(x: Array, name: str, sublayer: Callable) -> tuple[Array, PyTree]:
            norm = make_norm(config, f"{name}_norm")
            if config.norm_position == "post":
                y, aux = sublayer(x)
                x = norm(x + dropout(y, context.deterministic))
            else:
                y, aux = sublayer(norm(read if config.parallel else x))
                if config.norm_position == "both":
                    y = make_norm(config, f"{name}_out_norm")(y)
                x = x + dropout(y, context.deterministic)
            return constrain(x, "batch", "length", "act_embed"), aux

        def attend(name: str, cross: bool) -> Callable:
            attention = Attention(config, self.num_layers, cross, name=name)
            return lambda y: attention(y, context, caches.get(name))

        new = {}
        x, new["attention"] = residual(x, "attn", attend("attention", False))
        if self.cross:
            x, new["cross_attention"] = residual(
                x, "cross_attn", attend("cross_attention", True)
            )
        if config.num_experts:
            experts = MixtureOfExperts(config, self.num_layers, Mlp, name="mlp")
            segments = mask.query_segments
            real = None
            if segments is not None:
                real = jnp.broadcast_to(segments > 0, x.shape[:2])
            x, routing = residual(
                x, "mlp", lambda y: experts(y, real, context.deterministic)
            )
        else:
            mlp = Mlp(config, self.num_layers, name="mlp")
            x, routing = residual(x, "mlp", lambda y: (mlp(y), None))
        return x, (None if cache is None else new, routing)


class Stack(nn.Module):
    """All layers, the relative position bias they share, and the final norm."""

    config: TransformerConfig
    num_layers: int
    causal: bool
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: Array, context: Context, cache: PyTree = None
    ) -> tuple[Array, PyTree]:
        """Maps [B, T, D] to [B, T, D], and a cache to the new one.

        A cache has leaves [L, …]; without `scan_layers` it may be a list of L. With one
        there is no pipeline: a token has to leave all stages before the next enters.
        """
        config, L = self.config, self.num_layers
        if config.position_encoding == "relative":
            keys = x.shape[1]
            if cache is not None:
                first = cache[0] if isinstance(cache, list) else cache
                keys = first["attention"].key.shape[-3]
            bias = self._relative_bias(context, x.shape[1], keys)
            context = dataclasses.replace(context, bias=bias)
        block = Block
        if config.remat != "none":
            block = nn.remat(
                Block,
                policy=REMAT_POLICIES[config.remat],
                # Inside a scan nothing outside can share what is recomputed.
                prevent_cse=not config.scan_layers,
            )
        arguments = (config, L, self.cross)
        is_global = None
        if config.global_every:
            is_global = (jnp.arange(L) + 1) % config.global_every == 0
        parts = 0
        if cache is None and not self.is_initializing():
            parts = pipeline.choose(config, x.shape[0], context.deterministic)
        if parts:
            one = block(*arguments, parent=None)
            x, routing = self._pipelined(one, x, context, is_global, parts)
        elif config.scan_layers:
            shares = config.share_layers
            layers = nn.scan(
                block,
                variable_axes={} if shares else {"params": 0},
                variable_broadcast="params" if shares else False,
                split_rngs={"params": not shares, "dropout": True},
                in_axes=(0, nn.broadcast, 0),  # pyright: ignore
                length=L,
                unroll=min(config.scan_unroll, L),
                metadata_params={} if shares else {nn.PARTITION_NAME: "layers"},
            )(*arguments, name="layer" if shares else "layers")
            x, (cache, routing) = layers(x, cache, context, is_global)
        else:
            layers = [
                block(
                    *arguments, name="layer" if config.share_layers else f"layers_{i}"
                )
                for i in range(1 if config.share_layers else L)
            ]
            caches, routings = [], []
            for i in range(L):
                if isinstance(cache, list):
                    one = cache[i]
                else:
                    one = jax.tree.map(lambda leaf: leaf[i], cache)  # noqa: B023
                alone = None if is_global is None else is_global[i]
                x, (one, routing) = layers[i % len(layers)](x, one, context, alone)
                caches.append(one)
                routings.append(routing)
            routing = jax.tree.map(lambda *leaves: jnp.stack(leaves), *routings)
            if isinstance(cache, list):
                cache = caches
            elif cache is not None:
                cache = jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)
        if routing is not None:
            routing = jax.tree.map(lambda leaf: leaf.sum(axis=0), routing)
            self.sow(COLLECTION, "total", routing)
        if config.norm_position != "post":
            x = make_norm(config, "final_norm")(x)
        return x, cache

    def _pipelined(
        self,
        block: nn.Module,
        x: Array,
        context: Context,
        is_global: Array | None,
        parts: int,
    ) -> tuple[Array, PyTree]:
        """Runs the layers on microbatches; returns [B, T, D] and routings [L, B]."""

        def layer(own, x, context, key):
            params, alone = own
            rngs = None if key is None else {"dropout": key}
            x, (_, routing) = block.apply(
                {"params": params}, x, None, context, alone, rngs=rngs
            )
            return x, routing

        drops = not context.deterministic and self.has_rng("dropout")
        x, routing = pipeline.run(
            layer,
            (nn.unbox(self.variables["params"]["layers"]), is_global),
            x,
            context,
            self.make_rng("dropout") if drops else None,
            microbatches=parts,
            unroll=self.config.scan_unroll,
        )
        return constrain(x, "batch", "length", "act_embed"), routing

    def _relative_bias(self, context: Context, T: int, S: int) -> Array:
        """Returns [1 | B, N, T, S], Raffel et al. (2020), section 2.1."""
        config = self.config
        table = Embed(
            config.relative_buckets,
            config.num_heads,
            ("buckets", "heads"),
            config.emb_dim**-0.5,
            name="relative_bias",
        )
        index = context.mask.query_index
        if index is None:  # of T · S distances, T + S - 1 differ
            distance = jnp.arange(T + S)
            distance = jnp.where(distance < S, distance, distance - (T + S))
        else:
            distance = jnp.arange(S)[None, None] - index[:, :, None]
        bucket = position_codes.relative_bucket(
            distance,
            bidirectional=not self.causal,
            num_buckets=config.relative_buckets,
            max_distance=config.relative_max_distance,
        )
        if index is None:
            return position_codes.toeplitz(table(bucket).T, T, S)[None]
        return table(bucket).transpose(0, 3, 1, 2)


class Embedder(nn.Module):
    """Token embedding, absolute positions, a norm where asked for, dropout.

    Attributes:
        config: The stack's.
        use_norm: Whether there is a norm.
        token_dim: E, of tables and norm, whose sum is then projected to D; 0 means D.
    """

    config: TransformerConfig
    use_norm: bool = False
    token_dim: int = 0

    def setup(self):
        """Declares the tables."""
        config = self.config
        E, stddev = self.token_dim or config.emb_dim, config.embed_stddev
        self.token = Embed(config.vocab_size, E, stddev=stddev, dtype=config.dtype)
        if config.position_encoding == "learned":
            rows = config.max_len + config.position_offset
            axes = ("positions", "embed")
            self.position = Embed(rows, E, axes, stddev, config.dtype)
        if self.use_norm:
            self.norm = make_norm(config)
        if self.token_dim:
            self.project = Einsum(
                (E,),
                (config.emb_dim,),
                (None, "embed"),
                config.use_bias,
                config.init_stddev,
                config.dtype,
            )
        self.dropout = Dropout(config.dropout_rate)

    def __call__(
        self,
        ids: Array,
        positions: Array,
        deterministic: bool,
        extra: Array | None = None,
    ) -> Array:
        """Maps ids [B, T] to [B, T, D]; `extra` [B, T, E] is added."""
        config = self.config
        x = self.token(ids)
        if config.scale_embeddings:
            x *= config.emb_dim**0.5
        if config.position_encoding == "learned":
            x += self.position(positions + config.position_offset)
        elif config.position_encoding == "sinusoidal":
            x += position_codes.sinusoidal(positions, x.shape[-1]).astype(x.dtype)
        if extra is not None:
            x += extra
        if self.use_norm:
            x = self.norm(x)
        x = self.dropout(x, deterministic)
        if self.token_dim:
            x = self.project(x)
        return constrain(x, "batch", "length", "act_embed")


def init_cache(
    config: TransformerConfig, num_layers: int, batch_size: int, length: int
) -> Cache:
    """Returns an empty cache of a stack, [L, B, S, K, H] of zeros."""
    shape = (num_layers, batch_size, length, config.kv_heads, config.head_size)
    zeros = jnp.zeros(shape, config.dtype)
    return Cache(zeros, zeros)


def stack_layers(params: Params) -> Params:
    """Returns looped parameters (`layers_0`, `layers_1`, …) in the scanned layout.

    >>> stack_layers({"layers_0": {"a": jnp.zeros(2)}, "layers_1": {"a": jnp.ones(2)}})[
    ...     "layers"]["a"].shape
    (2, 2)
    """
    if not isinstance(params, dict):
        return params
    numbered = sorted(
        (key for key in params if re.fullmatch(r"layers_\d+", key)),
        key=lambda key: int(key.removeprefix("layers_")),
    )
    rest = {k: stack_layers(v) for k, v in params.items() if k not in numbered}
    if not numbered:
        return rest
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(params[k] for k in numbered)
    )
    return rest | {"layers": stacked}


def unstack_layers(params: Params) -> Params:
    """Returns scanned parameters in the looped layout; undoes `stack_layers`."""
    if not isinstance(params, dict):
        return params
    rest = {k: unstack_layers(v) for k, v in params.items() if k != "layers"}
    if "layers" not in params:
        return rest
    length = jax.tree.leaves(params["layers"])[0].shape[0]
    return rest | {
        f"layers_{i}": jax.tree.map(lambda leaf: leaf[i], params["layers"])  # noqa: B023
        for i in range(length)
    }
