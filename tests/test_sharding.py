"""The mesh: what fits, what is proposed where nothing does, and who has which rows."""

from dataclasses import dataclass
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from lm import sharding
from lm.sharding import MESH_AXES, MeshConfig, build_mesh
from lm.types import UserError


@dataclass(frozen=True)
class Chip:
    """A device of a slice of 2 x 2 TPUs, as far as a mesh looks at it."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


def slices(number):
    return [
        Chip(4 * part + 2 * y + x, part, (x, y, 0))
        for part in range(number)
        for y in range(2)
        for x in range(2)
    ]


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ({}, (1, 8, 1, 1, 1, 1)),
        ({"fsdp": 4}, (1, 2, 4, 1, 1, 1)),
        ({"fsdp": 4, "tensor": 2}, (1, 1, 4, 1, 1, 2)),
        ({"data": 1, "fsdp": -1}, (1, 1, 8, 1, 1, 1)),
        (
            {"data": 1, "pipeline": 2, "expert": 2, "context": 2},
            (2, 1, 1, 2, 2, 1),
        ),
    ],
)
def test_the_mesh_uses_all_devices(asked, shape):
    mesh = build_mesh(MeshConfig(**asked), jax.devices())
    assert mesh.axis_names == MESH_AXES and mesh.devices.shape == shape
    assert {*mesh.devices.flat} == {*jax.devices()}


@pytest.mark.parametrize(
    ("asked", "proposed"),
    [
        ({"data": 4, "fsdp": 4}, "data=2 x fsdp=4"),
        ({"fsdp": 3, "tensor": 2}, "data=1 x fsdp=4 x tensor=2"),
        ({"fsdp": 16}, "data=1 x fsdp=8"),
        ({"tensor": 5, "data": 1}, "data=2 x tensor=4"),
        ({"data": 2, "fsdp": -1, "context": 3}, "data=2 x fsdp=1 x context=4"),
        ({"data": 8, "tensor": 0}, "data=8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_told_one_that_does(asked, proposed):
    with pytest.raises(UserError, match=r"does not fit 8 devices; set mesh ") as error:
        build_mesh(MeshConfig(**asked), jax.devices())  # pyright: ignore
    fit = str(error.value).split("set mesh ")[1]
    values = dict(part.split("=") for part in proposed.split(" x "))
    given = dict(part.split("=") for part in fit.split(" x "))
    assert given == {axis: n for axis, n in values.items() if n != "1"} | {
        "data": values["data"]
    }
    shape = {axis: int(n) for axis, n in given.items()}
    assert build_mesh(MeshConfig(**shape), jax.devices()).size == 8  # pyright: ignore


def test_one_axis_takes_the_devices_left():
    with pytest.raises(UserError, match=r"only one axis may be -1.*set mesh.data=1$"):
        build_mesh(MeshConfig(data=-1, fsdp=-1), jax.devices())


def test_processes_with_different_numbers_of_devices_are_named():
    devices = [SimpleNamespace(platform="cpu", process_index=i) for i in (0, 0, 0, 1)]
    said = "process 0 has 3 devices and process 1 1; give all equally many"
    with pytest.raises(UserError, match=said):
        build_mesh(MeshConfig(), devices)


def test_data_goes_across_slices():
    mesh = build_mesh(MeshConfig(fsdp=2, tensor=2), slices(2))
    grid = mesh.devices.reshape(2, 4)
    for part, chips in enumerate(grid):
        assert {chip.slice_index for chip in chips} == {part}
    with pytest.raises(UserError, match="2 slices.* data=2 x fsdp=4$"):
        build_mesh(MeshConfig(data=1, fsdp=8), slices(2))
    with pytest.raises(UserError, match="3 slices.* data=3 x fsdp=4$"):
        build_mesh(MeshConfig(fsdp=6), slices(3))


def test_rows_follow_the_rule_of_the_batch():
    config = MeshConfig(data=2, fsdp=2, expert=2)
    mesh = build_mesh(config, jax.devices())
    rows = np.arange(8)
    assert sharding.batch_shards(mesh) == 8
    placed = jax.device_put(rows, sharding.batch_sharding(mesh))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(1,)}
    less = MeshConfig(data=2, fsdp=2, expert=2, rules=("batch=data",))
    assert sharding.batch_shards(mesh, less) == 2
    with sharding.use(mesh, less):
        assert sharding.batch_shards(mesh) == 2
        assert sharding.batch_sharding(mesh).spec == jax.P("data")


def test_an_axis_that_does_not_divide_is_told_what_does():
    """Of what all parameters along that mesh axis have in common."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self):
            for name, size in (("a", 28), ("b", 42)):
                init = nn.with_logical_partitioning(nn.initializers.zeros, ("heads",))
                self.param(name, init, (size,))

    boxed = jax.eval_shape(Model().init, jax.random.key(0))["params"]
    config = MeshConfig(tensor=4)
    mesh = build_mesh(config, jax.devices())
    with pytest.raises(UserError, match=r"42 of parameter b .* to 1 or 2 or 7$"):
        sharding.param_shardings(mesh, config, boxed)
    config = MeshConfig(tensor=2)
    mesh = build_mesh(config, jax.devices())
    found = sharding.param_shardings(mesh, config, boxed)
    assert found["a"].spec == jax.P("tensor")
