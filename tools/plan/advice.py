"""The nearest thing that works, where something does not."""

import dataclasses
import math
from collections.abc import Iterator

from lm import sharding
from lm.train.config import Config
from tools.plan.chips import GIB, Slice
from tools.plan.measure import NoRoomError, Target


def no_room(
    name: str,
    config: Config,
    target: Target,
    error: NoRoomError,
    state: float,
    shards: int,
) -> str:
    """Returns one line: what does not fit, and the nearest that should.

    Args:
        name: Of the config.
        config: Of the run.
        target: What it was compiled for.
        error: What the compiler said.
        state: Bytes of parameters and optimizer on each device.
        shards: Parts of a batch's rows.
    """
    cures = "; or ".join(list(_cures(config, target, error, state, shards))[:2])
    needed = "more" if math.isnan(error.needed) else f"{error.needed / GIB:,.2f} GiB"
    return (
        f"{name} does not fit {target.part.name}: a chip has "
        f"{error.limit / GIB:.2f} GiB, it takes {needed}, of which {state / GIB:,.2f} "
        f"GiB are parameters and optimizer; {cures}"
    )


def _cures(
    config: Config, target: Target, error: NoRoomError, state: float, shards: int
) -> Iterator[str]:
    """Yields what makes it smaller, what costs least first."""
    mesh = config.mesh
    if state < 0.8 * error.limit:  # the activations are too large, and not the state
        if getattr(config.model, "remat", "full") != "full":
            yield "set model.remat=full"
        rows = config.batch_size // config.grad_accum_steps // shards
        needed = 2 * error.limit if math.isnan(error.needed) else error.needed
        parts = math.ceil((needed - state) / (error.limit - state))
        fits = [n for n in sharding.divisors(rows) if n >= parts] if rows else []
        if rows > 1:
            steps = config.grad_accum_steps * (fits[0] if fits else rows)
            yield f"set grad_accum_steps={steps}, fewer rows at a time"
    if mesh.fsdp < target.size and mesh.fsdp != -1:
        wanted = mesh.fsdp * max(2, math.ceil(state / error.limit / 0.6))
        sizes = [n for n in sharding.divisors(target.size) if n >= wanted]
        if sizes and config.model.emb_dim % sizes[0] == 0:
            yield f"set mesh.fsdp={sizes[0]}"
    if larger := target.chip.next_larger(target.part.shape):
        topology = Slice(target.chip, larger).name
        yield f"take --topology={topology}, mesh.fsdp=-1 and mesh.data=1"


def rows_fit(config: Config, shards: int) -> int:
    """Returns the nearest batch size whose parts have equally many rows."""
    each = shards * config.grad_accum_steps
    return max(1, round(config.batch_size / each)) * each


def with_rows(config: Config, rows_per_device: int, shards: int) -> Config:
    """Returns the config with so many rows on each part, all at once."""
    return dataclasses.replace(
        config, batch_size=rows_per_device * shards, grad_accum_steps=1
    )
