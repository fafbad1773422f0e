"""Loops over time for TF Lite, whose converter from StableHLO has none.

`scan` marks a loop while a model is traced: what stands there is one round of it, as a
composite, which the converter keeps as a function of its own. `to_while` then makes
loops of these in the file. The weights are constants of that function, so that they are
quantised as any others.
"""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from lm.types import PyTree
from tools.export.flatbuffer import pack

# What a loop of so many rounds is called.
MARK = "lm.while."


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: PyTree,
    xs: PyTree,
    reverse: bool = False,
) -> tuple[PyTree, PyTree]:
    """Marks what `jax.lax.scan` does; outputs have the right shapes alone."""
    carry, carry_tree = jax.tree.flatten(init)
    inputs, inputs_tree = jax.tree.flatten(xs)
    length = inputs[0].shape[0]
    first = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in inputs]

    def flat(carry: list[Any], now: list[Any]) -> tuple[list[Any], list[Any]]:
        new, y = f(carry_tree.unflatten(carry), inputs_tree.unflatten(now))
        return jax.tree.leaves(new), jax.tree.leaves(y)

    y_tree = jax.tree.structure(
        jax.eval_shape(f, init, inputs_tree.unflatten(first))[1]
    )
    jaxpr, (_, y) = jax.make_jaxpr(flat, return_shape=True)(carry, first)
    # What is known now becomes a constant of the round, what is not comes in.
    unknown = [i for i, c in enumerate(jaxpr.consts) if isinstance(c, core.Tracer)]
    sizes = [1, len(carry), len(y), len(inputs), len(unknown)]

    def one_round(*values: Any) -> tuple[Any, ...]:
        (i,), carry, made, inputs, known = _split(values, sizes)
        place = length - 1 - i[0] if reverse else i[0]
        consts = list(jaxpr.consts)
        for index, value in zip(unknown, known):
            consts[index] = value
        now = [_at(x, place) for x in inputs]
        results = core.eval_jaxpr(jaxpr.jaxpr, consts, *carry, *now)
        carry, y = results[: len(carry)], results[len(carry) :]
        made = [_put(old, new, place) for old, new in zip(made, y)]
        return (i + 1, *carry, *made, *inputs, *known)

    # Where outputs will be: of any values but constants, which the file would hold.
    any_value = inputs[0].reshape(-1)[0]
    empty = [
        jnp.broadcast_to(any_value.astype(each.dtype), (length, *each.shape))
        for each in y
    ]
    values = (
        jnp.zeros((1,), jnp.int32),
        *carry,
        *empty,
        *inputs,
        *(jaxpr.consts[i] for i in unknown),
    )
    results = jax.lax.composite(one_round, name=f"{MARK}{length}")(*values)
    _, carry, made, _, _ = _split(results, sizes)
    return carry_tree.unflatten(carry), y_tree.unflatten(made)


def _split(values: Any, sizes: list[int]) -> list[list[Any]]:
    parts, values = [], list(values)
    for size in sizes:
        parts.append(values[:size])
        values = values[size:]
    return parts


