"""A task's prediction as functions of fixed shapes, with the parameters inside.

What is exported is `Task.predict` of the model that was trained, in float32: its layers
one by one instead of scanned, lookups in tables and GELU marked as such, so that a
converter has one operation for each and can quantise the tables.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.nn.layers import Embed
from lm.nn.transformer import ACTIVATIONS, unstack_layers
from lm.train.workdir import Loaded
from lm.types import Batch, UserError

TASKS = ("classify", "pair")

# LiteRT's converter knows these by their names, and what they are made of is the rest
# of the world's to run.
_take = jax.lax.composite(
    lambda ids, table: jnp.take(table, ids, axis=0, mode="clip"),
    name="odml.embedding_lookup",
)
_gelu = jax.lax.composite(
    lambda x, approximate: jax.nn.gelu(x, approximate=approximate == "tanh"),
    name="aten.gelu.default",
)
_MARKED = {
    "gelu": functools.partial(_gelu, approximate="none"),
    "gelu_tanh": functools.partial(_gelu, approximate="tanh"),
}


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


def signatures(loaded: Loaded, lengths: Sequence[int]) -> Iterator[Signature]:
    """Yields the prediction of a workdir's task for a row of each of these lengths.

    Raises:
        UserError: If the task cannot be exported, or a length is more than its own.
    """
    task: Any = loaded.task
    if task.config.name not in TASKS:
        raise UserError(
            f"task {task.config.name} cannot be exported; those that can are "
            f"{', '.join(TASKS)}"
        )
    longest = loaded.config.task.length
    config = dataclasses.replace(
        loaded.config.model, scan_layers=False, remat="none", dtype="float32"
    )
    model = task.build_model(config)
    params = unstack_layers(jax.tree.map(np.asarray, jax.device_get(loaded.params)))

    def predict(batch: Batch) -> Batch:
        # One type for all tokens, or else T vectors of it become a table of their own.
        batch = {"type_ids": jnp.zeros((1, 1), jnp.int32)} | dict(batch)
        with nn.intercept_methods(_look_up), _marked_activations():
            return task.predict(model, params, batch)

    for length in lengths:
        if not 3 <= length <= longest:
            raise UserError(
                f"--max-len {length} is not from 3 to task.length, {longest}"
            )
        row = task.features([], (length,), np.random.default_rng(0))
        shapes = {
            name: jax.ShapeDtypeStruct((1, *value.shape), value.dtype)
            for name, value in row.items()
        }
        used = _used(predict, shapes)
        outputs = jax.eval_shape(predict, used)
        name = "serving_default" if len(lengths) == 1 else f"length_{length}"
        yield Signature(name, predict, used, outputs)


def _used(
    predict: Callable[[Batch], Batch], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns those inputs on which the outputs depend."""
    names = sorted(shapes)
    exported = jax.export.export(jax.jit(predict))(dict(shapes))
    kept = {names[index] for index in exported.module_kept_var_idx}
    return {name: shape for name, shape in shapes.items() if name in kept}


@contextlib.contextmanager
def _marked_activations() -> Iterator[None]:
    """Puts what is marked in the place of the model's activations."""
    plain = dict(ACTIVATIONS)
    ACTIVATIONS.update(_MARKED)
    try:
        yield
    finally:
        ACTIVATIONS.update(plain)


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
