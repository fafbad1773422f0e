"""Loops of TF Lite files: equal to JAX's, with their weights once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.crf import Chains
from tools.export import tflite
from tools.export.graph import Graph, Signature
from tools.export.quantization import quantize

T, D = 7, 6


def graph_of(params, *functions, **inputs):
    """Returns functions of the same inputs, arrays, as what is exported."""
    shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in inputs.items()}
    signatures = [
        Signature(f"f{i}", T, each, shapes, jax.eval_shape(each, params, shapes))
        for i, each in enumerate(functions)
    ]
    return Graph("encoder", None, False, params, tuple(signatures))


def run(model, inputs, name="f0"):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=model).get_signature_runner(name)(**inputs)


def recurrence(params, inputs, reverse=False):
    """Carries a number, an array and a truth; says two things of each step."""

    def step(carry, now):
        count, h, was = carry
        x, keep = now
        new = jnp.tanh(x + h @ params["kernel"])
        h = jnp.where(keep, new, h)
        return (count + 1, h, was | keep), (h * 2, count)

    begin = (jnp.zeros((1,), jnp.int32), inputs["h"], jnp.zeros((1, 1), bool))
    xs = inputs["x"], inputs["x"][:, :, :1] > 0
    (count, h, was), (said, counted) = jax.lax.scan(step, begin, xs, reverse=reverse)
    return {"count": count, "h": h, "was": was, "said": said, "counted": counted}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(0, 0.5, (D, D)).astype("f4")}
    inputs = {"x": rng.normal(size=(T, 1, D)).astype("f4"), "h": np.ones((1, D), "f4")}
    return params, inputs


@pytest.mark.parametrize("reverse", [False, True])
def test_a_loop_is_that_of_jax(data, reverse):
    params, inputs = data

    def function(params, inputs):
        return recurrence(params, inputs, reverse)

    model = tflite.convert(graph_of(params, function, **inputs))
    expected = function(params, inputs)
    found = run(model, inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, atol=1e-6)


def test_a_loop_in_a_loop_is_that_of_jax(data):
    params, inputs = data

    def function(params, inputs):
        def outer(total, x):
            def inner(h, _):
                h = jnp.tanh(h @ params["kernel"])
                return h, h[:, 0]

            h, said = jax.lax.scan(inner, x, inputs["x"])
            return total + h, said

        total, said = jax.lax.scan(outer, inputs["h"], inputs["x"])
        return {"total": total, "said": said}

    model = tflite.convert(graph_of(params, function, **inputs))
    found = run(model, inputs)
    for name, value in function(params, inputs).items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)


def test_tags_that_are_predicted_together(data):
    rng = np.random.default_rng(1)
    shapes = {"transitions": (3, 3), "begin": (3,), "end": (3,)}
    params = {k: rng.normal(size=shape).astype("f4") for k, shape in shapes.items()}
    inputs = {
        "unary": rng.normal(size=(1, T, 3)).astype("f4"),
        "documents": np.array([[1, 1, 0, 1, 2, 2, 0]], np.int32),
    }

    def function(params, inputs):
        chains = Chains(**params, **inputs)
        return {"best": chains.best(), "marginals": chains.marginals()}

    model = tflite.convert(graph_of(params, function, **inputs))
    expected = function(params, inputs)
    for how, error in (("none", 1e-5), ("int8", 0.03)):
        made = quantize(model, how, {}, is_encoder=True)
        found = run(made, inputs)
        wanted = inputs["documents"] > 0
        assert (found["best"] == expected["best"])[wanted].all()
        difference = np.abs(found["marginals"] - expected["marginals"])[wanted]
        assert difference.max() < error


def test_functions_and_loops_share_their_weights(data):
    rng = np.random.default_rng(2)
    size = 256
    params = {"kernel": rng.normal(0, 0.05, (size, size)).astype("f4")}
    inputs = {
        "x": rng.normal(size=(T, 1, size)).astype("f4"),
        "h": np.zeros((1, size), "f4"),
    }

    def one(params, inputs):
        return {"h": jnp.tanh(inputs["x"][0] + inputs["h"] @ params["kernel"])}

    def backwards(params, inputs):
        return recurrence(params, inputs, reverse=True)

    graph = graph_of(params, recurrence, one, backwards, **inputs)
    model = tflite.convert(graph)
    weights = params["kernel"].nbytes
    small = quantize(model, "int8", {}, is_encoder=True)
    for made, share in ((model, 1), (small, 0.25)):
        assert share * weights < len(made) < (share + 0.15) * weights
    for i, function in enumerate((recurrence, one, backwards)):
        for name, value in function(params, inputs).items():
            np.testing.assert_allclose(
                run(model, inputs, f"f{i}")[name], value, atol=1e-6
            )
            np.testing.assert_allclose(
                run(small, inputs, f"f{i}")[name], value, atol=0.05
            )
