"""A mixture of experts: many MLPs, of which each token meets few.

Shazeer et al. (2017), https://arxiv.org/abs/1701.06538; Lepikhin et al. (2020, GShard),
https://arxiv.org/abs/2006.16668; Fedus et al. (2021, Switch Transformers),
https://arxiv.org/abs/2101.03961. Each expert takes a fixed number of tokens of each
group, so that all shapes are known; groups are parts of rows, so that nothing depends
on how rows are laid over devices.

Axes: B batch, T time, D emb_dim, E experts, K experts per token, G groups of a row, S
tokens of a group, C tokens that an expert takes of a group.
"""

import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.nn.layers import Einsum
from lm.sharding import constrain
from lm.types import Array, PyTree

# The collection of variables into which a stack puts the `Routing` of its layers.
COLLECTION = "routing"


@flax.struct.dataclass
class Routing:
    """How well the tokens of each row are shared out; sums over layers.

    Attributes:
        loss: [B], what is minimised beside a task's own loss: `balance` and the z-loss,
            each times its weight; the only field that has a gradient.
        balance: [B], 1 where all experts are given as much, E / K at worst.
        dropped: [B], the share of a token's K choices that found no place.
        layers: [B], the number of layers.
    """

    loss: Array
    balance: Array
    dropped: Array
    layers: Array


def total(variables: PyTree) -> Routing | None:
    """Adds up what a model's stacks put into `COLLECTION`; None without experts."""
    leaves = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, Routing))
    return (
        jax.tree.map(lambda *some: sum(some[1:], some[0]), *leaves) if leaves else None
    )


def choose(probabilities: Array, number: int) -> tuple[Array, Array]:
    """Returns the weights [..., K] and the numbers [..., K] of a token's experts.

    The weights are probabilities of one expert (Switch, equation 2: else it had no
    gradient) and add up to 1 of several (Jiang et al. 2024, Mixtral,
    https://arxiv.org/abs/2401.04088, section 2.1).

    Args:
        probabilities: [..., E].
        number: K.
    """
    weights, experts = jax.lax.top_k(probabilities, number)
    if number > 1:
        weights /= weights.sum(axis=-1, keepdims=True)
    return weights, experts


def capacity(tokens: int, experts: int, per_token: int, factor: float) -> int:
    """Returns C, the tokens that an expert takes of a group (Switch, equation 3).

    >>> capacity(tokens=64, experts=8, per_token=2, factor=1.25)
    20
    """
    return min(tokens, max(1, math.ceil(factor * per_token * tokens / experts)))


def places(chosen: Array, limit: int) -> Array:
    """Returns the place of each choice among its expert's tokens; C where none is left.

    All first choices come before all second ones, and then earlier tokens before later
    ones (GShard, algorithm 1).

    Args:
        chosen: [..., S, K, E], 1 for an expert that is chosen, 0 for one that is not;
            of padding, all 0.
        limit: C.

    Returns:
        [..., S, K] int.
    """
    *_, S, K, E = chosen.shape
    ordered = chosen.swapaxes(-3, -2).reshape(*chosen.shape[:-3], K * S, E)
    before = jnp.cumsum(ordered, axis=-2) - ordered
    place = (before * ordered).sum(axis=-1).reshape(*chosen.shape[:-3], K, S)
    place = jnp.where(chosen.sum(axis=-1) > 0, place.swapaxes(-2, -1), limit)
    return jnp.minimum(place, limit).astype(jnp.int32)


def balance_loss(probabilities: Array, chosen: Array, real: Array) -> Array:
    """Returns E · Σ f P of each group, [...]: 1 where all experts are given as much.

    Switch, equations 4 to 6, without the weight; f counts all K choices of a token, as
    parts of one.

    Args:
        probabilities: [..., S, E].
        chosen: [..., S, K, E], as of `places`.
        real: [..., S], 1 of tokens and 0 of padding.
    """
    E, K = probabilities.shape[-1], chosen.shape[-2]
    tokens = jnp.maximum(real.sum(axis=-1), 1)[..., None]
    given = chosen.sum(axis=(-3, -2)) / (K * tokens)
    likely = (probabilities * real[..., None]).sum(axis=-2) / tokens
    return E * (given * likely).sum(axis=-1)


