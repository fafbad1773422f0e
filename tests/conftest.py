"""JAX is strict in tests: no silent broadcasting between ranks."""

import gc
import importlib.metadata
import os
import shutil
import sys
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# Before JAX loads. Tiny models compile for longer than they run; a mesh has devices.
# `lm.xla_flags` says why not the concurrent scheduler. The older emitters compile in
# half the time, but jaxlib 0.12 lacks them, and a flag that XLA does not know ends the
# process.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_opt_preset=FAST_COMPILE --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)
# Many tests compile the same programs, some in processes of their own: all share a
# cache, which begins empty.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lm-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# There is a worker for each core, and threads that wait for each other spin.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# How long an example takes is the machine's, and no test's.
settings.register_profile(
    "shared", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")

# It takes PyTorch; `make test-oracle` names its files.
collect_ignore = ["oracle"]


def pytest_collection_finish():
    """Spares the collector of garbage all that was imported: it is there to stay."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    if not IS_WORKER:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops what a file compiled: each program takes some of a process's 65,530 maps.

    With more, Linux refuses memory, and XLA crashes.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True)
def strict_jax():
    import jax  # not before its environment is set

    with jax.numpy_rank_promotion("raise"):
        yield
