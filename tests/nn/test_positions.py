import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.positions import (
    RopeScaling,
    relative_bucket,
    rotary_frequencies,
    rotate,
    sinusoidal,
    toeplitz,
)


def test_rotary_products_depend_on_the_distance_only():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    waves = rotary_frequencies(16)

    def product(t, s):
        at = [jnp.array([[p]]) for p in (t, s)]
        return float((rotate(query, at[0], waves) * rotate(key, at[1], waves)).sum())

    np.testing.assert_allclose(product(3, 1), product(103, 101), rtol=1e-4)
    assert abs(product(3, 1) - product(4, 1)) > 1e-3


def test_rotary_keeps_lengths_and_leaves_position_zero():
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
    y = rotate(x, jnp.arange(5)[None], rotary_frequencies(8))
    np.testing.assert_allclose(
        jnp.linalg.norm(x, axis=-1), jnp.linalg.norm(y, axis=-1), rtol=1e-5
    )
    np.testing.assert_allclose(x[:, 0], y[:, 0], rtol=1e-6)


def test_features_beyond_the_rotated_ones_stay():
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
    y = rotate(x, jnp.arange(5)[None], rotary_frequencies(4))
    np.testing.assert_array_equal(x[..., 4:], y[..., 4:])
    np.testing.assert_array_equal(
        y[..., :4], rotate(x[..., :4], jnp.arange(5)[None], rotary_frequencies(4))
    )


def test_scaled_rotary_frequencies():
    plain = np.asarray(rotary_frequencies(32))
    linear = rotary_frequencies(32, scaling=RopeScaling("linear", 4.0))
    np.testing.assert_allclose(linear, plain / 4)
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, original_len=100)
    scaled = np.asarray(rotary_frequencies(32, scaling=scaling))
    turns = 100 * plain / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns >= 4], plain[turns >= 4])
    np.testing.assert_allclose(scaled[turns <= 1], plain[turns <= 1] / 8, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert np.all(plain[between] / 8 < scaled[between])
    assert np.all(scaled[between] < plain[between])


def test_sinusoids_of_the_paper():
    codes = np.asarray(sinusoidal(jnp.arange(50)[None], 8))[0]
    for p in range(50):
        for i in range(4):
            angle = p / 10_000 ** (2 * i / 8)
            np.testing.assert_allclose(codes[p, i], np.sin(angle), atol=1e-4)
            np.testing.assert_allclose(codes[p, 4 + i], np.cos(angle), atol=1e-4)


def t5_bucket(distance, bidirectional, num_buckets, max_distance):
    """Mesh TensorFlow's `_relative_position_bucket`, in scalars."""
    bucket, n = 0, -distance
    if bidirectional:
        num_buckets //= 2
        bucket += num_buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = num_buckets // 2
    if n < exact:
        return bucket + n
    ratio = np.log(np.float32(n) / exact) / np.log(max_distance / exact)
    return bucket + min(exact + int(ratio * (num_buckets - exact)), num_buckets - 1)


def test_relative_buckets_are_t5s():
    distances = np.arange(-300, 300)
    for both in (True, False):
        ours = relative_bucket(
            jnp.asarray(distances), bidirectional=both, num_buckets=32, max_distance=128
        )
        theirs = [t5_bucket(int(d), both, 32, 128) for d in distances]
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("T", "S"), [(5, 5), (1, 4), (3, 7), (6, 2)])
def test_a_toeplitz_matrix_has_one_value_a_distance(T, S):
    values = np.random.default_rng(0).normal(size=(2, T + S)).astype(np.float32)
    made = toeplitz(jnp.asarray(values), T, S)
    distance = np.arange(S) - np.arange(T)[:, None]
    np.testing.assert_array_equal(made, values[:, distance % (T + S)])
