"""The state of a run: one frozen tree, made in place on its devices."""

import math
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lm import sharding, tree
from lm.types import Array, Params, PyTree, UserError

# Every model finds its inputs in these; parameters do not depend on the shape.
_INPUTS = {
    "inputs": jax.ShapeDtypeStruct((1, 8), jnp.int32),
    "encoder_inputs": jax.ShapeDtypeStruct((1, 8), jnp.int32),
}


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
        step: Scalar, batches read.
        params: The model's parameters, float32.
        opt_state: The optimizer's.
        ema_params: A moving average of `params`, or None.
        mean_loss: Scalar, running mean of the loss, which a spike is measured by.
        skipped: Scalar, updates skipped since the start.
        skipped_in_row: Scalar, updates skipped since the last good one.
    """

    step: Array
    params: Params
    opt_state: PyTree
    ema_params: Params | None
    mean_loss: Array
    skipped: Array
    skipped_in_row: Array

    def averaged_params(self) -> Params:
        """Returns the parameters to evaluate: the average where there is one."""
        return self.params if self.ema_params is None else self.ema_params


def abstract_params(model: nn.Module) -> PyTree:
    """Returns the parameters' shapes, boxed with their logical axes; no memory."""
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    return jax.eval_shape(model.init, key, _INPUTS)["params"]


def placed_params(
    model: nn.Module, mesh: Mesh, mesh_config: sharding.MeshConfig
) -> PyTree:
    """Returns the parameters' shapes with their shardings; no memory."""
    boxed = abstract_params(model)
    layout = sharding.param_shardings(mesh, mesh_config, boxed)
    return jax.tree.map(_placed, sharding.unbox(boxed), layout)


def init_params(model: nn.Module, seed: Array) -> Params:
    """Returns initial parameters, without their boxes."""
    inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _INPUTS)
    return nn.unbox(model.init(jax.random.key(seed), inputs)["params"])


def abstract_state(
    model: nn.Module,
    make_optimizer: Callable[[Params], optax.GradientTransformation],
    mesh: Mesh,
    mesh_config: sharding.MeshConfig,
    has_ema: bool,
) -> tuple[TrainState, optax.GradientTransformation]:
    """Returns the state as shapes with shardings, and the optimizer.

    Leaves of the optimizer's state that have a parameter's name and shape are laid
    out as that parameter; all others are replicated.
    """
    params = placed_params(model, mesh, mesh_config)
    optimizer = make_optimizer(params)
    everywhere = sharding.replicated(mesh)
    opt_state = _place_like(params, jax.eval_shape(optimizer.init, params), everywhere)

    def scalar(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((), dtype, sharding=everywhere)

    state = TrainState(
        step=scalar(jnp.int32),
        params=params,
        opt_state=opt_state,
        ema_params=params if has_ema else None,
        mean_loss=scalar(jnp.float32),
        skipped=scalar(jnp.int32),
        skipped_in_row=scalar(jnp.int32),
    )
    return state, optimizer


def _placed(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _place_like(params: PyTree, opt_state: PyTree, otherwise: Any) -> PyTree:
    """Places leaves of `opt_state` whose names end as a parameter's, of its shape."""
    placed = dict(zip(jax.tree.leaves(tree.names(params)), jax.tree.leaves(params)))

    def place(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
        keys = name.split("/")
        tails = ("/".join(keys[i:]) for i in range(len(keys)))
        like = next((placed[tail] for tail in tails if tail in placed), leaf)
        same = like.shape == leaf.shape and like is not leaf
        return _placed(leaf, like.sharding if same else otherwise)

    return tree.map_with_names(place, opt_state)


def check_memory(abstract: TrainState) -> None:
    """Raises a UserError if a device cannot hold its part of the state.

    The devices of a CPU are counted together, against the machine's memory.
    """
    device = jax.local_devices()[0]
    needed = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    if device.platform == "cpu":
        needed *= jax.local_device_count()
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit and needed > limit:
        raise UserError(
            f"the state of the run takes {needed / 1e9:,.1f} GB and there are "
            f"{limit / 1e9:,.1f} GB; make the model smaller, or shard it over more "
            "devices with mesh.fsdp"
        )


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
) -> Callable[[Array, dict[str, Array]], TrainState]:
    """Returns `(seed, given) -> state`, each leaf on the devices where it stays.

    Parameters that are given, by their names, are not made but taken over.
    """

    def init(seed: Array, given: dict[str, Array]) -> TrainState:
        params = tree.map_with_names(
            lambda name, leaf: given.get(name, leaf), init_params(model, seed)
        )
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            params=params,
            opt_state=optimizer.init(params),
            ema_params=None if abstract.ema_params is None else params,
            mean_loss=jnp.zeros((), jnp.float32),
            skipped=zero,
            skipped_in_row=zero,
        )

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(init, out_shardings=shardings, donate_argnums=1)