def _at(x: Any, place: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(
        x, place, keepdims=False, allow_negative_indices=False
    )


def _put(x: Any, new: Any, place: Any) -> Any:
    begin = (place, *(0 for _ in new.shape))
    return jax.lax.dynamic_update_slice(
        x, new[None], begin, allow_negative_indices=False
    )


def to_while(model: bytes) -> bytes:
    """Returns a TF Lite file in which marked rounds are loops."""
    # Generated, and without types.
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    tables = schema.ModelT.InitFromPackedBuf(model, 0)
    codes = schema.BuiltinOperator
    loops = [
        (subgraph, operator)
        for subgraph in tables.subgraphs
        for operator in subgraph.operators
        if isinstance(operator.builtinOptions2, schema.StableHLOCompositeOptionsT)
        and operator.builtinOptions2.name.decode().startswith(MARK)
    ]
    if not loops:
        return model
    for subgraph, operator in loops:
        options = operator.builtinOptions2
        length = int(options.name.decode().removeprefix(MARK))
        body = options.decompositionSubgraphIndex
        _keep_constants(schema, tables, subgraph, operator, body)
        _connect_fully(schema, tables, tables.subgraphs[body])
        operator.opcodeIndex = _code(tables, codes.WHILE, schema)
        operator.builtinOptions2, operator.builtinOptions2Type = None, 0
        operator.builtinOptionsType = schema.BuiltinOptions.WhileOptions
        operator.builtinOptions = schema.WhileOptionsT()
        operator.builtinOptions.bodySubgraphIndex = body
        operator.builtinOptions.condSubgraphIndex = len(tables.subgraphs)
        tables.subgraphs.append(_goes_on(schema, tables, body, length))
    _drop_unused(tables)
    return pack(tables, len(model))


def _keep_constants(
    schema: Any, tables: Any, subgraph: Any, operator: Any, body: int
) -> None:
    """Gives a round the constants that JAX has put before all that comes in."""
    loop = tables.subgraphs[body]
    count = len(loop.inputs) - len(loop.outputs)
    for outer, inner in zip(operator.inputs[:count], loop.inputs[:count]):
        data = tables.buffers[subgraph.tensors[outer].buffer].data
        # Its own: another operation may have the same in other precision.
        loop.tensors[inner].buffer = _buffer(schema, tables, data)
    operator.inputs, loop.inputs = operator.inputs[count:], loop.inputs[count:]


def _connect_fully(schema: Any, tables: Any, body: Any) -> None:
    """Makes products with a constant matrix the operation that can be quantised."""
    codes = schema.BuiltinOperator
    matrices = [
        each.tensors[operator.inputs[1]]
        for each in tables.subgraphs
        for operator in each.operators
        if tables.operatorCodes[operator.opcodeIndex].builtinCode
        == codes.FULLY_CONNECTED
    ]
    for operator in body.operators:
        if tables.operatorCodes[operator.opcodeIndex].builtinCode != codes.BATCH_MATMUL:
            continue
        matrix = body.tensors[operator.inputs[1]]
        data = tables.buffers[matrix.buffer].data
        if data is None or len(matrix.shape) != 2 or operator.builtinOptions.adjY:
            continue
        values = np.asarray(data, np.uint8).view(np.float32).reshape(matrix.shape).T
        turned = copy.copy(matrix)
        turned.name = matrix.name + b"_turned"
        turned.shape = np.array(values.shape, np.int32)
        # Functions share their weights.
        same = [m.buffer for m in matrices if _is(tables, m, values)]
        turned.buffer = same[0] if same else _buffer(schema, tables, values)
        operator.inputs = [operator.inputs[0], len(body.tensors), -1]
        body.tensors.append(turned)
        operator.opcodeIndex = _code(tables, codes.FULLY_CONNECTED, schema)
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()


def _goes_on(schema: Any, tables: Any, body: int, length: int) -> Any:
    """Returns the function that says whether there is another round."""
    loop = tables.subgraphs[body]
    count = len(loop.inputs)
    # The last two are the number of rounds and the answer. A name stands once.
    made, less = schema.SubGraphT(), schema.OperatorT()
    made.name = f"goes_on_{body}".encode()
    made.tensors = [
        copy.copy(loop.tensors[i])
        for i in (*loop.inputs, loop.inputs[0], loop.inputs[0])
    ]
    for i, tensor in enumerate(made.tensors):
        tensor.name = made.name + f"_{i}".encode()
    made.tensors[count].buffer = _buffer(schema, tables, np.array([length], np.int32))
    made.tensors[count + 1].type = schema.TensorType.BOOL
    made.inputs, made.outputs = list(range(count)), [count + 1]
    less.opcodeIndex = _code(tables, schema.BuiltinOperator.LESS, schema)
    less.inputs, less.outputs = [0, count], [count + 1]
    less.builtinOptionsType = schema.BuiltinOptions.LessOptions
    less.builtinOptions = schema.LessOptionsT()
    made.operators = [less]
    return made


def _is(tables: Any, tensor: Any, values: np.ndarray) -> bool:
    data = tables.buffers[tensor.buffer].data
    same_shape = tuple(tensor.shape) == values.shape
    return same_shape and data is not None and bytes(data) == values.tobytes()


def _buffer(schema: Any, tables: Any, values: np.ndarray) -> int:
    """Returns the index of a new buffer that has these values."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    tables.buffers.append(buffer)
    return len(tables.buffers) - 1


def _drop_unused(tables: Any) -> None:
    """Empties the buffers of which no operation reads."""
    used = {
        subgraph.tensors[i].buffer
        for subgraph in tables.subgraphs
        for each in (subgraph, *subgraph.operators)
        for i in (*each.inputs, *each.outputs)
        if i >= 0
    }
    for index, buffer in enumerate(tables.buffers):
        if index not in used and buffer.data is not None:
            buffer.data = None


def _code(tables: Any, builtin: int, schema: Any) -> int:
    """Returns the index of an operation's code, a new one if there is none."""
    for index, code in enumerate(tables.operatorCodes):
        if code.builtinCode == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 1
    tables.operatorCodes.append(code)
    return len(tables.operatorCodes) - 1
