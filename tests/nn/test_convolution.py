"""Windows are the tokens around one, of its own text alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.convolution import last_inputs, windows

B, T, D = 2, 9, 3
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 2, 3, 3, 3, 3, 0, 0]])


def by_hand(x, segments, first, width, dilation):
    """Fills windows that begin `first` tokens from each, one by one."""
    out = np.zeros((B, T, width, D), np.float32)
    for b, t, w in np.ndindex(B, T, width):
        s = t + first + w * dilation
        if 0 <= s < T and (segments is None or segments[b, s] == segments[b, t]):
            out[b, t, w] = x[b, s]
    return out


@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize("width,first", [(1, 0), (2, 0), (3, -1), (4, -1), (5, -2)])
def test_a_token_is_in_the_middle_of_its_window(width, first, segments):
    found = windows(jnp.asarray(X), segments, width)
    np.testing.assert_array_equal(found, by_hand(X, segments, first, width, 1))


@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize("width,dilation", [(1, 1), (3, 1), (2, 3), (3, 4)])
def test_a_causal_window_ends_with_its_token(width, dilation, segments):
    found = windows(jnp.asarray(X), segments, width, True, dilation)
    first = -(width - 1) * dilation
    np.testing.assert_array_equal(found, by_hand(X, segments, first, width, dilation))


@pytest.mark.parametrize("number", [1, 4, 7])
def test_the_last_inputs_end_where_a_row_does(number):
    lengths = np.array([9, 3])
    found = last_inputs(jnp.asarray(X), jnp.asarray(lengths), number)
    padded = np.pad(X, ((0, 0), (number, 0), (0, 0)))
    for b, length in enumerate(lengths):
        np.testing.assert_array_equal(found[b], padded[b, length : length + number])
