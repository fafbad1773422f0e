"""Pipeline parallelism: stages of a stack, each on its devices, work at the same time.

A batch is cut into M microbatches, and the L layers into S stages, over the mesh axis
`pipeline`. At every turn each stage runs its layers on the microbatch that it holds and
hands it on to the next (GPipe, Huang et al. 2019, https://arxiv.org/abs/1811.06965,
section 2). All of it is one program, a map over the stages whose states are rolled by
one place (GSPMD, Xu et al. 2021, https://arxiv.org/abs/2105.04663, section 3.3); XLA
makes a collective permute of the roll, and the backward pass by differentiation.

M is the config's and not the mesh's: one device computes the same losses. The first and
the last S - 1 turns leave stages without work, `bubble` of the time. Embedding and head
are computed by all stages alike, unless `mesh.rules` has `vocab=tensor+pipeline`, which
splits them over the stages.

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
from lm.sharding import batch_axes, batch_shards, divisors
from lm.types import Array, PyTree, UserError

AXIS = "pipeline"


def bubble(stages: int, microbatches: int) -> float:
    """Returns the share of the time in which a stage has no work.

    Huang et al. (2019), section 2.3.

    >>> bubble(stages=4, microbatches=12)
    0.2
    """
    return (stages - 1) / (microbatches + stages - 1)


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
    mesh = jax.sharding.get_abstract_mesh()
    stages = _stages()
    shards = 1 if mesh.empty else math.gcd(rows, batch_shards(mesh))  # pyright: ignore
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
    stages, turns = jnp.arange(S), jnp.arange(M + S - 1)
    leaves, structure = jax.tree.flatten(context)
    moves = [leaf.shape[:1] == (B,) for leaf in leaves]

    def enter(leaf: Array) -> Array:
        """Returns [M + S - 1, S, b, …], what the first stage is given at each turn.

        Each stage has a copy, whose gradients are summed once, after the last turn.

        As in gradient accumulation, microbatch i has rows i, i + M, …, so that each
        device keeps its own. A stage without work repeats the last one: that is of no
        account, but zeros could become NaN in it, and then in the gradient.
        """
        parts = leaf.reshape(B // M, M, *leaf.shape[1:]).swapaxes(0, 1)
        parts = jnp.pad(parts, [(0, S - 1)] + [(0, 0)] * (parts.ndim - 1), "edge")
        parts = jnp.broadcast_to(parts[:, None], (len(turns), S, *parts.shape[1:]))
        return _lay(parts, None, AXIS, batch_axes())

    def split(leaf: Array) -> Array:
        """[L, …] to [S, L / S, …]."""
        return _lay(leaf.reshape(S, L // S, *leaf.shape[1:]), AXIS)

    def repeat(leaf: Array) -> Array:
        """[…] to [S, …]: each stage sums a gradient of its own."""
        return _lay(jnp.broadcast_to(leaf, (S, *leaf.shape)), AXIS)

    def run_stage(layers, numbers, microbatch, moving, shared) -> tuple[Array, PyTree]:
        x, *rows = moving
        rows, shared = iter(rows), iter(shared)
        context = structure.unflatten([next(rows if m else shared) for m in moves])
        key = None if rng is None else jax.random.fold_in(rng, microbatch)

        def body(x: Array, this: Any) -> tuple[Array, PyTree]:
            one, number = this
            own = None if key is None else jax.random.fold_in(key, number)
            return layer(one, x, context, own)

        return jax.lax.scan(body, x, (layers, numbers), unroll=min(unroll, L // S))

    layers, numbers = jax.tree.map(split, layers), split(jnp.arange(L))
    shared = [repeat(leaf) for leaf, m in zip(leaves, moves) if not m]
    entering = [enter(leaf) for leaf in (x, *(v for v, m in zip(leaves, moves) if m))]
    run_stages = jax.vmap(run_stage, spmd_axis_name=AXIS if S > 1 else None)

    def turn(held: list[Array], this: Any) -> tuple[list[Array], Any]:
        number, new = this

        def hand_on(held: Array, new: Array) -> Array:
            is_first = stages.reshape(S, *[1] * (new.ndim - 1)) == 0
            moved = jax.lax.pad(
                held,
                jnp.zeros((), held.dtype),
                [(1, -1, 0)] + [(0, 0, 0)] * (held.ndim - 1),
            )
            return _lay(jnp.where(is_first, new, moved), AXIS, batch_axes())

        _, *rows = held = [hand_on(*pair) for pair in zip(held, new)]
        x, aux = run_stages(layers, numbers, number - stages, held, shared)
        x = _lay(x, AXIS, batch_axes())
        return [x, *rows], (x, aux)

    _, (x, aux) = jax.lax.scan(turn, [v[0] for v in entering], (turns, entering))

    # What the last stage made, from when the first microbatch reached it. A sum of one
    # number and zeros is one all-reduce; a slice would gather all.
    is_last = (stages == S - 1).reshape(1, S, *[1] * (x.ndim - 2))
    x = jnp.where(is_last, x[S - 1 :], 0).sum(axis=1)

    def collect(leaf: Array) -> Array:
        """[M + S - 1, S, L / S, b, …] to [L, B, …], without turns that had no work."""
        works = jax.vmap(
            lambda leaf, stage: jax.lax.dynamic_slice_in_dim(leaf, stage, M),
            in_axes=(1, 0),
        )(leaf, stages)
        rows = jnp.moveaxis(works, 1, 3)  # [S, L / S, b, M, …]
        return rows.reshape(L, B, *rows.shape[4:])

    x = _lay(x.swapaxes(0, 1).reshape(B, *x.shape[2:]), batch_axes())
    return x, jax.tree.map(collect, aux)


def _stages() -> int:
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def _lay(x: Array, *axes: Any) -> Array:
    """Lays the first axes over mesh axes, and leaves the others to the compiler."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(axes))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes, *rest))
