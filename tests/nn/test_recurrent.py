"""Recurrent layers beside their formulas in NumPy, token by token."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree
from lm.nn.recurrent import (
    CELLS,
    EPS,
    Context,
    Direction,
    RecurrentConfig,
    Stack,
    document_starts,
    init_state,
)

B, T, D, R = 2, 9, 5, 4
# Two documents and padding; one document, whole.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1] * T])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 0, 0], range(T)])
BATCH = {"positions": jnp.asarray(POSITIONS), "segment_ids": jnp.asarray(SEGMENTS)}


def config(**options):
    return RecurrentConfig(emb_dim=D, hidden_dim=R, **options)


def draw(module, *arguments):
    """Returns parameters that are nothing special."""

    def init(key):
        return module.init(key, *arguments)["params"]

    boxed = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def make(name, leaf):
        centre = 1.0 if name.endswith("scale") else 0.0
        return jnp.asarray(rng.normal(centre, 0.5, leaf.shape), jnp.float32)

    return tree.map_with_names(make, nn.unbox(boxed))


def inputs(seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, T, D)), jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normal(x):
    return (x - x.mean()) / np.sqrt(x.var() + EPS)


def elman(x, u, h, c, norm):
    return np.tanh(x + u), c


def lstm(x, u, h, c, norm):
    i, f, g, o = np.split(x + u, 4)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(norm(c)), c


def gru(x, u, h, c, norm):
    (x_r, x_z, x_n), (u_r, u_z, u_n) = np.split(x, 3), np.split(u, 3)
    r, z = sigmoid(x_r + u_r), sigmoid(x_z + u_z)
    return z * h + (1 - z) * np.tanh(x_n + r * u_n), c


FORMULAS = {"rnn": elman, "lstm": lstm, "gru": gru}


def by_hand(params, cell, texts, *, norm=False):
    """Returns what a layer says to each token of each text [n, D]."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for text in texts:
        h, c, said = np.zeros(R), np.zeros(R), []
        for x in np.asarray(text, np.float64) @ params["input"]["kernel"]:
            u = h @ params["kernel"]
            if norm:
                u = normal(u) * params["product_scale"]
                x = normal(x) * params["input_norm"]["scale"]
                x += params["input_norm"]["bias"]
            else:
                x = x + params["input"]["bias"]

            def shown(c):
                return normal(c) * params["memory_scale"] if norm else c

            h, c = FORMULAS[cell](x, u, h, c, shown)
            said.append(h)
        yield np.array(said)


def run(module, params, x, starts):
    state = tuple(each[0] for each in init_state(module.config, B))
    starts = None if starts is None else starts.T[:, :, None]
    arguments = (x.swapaxes(0, 1), state, Context(starts, None, True))
    y, state = jax.jit(lambda p: module.apply({"params": p}, *arguments))(params)
    return np.asarray(y.swapaxes(0, 1)), state


def make(cell, **options):
    module = Direction(config(cell=cell, **options))
    state = tuple(each[0] for each in init_state(module.config, B))
    return module, draw(module, jnp.zeros((T, B, D)), state, Context(None, None, True))


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("cell", CELLS)
def test_each_cell_is_its_formula(cell, norm):
    module, params = make(cell, layer_norm=norm)
    x = inputs()
    said, state = run(module, params, x, None)
    expected = np.array(list(by_hand(params, cell, x, norm=norm)))
    np.testing.assert_allclose(said, expected, atol=1e-5)
    np.testing.assert_allclose(state[0], expected[:, -1], atol=1e-5)
    assert len(state) == (2 if cell == "lstm" else 1)


@pytest.mark.parametrize("cell", CELLS)
def test_documents_of_a_row_begin_with_nothing(cell):
    module, params = make(cell)
    x = inputs()
    said, _ = run(module, params, x, document_starts(BATCH))
    for row, document in ((0, 1), (0, 2), (1, 1)):
        places = SEGMENTS[row] == document
        (expected,) = by_hand(params, cell, [x[row, places]])
        np.testing.assert_allclose(said[row, places], expected, atol=1e-5)


