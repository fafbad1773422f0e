"""JAX is strict in tests: no silent broadcasting between ranks."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_jax():
    with jax.numpy_rank_promotion("raise"):
        yield
