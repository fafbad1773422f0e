"""Which kind of device is compiled for."""

import jax


def platform() -> str:
    """Returns `cpu`, `gpu` or `tpu`: of the current mesh, else of the default device.

    They differ where a host compiles for devices that it does not have, such as those
    of a TPU topology.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