@pytest.mark.parametrize("known", [("positions", "segment_ids"), ("segment_ids",)])
def test_backwards_a_document_is_read_from_its_end(known):
    batch = {name: BATCH[name] for name in known}
    stack = Stack(config(), both=True)
    x = inputs()
    params = draw(stack, x, None, True)
    said, _ = stack.apply({"params": params}, x, document_starts(batch), True)
    assert said.shape == (B, T, 2 * R)
    for row, document in ((0, 1), (0, 2), (1, 1)):
        places = SEGMENTS[row] == document
        text = x[row, places]
        layer = params["layers_0"]
        (forward,) = by_hand(layer["forward"], "lstm", [text])
        (backward,) = by_hand(layer["backward"], "lstm", [text[::-1]])
        expected = np.concatenate([forward, backward[::-1]], axis=1)
        np.testing.assert_allclose(said[row, places], expected, atol=1e-5)


def test_where_documents_start():
    expected = [[1, 0, 0, 1, 0, 0, 0, 1, 1], [1, *[0] * 8]]
    np.testing.assert_array_equal(document_starts(BATCH), np.array(expected, bool))
    alone = {"segment_ids": BATCH["segment_ids"]}
    np.testing.assert_array_equal(
        document_starts(alone)[0], np.array([1, 0, 0, 1, 0, 0, 0, 1, 0], bool)
    )
    assert document_starts({}) is None


@pytest.mark.parametrize("cell", CELLS)
def test_two_halves_are_the_whole_and_padding_leaves_the_state(cell):
    stack = Stack(config(cell=cell, num_layers=2))
    x = inputs()
    params = draw(stack, x, None, True)

    def read(x, state, real=None):
        return stack.apply({"params": params}, x, None, True, state, real)

    whole, _ = read(x, None)
    sizes = np.array([3, 6])
    real = np.arange(T)[None] < sizes[:, None]
    _, state = read(x, None, jnp.asarray(real))
    for row, size in enumerate(sizes):
        mine = tuple(each[:, row : row + 1] for each in state)
        rest, _ = read(x[row : row + 1, size:], mine)
        np.testing.assert_allclose(rest[0], whole[row, size:], atol=1e-5)


@pytest.mark.parametrize("variational", [True, False])
def test_variational_dropout_is_the_same_for_all_tokens(variational):
    options = {"dropout_rate": 0.5, "variational": variational}
    stack = Stack(RecurrentConfig(emb_dim=64, **options))
    x = jnp.ones((1, 6, 64))
    params = draw(stack, x, None, True)
    rngs = {"dropout": jax.random.key(0)}
    said, _ = stack.apply({"params": params}, x, None, False, rngs=rngs)
    dropped = np.asarray(said[0] == 0)
    assert 0.3 < dropped.mean() < 0.7
    assert (dropped == dropped[:1]).all() == variational


def test_recurrent_dropout_leaves_out_the_same_units_of_every_state():
    module, params = make("rnn", recurrent_dropout_rate=0.5)
    state = tuple(each[0] for each in init_state(module.config, B))
    # Nothing but the states: h' = tanh(U h + b).
    x = jnp.zeros((T, B, D))

    def said(deterministic, seed=0):
        rngs = {"dropout": jax.random.key(seed)}
        arguments = (x, state, Context(None, None, deterministic))
        return module.apply({"params": params}, *arguments, rngs=rngs)[0]

    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["input"]["bias"])
    y, first = np.asarray(said(False)), np.tanh(bias)
    np.testing.assert_allclose(y[0], np.broadcast_to(first, (B, R)), atol=1e-6)
    for row in range(B):
        masks = [
            mask
            for mask in np.stack(np.meshgrid(*[[0, 2]] * R), -1).reshape(-1, R)
            if np.allclose(np.tanh(mask * first @ kernel + bias), y[1, row], atol=1e-5)
        ]
        (mask,) = masks
        for before, after in zip(y[:-1, row], y[1:, row]):
            expected = np.tanh(mask * before @ kernel + bias)
            np.testing.assert_allclose(after, expected, atol=1e-5)
    assert not np.allclose(y, said(True))