class MixtureOfExperts(nn.Module):
    """Takes the place of an MLP. A token whose experts are full keeps what it was.

    Only training has a capacity: what is written, evaluated or predicted depends on
    nobody else's tokens, and a token that is read with a cache is the one that is read
    without. There every expert reads every token.

    Attributes:
        config: The stack's.
        num_layers: As of an MLP.
        mlp: The class of an expert.
    """

    config: Any
    num_layers: int
    mlp: type[nn.Module]

    @nn.compact
    def __call__(
        self, x: Array, real: Array | None, deterministic: bool
    ) -> tuple[Array, Routing]:
        """Maps [B, T, D] to [B, T, D].

        Args:
            x: [B, T, D].
            real: [B, T] bool, where tokens are none of padding; None means all.
            deterministic: Whether no token is dropped.
        """
        config = self.config
        B, T, D = x.shape
        E, K = config.num_experts, config.experts_per_token
        S = min(config.expert_group_size or T, T)
        G = -(-T // S)

        def grouped(x: Array) -> Array:
            pad = [(0, 0), (0, G * S - T)] + [(0, 0)] * (x.ndim - 2)
            return jnp.pad(x, pad).reshape(B, G, S, *x.shape[2:])

        # The router decides in float32 (Switch, section 2.4).
        router = Einsum(
            (D,),
            (E,),
            ("embed", None),
            stddev=config.init_stddev,
            name="router",
        )
        logits = router(x)
        weight = jnp.ones((B, T)) if real is None else real.astype(jnp.float32)
        probabilities = jax.nn.softmax(logits, axis=-1)
        weights, experts = choose(probabilities, K)
        chosen = jax.nn.one_hot(experts, E, dtype=jnp.float32)
        chosen *= weight[..., None, None]
        run = self._experts()
        if deterministic or not config.expert_capacity_factor:
            C = S
            combine = (chosen * weights[..., None]).sum(axis=-2).astype(x.dtype)
            y = self._spread(run(self._spread(jnp.broadcast_to(x, (E, *x.shape)))))
            out = jnp.einsum("EBTD,BTE->BTD", y, combine)
            place = jnp.zeros((B, G, S, K), jnp.int32)
        else:
            C = capacity(S, E, K, config.expert_capacity_factor)
            place = places(grouped(chosen), C)
            # one_hot of C, which is no place, is all 0.
            slots = jax.nn.one_hot(place, C, dtype=jnp.float32)
            gates = grouped(chosen * weights[..., None])
            send = jnp.einsum("BGSKE,BGSKC->BGSEC", grouped(chosen), slots)
            combine = jnp.einsum("BGSKE,BGSKC->BGSEC", gates, slots)
            send, combine = send.astype(x.dtype), combine.astype(x.dtype)
            y = jnp.einsum("BGSD,BGSEC->EBGCD", grouped(x), send)
            y = self._spread(y.reshape(E, B, G * C, D))
            y = self._spread(run(y)).reshape(E, B, G, C, D)
            out = jnp.einsum("EBGCD,BGSEC->BGSD", y, combine)
            out = out.reshape(B, G * S, D)[:, :T]
        out = constrain(out, "batch", "length", "act_embed")

        # Zoph et al. (2022), https://arxiv.org/abs/2202.08906, equation 5.
        z = jnp.square(jax.nn.logsumexp(logits, axis=-1))
        z = (z * weight).sum(axis=1)
        tokens, weight = jnp.maximum(weight.sum(axis=1), 1), grouped(weight)
        balance = balance_loss(grouped(probabilities), grouped(chosen), weight)
        balance = (balance * weight.sum(axis=2)).sum(axis=1) / tokens
        lost = ((place >= C) * weight[..., None]).sum(axis=(1, 2, 3)) / (K * tokens)
        loss = (
            config.expert_balance_weight * balance + config.expert_z_weight * z / tokens
        )
        stop = jax.lax.stop_gradient
        return out, Routing(loss, stop(balance), stop(lost), jnp.ones(B))

    def _experts(self) -> nn.Module:
        """Returns all experts as one module, which maps [E, B, T, D]."""
        many = nn.vmap(
            self.mlp,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            metadata_params={nn.PARTITION_NAME: "experts"},
        )
        return many(self.config, self.num_layers, "expert_batch", name="experts")

    def _spread(self, x: Array) -> Array:
        """Lays [E, B, T, D] over the devices that have the experts."""
        return constrain(x, "act_experts", "expert_batch", "length", "act_embed")
