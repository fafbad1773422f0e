"""A task's prediction as functions of fixed shapes, with the parameters inside.

What is exported is `Task.predict` of the model that was trained, in float32: its layers
one by one instead of scanned, and a lookup in a table marked as one, so that a
converter knows it and can quantise the table.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.nn.layers import Embed
from lm.nn.transformer import unstack_layers
from lm.tasks import Predictive, rank
from lm.train.workdir import Loaded
from lm.types import Batch, UserError

_take = jax.lax.composite(
    lambda ids, table: jnp.take(table, ids, axis=0, mode="clip"),
    name="odml.embedding_lookup",
)


@dataclass(frozen=True)
class Signature:
    """A function that an artefact has.

    Attributes:
        name: Its name there.
        function: From a batch to outputs.
        inputs: The shape and type of each input.
        outputs: Those of each output.
    """

    name: str
    function: Callable[[Batch], Batch]
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    outputs: Mapping[str, jax.ShapeDtypeStruct]


def signatures(
    loaded: Loaded, lengths: Sequence[int], batch_size: int = 1
) -> Iterator[Signature]:
    """Yields the prediction of a workdir's task, once for each length.

    Args:
        loaded: The workdir's model.
        lengths: Of rows, in tokens.
        batch_size: Rows at a time.

    Raises:
        UserError: If the task predicts nothing, or a length is more than the model's.
    """
    task = loaded.task
    if not isinstance(task, Predictive):
        raise UserError(
            f"task {loaded.config.task.name} has no prediction to export; choose the "
            "workdir of a task that lm.predict serves"
        )
    longest = loaded.config.task.length
    config = dataclasses.replace(
        loaded.config.model, scan_layers=False, remat="none", dtype="float32"
    )
    model = task.build_model(config)
    params = unstack_layers(jax.tree.map(np.asarray, jax.device_get(loaded.params)))

    def predict(batch: Batch) -> Batch:
        with nn.intercept_methods(_look_up):
            return task.predict(model, params, batch)

    for length in lengths:
        if not 3 <= length <= longest:
            raise UserError(
                f"--max-len {length} is not from 3 to task.length, {longest}"
            )
        row = task.features([], capacity(task, length), np.random.default_rng(0))
        shapes = {
            name: jax.ShapeDtypeStruct((batch_size, *value.shape), value.dtype)
            for name, value in row.items()
        }
        used = _used(predict, shapes)
        outputs = jax.eval_shape(predict, used)
        name = "serving_default" if len(lengths) == 1 else f"length_{length}"
        yield Signature(name, predict, used, outputs)


def capacity(task: Any, length: int) -> tuple[int, ...]:
    """Returns the sizes of a row of the task's that has `length` tokens."""
    if not isinstance(task, rank.Rank):
        return (length,)
    if task.config.kind == "dual":  # a query is embedded as a text is
        return length, 0, 0
    return length - task.config.query_length, task.config.query_length, 0


def _used(
    predict: Callable[[Batch], Batch], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns those inputs on which the outputs depend."""
    names = sorted(shapes)
    exported = jax.export.export(jax.jit(predict))(dict(shapes))
    kept = {names[index] for index in exported.module_kept_var_idx}
    return {name: shape for name, shape in shapes.items() if name in kept}


def _look_up(
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Marks the lookup of an `Embed` for LiteRT's converter."""
    module = context.module
    if not (isinstance(module, Embed) and context.method_name == "__call__"):
        return call(*args, **kwargs)
    (ids,) = args
    vectors = _take(ids.reshape(-1), module.embedding)
    return vectors.reshape(*ids.shape, -1)
