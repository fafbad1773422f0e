"""Laws of the training step, on eight devices and on one."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import metrics as metrics_lib
from lm import sharding, tree
from lm.sharding import MeshConfig
from lm.text import tokenizers
from lm.train import loop
from lm.train.config import GuardConfig
from lm.train.evaluation import put
from lm.train.loop import build, build_batches
from lm.train.optim import OptimConfig, make_schedule
from lm.types import UserError

# Its updates are as near to each other as gradients are. Adam's are not, where a
# gradient is next to nothing.
SGD = OptimConfig(name="sgd", learning_rate=0.3)

ONE = tuple(jax.devices()[:1])


@functools.cache
def built(config, devices):
    """Compiles each config once."""
    run = build(config, tokenizers.load(Path(config.data.tokenizer)), devices)
    return run, build_batches(run)


def run_steps(config, steps=3, devices=None, change_batch=None):
    """Returns the metrics of some steps and the state after them, on the host."""
    run, batches = built(config, devices)
    metrics = []
    with sharding.use(run.mesh, config.mesh):
        state = run.init()
        for number in range(steps):
            batch = batches.batch(number)
            if change_batch:
                batch = change_batch(number, batch)
            state, found = run.train_step(state, put(run.mesh, batch))
            metrics.append(metrics_lib.compute(jax.device_get(found)))
        return metrics, jax.device_get(state), state


def assert_same(a, b, rtol=2e-4, atol=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def losses(metrics):
    return [m["loss"] for m in metrics]


def test_runs_that_differ_in_numbers_share_their_program(make_config):
    config = make_config(optim=OptimConfig(schedule="linear"))
    optim = dataclasses.replace(
        config.optim, learning_rate=0.02, weight_decay=0.5, final_fraction=0.9
    )
    other = dataclasses.replace(
        config, optim=optim, seed=5, num_train_steps=3, warmup_steps=1
    )
    runs = {config: run_steps(config)[0], other: run_steps(other)[0]}
    steps = [built(config, None)[0].jitted_step for config in runs]
    assert steps[0] is steps[1] and steps[0]._cache_size() == 1
    for config, metrics in runs.items():
        loop._build.cache_clear()
        built.cache_clear()
        assert losses(run_steps(config)[0]) == losses(metrics)
        schedule = make_schedule(config.optim, config.numbers)
        assert [m["optim/learning_rate"] for m in metrics] == [
            pytest.approx(float(schedule(step))) for step in range(3)
        ]
    first, second = runs.values()
    assert losses(first) != losses(second)


@pytest.mark.parametrize(
    "kind",
    ["gpt", "bert", "t5", "textcnn", "gated_cnn", "rnn", "birnn", "seq2seq"],
)
def test_eight_devices_are_one(make_config, kind):
    config = make_config(kind, optim=SGD)
    alone, state_alone, _ = run_steps(config, devices=ONE)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    many, state_many, placed = run_steps(dataclasses.replace(config, mesh=mesh))
    np.testing.assert_allclose(losses(alone), losses(many), rtol=1e-5)
    assert_same(state_alone.params, state_many.params)
    kernels = jax.tree_util.tree_leaves_with_path(placed.params)
    spread = [k for k, v in kernels if not v.sharding.is_fully_replicated]
    assert len(spread) >= 6


def test_fully_sharded_state_is_an_eighth_on_each_device(make_config):
    config = make_config(mesh=MeshConfig(data=1, fsdp=8))
    _, _, state = run_steps(config, steps=1)
    matrices = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if tree.name_of(path).endswith(("kernel", "embedding")):
            assert leaf.addressable_shards[0].data.size * 8 == leaf.size
            matrices += 1
    # Parameters and both moments; norms and counters are replicated.
    assert matrices == 3 * (6 + 1)


@pytest.mark.parametrize("kind", ["gpt", "bert", "t5"])
def test_accumulated_parts_are_the_whole_batch(make_config, kind):
    """Although the parts have unequal numbers of tokens. Without dropout."""
    config = make_config(kind, optim=SGD)
    model = dataclasses.replace(
        config.model, dropout_rate=0.0, attention_dropout_rate=0.0
    )
    config = dataclasses.replace(config, model=model)

    def thin(number, batch):
        batch = dict(batch)
        mask = batch["loss_mask"].copy()
        mask[::2, 1:] = 0
        return batch | {"loss_mask": mask}

    whole, state, _ = run_steps(config, devices=ONE, change_batch=thin)
    parts = dataclasses.replace(config, grad_accum_steps=4)
    summed, state_of_parts, _ = run_steps(parts, devices=ONE, change_batch=thin)
    np.testing.assert_allclose(losses(whole), losses(summed), rtol=1e-5)
    assert_same(state.params, state_of_parts.params)


def test_same_seed_same_run_and_another_seed_another(make_config):
    config = make_config()
    first, state, _ = run_steps(config)
    again, state_again, _ = run_steps(config)
    assert losses(first) == losses(again)
    jax.tree.map(np.testing.assert_array_equal, state.params, state_again.params)
    other, _, _ = run_steps(dataclasses.replace(config, seed=1))
    assert losses(first) != losses(other)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(make_config):
    config = make_config(optim=OptimConfig(ema_decay=0.9))

    def poison(number, batch):
        mask = batch["loss_mask"] * (np.nan if number == 1 else 1)
        return dict(batch) | {"loss_mask": mask}

    _, before, _ = run_steps(config, steps=1)
    metrics, after, _ = run_steps(config, steps=2, change_batch=poison)
    assert np.isnan(metrics[1]["loss"]) and metrics[1]["optim/skipped"] == 1
    for part in ("params", "opt_state", "ema_params", "mean_loss"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(before, part), getattr(after, part)
        )
    assert (after.step, after.skipped, after.skipped_in_row) == (2, 1, 1)
    metrics, after, _ = run_steps(config, steps=3, change_batch=poison)
    assert all(np.isfinite(list(metrics[2].values())))
    assert (after.step, after.skipped, after.skipped_in_row) == (3, 1, 0)
    assert np.isfinite(metrics[2]["loss"])


def test_an_update_that_is_not_finite_is_not_made(make_config):
    """A gradient may be fine and what the optimizer makes of it may not."""
    optim = OptimConfig(name="sgd", learning_rate=3e38, grad_clip_norm=0.0)
    config = make_config(optim=optim, warmup_steps=0)
    metrics, after, _ = run_steps(config, steps=3)
    _, before, _ = run_steps(config, steps=0)
    assert [step["optim/skipped"] for step in metrics] == [1, 2, 3]
    assert_same(after.params, before.params)


def test_the_running_mean_begins_at_the_first_good_step(make_config):
    def poison(number, batch):
        mask = batch["loss_mask"] * (np.nan if number == 0 else 1)
        return dict(batch) | {"loss_mask": mask}

    metrics, state, _ = run_steps(make_config(), steps=2, change_batch=poison)
    np.testing.assert_allclose(state.mean_loss, metrics[1]["loss"], rtol=1e-5)


def test_a_spike_is_skipped_once_the_mean_is_trusted(make_config):
    def swap(number, batch):
        if number != 4:
            return batch
        return dict(batch) | {"targets": 255 - np.asarray(batch["targets"]) % 250}

    guard = GuardConfig(spike_ratio=1.05, spike_warmup=3)
    config = make_config(optim=OptimConfig(learning_rate=3e-2), guard=guard)
    metrics, state, _ = run_steps(config, steps=5, change_batch=swap)
    assert [m["optim/skipped"] for m in metrics] == [0, 0, 0, 0, 1]
    off = dataclasses.replace(config, guard=GuardConfig(spike_ratio=0.0))
    metrics, state, _ = run_steps(off, steps=5, change_batch=swap)
    assert state.skipped == 0


def test_the_average_follows_its_formula(make_config):
    config = make_config(optim=OptimConfig(ema_decay=0.75))
    averages = None
    for steps in range(3):
        _, state, _ = run_steps(config, steps=steps)
        if averages is None:
            averages = state.params
        else:
            averages = jax.tree.map(
                lambda a, p: 0.75 * a + 0.25 * p, averages, state.params
            )
        assert_same(state.ema_params, averages, rtol=1e-5, atol=1e-7)


def test_padded_rows_weigh_nothing(make_config):
    config = make_config(optim=SGD)

    def pad(number, batch):
        mask = np.ones(8, np.float32)
        mask[5:] = 0
        return dict(batch) | {"example_mask": mask}

    def pad_and_spoil(number, batch):
        batch = pad(number, batch)
        spoiled = {name: np.array(batch[name]) for name in ("inputs", "targets")}
        for values in spoiled.values():
            values[5:] = 7
        return batch | spoiled

    padded, state, _ = run_steps(config, steps=2, change_batch=pad)
    spoiled, state_spoiled, _ = run_steps(config, steps=2, change_batch=pad_and_spoil)
    np.testing.assert_allclose(losses(padded), losses(spoiled), rtol=1e-6)
    assert_same(state.params, state_spoiled.params, rtol=1e-5, atol=1e-6)


def test_a_batch_that_does_not_divide_is_named(make_config):
    config = make_config(batch_size=6)
    with pytest.raises(UserError, match="batch_size .* is 6, .* over 8 devices"):
        build(config, tokenizers.load(Path(config.data.tokenizer)))


def test_bfloat16_learns_like_float32(make_config):
    config = make_config()
    model = dataclasses.replace(config.model, dtype="bfloat16")
    exact, _, _ = run_steps(config, steps=4)
    rounded, _, placed = run_steps(dataclasses.replace(config, model=model), steps=4)
    np.testing.assert_allclose(losses(exact), losses(rounded), rtol=2e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(placed.params)} == {
        jnp.dtype("float32")
    }
