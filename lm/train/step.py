"""One step of training: a pure function of the state and a batch."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lm.metrics import Mean, Metrics
from lm.tasks import Predictive, Task
from lm.train.config import Config
from lm.train.optim import Numbers, frozen, make_optimizer, make_schedule
from lm.train.state import TrainState
from lm.types import Array, Batch, Params

Step = Callable[[TrainState, Batch, Numbers], tuple[TrainState, Metrics]]

# Of the running mean of the loss that a spike is measured by.
MEAN_LOSS_DECAY = 0.98


def make_train_step(
    config: Config,
    model: nn.Module,
    task: Task,
) -> Step:
    """Returns `(state, batch, numbers) -> (state, metrics)`.

    Frozen parameters have no gradient. A step whose loss, gradient or update is not
    finite, or whose loss spikes, leaves parameters and optimizer as they were and is
    counted. What `Numbers` has is not read from the config.
    """

    def objective(params: Params, batch: Batch, rng: Array) -> tuple[Array, Metrics]:
        # XLA leaves out what only the gradients of frozen ones need.
        params = jax.tree.map(
            lambda x, stays: jax.lax.stop_gradient(x) if stays else x,
            params,
            frozen(config.optimizer, params),
        )
        return task.loss(model, params, batch, rng)

    def train_step(
        state: TrainState, batch: Batch, numbers: Numbers
    ) -> tuple[TrainState, Metrics]:
        optimizer = make_optimizer(config.optimizer, numbers, state.params)
        schedule = make_schedule(config.optim, numbers)
        rng = jax.random.fold_in(jax.random.key(numbers.seed), state.step)
        grads, metrics = accumulate(
            jax.grad(objective, has_aux=True),
            state.params,
            batch,
            rng,
            config.grad_accum_steps,
        )
        total, weight = metrics["loss"]
        weight = jnp.maximum(weight, 1)
        grads = jax.tree.map(lambda g: g / weight, grads)
        loss, grad_norm = total / weight, optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        update_norm = optax.tree.norm(updates)
        finite = jnp.isfinite(jnp.stack([loss, grad_norm, update_norm])).all()
        good = finite & ~_spikes(config, state, loss)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            rate = 1 - config.optim.ema_decay
            ema_params = optax.incremental_update(params, ema_params, rate)
        # One tree of choices: what is kept of a bad step is nothing.
        params, opt_state, ema_params, mean_loss = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state, ema_params, _mean_loss(state, loss)),
            (state.params, state.opt_state, state.ema_params, state.mean_loss),
        )
        bad = (~good).astype(jnp.int32)
        one = jnp.ones(())
        metrics = dict(metrics) | {
            "optim/grad_norm": Mean(grad_norm, one),
            "optim/update_norm": Mean(update_norm, one),
        }
        # A step that was not taken has no part in the means.
        metrics = jax.tree.map(lambda x: jnp.where(good, x, 0), metrics) | {
            "optim/param_norm": Mean(optax.tree.norm(params), one),
            "optim/learning_rate": Mean(schedule(state.step - state.skipped), one),
            "optim/skipped": Mean(state.skipped + bad, one),
            "optim/skipped_in_row": Mean((state.skipped_in_row + 1) * bad, one),
        }
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=ema_params,
            mean_loss=mean_loss,
            skipped=state.skipped + bad,
            skipped_in_row=(state.skipped_in_row + 1) * bad,
        )
        return state, metrics

    return train_step


def make_eval_step(
    model: nn.Module, task: Task
) -> Callable[[Params, Batch], tuple[Metrics, Batch]]:
    """Returns `(params, batch) -> (metrics, predictions)`, without dropout.

    A task that does not predict has no predictions.
    """

    def eval_step(params: Params, batch: Batch) -> tuple[Metrics, Batch]:
        _, metrics = task.loss(model, params, batch, None)
        if isinstance(task, Predictive):
            return metrics, task.predict(model, params, batch)
        return metrics, {}

    return eval_step


def accumulate(
    grad_fn: Callable, params: Params, batch: Batch, rng: Array, parts: int
) -> tuple[Params, Metrics]:
    """Sums gradients and metrics over `parts` of a batch, one after the other.

    Objectives are sums over tokens, so the sum of the parts' gradients is the whole
    batch's whatever number of tokens each part has.
    """
    if parts == 1:
        return grad_fn(params, batch, rng)

    def split(x: Array) -> Array:
        # Part i has rows i, i + parts, …: each device keeps the rows that it has.
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(sums, part):
        index, microbatch = part
        new = grad_fn(params, microbatch, jax.random.fold_in(rng, index))
        return jax.tree.map(jnp.add, sums, new), None

    parts_of = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], parts_of)
    shapes = jax.eval_shape(grad_fn, params, first, rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(parts), parts_of))[0]


def _spikes(config: Config, state: TrainState, loss: Array) -> Array:
    guard = config.guard
    if not guard.spike_ratio:
        return jnp.zeros((), bool)
    trusted = state.step >= guard.spike_warmup
    return trusted & (loss > guard.spike_ratio * state.mean_loss)


def _mean_loss(state: TrainState, loss: Array) -> Array:
    is_first = state.step == state.skipped  # none before it was good
    decay = jnp.where(is_first, 0.0, MEAN_LOSS_DECAY)
    return decay * state.mean_loss + (1 - decay) * loss
