"""The devices of a TPU slice, as libtpu describes them on a machine that has none."""

import importlib.util
import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from lm import xla_flags
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


# Where `make install` puts libtpu: beside the other packages, or else JAX would load
# it, and look for chips, whatever it is used for.
APART = Path(sys.prefix) / "libtpu"


def prepare(
    part: Slice, num_slices: int = 1, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Finds libtpu and sets what it reads; to be called before JAX loads.

    XLA's flags are those that `lm.train` sets on such slices.

    Raises:
        UserError: If it is not installed.
    """
    for name, value in _SETTINGS.items():
        environ.setdefault(name, value)
    xla_flags.apply(environ, part.chip.name, part.size * num_slices)
    library = APART / "libtpu" / "libtpu.so"
    if "TPU_LIBRARY_PATH" in environ or importlib.util.find_spec("libtpu"):
        return
    if not library.is_file():
        raise UserError(
            "a plan needs libtpu, which is not installed; `make install` does that, or "
            "pip install the extra `plan` of pyproject.toml"
        )
    environ["TPU_LIBRARY_PATH"] = str(library)


def devices(part: Slice, num_slices: int = 1) -> Sequence[Any]:
    """Returns the devices of so many slices.

    Raises:
        UserError: If libtpu cannot describe them.
    """
    from jax.experimental import topologies

    more: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if part.chip.name == "v4":  # two cores that appear as one device, as on Cloud TPU
        more["chip_config_name"] = "megacore"
    if part.size < 4:  # by default a host has 2 x 2 chips
        more["chips_per_host_bounds"] = [*part.shape, 1][:3]
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=part.name, **more
        ).devices
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"--topology {part.name}: {line}; choose another") from error
