"""Dropout: how much it drops, how evenly, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.dropout import Dropout, drop

SHAPE = (16, 8, 64, 128)


def kept(seed: int, rate: float = 0.5, shape=SHAPE) -> np.ndarray:
    return np.asarray(drop(jax.random.key(seed), rate, jnp.ones(shape)) > 0, float)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_drops_its_share(rate):
    mask = kept(0, rate)
    error = (rate * (1 - rate) / mask.size) ** 0.5
    assert abs(1 - mask.mean() - rate) < 5 * error


def test_keeps_the_mean_of_what_it_scales():
    dropped = drop(jax.random.key(1), 0.25, jnp.full(SHAPE, 3.0))
    assert set(np.unique(dropped)) == {0.0, 4.0}
    assert abs(float(dropped.mean()) - 3) < 0.02


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns how many standard errors two masks' correlation is from none."""
    return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * a.size**0.5


@pytest.mark.parametrize("axis", range(len(SHAPE)))
@pytest.mark.parametrize("shift", [1, 2, 3, 7])
def test_neighbours_are_independent(axis, shift):
    mask = kept(2)
    assert correlation(mask, np.roll(mask, shift, axis)) < 5


def test_masks_of_different_keys_are_independent():
    masks = [kept(seed) for seed in range(8)]
    for i, mask in enumerate(masks):
        assert all(correlation(mask, other) < 5 for other in masks[:i])


def test_rows_and_columns_drop_evenly():
    """Sums over any axis scatter as those of coins do: a chi-square test of each."""
    mask = kept(3, 0.5, (512, 512))
    for axis in (0, 1):
        deviations = (mask.sum(axis) - 256) / 128**0.5
        chi_square = (deviations**2).sum()
        assert abs(chi_square - 512) < 5 * (2 * 512) ** 0.5


def test_blocks_of_neighbours_are_all_as_frequent():
    """The 256 patterns of 8 neighbours, by a chi-square test."""
    bits = kept(4).reshape(-1, 8).astype(int)
    counts = np.bincount(bits @ (1 << np.arange(8)), minlength=256)
    expected = len(bits) / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5


def test_gradient_is_that_of_what_was_kept():
    x = jnp.linspace(-1, 1, 64).reshape(4, 16)
    key = jax.random.key(5)
    gradient = jax.grad(lambda x: drop(key, 0.2, x).sum())(x)
    np.testing.assert_array_equal(gradient * x, drop(key, 0.2, x))


def test_without_a_rate_or_in_use_nothing_is_dropped():
    x = jnp.ones((3, 5))
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, False), x)
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, True), x)
