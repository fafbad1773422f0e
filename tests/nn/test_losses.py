import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn import losses
from lm.nn.losses import Logits, cross_entropy

B, T, D, V = 3, 10, 8, 50


def make(seed=0, bias=True):
    keys = jax.random.split(jax.random.key(seed), 5)
    states = jax.random.normal(keys[0], (B, T, D))
    kernel = jax.random.normal(keys[1], (V, D))
    bias = jax.random.normal(keys[2], (V,)) if bias else None
    targets = jax.random.randint(keys[3], (B, T), 0, V)
    weights = jax.random.uniform(keys[4], (B, T)) * (jnp.arange(T) < 7)[None]
    return states, kernel, bias, targets, weights


def plain(states, kernel, bias, targets, weights, softcap, z_loss):
    logits = jnp.einsum("btd,vd->btv", states, kernel)
    logits = logits if bias is None else logits + bias[None, None]
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    log_z = jax.nn.logsumexp(logits, axis=-1)
    hit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (weights * (log_z - hit + z_loss * log_z**2)).sum()


@pytest.mark.parametrize("elements", [1, B * 3 * V, 1 << 30])
@pytest.mark.parametrize(
    "softcap,z_loss", [(0.0, 0.0), (2.0, 0.0), (0.0, 0.1), (3.0, 0.1)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_chunked_is_plain(monkeypatch, elements, softcap, z_loss, bias):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", elements)
    states, kernel, bias, targets, weights = make(bias=bias)

    def chunked(states, kernel, bias):
        logits = Logits(states, kernel, bias, softcap)
        return 2 * cross_entropy(logits, targets, weights, z_loss).objective

    def expected(states, kernel, bias):
        return 2 * plain(states, kernel, bias, targets, weights, softcap, z_loss)

    arguments, where = (states, kernel, bias), (0, 1) if bias is None else (0, 1, 2)
    a, a_grads = jax.value_and_grad(chunked, where)(*arguments)
    b, b_grads = jax.value_and_grad(expected, where)(*arguments)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(chunked(*arguments), b, rtol=1e-5)
    for x, y in zip(a_grads, b_grads):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_metrics_are_those_of_the_dense_logits():
    states, kernel, bias, targets, weights = make()
    logits = Logits(states, kernel, bias)
    targets = targets.at[0].set(logits.dense()[0].argmax(axis=-1))
    loss = cross_entropy(logits, targets, weights, z_loss=0.5)
    hits = (logits.dense().argmax(axis=-1) == targets) * weights
    np.testing.assert_allclose(loss.correct, hits.sum(), rtol=1e-5)
    expected = plain(states, kernel, bias, targets, weights, 0.0, 0.0)
    np.testing.assert_allclose(loss.cross_entropy, expected, rtol=1e-5)


def test_logits_never_exist_at_once():
    states, kernel = jnp.zeros((4, 512, D)), jnp.zeros((32_768, D))
    targets = weights = jnp.zeros((4, 512), jnp.int32)

    def loss(states, kernel):
        return cross_entropy(Logits(states, kernel), targets, weights).objective

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(states, kernel).compile()
    whole = 4 * 512 * 32_768 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 2


@pytest.mark.parametrize("least, chunks", [(1, 4), (512 * 32, 2), (1 << 27, 1)])
def test_an_accelerator_has_chunks_of_half_the_kernel_or_more(
    monkeypatch, least, chunks
):
    monkeypatch.setattr(losses, "platform", lambda: "tpu")
    monkeypatch.setattr(losses, "ACCELERATOR_CHUNK_ELEMENTS", least)
    states, kernel = jnp.zeros((1, 64, 32)), jnp.zeros((512, 32))
    targets = weights = jnp.zeros((1, 64), jnp.int32)

    def loss(states, kernel):
        return cross_entropy(Logits(states, kernel), targets, weights).objective

    lengths = re.findall(r"length=(\d+)", str(jax.make_jaxpr(loss)(states, kernel)))
    assert lengths == ([str(chunks)] if chunks > 1 else [])


def test_a_weight_of_zero_excludes_a_token():
    states, kernel, bias, targets, weights = make()
    garbage = jnp.where(weights[..., None] > 0, states, 1e3)
    a = cross_entropy(Logits(states, kernel, bias), targets, weights)
    b = cross_entropy(Logits(garbage, kernel, bias), targets, weights)
    np.testing.assert_allclose(a.objective, b.objective, rtol=1e-6)
