import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn import layers
from lm.nn.layers import Einsum, Embed, gelu, standardise


def test_gradients_of_a_frequent_token_add_up_in_float32():
    ids = jnp.zeros(400, jnp.int32)  # bfloat16 counts to 256
    embed = Embed(2, 4, dtype="bfloat16")
    params = embed.init(jax.random.key(0), ids)
    grads = jax.grad(lambda p: embed.apply(p, ids).astype(jnp.float32).sum())(params)
    assert jax.tree.leaves(grads)[0].tolist() == [[400.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 2**-8)])
def test_gelu_is_that_of_jax_in_float32_and_rounded_once(dtype, tolerance):
    x = jnp.linspace(-8, 8, 1001).astype(dtype)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    assert gelu(x).dtype == dtype
    np.testing.assert_allclose(
        gelu(x).astype(jnp.float32), exact, rtol=tolerance, atol=1e-6
    )


@pytest.mark.parametrize("mean", [0, 1, -30])
def test_a_layer_norm_takes_away_the_mean_and_divides_by_the_deviation(mean):
    x = np.random.default_rng(0).normal(mean, 2, (4, 256)).astype(np.float32)
    exact = x.astype(np.float64)
    exact -= exact.mean(-1, keepdims=True)
    exact /= exact.std(-1, keepdims=True)
    np.testing.assert_allclose(standardise(x, "layer", 0), exact, atol=2e-4)


def test_a_row_of_equal_numbers_has_a_finite_norm_and_gradient():
    x = jnp.full((1, 300), 0.1)
    out, pull = jax.vjp(lambda x: standardise(x, "layer", 1e-12), x)
    assert jnp.abs(out).max() < 1
    assert jnp.isfinite(pull(jnp.ones_like(out))[0]).all()


@pytest.mark.parametrize("in_shape, out_shape", [((6,), (2, 3)), ((2, 3), (6,))])
def test_a_projection_is_the_same_on_a_tpu(monkeypatch, in_shape, out_shape):
    axes = ("embed",) * len(in_shape) + (None,) * len(out_shape)
    project = Einsum(in_shape, out_shape, axes, use_bias=True)
    x = jax.random.normal(jax.random.key(0), (4, 5, *in_shape))
    params = project.init(jax.random.key(1), x)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    expected = project.apply(params, x)
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    out = project.apply(params, x)
    assert out.shape == (4, 5, *out_shape)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
