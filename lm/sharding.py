"""The device mesh, and the rules that lay logical axes over it.

Models name the axes of their parameters and activations (`embed`, `mlp`,
`act_heads`, …). A rule maps a logical axis to mesh axes; an axis without a rule is
replicated. Changing the parallelism changes the rules, never a model.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm import tree
from lm.types import Array, PyTree, UserError

MESH_AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """The shape of the mesh; one axis may be -1, which takes the devices left.

    `rules` are `logical=mesh` pairs, `+` joins mesh axes. Parameters are sharded
    over `fsdp` along `embed` (ZeRO-3, Rajbhandari et al. 2020,
    https://arxiv.org/abs/1910.02054) and over `tensor` along heads, MLP and
    vocabulary (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: tuple[str, ...] = (
        "batch=data+fsdp",
        "embed=fsdp",
        "vocab=tensor",
        "mlp=tensor",
        "heads=tensor",
        "kv_heads=tensor",
        "act_mlp=tensor",
        "act_heads=tensor",
        "act_kv_heads=tensor",
    )

    def __post_init__(self):
        for rule in self.rules:
            logical, _, axes = rule.partition("=")
            if not logical or not set(axes.split("+")) <= set(MESH_AXES):
                raise UserError(
                    f"mesh.rules: {rule!r} is not 'logical=axis+axis' with axes of "
                    f"{', '.join(MESH_AXES)}"
                )


def build_mesh(config: MeshConfig, devices: Sequence | None = None) -> Mesh:
    """Returns a mesh over `devices` (default: all).

    Raises:
        UserError: If the shape does not use exactly all devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [config.data, config.fsdp, config.tensor]
    fixed = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if min(shape) < 1 or np.prod(shape) != len(devices):
        written = " x ".join(f"{a}={n}" for a, n in zip(MESH_AXES, shape))
        raise UserError(
            f"mesh {written} does not fit {len(devices)} devices; "
            "set mesh.data, mesh.fsdp and mesh.tensor so that their product does"
        )
    # Auto: flax's logical constraints are hints to the partitioner, not types.
    return jax.make_mesh(tuple(shape), MESH_AXES, (AxisType.Auto,) * 3, devices=devices)


def parse_rules(config: MeshConfig) -> list[tuple[str, tuple[str, ...]]]:
    """Returns the rules in flax's form.

    >>> parse_rules(MeshConfig(rules=("batch=data+fsdp",)))
    [('batch', ('data', 'fsdp'))]
    """
    pairs = (rule.partition("=") for rule in config.rules)
    return [(logical, tuple(axes.split("+"))) for logical, _, axes in pairs]


@contextlib.contextmanager
def use(mesh: Mesh, config: MeshConfig) -> Iterator[None]:
    """Makes the mesh and its rules current, for `constrain` inside a jit."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(parse_rules(config)):
        yield


def constrain(x: Array, *axes: str | None) -> Array:
    """Lays an activation over the current mesh by its logical axes."""
    return nn.with_logical_constraint(x, axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all data-parallel axes; every other axis whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_shards(mesh: Mesh) -> int:
    """The number of parts that a batch's rows are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole."""
    return NamedSharding(mesh, PartitionSpec())


def unbox(boxed: PyTree) -> PyTree:
    """Returns abstract parameters without their logical axes.

    `flax.linen.unbox` would lay them over the current mesh.
    """
    return nn.meta.map_axis_meta(lambda box: box.value, boxed)  # pyright: ignore


def param_shardings(mesh: Mesh, config: MeshConfig, boxed: PyTree) -> PyTree:
    """Returns a NamedSharding for each leaf.

    Args:
        mesh: From `build_mesh`.
        config: Its rules.
        boxed: Abstract parameters that still carry their logical axes, as
            `jax.eval_shape(model.init, …)` returns them.

    Raises:
        UserError: If an axis does not divide by its mesh axes.
    """
    specs = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, parse_rules(config))

    def check(name: str, leaf: Array, sharding: NamedSharding) -> None:
        for size, axes in zip(leaf.shape, sharding.spec):
            axes = axes if isinstance(axes, tuple) else (axes,) if axes else ()
            parts = int(np.prod([mesh.shape[a] for a in axes]))
            if size % parts:
                raise UserError(
                    f"an axis of {size} of parameter {name} {leaf.shape} does not "
                    f"divide over {parts} devices ({'+'.join(axes)}); change that "
                    "size or the mesh"
                )

    tree.map_with_names(check, unbox(boxed), shardings)
    return shardings
