import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import tree
from lm.models import t5
from lm.nn.transformer import stack_layers, unstack_layers
from lm.train.optim import (
    OPTIMIZERS,
    Numbers,
    OptimConfig,
    frozen,
    make_optimizer,
    make_schedule,
)
from lm.types import UserError


def random_params(seed=0):
    """Parameters of two scanned stacks of different depth, and an embedding."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.array(rng.normal(size=shape), jnp.float32)

    def stack(layers):
        return {
            "attention": {
                "query": {"kernel": draw(layers, 128, 2, 70)},
                "out": {"kernel": draw(layers, 2, 70, 128)},
            },
            "mlp": {"wi": {"kernel": draw(layers, 128, 130)}},
            "norm": {"scale": draw(layers, 128)},
        }

    return {
        "encoder": {"layers": stack(3)},
        "decoder": {"layers": stack(2)},
        "embedding": draw(140, 128),
    }


def constant(config, params):
    """Returns the optimizer with a learning rate that does not change."""
    config = dataclasses.replace(config, schedule="constant")
    return make_optimizer(config, Numbers.of(config), params)


def rates(config, warmup_steps):
    """Returns the learning rates of 100 steps and the one after them."""
    schedule = make_schedule(config, Numbers.of(config, 100, warmup_steps))
    return np.array(jax.vmap(schedule)(jnp.arange(101)))


def updates_of(config, params, steps=3):
    optimizer = constant(config, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    updates = None
    for _ in range(steps):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    return updates, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_minimises(name):
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.0)
    params = {"layers": {"mlp": {"kernel": jnp.ones((2, 8, 8))}}, "bias": jnp.ones(8)}
    optimizer = constant(config, params)
    state = optimizer.init(params)

    def loss(params):
        return sum(jnp.square(leaf - 0.5).mean() for leaf in jax.tree.leaves(params))

    before = loss(params)
    step = jax.jit(lambda p, s: optimizer.update(jax.grad(loss)(p), s, p))
    for _ in range(40):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    assert loss(params) < 0.2 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_layers_are_updated_as_if_apart(name):
    config = OptimConfig(name=name, grad_clip_norm=0.0)
    params = random_params()
    stacked, _ = updates_of(config, params)
    apart, _ = updates_of(config, unstack_layers(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7),
        stacked,
        stack_layers(apart),
    )


def test_muon_orthogonalises_kernels_and_only_these():
    config = OptimConfig(name="muon", weight_decay=0.0, grad_clip_norm=0.0)
    updates, _ = updates_of(config, random_params(), steps=1)
    layers = updates["encoder"]["layers"]
    for kernel in (
        layers["attention"]["query"]["kernel"].reshape(3, 128, 140),
        layers["attention"]["out"]["kernel"].reshape(3, 140, 128),
        layers["mlp"]["wi"]["kernel"],
    ):
        values = np.linalg.svd(np.asarray(kernel), compute_uv=False)
        assert (values.max(axis=-1) / values.min(axis=-1) < 2.5).all()
    values = np.linalg.svd(np.asarray(updates["embedding"]), compute_uv=False)
    assert values.max() / values.min() > 5


def test_decay_acts_on_the_named_parameters():
    params = random_params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    config = OptimConfig(learning_rate=0.5, weight_decay=0.1)
    optimizer = constant(config, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    layers, before = updates["encoder"]["layers"], params["encoder"]["layers"]
    np.testing.assert_allclose(
        layers["mlp"]["wi"]["kernel"], -0.05 * before["mlp"]["wi"]["kernel"], rtol=1e-6
    )
    np.testing.assert_allclose(
        updates["embedding"], -0.05 * params["embedding"], rtol=1e-6
    )
    assert not layers["norm"]["scale"].any()


def sizes(values):
    return sum(leaf.size for leaf in jax.tree.leaves(values))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_and_cost_no_memory(name):
    params = random_params()
    config = OptimConfig(name=name, freeze=("^encoder/", "embedding"))
    updates, state = updates_of(config, params, steps=1)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["encoder"]))
    assert not updates["embedding"].any()
    assert all(leaf.any() for leaf in jax.tree.leaves(updates["decoder"]))
    trained = {"decoder": params["decoder"]}
    alone = constant(OptimConfig(name=name), trained)
    assert sizes(state) == sizes(alone.init(trained))


def test_what_is_trained_wins_over_what_is_frozen():
    params = {"backbone": random_params(), "head": {"kernel": jnp.ones((128, 3))}}
    config = OptimConfig(freeze=("^backbone/",), train=("norm/scale$",))
    stays = tree.map_with_names(
        lambda name, _: not (name.endswith("norm/scale") or name == "head/kernel"),
        params,
    )
    assert frozen(config, params) == stays
    assert not any(jax.tree.leaves(frozen(OptimConfig(), params)))
    updates, _ = updates_of(config, params, steps=1)
    moved = jax.tree.map(lambda leaf: not leaf.any(), updates)
    assert moved == stays


def test_clipping_counts_only_what_is_trained():
    params = {"a": {"kernel": jnp.full((4,), 3.0)}, "b": {"kernel": jnp.full(4, 9.0)}}
    config = OptimConfig(name="sgd", b1=0.0, learning_rate=1.0, weight_decay=0.0)
    config = dataclasses.replace(config, freeze=("^b/",))
    updates, _ = updates_of(config, params, steps=1)
    np.testing.assert_allclose(jnp.linalg.norm(updates["a"]["kernel"]), 1.0, rtol=1e-5)


def test_learning_rates_scale_by_the_first_rule_that_matches():
    params = random_params()
    config = OptimConfig(weight_decay=0.0)
    scales = ("encoder/.*norm=0", "^encoder=0.5")
    plain, _ = updates_of(config, params, steps=1)
    scaled, _ = updates_of(
        dataclasses.replace(config, lr_scales=scales), params, steps=1
    )
    layers = scaled["encoder"]["layers"]
    assert not layers["norm"]["scale"].any()
    np.testing.assert_allclose(
        layers["mlp"]["wi"]["kernel"],
        0.5 * plain["encoder"]["layers"]["mlp"]["wi"]["kernel"],
    )
    np.testing.assert_array_equal(scaled["embedding"], plain["embedding"])


def gradient_steps(config, params, gradient=1.0):
    """The update of plain gradient descent at a rate of 1."""
    config = dataclasses.replace(
        config, name="sgd", b1=0.0, learning_rate=1.0, weight_decay=0.0
    )
    config = dataclasses.replace(config, grad_clip_norm=0.0)
    optimizer = constant(config, params)
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), params)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_lower_layers_learn_at_lower_rates():
    abstract = jax.eval_shape(
        t5.Model(t5.Config(num_encoder_layers=3, num_decoder_layers=2)).init,
        jax.random.key(0),
        dict.fromkeys(("inputs", "encoder_inputs"), jnp.zeros((1, 4), jnp.int32)),
    )["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), nn.unbox(abstract))
    config = OptimConfig(layer_decay=0.5)
    updates = gradient_steps(config, params, -1.0)
    for prefix in ("base", "backbone"):
        whole = {prefix: params, "head": {"kernel": jnp.ones((128, 3))}}
        around = gradient_steps(config, whole, -1.0)
        jax.tree.map(np.testing.assert_array_equal, around[prefix], updates)
        assert (around["head"]["kernel"] == 1).all()

    def rate(part):
        found = {x for leaf in jax.tree.leaves(part) for x in np.ravel(leaf).tolist()}
        assert len(found) == 1
        return found.pop()

    for stack, depth in (("encoder", 3), ("decoder", 2)):
        layers = updates[stack]["layers"]
        for number in range(depth):
            layer = jax.tree.map(lambda leaf: leaf[number], layers)  # noqa: B023
            assert rate(layer) == 0.5 ** (depth - number)
        assert rate(updates[stack]["final_norm"]) == 1
        assert rate(updates[stack]["relative_bias"]) == 0.5**4
    assert rate(updates["embedder"]) == 0.5**4
    assert rate(updates["head"]) == 1


def test_rates_of_layers_are_those_of_looped_ones():
    config = OptimConfig(layer_decay=0.7, lr_scales=("mlp=0.5",), grad_clip_norm=0.0)
    params = random_params()
    stacked, _ = updates_of(config, params, steps=2)
    apart, _ = updates_of(config, unstack_layers(params), steps=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7),
        stacked,
        stack_layers(apart),
    )


def test_an_adapter_learns_at_the_rate_of_its_layer():
    layer = {"query": {"kernel": jnp.ones((2, 2))}}
    params = {
        "base": {f"layers_{i}": layer for i in range(3)},
        "lora": {"layers_1": {"query": {"a": jnp.ones((2, 1))}}},
    }
    updates = gradient_steps(OptimConfig(layer_decay=0.5), params)
    np.testing.assert_array_equal(updates["lora"]["layers_1"]["query"]["a"], -0.25)


@pytest.mark.parametrize(
    "field, value, cure",
    [
        ("freeze", ("no_such_name",), "matches no parameter"),
        ("freeze", (".*",), "leaves no parameter to train"),
        ("train", ("no_such_name",), "matches no parameter"),
        ("layer_decay", 1.5, "above 0 and at most 1"),
        ("layer_decay", 0.0, "above 0 and at most 1"),
        ("decay", ("(",), "no regular expression"),
        ("lr_scales", ("kernel",), "is not 'regex=factor'"),
        ("lr_scales", ("kernel=fast",), "is not 'regex=factor'"),
        ("name", "adam", "did you mean 'adamw'"),
        ("schedule", "cosin", "did you mean 'cosine'"),
        ("b1", 1.0, "less than 1"),
    ],
)
def test_a_mistake_is_named(field, value, cure):
    with pytest.raises(UserError, match=r"^optim\.|^unknown optim\.|optim\.") as caught:
        config = dataclasses.replace(OptimConfig(), **{field: value})
        constant(config, random_params())
    assert cure in str(caught.value)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "rsqrt", "constant"])
def test_schedules_rise_to_the_peak_and_then_never_rise(name):
    config = OptimConfig(schedule=name, learning_rate=2.0, final_fraction=0.25)
    rate = np.array(
        jax.vmap(make_schedule(config, Numbers.of(config, 100, 10)))(jnp.arange(101))
    )
    np.testing.assert_allclose(rate[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert (np.diff(rate[9:]) <= 1e-6).all()
    end = {"constant": 2.0, "rsqrt": 2.0 * (10 / 101) ** 0.5}.get(name, 0.5)
    np.testing.assert_allclose(rate[100], end, rtol=1e-6)


def test_wsd_falls_only_at_the_end():
    config = OptimConfig(schedule="wsd", learning_rate=1.0, decay_fraction=0.2)
    rate = np.array(
        jax.vmap(make_schedule(config, Numbers.of(config, 100, 0)))(jnp.arange(101))
    )
    assert (rate[:81] == 1).all() and rate[81] < 1


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "rsqrt", "constant"])
def test_no_warmup_begins_at_the_peak(name):
    config = OptimConfig(schedule=name, learning_rate=3.0)
    assert float(make_schedule(config, Numbers.of(config, 10, 0))(0)) == 3.0
