import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.interpreters.partial_eval import dce_jaxpr

from lm import sharding
from lm.nn import attention
from lm.nn.attention import Mask, dot_product_attention
from lm.nn.transformer import REMAT_POLICIES

B, T, N, H = 2, 256, 4, 16

# Compiled at once, which takes less time than its operations one by one.
attend = jax.jit(dot_product_attention, static_argnames=("softcap", "implementation"))

MASKS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": 40},
    "causal window": {"causal": True, "window": 40},
}


def make_inputs(kv_heads=N, length=T, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    heads = (N, kv_heads, kv_heads)
    return [jax.random.normal(k, (B, length, n, H)) for k, n in zip(keys, heads)]


def make_segments(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(np.sort(rng.integers(1, 5, (B, T)), axis=1), jnp.int32)


def textbook(query, key, value, mask, softcap=0.0, bias=None):
    """Softmax attention, one head and one pair of positions at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    groups = query.shape[2] // key.shape[2]
    key, value = key.repeat(groups, axis=2), value.repeat(groups, axis=2)
    scores = np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(query.shape[-1])
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + np.asarray(bias, np.float64)
    t, s = np.indices(scores.shape[2:])
    allowed = np.ones(scores.shape, bool)
    if mask.causal:
        allowed &= s <= t
        if mask.prefix is not None:
            allowed |= np.asarray(mask.prefix)[:, None, None, :]
    if mask.window:
        allowed &= abs(t - s) < mask.window
    if mask.query_segments is not None:
        same = np.equal.outer
        allowed &= np.stack(
            [same(q, k) for q, k in zip(mask.query_segments, mask.key_segments)]
        )[:, None]
    scores = np.where(allowed, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bnts,bsnh->btnh", weights, value)


KERNELS = {
    "splash": "name=splash_mha_fwd",
    "cudnn": "dot_product_attention_fwd_wrapper",
}


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize(
    "remat, calls",
    [("none", 1), ("full", 2), ("attention", 1), ("dots_attention", 1)],
)
def test_a_remat_policy_keeps_what_attention_returns(
    implementation, remat, calls, monkeypatch
):
    # To be traced, cuDNN's attention wants a GPU; what it makes is all that is read.
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)

    def loss(query, key, value):
        inputs = (x.astype(jnp.bfloat16) for x in (query, key, value))
        return dot_product_attention(
            *inputs, Mask(causal=True), implementation=implementation
        ).sum()

    if policy := REMAT_POLICIES[remat]:
        loss = jax.checkpoint(loss, policy=policy)
    program = jax.make_jaxpr(jax.value_and_grad(loss))(*make_inputs()).jaxpr
    # What nothing reads is not computed; it stands in the program all the same.
    program, _ = dce_jaxpr(program, [True] * len(program.outvars))
    # Forward kernels alone; those of the gradient are called otherwise.
    assert len(re.findall(KERNELS[implementation], str(program))) == calls


@pytest.mark.parametrize("implementation", ["xla", "splash"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", MASKS)
def test_is_the_textbook_formula_with_packing(implementation, kv_heads, kind):
    inputs, segments = make_inputs(kv_heads), make_segments()
    mask = Mask(segments, segments, **MASKS[kind])
    out = attend(*inputs, mask, softcap=3.0, implementation=implementation)
    np.testing.assert_allclose(out, textbook(*inputs, mask, 3.0), atol=2e-5)


@pytest.mark.parametrize("kind", MASKS)
def test_splash_has_the_gradients_of_xla(kind):
    inputs, segments = make_inputs(2), make_segments()
    mask = Mask(segments, segments, **MASKS[kind])

    def loss(inputs, implementation):
        out = dot_product_attention(*inputs, mask, implementation=implementation)
        return jnp.square(out).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    for a, b in zip(gradient(inputs, "xla"), gradient(inputs, "splash")):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_packed_documents_are_as_if_alone(implementation):
    query, key, value = make_inputs()
    half = T // 2
    segments = jnp.repeat(jnp.array([[1, 2]]), half, axis=1).repeat(B, axis=0)
    packed = attend(
        query,
        key,
        value,
        Mask(segments, segments, causal=True),
        implementation=implementation,
    )
    for part in (slice(0, half), slice(half, T)):
        alone = attend(
            query[:, part],
            key[:, part],
            value[:, part],
            Mask(causal=True),
            implementation=implementation,
        )
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


@pytest.mark.parametrize("length", [100, 128, 192, 256, 512])
@pytest.mark.parametrize("window", [0, 70])
def test_causal_blocks_change_nothing(length, window):
    inputs = make_inputs(length=length)
    mask = Mask(causal=True, window=window)
    out = attend(*inputs, mask, implementation="xla")
    np.testing.assert_allclose(out, textbook(*inputs, mask), atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_one_segment_of_all_queries_hides_padding(implementation):
    query, key, value = make_inputs()
    keys = (jnp.arange(T)[None] < jnp.array([[T], [100]])).astype(jnp.int32)
    mask = Mask(jnp.ones((B, 1), jnp.int32), keys)
    full = Mask(jnp.ones((B, T), jnp.int32), keys)
    np.testing.assert_allclose(
        attend(query, key, value, mask, implementation=implementation),
        attend(query, key, value, full, implementation="xla"),
        atol=2e-5,
    )


def test_prefix_and_bias():
    inputs = make_inputs()
    prefix = jnp.broadcast_to(jnp.arange(T)[None] < 10, (B, T))
    bias = jax.random.normal(jax.random.key(1), (1, N, T, T))
    mask = Mask(prefix=prefix, causal=True)
    out = attend(*inputs, mask, bias=bias)
    np.testing.assert_allclose(out, textbook(*inputs, mask, bias=bias), atol=1e-5)


def test_bias_follows_causal_blocks():
    inputs = make_inputs()
    bias = jax.random.normal(jax.random.key(1), (1, N, T, T))
    out = attend(*inputs, Mask(causal=True), bias=bias)
    expected = textbook(*inputs, Mask(causal=True), bias=bias)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_query_index_places_queries_among_the_keys():
    query, key, value = make_inputs()
    full = attend(query, key, value, Mask(causal=True))
    index = jnp.array([[7], [200]])
    one = jnp.take_along_axis(query, index[:, :, None, None], axis=1)
    out = attend(one, key, value, Mask(query_index=index, causal=True))
    expected = jnp.take_along_axis(full, index[:, :, None, None], axis=1)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_dropout_keeps_the_mean():
    query, key, value = make_inputs(length=32)
    mask = Mask()
    plain = attend(query, key, value, mask)
    keys = jax.random.split(jax.random.key(0), 400)

    def dropped(rng):
        return dot_product_attention(
            query, key, value, mask, dropout_rate=0.2, dropout_rng=rng
        )

    outs = jax.jit(jax.vmap(dropped))(keys)
    assert float(outs.std(axis=0).mean()) > 0.01
    np.testing.assert_allclose(outs.mean(axis=0), plain, atol=0.15)


def test_auto_avoids_what_a_kernel_lacks(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    inputs = make_inputs(length=100)
    out = dot_product_attention(*inputs, Mask(causal=True))
    expected = textbook(*inputs, Mask(causal=True))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_named_kernel_refuses_what_it_lacks():
    inputs = make_inputs(length=100)
    with pytest.raises(ValueError, match="splash attention has no lengths 100"):
        dot_product_attention(*inputs, Mask(), implementation="splash")
    with pytest.raises(ValueError, match="cudnn attention has no float32"):
        dot_product_attention(*inputs, Mask(), implementation="cudnn")


def test_padding_has_finite_gradients():
    inputs = make_inputs(length=64)
    queries = jnp.zeros((B, 64), jnp.int32)
    keys = jnp.ones((B, 64), jnp.int32)

    def loss(inputs):
        return dot_product_attention(*inputs, Mask(queries, keys)).sum()

    gradients = jax.jit(jax.grad(loss))(inputs)
    assert all(np.isfinite(g).all() for g in gradients)


def test_causal_blocks_are_used():
    lengths = attention.MIN_CAUSAL_BLOCK * 4
    inputs = make_inputs(length=lengths)

    def count(mask):
        jaxpr = jax.make_jaxpr(lambda *x: dot_product_attention(*x, mask))(*inputs)
        return str(jaxpr).count("dot_general")

    assert count(Mask(causal=True)) == 2 * attention.MAX_CAUSAL_BLOCKS
    assert count(Mask()) == 2


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["packed", "padded", "plain"])
def test_cudnn_is_given_what_it_takes(monkeypatch, kind, causal):
    # Its kernel needs a GPU; XLA's, in its place, takes the same arguments.
    given = {}
    plain = jax.nn.dot_product_attention

    def instead(*arguments, implementation, **options):
        given.update(options, mask=arguments[4])
        return plain(*arguments, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    inputs = [x.astype(jnp.bfloat16) for x in make_inputs(2)]
    segments = make_segments()
    real = jnp.ones_like(segments[:, :1])
    mask = {
        "packed": Mask(segments, segments, causal=causal),
        "padded": Mask(real, jnp.minimum(segments - 1, 1), causal=causal),
        "plain": Mask(causal=causal),
    }[kind]
    out = dot_product_attention(*inputs, mask, implementation="cudnn")
    expected = dot_product_attention(*inputs, mask, implementation="xla")
    seen = np.asarray(segments > 1)[:, :, None, None] if kind == "padded" else True
    out, expected = (np.where(seen, np.float32(x), 0) for x in (out, expected))
    np.testing.assert_allclose(out, expected, atol=0.03)
    assert given["is_causal"] == causal  # which is half the work
    shape = None if given["mask"] is None else given["mask"].shape
    assert shape == (None if kind == "plain" else (B, 1, T, T))


@pytest.mark.parametrize(
    ("implementation", "kind"),
    [("xla", "causal"), ("splash", "full"), ("splash", "causal window")],
)
def test_devices_that_share_a_row_attend_as_one(implementation, kind):
    inputs, segments = make_inputs(2), make_segments()
    mask = Mask(segments, segments, **MASKS[kind])

    def loss(inputs):
        out = dot_product_attention(*inputs, mask, implementation=implementation)
        return jnp.square(out).sum(), out

    run = jax.grad(loss, has_aux=True)
    alone = jax.jit(run)(inputs)
    config = sharding.MeshConfig(data=2, context=2, tensor=2)
    with sharding.use(sharding.build_mesh(config, jax.devices()), config):
        shared = jax.jit(run)(inputs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), alone, shared
    )


def test_dropout_does_not_depend_on_the_blocks_of_queries(monkeypatch):
    inputs, key = make_inputs(), jax.random.key(3)

    def run():
        return jax.jit(
            lambda inputs: dot_product_attention(
                *inputs, Mask(causal=True), dropout_rate=0.4, dropout_rng=key
            )
        )(inputs)

    in_blocks = run()
    monkeypatch.setattr(attention, "MAX_CAUSAL_BLOCKS", 1)
    np.testing.assert_allclose(in_blocks, run(), atol=1e-5)
