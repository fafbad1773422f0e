"""The devices of a TPU slice, as libtpu describes them on a machine that has none."""

import os
from collections.abc import Sequence
from typing import Any

from lm.types import UserError
from tools.plan.chips import Slice

# libtpu would look for the chips of this machine, and say at length that it has none;
# two processes may compile at once.
_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def prepare() -> None:
    """Sets what libtpu reads when it loads; to be called before JAX does."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def devices(part: Slice, num_slices: int = 1) -> Sequence[Any]:
    """Returns the devices of so many slices.

    Raises:
        UserError: If libtpu is not installed.
    """
    from jax.experimental import topologies

    more = {"num_slices": num_slices} if num_slices > 1 else {}
    if part.chip.name == "v4":  # two cores that appear as one device, as on Cloud TPU
        more["chip_config_name"] = "megacore"
    # By default a host has 2 x 2 chips, more than the smallest slices have.
    if part.size < 4:
        more["chips_per_host_bounds"] = [*part.shape, 1][:3]
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=part.name, **more
        ).devices
    except (RuntimeError, ValueError, ImportError) as error:
        line = " ".join(str(error).split())
        if "libtpu" in line and "topology" not in line.lower():
            raise UserError(
                f"libtpu does not load ({line[:120]}); install the extra `plan` of "
                "pyproject.toml"
            ) from error
        raise UserError(f"--topology {part.name}: {line[:200]}") from error
