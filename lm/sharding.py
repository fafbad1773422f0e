"""The device mesh, and the rules that lay logical axes over it.

Models name the axes of their parameters and activations (`embed`, `mlp`,
`act_heads`, …). A rule maps a logical axis to mesh axes; an axis without a rule is
replicated. Changing the parallelism changes the rules, never a model.
"""

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm import tree
from lm.types import Array, PyTree, UserError

# Outermost first: those whose devices talk most are innermost, between neighbours.
MESH_AXES = ("pipeline", "data", "fsdp", "expert", "context", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """The shape of the mesh; one axis may be -1, which takes the devices left.

    Rows of a batch are split over `data`, `fsdp` and `expert`, and what a layer makes
    of their tokens over `context` and `tensor`.

    Attributes:
        pipeline: Stages that layers are split into.
        data: Copies of the parameters; on several slices, a multiple of their number.
        fsdp: Parts of parameters and optimizer, gathered for each use (ZeRO-3,
            Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054).
        expert: Parts of the experts (GShard, Lepikhin et al. 2020,
            https://arxiv.org/abs/2006.16668).
        context: Parts of a row's tokens; keys and values are gathered (Llama 3, 2024,
            https://arxiv.org/abs/2407.21783, section 3.3.2).
        tensor: Parts of heads, MLP and vocabulary (Shoeybi et al. 2019,
            https://arxiv.org/abs/1909.08053).
        rules: `logical=mesh` pairs; `+` joins mesh axes.
    """

    pipeline: int = 1
    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    rules: tuple[str, ...] = (
        "batch=data+fsdp+expert",
        "length=context",
        "layers=pipeline",
        "experts=expert",
        "embed=fsdp",
        "vocab=tensor",
        "mlp=tensor",
        "heads=tensor",
        "kv_heads=tensor",
        "expert_batch=data+fsdp",
        "act_experts=expert",
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

    Slices of TPUs, whose network is the slower one, are parts of `data`.

    Raises:
        UserError: If the shape does not use exactly all devices, or `data` does not
            divide over the slices; it proposes a shape that does. If processes have
            different numbers of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    numbers = Counter(device.process_index for device in devices)
    if len(set(numbers.values())) > 1:
        (one, most), *_, (other, least) = numbers.most_common()
        raise UserError(
            f"process {one} has {most} devices and process {other} {least}; give all "
            "equally many"
        )
    # Nodes of GPUs have numbers too, and outer axes lie across them by their order.
    tpus = [d for d in devices if d.platform == "tpu"]
    # A topology of one slice does not number it.
    slices = len({getattr(d, "slice_index", 0) for d in tpus}) or 1
    shape = _mesh_shape(config, len(devices), slices)
    if slices == 1:
        grid = mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
    else:
        across = [slices if axis == "data" else 1 for axis in MESH_AXES]
        grid = mesh_utils.create_hybrid_device_mesh(
            [n // m for n, m in zip(shape, across)],
            across,
            devices,
            allow_split_physical_axes=True,
        )
    # Auto: flax's logical constraints are hints to the partitioner, not types.
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _mesh_shape(config: MeshConfig, devices: int, slices: int) -> tuple[int, ...]:
    """Returns the size of each axis, in the order of `MESH_AXES`."""
    asked = {axis: getattr(config, axis) for axis in MESH_AXES}
    free = [axis for axis, n in asked.items() if n == -1]
    if len(free) > 1:
        raise UserError(
            f"mesh {_written(asked)}: only one axis may be -1, which takes the devices "
            f"left; set mesh.{free[0]}=1"
        )
    rest = devices // max(math.prod(n for n in asked.values() if n != -1), 1)
    sizes = {axis: rest if n == -1 else n for axis, n in asked.items()}
    fits = min(sizes.values()) > 0 and math.prod(sizes.values()) == devices
    if fits and sizes["data"] % slices == 0:
        return tuple(sizes.values())
    fit = _nearest_shape(asked, free[0] if free else "data", devices, slices)
    across = f" in {slices} slices, over which data is split" if slices > 1 else ""
    raise UserError(
        f"mesh {_written(asked)} does not fit {devices} devices{across}; set mesh "
        f"{_written(fit)}"
    )


def _written(sizes: Mapping[str, int]) -> str:
    """Names the axes that are not left at 1."""
    named = [f"{axis}={n}" for axis, n in sizes.items() if n != 1 or axis == "data"]
    return " x ".join(named)


def _nearest_shape(
    asked: Mapping[str, int], free: str, devices: int, slices: int
) -> dict[str, int]:
    """Returns the sizes that fit and are, by their ratios, nearest to what is asked.

    An axis at 1 stays so, and one, `free`, may have any size.
    """
    varied = [axis for axis, n in asked.items() if axis != free and n > 1]
    if slices > 1 and "data" not in (free, *varied):
        varied.append("data")

    def shapes(axes: list[str], left: int) -> Iterator[dict[str, int]]:
        if not axes:
            yield {free: left}
            return
        for size in divisors(left):
            for others in shapes(axes[1:], left // size):
                yield others | {axes[0]: size}

    def distance(sizes: dict[str, int]) -> float:
        return sum(abs(math.log(sizes[axis] / max(asked[axis], 1))) for axis in varied)

    fitting = (
        sizes for sizes in shapes(varied, devices) if sizes.get("data", 1) % slices == 0
    )
    nearest = min(fitting, key=distance)
    return {axis: nearest.get(axis, 1) for axis in MESH_AXES}


def divisors(number: int) -> list[int]:
    """Returns all divisors, the smallest first.

    >>> divisors(28)
    [1, 2, 4, 7, 14, 28]
    """
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


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


def parts(axis: str) -> int:
    """Returns how many parts the current mesh and rules split a logical axis into."""
    shape = jax.sharding.get_abstract_mesh().shape
    axes = _mesh_axes(axis, nn.get_logical_axis_rules())
    return math.prod(shape.get(each, 1) for each in axes)


def batch_axes(config: MeshConfig | None = None) -> tuple[str, ...]:
    """Returns the mesh axes that a batch's rows are split over.

    They are those of the rules of `config`, else of the current ones, else of the
    defaults.
    """
    current = parse_rules(config) if config else nn.get_logical_axis_rules()
    return _mesh_axes("batch", current or parse_rules(MeshConfig()))


def _mesh_axes(axis: str, rules: Sequence) -> tuple[str, ...]:
    """Returns what the first rule of a logical axis maps it to."""
    return tuple(next((axes for name, axes in rules if name == axis), None) or ())


def batch_sharding(mesh: Mesh, config: MeshConfig | None = None) -> NamedSharding:
    """Rows over `batch_axes`; every other axis whole."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(config)))


def batch_shards(mesh: Mesh, config: MeshConfig | None = None) -> int:
    """The number of parts that a batch's rows are split into."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(config))


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

    sharded: dict[tuple[str, ...], list[tuple[str, tuple[int, ...], int]]]
    sharded = defaultdict(list)

    def collect(name: str, leaf: Array, sharding: NamedSharding) -> None:
        for size, axes in zip(leaf.shape, sharding.spec):
            if axes:
                axes = axes if isinstance(axes, tuple) else (axes,)
                sharded[axes].append((name, leaf.shape, size))

    tree.map_with_names(collect, unbox(boxed), shardings)
    for axes, found in sharded.items():
        parts = math.prod(mesh.shape[axis] for axis in axes)
        for name, shape, size in found:
            if size % parts:
                common = math.gcd(*(size for _, _, size in found))
                fitting = [n for n in divisors(common) if n <= mesh.size]
                raise UserError(
                    f"an axis of {size} of parameter {name} {shape} does not divide "
                    f"over {parts} devices ({'+'.join(axes)}); change that size or set "
                    f"mesh.{'+'.join(axes)} to {' or '.join(map(str, fitting))}"
                )
    return shardings
