"""Laws of low-rank adaptation."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import sharding, tree
from lm.adapt.lora import FROZEN, Adapted, LoraConfig, adapt, merge
from lm.models import MODELS, build_model
from lm.nn.heads import PooledHead
from lm.nn.losses import cross_entropy
from lm.nn.transformer import stack_layers, unstack_layers
from lm.train.optim import Numbers, OptimConfig, frozen, make_optimizer
from lm.train.state import placed_params
from lm.types import UserError

B, T, V, L, D, N, RANK = 8, 8, 24, 2, 16, 4, 3

SMALL = {"vocab_size": V, "emb_dim": D, "num_layers": L, "num_heads": N, "max_len": T}
SMALL |= {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}

EVERY = LoraConfig(rank=RANK, targets=("kernel$",))
OPTIM = OptimConfig(freeze=(FROZEN,), schedule="constant")

with_models = pytest.mark.parametrize(
    "name, scan", [("gpt", True), ("gpt", False), ("t5", True), ("headed", True)]
)


def make_model(name, scan=True, **options):
    kind = "bert" if name == "headed" else name
    config = MODELS[kind][0](**SMALL | options, scan_layers=scan)
    model = build_model(config)
    return PooledHead(model, num_outputs=3) if name == "headed" else model


def make_batch():
    ids = np.random.default_rng(1).integers(0, V, (2, B, T), np.int32)
    return {"inputs": ids[0], "encoder_inputs": ids[1]}


@functools.cache
def abstract(model):
    return jax.eval_shape(model.init, jax.random.key(0), make_batch())["params"]


def draw(model):
    """Random parameters, so that B is not zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype),
        sharding.unbox(abstract(model)),
    )


@functools.partial(jax.jit, static_argnums=0)
def start(model):
    return nn.unbox(model.init(jax.random.key(0), make_batch()))["params"]


def outputs(out):
    return out if isinstance(out, jax.Array) else out.logits.dense()


def run(model, params):
    apply = jax.jit(lambda p, b: outputs(model.apply({"params": p}, b)))
    return apply(params, make_batch())


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


@with_models
def test_an_adapted_model_begins_as_the_model(name, scan):
    model = make_model(name, scan)
    params, adapted = start(model), start(Adapted(model, EVERY))
    plain = merge(adapted, EVERY)
    assert tree.names(plain) == tree.names(params)
    jax.tree.map(np.testing.assert_array_equal, plain, params)
    np.testing.assert_array_equal(
        run(Adapted(model, EVERY), adapted), run(model, params)
    )
    factors = {"a": True, "b": False}
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapted["lora"]):
        assert leaf.any() == factors[path[-1].key]


@with_models
def test_merged_parameters_give_the_same_to_the_model(name, scan):
    model = make_model(name, scan)
    adapted = Adapted(model, EVERY)
    params = jax.device_get(draw(adapted))
    before = jax.tree.map(np.copy, params)
    found = run(adapted, params)
    np.testing.assert_allclose(
        run(model, merge(params, EVERY)), found, rtol=1e-5, atol=1e-5
    )
    jax.tree.map(np.testing.assert_array_equal, params, before)
    without = params | {"lora": jax.tree.map(jnp.zeros_like, params["lora"])}
    assert np.abs(run(adapted, without) - found).max() > 1e-2


def test_a_kernel_changes_by_the_product_over_its_axes():
    adapted = Adapted(make_model("gpt"), EVERY)
    params = draw(adapted)
    before = params["base"]["decoder"]["layers"]
    after = merge(params, EVERY)["decoder"]["layers"]
    lora = params["lora"]["decoder"]["layers"]
    for block, name, product in (
        ("attention", "query", "ldr,lrnh->ldnh"),
        ("attention", "value", "ldr,lrnh->ldnh"),
        ("attention", "out", "lnhr,lrd->lnhd"),
        ("mlp", "wo", "lfr,lrd->lfd"),
    ):
        factors = lora[block][name]
        change = jnp.einsum(product, factors["a"], factors["b"]) * 16 / RANK
        np.testing.assert_allclose(
            after[block][name]["kernel"],
            before[block][name]["kernel"] + change,
            rtol=1e-5,
            atol=1e-5,
        )
    scale = after["attn_norm"]["scale"]
    np.testing.assert_array_equal(scale, before["attn_norm"]["scale"])


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_scan_is_loop(name):
    scanned, looped = (Adapted(make_model(name, s), EVERY) for s in (True, False))
    params = draw(scanned)
    loose = unstack_layers(params)
    assert tree.names(sharding.unbox(abstract(looped))) == tree.names(loose)
    np.testing.assert_allclose(
        run(scanned, params), run(looped, loose), rtol=1e-4, atol=1e-4
    )
    assert_close(stack_layers(merge(loose, EVERY)), merge(params, EVERY))


@pytest.mark.parametrize("scan", [True, False])
def test_an_adapter_has_rank_times_fan_in_and_fan_out(scan):
    params = sharding.unbox(abstract(Adapted(make_model("gpt", scan), EVERY)))
    fans = [(D, D)] * 4 + [(D, 4 * D)] * 2  # query, key, value, out; wi, wo
    expected = RANK * sum(fan_in + fan_out for fan_in, fan_out in fans) * L
    assert tree.count(params["lora"]) == expected
    stays = frozen(OPTIM, params)
    trained = jax.tree.map(lambda leaf, stay: None if stay else leaf, params, stays)
    assert tree.count(trained) == expected


