"""Mixtures of experts beside NumPy, token by token."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import gpt
from lm.nn import moe
from lm.nn.layers import ACTIVATIONS
from lm.nn.moe import MixtureOfExperts
from lm.nn.transformer import Mlp
from lm.types import UserError

B, T, D, F, E = 3, 16, 8, 12, 4


def make_config(**changes):
    fields: dict[str, Any] = {"emb_dim": D, "mlp_dim": F, "num_heads": 2}
    fields |= {"num_experts": E, "activation": "silu", "use_bias": True}
    return gpt.Config(**{**fields, **changes})


def make(config, seed=0):
    layer: Any = MixtureOfExperts(config, 1, Mlp)
    keys = jax.random.split(jax.random.key(seed), 2)
    x = jax.random.normal(keys[0], (B, T, D))
    params = nn.unbox(layer.init(keys[1], x, None, True)["params"])
    params = jax.tree.map(lambda p: jax.random.normal(keys[1], p.shape) * 0.5, params)
    return layer, params, x


def textbook(config, params, x, real, capacity):
    """Returns outputs, balance, z-loss and dropped share of each row, in float64."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    x, K = np.asarray(x, np.float64), config.experts_per_token
    size = config.expert_group_size or T
    out = np.zeros_like(x)
    balance, z, dropped = np.zeros((3, B))

    def expert(e, token):
        wi, wo = (params["experts"][name] for name in ("wi", "wo"))
        hidden = token @ wi["kernel"][e] + wi["bias"][e]
        return hidden / (1 + np.exp(-hidden)) @ wo["kernel"][e] + wo["bias"][e]

    for b in range(B):
        count = real[b].sum()
        for begin in range(0, T, size):
            tokens = [t for t in range(begin, begin + size) if real[b, t]]
            logits = {t: x[b, t] @ params["router"]["kernel"] for t in tokens}
            p = {t: np.exp(v) / np.exp(v).sum() for t, v in logits.items()}
            best = {t: np.argsort(-v)[:K] for t, v in p.items()}
            room = np.full(E, capacity)
            given, likely = np.zeros(E), np.zeros(E)
            for k in range(K):
                for t in tokens:
                    e = best[t][k]
                    given[e] += 1 / K
                    weight = p[t][e] / (p[t][best[t]].sum() if K > 1 else 1)
                    if room[e] > 0:
                        room[e] -= 1
                        out[b, t] += weight * expert(e, x[b, t])
                    else:
                        dropped[b] += 1 / (K * count)
            for t in tokens:
                likely += p[t]
                z[b] += np.log(np.exp(logits[t]).sum()) ** 2 / count
            if tokens:
                n = len(tokens)
                balance[b] += n / count * E * (given / n * likely / n).sum()
    return out, balance, z, dropped


@pytest.mark.parametrize("per_token", [1, 2])
@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.25])
def test_is_the_formula_token_by_token(per_token, group, factor):
    config = make_config(
        experts_per_token=per_token,
        expert_group_size=group,
        expert_capacity_factor=factor,
        expert_balance_weight=0.5,
        expert_z_weight=0.25,
    )
    layer, params, x = make(config)
    real = np.arange(T)[None] < np.array([[T], [11], [3]])
    run = jax.jit(layer.apply, static_argnums=3)
    size = group or T
    places = int(np.ceil(factor * per_token * size / E)) if factor else T
    for deterministic, capacity in ((False, places), (True, T)):
        out, found = run({"params": params}, x, jnp.asarray(real), deterministic)
        expected, balance, z, dropped = textbook(config, params, x, real, capacity)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.balance, balance, rtol=1e-5)
        np.testing.assert_allclose(found.dropped, dropped, atol=1e-6)
        assert dropped.any() or factor != 0.5 or deterministic
        np.testing.assert_allclose(found.loss, 0.5 * balance + 0.25 * z, rtol=1e-5)


def test_padding_takes_no_place_and_has_no_part_in_the_loss():
    layer, params, x = make(make_config(expert_capacity_factor=0.5))
    real = jnp.asarray(np.arange(T)[None] % 2 == np.zeros((B, 1)))
    other = jnp.where(real[..., None], x, 7.0)
    run = jax.jit(layer.apply, static_argnums=3)
    (a, of_a), (b, of_b) = (run({"params": params}, y, real, False) for y in (x, other))
    np.testing.assert_allclose(a, jnp.where(real[..., None], b, a), atol=1e-6)
    jax.tree.map(np.testing.assert_allclose, of_a, of_b)
    assert (np.asarray(a)[~np.broadcast_to(real, (B, T))] == 0).all()


def test_the_balance_is_one_if_all_have_as_much_and_at_worst_all_in_one():
    probabilities = jnp.full((8, E), 1 / E)
    even = jax.nn.one_hot(jnp.arange(8)[:, None] % E, E)
    real = jnp.ones(8)
    assert moe.balance_loss(probabilities, even, real) == pytest.approx(1)
    one = jax.nn.one_hot(jnp.zeros((8, 1), int), E)
    assert moe.balance_loss(one[:, 0], one, real) == pytest.approx(E)


def test_the_router_learns_balance():
    """Its loss alone brings a router that prefers one expert to share out tokens."""
    config = make_config(expert_balance_weight=1.0, experts_per_token=1)
    layer, params, x = make(config)
    x = jnp.abs(x)
    kernel = params["router"]["kernel"].at[:, 0].add(1.0)
    params = {**params, "router": {"kernel": kernel}}

    def loss(params):
        return layer.apply({"params": params}, x, None, False)[1].loss.sum()

    step = jax.jit(jax.value_and_grad(loss))
    first, _ = step(params)
    for _ in range(60):
        _, grads = step(params)
        params = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
    last, _ = step(params)
    assert first > 2 * B and last < 1.3 * B, (first, last)


def test_gated_experts_are_gated_mlps():
    """With all experts alike, and so a mixture that is one of them."""
    config = make_config(activation="swiglu", use_bias=False)
    layer, params, x = make(config)
    one = jax.tree.map(lambda p: p[:1], params["experts"])
    params["experts"] = jax.tree.map(lambda p: jnp.repeat(p, E, 0), one)
    out, _ = layer.apply({"params": params}, x, None, True)
    wi, gate, wo = (one[name]["kernel"][0] for name in ("wi", "wi_gate", "wo"))
    expected = (ACTIVATIONS["silu"](x @ gate) * (x @ wi)) @ wo
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_more_experts_for_a_token_than_there_are_is_named():
    with pytest.raises(UserError, match="experts_per_token 5 is not from 1 to .* 4"):
        make_config(experts_per_token=5)
