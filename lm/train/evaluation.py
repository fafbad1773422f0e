"""Metrics over a whole split."""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from lm import metrics as metrics_lib
from lm import sharding
from lm.types import Batch, Params


def put(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> Batch:
    """Makes the global batch of which `batch` is this host's rows."""
    where = sharding.batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(where, value)
        for name, value in batch.items()
    }


def evaluate(
    eval_step: Callable[[Params, Batch], metrics_lib.Metrics],
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
) -> dict[str, float]:
    """Returns the metrics of all batches together.

    Totals and weights are summed in float64 on the host, so a long split loses no
    precision; the next batch is dispatched before the last one is read.
    """
    total, pending = None, None
    for batch in batches:
        following = eval_step(params, put(mesh, batch))
        if pending is not None:
            total = add(total, pending)
        pending = following
    if pending is not None:
        total = add(total, pending)
    return {} if total is None else metrics_lib.compute(total)


def add(
    total: metrics_lib.Metrics | None, new: metrics_lib.Metrics
) -> metrics_lib.Metrics:
    """Adds device metrics to a sum on the host, waiting for them."""
    new = jax.tree.map(np.float64, jax.device_get(new))
    return new if total is None else metrics_lib.merge(total, new)
