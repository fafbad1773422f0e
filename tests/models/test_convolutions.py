"""The models of embeddings and convolutions are their papers' formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree
from lm.models import feed_forward, gated_cnn, textcnn
from lm.nn.heads import PooledHead
from lm.types import UserError

B, T, V, D = 2, 7, 11, 4
SMALL = {"vocab_size": V, "emb_dim": D, "max_len": T}
IDS = np.random.default_rng(1).integers(0, V, (B, T)).astype(np.int32)
LENGTHS = np.array([7, 4])
BATCH = {
    "inputs": jnp.asarray(IDS),
    "segment_ids": jnp.asarray((np.arange(T) < LENGTHS[:, None]).astype(np.int32)),
}


def drawn(module, batch=BATCH):
    """Returns parameters of which none is zero, as NumPy arrays."""
    rng = np.random.default_rng(0)
    boxed = jax.eval_shape(module.init, jax.random.key(0), batch)["params"]
    draw = lambda _, leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32)  # noqa: E731
    return tree.map_with_names(draw, nn.unbox(boxed))


def run(module, params, batch=BATCH, **options):
    return np.asarray(
        jax.jit(lambda p: module.apply({"params": p}, batch, **options))(params)
    )


def rows(table):
    """Yields the embeddings of each row, without padding."""
    for ids, length in zip(IDS, LENGTHS):
        yield table[ids[:length]]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_averaging_network(num_layers):
    """Iyyer et al. (2015), eq. 6 and what follows."""
    model = feed_forward.Model(feed_forward.Config(**SMALL))
    module = PooledHead(model, 3, "mean", activation="relu", num_layers=num_layers)
    params = drawn(module)
    found = run(module, params)
    for row, x in zip(
        found, rows(params["backbone"]["embedder"]["token"]["embedding"])
    ):
        z = x.mean(axis=0)
        for name in ("dense", "dense_1")[:num_layers]:
            z = np.maximum(z @ params[name]["kernel"] + params[name]["bias"], 0)
        expected = z @ params["head"]["kernel"] + params["head"]["bias"]
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_textcnn():
    """Kim (2014), eq. 2, and the largest value of each filter."""
    widths, F = (2, 3), 5
    model = textcnn.Model(textcnn.Config(**SMALL, widths=widths, num_filters=F))
    module = PooledHead(model, 3, "max")
    params = drawn(module)
    found = run(module, params)
    backbone = params["backbone"]
    for row, x in zip(found, rows(backbone["embedder"]["token"]["embedding"])):
        features = []
        for W in widths:
            kernel = backbone[f"conv_{W}"]["kernel"].reshape(W * D, F)
            bias = backbone[f"conv_{W}"]["bias"]
            before = (W - 1) // 2
            padded = np.pad(x, ((before, W - 1 - before), (0, 0)))
            phrases = [padded[t : t + W].reshape(-1) for t in range(len(x))]
            c = np.maximum(np.stack(phrases) @ kernel + bias, 0)
            features.append(c.max(axis=0))
        expected = np.concatenate(features) @ params["head"]["kernel"]
        expected += params["head"]["bias"]
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


def test_gated_convolutions():
    """Dauphin et al. (2017), eq. 1, of a dilated layer."""
    config = gated_cnn.Config(**SMALL, num_layers=2, width=2, dilations=(1, 3))
    model = gated_cnn.Model(config)
    params = drawn(model)
    found = run(model, params, method="hidden")

    def norm(x, weights):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
        return x * weights["scale"] + weights["bias"]

    for row, x in zip(found, rows(params["embedder"]["token"]["embedding"])):
        for name, gap in (("layers_0", 1), ("layers_1", 3)):
            weights = params[name]
            read = norm(x, weights["norm"])
            past = np.concatenate([np.zeros((gap, D)), read])[: len(x)]
            kernel, bias = weights["conv"]["kernel"], weights["conv"]["bias"]
            linear, gate = (
                past @ kernel[0, :, i] + read @ kernel[1, :, i] + bias[i]
                for i in range(2)
            )
            x = x + linear / (1 + np.exp(-gate))
        expected = norm(x, params["final_norm"])
        np.testing.assert_allclose(row[: len(x)], expected, rtol=1e-4, atol=1e-4)


def test_masked_places_are_predicted_alone():
    places = {"masked_positions": jnp.array([[1, 3, 0], [2, 2, 0]])}
    for kind in (textcnn, feed_forward):
        model = kind.Model(kind.Config(**SMALL))
        params = drawn(model)

        def logits(batch, model=model, params=params):
            return model.apply({"params": params}, batch).logits.dense()

        every = np.asarray(logits(BATCH))
        expected = np.take_along_axis(
            every, np.asarray(places["masked_positions"])[:, :, None], axis=1
        )
        np.testing.assert_allclose(logits(BATCH | places), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: textcnn.Config(widths=()), "model.widths must be different"),
        (lambda: textcnn.Config(widths=(3, 3)), r"not \(3, 3\)"),
        (lambda: textcnn.Config(widths=(0,)), "at least 1"),
        (lambda: textcnn.Config(num_filters=0), "model.num_filters"),
        (lambda: gated_cnn.Config(width=1), "model.width must be at least 2"),
        (lambda: gated_cnn.Config(dilations=()), "model.dilations must be"),
        (lambda: gated_cnn.Config(dilations=(1, 0)), "model.dilations must be"),
        (lambda: gated_cnn.Config(num_layers=0), "model.num_layers"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_filters_see_the_order_of_words_and_a_bag_does_not():
    ids = jnp.array([[1, 2, 3, 4], [4, 2, 1, 3]])

    def pooled(kind, how):
        module = PooledHead(kind.Model(kind.Config(**SMALL)), 3, how)
        params = drawn(module, {"inputs": ids})
        return run(module, params, {"inputs": ids})

    a, b = pooled(feed_forward, "mean")
    np.testing.assert_allclose(a, b, atol=1e-5)
    a, b = pooled(textcnn, "max")
    assert np.abs(a - b).max() > 1e-2
