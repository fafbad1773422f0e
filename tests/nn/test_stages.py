"""Laws of pipelines: microbatches and stages change no sum."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import sharding, tree
from lm.models import MODELS, build_model
from lm.nn import moe, pipeline
from lm.sharding import MeshConfig
from lm.types import UserError

L, B, T, D, V = 4, 6, 3, 5, 20


def run_on(stages, fn, *arguments):
    """Compiles and runs a function on a mesh of so many stages."""
    config = MeshConfig(pipeline=stages, data=1)
    mesh = sharding.build_mesh(config, jax.devices()[:stages])
    with sharding.use(mesh, config):
        return jax.device_get(jax.jit(fn)(*arguments))


def affine(own, x, context, key):
    """A layer that uses all that it is given."""
    weight, is_odd = own
    y = jnp.tanh(x @ weight) * context["rows"][:, None, None] + context["all"][None]
    if key is not None:
        y += jax.random.normal(key, (D,))[None, None]
    y = jnp.where(is_odd, -y, y)
    return y, {"mean": y.mean(axis=(1, 2)), "row": context["rows"]}


def make_stack():
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 1, (L, D, D)).astype(np.float32)
    x = rng.normal(0, 1, (B, T, D)).astype(np.float32)
    context = {
        "rows": rng.uniform(1, 2, B).astype(np.float32),
        "all": rng.normal(0, 1, (T, D)).astype(np.float32),
    }
    return (weights, np.arange(L) % 2 == 1), x, context


@pytest.mark.parametrize(
    "stages,microbatches", [(1, 3), (2, 1), (2, 3), (4, 2), (4, 6)]
)
def test_is_its_layers_one_after_the_other(stages, microbatches):
    """By NumPy: row i is in microbatch i mod M; each of its layers has a key."""
    (weights, is_odd), x, context = make_stack()
    key = jax.random.key(7)
    run = functools.partial(pipeline.run, affine, microbatches=microbatches)
    found, aux = run_on(stages, run, (weights, is_odd), x, context, key)

    wanted = np.zeros((L, B, T, D))
    for row in range(B):
        own = jax.random.fold_in(key, row % microbatches)
        y = x[row]
        for layer in range(L):
            y = np.tanh(y @ weights[layer]) * context["rows"][row] + context["all"]
            y += np.asarray(jax.random.normal(jax.random.fold_in(own, layer), (D,)))
            wanted[layer, row] = y = -y if is_odd[layer] else y
    np.testing.assert_allclose(found, wanted[-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aux["mean"], wanted.mean(axis=(2, 3)), atol=1e-5)
    np.testing.assert_array_equal(aux["row"], np.tile(context["rows"], (L, 1)))


@pytest.mark.parametrize("stages", [1, 4])
def test_gradients_are_those_of_a_loop(stages):
    """Those of what says something of rows too; turns without work have none."""
    (weights, is_odd), x, context = make_stack()

    def unit(own, x, context, key):  # 0 / 0 where states are 0
        x, aux = affine(own, x, context, key)
        return x / jnp.sqrt((x**2).sum(axis=-1, keepdims=True)), aux

    def loss(apply, weights, x, context):
        y, aux = apply((weights, is_odd), x, context)
        return (y * jnp.arange(D)[None, None]).sum() + (aux["mean"] ** 3).sum()

    def loop(layers, x, context):
        means = []
        for layer in range(L):
            own = jax.tree.map(lambda leaf: leaf[layer], layers)  # noqa: B023
            x, aux = unit(own, x, context, None)
            means.append(aux["mean"])
        return x, {"mean": jnp.stack(means)}

    def pipelined(layers, x, context):
        return pipeline.run(unit, layers, x, context, None, microbatches=3)

    def gradients(apply):
        return jax.grad(functools.partial(loss, apply), argnums=(0, 1, 2))

    wanted = run_on(1, gradients(loop), weights, x, context)
    found = run_on(stages, gradients(pipelined), weights, x, context)
    assert_close(wanted, found)


def assert_close(a, b, tolerance=1e-4):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * max(1, np.abs(x).max()))


SMALL = {"vocab_size": V, "emb_dim": 8, "num_layers": 4, "num_heads": 2, "max_len": 8}
SMALL |= {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}


@functools.cache
def make(name, **options):
    """Returns a model with random parameters."""
    model = build_model(MODELS[name][0](**SMALL | options))
    abstract = jax.eval_shape(model.init, jax.random.key(0), make_batch())["params"]
    rng = np.random.default_rng(0)

    def draw(name, leaf):
        centre = 1.0 if name.endswith("scale") else 0.0
        return rng.normal(centre, 0.2, leaf.shape).astype(np.float32)

    return model, tree.map_with_names(draw, nn.unbox(abstract))


def make_batch(rows=4):
    """Rows of two documents and padding."""
    rng = np.random.default_rng(1)
    batch = {}
    for side in ("", "encoder_"):
        cut = rng.integers(2, 5, (rows, 1))
        place = np.arange(8)[None]
        segments = np.where(place < cut, 1, np.where(place < 7, 2, 0))
        batch |= {
            f"{side}inputs": rng.integers(0, V, (rows, 8)),
            f"{side}segment_ids": segments,
            f"{side}positions": np.where(place < cut, place, place - cut),
        }
    return batch | {"prefix_mask": rng.integers(0, 2, (rows, 8)) > 0}


def loss_of(model, params, batch):
    """As in training, but without dropout."""
    out, found = model.apply(
        {"params": params},
        batch,
        deterministic=False,
        rngs={"dropout": jax.random.key(0)},
        mutable=[moe.COLLECTION],
    )
    routing = moe.total(found)
    real = (batch["segment_ids"] > 0)[:, :, None]
    loss = (jnp.where(real, out.hidden, 0) ** 3).sum()
    if routing is not None:
        loss += (routing.loss * jnp.arange(1, 5)).sum()
    return loss


@pytest.mark.parametrize(
    "name,options,stages",
    [
        (
            "gpt",
            {"window": 3, "global_every": 2, "remat": "full", "num_experts": 4}
            | {"scan_unroll": 2, "expert_balance_weight": 1.0},
            2,
        ),
        ("t5", {"remat": "dots"}, 2),
    ],
)
def test_gradients_of_models_are_those_of_the_plain_stack(name, options, stages):
    plain, params = make(name, **options)
    config = dataclasses.replace(plain.config, pipeline_microbatches=2)
    model, batch = build_model(config), make_batch()

    def gradients(model):
        return jax.value_and_grad(functools.partial(loss_of, model))

    wanted = run_on(1, gradients(plain), params, batch)
    found = run_on(stages, gradients(model), params, batch)
    np.testing.assert_allclose(wanted[0], found[0], rtol=1e-5)
    assert_close(wanted[1], found[1])


def test_what_reads_and_writes_takes_any_number_of_rows():
    """Three rows are no two microbatches; with a cache there are no stages."""
    plain, params = make("gpt")
    config = dataclasses.replace(plain.config, pipeline_microbatches=2)
    model, batch = build_model(config), make_batch(3)
    prompt = {"inputs": batch["inputs"], "segment_ids": np.ones((3, 8), np.int32)}

    def use(model):
        def apply(params, batch, prompt):
            hidden = model.apply({"params": params}, batch, method="hidden")
            logits, cache = model.apply({"params": params}, prompt, 9, method="prefill")
            tokens, places = jnp.zeros(3, jnp.int32), jnp.full(3, 8)
            arguments = {"params": params}, tokens, places, cache
            return hidden, logits, model.apply(*arguments, method="step")[0]

        return apply

    assert_close(
        run_on(1, use(plain), params, batch, prompt),
        run_on(2, use(model), params, batch, prompt),
    )


def test_parameters_do_not_depend_on_microbatches():
    plain, params = make("gpt")
    model, _ = make("gpt", pipeline_microbatches=2)
    abstract = jax.eval_shape(model.init, jax.random.key(0), make_batch())["params"]
    assert tree.names(nn.unbox(abstract)) == tree.names(params)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"share_layers": True}, "set model.share_layers=False"),
        ({"scan_layers": False}, "set model.scan_layers=True"),
        ({"pipeline_microbatches": -1}, "pipeline_microbatches must be at least 0"),
    ],
)
def test_options_that_exclude_a_pipeline_are_named(options, message):
    with pytest.raises(UserError, match=message):
        MODELS["gpt"][0](**SMALL | {"pipeline_microbatches": 2} | options)


def test_layers_and_rows_that_do_not_divide_are_named():
    layers, x, context = make_stack()
    run = functools.partial(pipeline.run, affine, microbatches=2)
    with pytest.raises(UserError, match="4 layers .* set it to 1 or 2 or 4, or"):
        run_on(3, run, layers, x, context, None)
    model, params = make("gpt", pipeline_microbatches=2)
    with pytest.raises(UserError, match="the 3 rows .* set it to 3"):
        run_on(1, functools.partial(loss_of, model), params, make_batch(3))
