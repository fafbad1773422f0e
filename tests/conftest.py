"""JAX is strict in tests: no silent broadcasting between ranks."""

import os

# Before JAX loads. Tiny models compile for longer than they run; a mesh has devices.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8",
)

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_jax():
    with jax.numpy_rank_promotion("raise"):
        yield