def test_a_head_is_trained_whole_and_the_backbone_alone_adapted():
    params = abstract(Adapted(make_model("headed"), LoraConfig(rank=RANK)))
    assert set(params) == {"base", "lora", "head"}
    assert set(params["base"]) == set(params["lora"]) == {"backbone"}
    attention = params["lora"]["backbone"]["encoder"]["layers"]["attention"]
    assert set(attention) == {"query", "value"}
    stays = frozen(OPTIM, sharding.unbox(params))
    assert [name for name, part in stays.items() if any(jax.tree.leaves(part))] == [
        "base"
    ]


def test_factors_have_the_axes_of_their_kernel():
    lora = abstract(Adapted(make_model("gpt"), EVERY))["lora"]["decoder"]["layers"]
    names = jax.tree.map(
        lambda box: box.names, lora, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )
    assert names["attention"]["query"] == {
        "a": ("layers", "embed", None),
        "b": ("layers", None, "heads", "head_dim"),
    }
    assert names["attention"]["out"] == {
        "a": ("layers", "heads", "head_dim", None),
        "b": ("layers", None, "embed"),
    }
    assert names["mlp"]["wi"] == {
        "a": ("layers", "embed", None),
        "b": ("layers", None, "mlp"),
    }


def loss_of(model, config=OPTIM):
    """The mean loss of next tokens as a function of parameters, some frozen."""

    def loss(params, batch):
        params = jax.tree.map(
            lambda leaf, stay: jax.lax.stop_gradient(leaf) if stay else leaf,
            params,
            frozen(config, params),
        )
        logits = model.apply({"params": params}, batch).logits
        targets = jnp.roll(batch["inputs"], -1, axis=1)
        return cross_entropy(logits, targets, jnp.ones((B, T))).objective / (B * T)

    return loss


def test_gradients_of_the_base_are_not_computed():
    model = Adapted(make_model("gpt"), LoraConfig(rank=RANK))
    params, batch = draw(model), make_batch()

    def compiled(config):
        gradient = jax.jit(jax.grad(loss_of(model, config)))
        return gradient.lower(params, batch).compile()

    some, every = compiled(OPTIM), compiled(OptimConfig())
    assert some.cost_analysis()["flops"] < 0.8 * every.cost_analysis()["flops"]
    found, full = some(params, batch), every(params, batch)
    assert not any(leaf.any() for leaf in jax.tree.leaves(found["base"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(found["lora"]))
    assert_close(found["lora"], full["lora"])


def train(model, params, config, steps):
    """Returns the losses of some steps of training, and the parameters after them."""
    optimizer = make_optimizer(config, Numbers.of(config), params)

    @jax.jit
    def step(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_of(model, config))(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = jax.jit(optimizer.init)(params), []
    for _ in range(steps):
        params, opt_state, loss = step(params, opt_state, make_batch())
        losses.append(float(loss))
    return losses, params


def test_training_lowers_the_loss_and_leaves_the_base():
    model = Adapted(make_model("gpt", embed_stddev=1.0), EVERY)
    before = start(model)
    config = dataclasses.replace(OPTIM, learning_rate=3e-2)
    losses, after = train(model, before, config, steps=20)
    assert losses[-1] < 0.7 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, after["base"], before["base"])
    for leaf, old in zip(
        jax.tree.leaves(after["lora"]), jax.tree.leaves(before["lora"])
    ):
        assert (leaf != old).any()


def test_eight_devices_are_one():
    model = Adapted(make_model("gpt"), EVERY)
    params = draw(model)
    config = dataclasses.replace(OPTIM, name="sgd", learning_rate=0.1)
    alone, expected = train(model, params, config, steps=3)
    mesh_config = sharding.MeshConfig(data=2, fsdp=2, tensor=2)
    mesh = sharding.build_mesh(mesh_config)
    with sharding.use(mesh, mesh_config):
        layout = placed_params(model, mesh, mesh_config)
        spread = jax.tree.map(
            lambda leaf, where: jax.device_put(leaf, where.sharding), params, layout
        )
        losses, found = train(model, spread, config, steps=3)
        merged = jax.jit(lambda p: merge(p, EVERY))(found)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    assert_close(found, expected)
    assert_close(merged, merge(expected, EVERY))
    query = spread["lora"]["decoder"]["layers"]["attention"]["query"]
    assert {query[factor].sharding.spec for factor in "ab"} == {
        jax.P("pipeline", "fsdp", None),
        jax.P("pipeline", None, "tensor", None),
    }


def test_methods_and_dropout_are_those_of_the_model():
    model = make_model("gpt", dropout_rate=0.5)
    adapted = Adapted(model, EVERY)
    params = draw(adapted)
    plain, batch = merge(params, EVERY), make_batch()
    keywords = {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}}
    for options in (keywords, {"method": "hidden"}):

        def first(model, params, options=options):
            apply = jax.jit(lambda p: model.apply({"params": p}, batch, **options))
            return jax.tree.leaves(apply(params))[0]

        np.testing.assert_allclose(
            first(adapted, params), first(model, plain), rtol=1e-4, atol=1e-4
        )


def test_without_a_rank_there_are_no_adapters():
    model = make_model("gpt")
    params = sharding.unbox(abstract(model))
    assert adapt(model, LoraConfig()) is model
    assert merge(params, LoraConfig()) is params
    assert adapt(model, EVERY) == Adapted(model, EVERY)


@pytest.mark.parametrize(
    "field, value, cure",
    [
        ("rank", -1, "at least 0"),
        ("alpha", 0.0, "above 0"),
        ("alpha", float("nan"), "above 0"),
        ("targets", (), "set lora.rank=0"),
        ("targets", ("embedding",), "matches no parameter"),
        ("targets", ("(",), "no regular expression"),
    ],
)
def test_a_mistake_is_named(field, value, cure):
    with pytest.raises(UserError, match=r"^lora\.") as caught:
        config = dataclasses.replace(EVERY, **{field: value})
        abstract(Adapted(make_model("gpt"), config))
    assert cure in str(caught.value)
