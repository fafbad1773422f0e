"""Pipeline parallelism: stages of a stack, each on its devices, work at the same time.

A batch is cut into M microbatches, and the L layers into S stages, over the mesh axis
`pipeline`. At every turn each stage runs its layers on the microbatch that it holds and
hands it on to the next (GPipe, Huang et al. 2019, https://arxiv.org/abs/1811.06965,
section 2). All of it is one program, a map over the stages whose states are rolled by
one place (GSPMD, Xu et al. 2021, https://arxiv.org/abs/2105.04663, section 3.3), of
which XLA makes a collective permute; the backward pass is its derivative.

M is the config's and not the mesh's: one device computes the same losses. The first and
the last S - 1 turns leave stages without work, `bubble` of the time. Embedding and head
are computed by all stages alike, unless `mesh.rules` has `vocab=tensor+pipeline`, which
splits them over the stages. XLA sums the gradients of a stage over `data` at every turn
and not once, and gathers its kernels over `fsdp` as often: fewer, larger microbatches
send less, but have the larger bubble.

Axes: B batch, b rows of a microbatch, T time, D emb_dim, L layers, S stages, M
microbatches.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.nn.base import ModelConfig
from lm.sharding import batch_axes, divisors, parts
from lm.types import Array, PyTree, UserError

AXIS = "pipeline"


def bubble(stages: int, microbatches: int) -> float:
    """Returns the share of the time in which a stage has no work.

    Huang et al. (2019), section 2.3.

    >>> bubble(stages=4, microbatches=12)
    0.2
    """
    return (stages - 1) / (microbatches + stages - 1)


def describe(stages: int, microbatches: int) -> str:
    """Says what a pipeline costs.

    >>> describe(stages=4, microbatches=12)
    '4 stages and 12 microbatches, so that a stage waits 20% of the time'
    """
    return (
        f"{stages} stages and {microbatches} microbatches, so that a stage waits "
        f"{bubble(stages, microbatches):.0%} of the time"
    )


def check(model: ModelConfig, rows: int, stages: int) -> None:
    """Checks what a run asks for, before it begins.

    Args:
        model: The config.
        rows: Of a forward pass in training, of those devices that share them.
        stages: Of the mesh.

    Raises:
        UserError: If the model has no stages, there are stages but no microbatches, or
            the rows do not divide into these.
    """
    microbatches = getattr(model, "pipeline_microbatches", None)
    if microbatches is None:
        if stages > 1:
            raise UserError(
                f"model.name {model.name!r} has no pipeline; set mesh.pipeline=1"
            )
        return
    fitting = " or ".join(map(str, divisors(rows)[1:]))
    cure = f"set it to {fitting}" if fitting else "raise batch_size"
    if stages > 1 and microbatches < 2:
        raise UserError(
            f"mesh.pipeline={stages} works on microbatches, and "
            f"model.pipeline_microbatches is {microbatches}; {cure}"
        )
    if rows % max(microbatches, 1):
        raise UserError(
            f"the {rows} rows that a device is given at a time do not divide into "
            f"model.pipeline_microbatches={microbatches}; {cure}"
        )


def choose(model: ModelConfig, rows: int, deterministic: bool) -> int:
    """Returns M for a stack on the current mesh; 0 means that there is no pipeline.

    Without dropout nothing depends on M: on one stage there is then no pipeline, and on
    several M is the largest number that divides both the config's and the rows.

    Args:
        model: The config.
        rows: B.
        deterministic: Whether dropout is off.

    Raises:
        UserError: As `check`.
    """
    microbatches = getattr(model, "pipeline_microbatches", 0)
    stages = _stages()
    if stages == 1 and microbatches < 2:
        return 0  # where rows may be of any number, as in what is exported
    shards = math.gcd(rows, parts("batch"))
    if deterministic:
        pipelines = stages > 1 and microbatches > 1
        return math.gcd(microbatches, rows // shards) if pipelines else 0
    check(model, rows // shards, stages)
    return microbatches if microbatches > 1 else 0


def run(
    layer: Callable[[PyTree, Array, PyTree, Array | None], tuple[Array, PyTree]],
    layers: PyTree,
    x: Array,
    context: PyTree,
    rng: Array | None,
    *,
    microbatches: int,
    unroll: int = 1,
) -> tuple[Array, PyTree]:
    """Runs a stack in microbatches, on as many stages as the current mesh has.

    Args:
        layer: `(of layers, x [b, T, D], context, key) -> (x, aux)`, one layer; `aux`
            has leaves [b, …].
        layers: What layers have each of their own, leaves [L, …].
        x: [B, T, D].
        context: Leaves [B, …] are of the rows, and go with them from stage to stage;
            others are of all rows.
        rng: A key, of which each layer and microbatch has one of its own; or None.
        microbatches: M.
        unroll: Layers that are compiled side by side.

    Returns:
        x [B, T, D], and `aux`, leaves [L, B, …].

    Raises:
        UserError: If the layers do not divide into stages.
    """
    M, S, B = microbatches, _stages(), x.shape[0]
    L = jax.tree.leaves(layers)[0].shape[0]
    if L % S:
        fitting = " or ".join(map(str, divisors(L)))
        raise UserError(
            f"{L} layers do not divide into mesh.pipeline={S} stages; set it to "
            f"{fitting}, or change the number of layers"
        )
    leaves, structure = jax.tree.flatten(context)
    moves = [leaf.shape[:1] == (B,) for leaf in leaves]
    stages, turns = jnp.arange(S), jnp.arange(M + S - 1)

    def run_stage(own, microbatch, moving, shared) -> tuple[Array, PyTree]:
        x, *rows = moving
        rows, shared = iter(rows), iter(shared)
        context = structure.unflatten([next(rows if m else shared) for m in moves])
        key = None if rng is None else jax.random.fold_in(rng, microbatch)

        def body(x: Array, one: Any) -> tuple[Array, PyTree]:
            number, layer_own = one
            layer_key = None if key is None else jax.random.fold_in(key, number)
            return layer(layer_own, x, context, layer_key)

        return jax.lax.scan(body, x, own, unroll=min(unroll, L // S))

    run_stages = jax.vmap(run_stage, spmd_axis_name=AXIS if S > 1 else None)
    own = jax.tree.map(lambda leaf: _split(leaf, S), (jnp.arange(L), layers))
    # Each stage has a copy of what is shared, so that it sums a gradient of its own.
    shared = [_copies(leaf, S) for leaf, m in zip(leaves, moves) if not m]
    moving = [x, *(leaf for leaf, m in zip(leaves, moves) if m)]
    entering = [_enter(leaf, M, S) for leaf in moving]

    def turn(held: list[Array], this: Any) -> tuple[list[Array], Any]:
        number, new = this
        _, *rows = held = [_hand_on(*pair) for pair in zip(held, new)]
        x, aux = run_stages(own, number - stages, held, shared)
        x = _lay(x, AXIS, batch_axes())
        return [x, *rows], (x, aux)

    _, (x, aux) = jax.lax.scan(turn, [v[0] for v in entering], (turns, entering))
    return _leave(x, M, S), jax.tree.map(lambda leaf: _collect(leaf, M), aux)


def _enter(leaf: Array, M: int, S: int) -> Array:
    """Maps [B, …] to [M + S - 1, S, b, …], what the first stage is given at each turn.

    As in gradient accumulation, microbatch i has rows i, i + M, …, so that each device
    keeps its own. A stage without work repeats a microbatch: that is of no account, but
    zeros could become NaN in it, and then in the gradient. Each stage has a copy, so
    that gradients are summed over stages once and not at every turn.
    """
    leaf = leaf.reshape(-1, M, *leaf.shape[1:]).swapaxes(0, 1)
    leaf = _lay(leaf, None, batch_axes())
    leaf = jnp.concatenate([leaf, *[leaf[-1:]] * (S - 1)])
    leaf = jnp.broadcast_to(leaf[:, None], (M + S - 1, S, *leaf.shape[1:]))
    return _lay(leaf, None, AXIS, batch_axes())


def _split(leaf: Array, S: int) -> Array:
    """Maps [L, …] to [S, L / S, …]."""
    return _lay(leaf.reshape(S, -1, *leaf.shape[1:]), AXIS)


def _copies(leaf: Array, S: int) -> Array:
    """Maps […] to [S, …]."""
    return _lay(jnp.broadcast_to(leaf, (S, *leaf.shape)), AXIS)


def _hand_on(held: Array, new: Array) -> Array:
    """Gives each stage what the one before it held [S, …], and the first what is new.

    A shift is a roll without the way from the last stage to the first.
    """
    shift = [(1, -1, 0)] + [(0, 0, 0)] * (held.ndim - 1)
    shifted = jax.lax.pad(held, jnp.zeros((), held.dtype), shift)
    is_first = jnp.arange(len(held)).reshape(-1, *[1] * (held.ndim - 1)) == 0
    return _lay(jnp.where(is_first, new, shifted), AXIS, batch_axes())


def _leave(x: Array, M: int, S: int) -> Array:
    """Maps [M + S - 1, S, b, …] to [B, …], what the last stage made of microbatches.

    A sum of one number and zeros is an all-reduce; a slice could gather all.
    """
    is_last = jnp.arange(S).reshape(1, S, *[1] * (x.ndim - 2)) == S - 1
    x = jnp.where(is_last, x[-M:], 0).sum(axis=1).swapaxes(0, 1)
    return _lay(x.reshape(-1, *x.shape[2:]), batch_axes())


def _collect(leaf: Array, M: int) -> Array:
    """Maps [M + S - 1, S, L / S, b, …] to [L, B, …]; leaves out turns without work."""

    def of_stage(leaf: Array, stage: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(leaf, stage, M)

    S, layers, b = leaf.shape[1:4]
    found = jax.vmap(of_stage, (1, 0))(leaf, jnp.arange(S))
    rows = jnp.moveaxis(found, 1, 3)  # [S, L / S, b, M, …]
    return rows.reshape(S * layers, b * M, *rows.shape[4:])


def _stages() -> int:
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def _lay(x: Array, *axes: Any) -> Array:
    """Lays the first axes over mesh axes, and leaves the others to the compiler."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(axes))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes, *rest))
