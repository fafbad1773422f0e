"""JAX's operations as those of ONNX, from a jaxpr to a graph.

What depends on no input is computed here and becomes a constant. A broadcast is not
carried out: an axis keeps its size of 1 until an operation needs all of it, because
the element-wise operations of ONNX broadcast by themselves. Thus a batch of unknown
size costs nothing.

The operations: https://onnx.ai/onnx/operators/ and
https://docs.jax.dev/en/latest/jax.lax.html.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import onnx

from lm.types import UserError

# The first with Gelu; onnxruntime reads it since 1.17.
OPSET = 20

# The name of the first axis, whose size is not known.
BATCH = "batch"

Shape = tuple[Any, ...]


@dataclass(frozen=True)
class Value:
    """An array while a graph is made.

    Attributes:
        shape: Its sizes; 1 also where it is yet to be broadcast.
        dtype: Its type.
        name: In the graph; of a constant, what to call it there.
        array: A constant's elements.
    """

    shape: Shape
    dtype: np.dtype
    name: str = ""
    array: np.ndarray | None = None


class Builder:
    """Collects the nodes and the constants of a graph."""

    def __init__(self):
        """Begins with nothing."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._batch: str | None = None
        self._count = 0

    def lower(
        self, closed: Any, inputs: Sequence[Value], wanted: set[int]
    ) -> list[Any]:
        """Adds what a jaxpr's outputs of these numbers take, and returns the outputs.

        Raises:
            UserError: If an operation has no like in ONNX.
        """
        jaxpr = getattr(closed, "jaxpr", closed)
        constants = map(constant, getattr(closed, "consts", ()))
        known = dict(zip(jaxpr.constvars, constants))
        known |= dict(zip(jaxpr.invars, inputs))

        def read(atom: Any) -> Value:
            if hasattr(atom, "val"):
                return constant(np.asarray(atom.val, atom.aval.dtype))
            return known[atom]

        outputs = [jaxpr.outvars[i] for i in sorted(wanted)]
        for equation, used in _needed(jaxpr, outputs):
            arguments = [read(atom) for atom in equation.invars]
            results = self._equation(equation, arguments, used)
            known |= dict(zip(equation.outvars, results))
        return [
            read(atom) if i in wanted else None for i, atom in enumerate(jaxpr.outvars)
        ]

    def _equation(
        self, equation: Any, arguments: Sequence[Value], used: set[int]
    ) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name == "composite" and params["name"] in RULES:
            name = params["name"]
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if name in INLINED and inner is not None:
            return self.lower(inner, arguments, used)
        shapes = [atom.aval.shape for atom in equation.invars]
        if name == "broadcast_in_dim":
            return [self._broadcast(equation, arguments[0])]
        folded = _folded(equation, arguments, shapes)
        if folded is not None:
            return folded
        if name == "select_n" and arguments[0].array is not None:
            which = arguments[0].array
            if not which.shape and len(arguments) == 3:
                return [arguments[1 + int(which)]]
        if name in ELEMENTWISE:
            shape = _joint(value.shape for value in arguments)
            made = ELEMENTWISE[name](self, equation, *arguments)
            return [Value(shape, equation.outvars[0].aval.dtype, made)]
        if name in RULES:
            made = RULES[name](self, equation, *arguments)
            return made if isinstance(made, list) else [made]
        raise UserError(
            f"ONNX export does not know JAX's operation {name}; choose another --format"
        )

    def add(self, operation: str, *inputs: Any, outputs: int = 1, **attributes) -> Any:
        """Adds a node and returns its output's name, or a list of them."""
        names = [x if isinstance(x, str) else self.name(x) for x in inputs]
        made = [self.new(operation)]
        if outputs > 1:
            made = [f"{made[0]}_{i}" for i in range(outputs)]
        self.nodes.append(
            onnx.helper.make_node(operation, names, made, made[0], **attributes)
        )
        return made[0] if outputs == 1 else made

    def new(self, what: str) -> str:
        """Returns a name that nothing has."""
        self._count += 1
        return f"{what}_{self._count - 1}"

    def name(self, value: Value | np.ndarray | Sequence[int]) -> str:
        """Returns the name of a value; a constant gets one. Numbers are int64."""
        if not isinstance(value, Value):
            value = constant(np.asarray(value, getattr(value, "dtype", np.int64)))
        if value.array is None:
            return value.name
        array = np.ascontiguousarray(value.array).reshape(value.array.shape)
        key = array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
        if key not in self._names:
            name = value.name or f"constant_{len(self.constants)}"
            if name in self.constants:
                name += f"_{len(self.constants)}"
            self._names[key] = name
            self.constants[name] = array
        return self._names[key]

    def full(self, value: Value, shape: Shape) -> Value:
        """Carries a broadcast out."""
        if value.shape == shape:
            return value
        if value.array is not None and _static(shape):
            return constant(np.broadcast_to(value.array, shape), value.name)
        if _static(shape):
            sizes: Any = shape
        else:
            sizes = self.add("Concat", *map(self.size, shape), axis=0)
        return Value(shape, value.dtype, self.add("Expand", value, sizes))

    def begin(self, name: str) -> None:
        """Tells an input whose first axis is the batch."""
        self._batch = name

    def size(self, size: Any) -> Any:
        """Returns the size of an axis, a number or that of the batch."""
        if isinstance(size, int):
            return [size]
        if self._batch is None or str(size) != BATCH:
            raise UserError(f"ONNX export does not know a size of {size}")
        return self.add("Shape", self._batch, start=0, end=1)

    def finish(self, outputs: Mapping[str, str]) -> None:
        """Names values as outputs, and drops what no output depends on."""
        for new, old in outputs.items():
            self.nodes.append(onnx.helper.make_node("Identity", [old], [new], new))
        live, kept = set(outputs), []
        for node in reversed(self.nodes):
            if live.intersection(node.output):
                live.update(_read_by(node))
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {k: v for k, v in self.constants.items() if k in live}

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Reshapes what is broadcast; one axis may be of unknown size."""
        if value.shape == shape:
            return value
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if value.array is not None:
            return constant(value.array.reshape(sizes), value.name)
        return Value(shape, value.dtype, self.add("Reshape", value, sizes))

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Reorders axes."""
        if list(order) == list(range(len(order))):
            return value
        shape = tuple(value.shape[i] for i in order)
        if value.array is not None:
            return constant(value.array.transpose(order), value.name)
        return Value(shape, value.dtype, self.add("Transpose", value, perm=order))

    def _broadcast(self, equation: Any, value: Value) -> Value:
        dims = equation.params["broadcast_dimensions"]
        rank = len(equation.params["shape"])
        shape = [1] * rank
        for i, dim in enumerate(dims):
            shape[dim] = value.shape[i]
        if value.array is not None:
            return constant(value.array.reshape(shape), value.name)
        new = [i for i in range(rank) if i not in dims]
        made = self.add("Unsqueeze", value, new) if new else value.name
        return Value(tuple(shape), value.dtype, made)


def constant(array: Any, name: str = "") -> Value:
    """Returns a constant."""
    array = np.asarray(array)
    return Value(array.shape, array.dtype, name, array)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Returns the names that a node reads, those of a loop's nodes too."""
    inner = (inner for each in node.attribute for inner in each.g.node)
    return set(node.input).union(*map(_read_by, inner))


def _static(shape: Shape) -> bool:
    return all(isinstance(size, int) for size in shape)


def _joint(shapes: Any) -> Shape:
    """Returns the shape that arrays have together."""
    shapes = [shape for shape in shapes if shape] or [()]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*shapes))


def _needed(jaxpr: Any, outputs: Sequence[Any]) -> list[tuple[Any, set[int]]]:
    """Returns the equations that outputs depend on, and which results are used."""
    live = {atom for atom in outputs if not hasattr(atom, "val")}
    found = []
    for equation in reversed(jaxpr.eqns):
        used = {i for i, var in enumerate(equation.outvars) if var in live}
        if used:
            live |= {atom for atom in equation.invars if not hasattr(atom, "val")}
            found.append((equation, used))
    return found[::-1]


def _folded(
    equation: Any, arguments: Sequence[Value], shapes: Sequence[Shape]
) -> list[Value] | None:
    """Computes what depends on constants alone, if their sizes are known."""
    arrays = [value.array for value in arguments if value.array is not None]
    if len(arrays) < len(arguments) or equation.primitive.name == "dim_as_value":
        return None
    if equation.primitive.name in ELEMENTWISE:
        shape = _joint(x.shape for x in arrays)
        arrays = [np.broadcast_to(x, shape) if x.shape else x for x in arrays]
    elif all(map(_static, shapes)):
        arrays = [np.broadcast_to(x, shape) for x, shape in zip(arrays, shapes)]
    else:
        return None
    made = equation.primitive.bind(*map(jax.numpy.asarray, arrays), **equation.params)
    names = {value.name for value in arguments if value.name}
    name = names.pop() if len(names) == 1 else ""
    made = made if equation.primitive.multiple_results else [made]
    return [constant(np.asarray(array), name) for array in made]


def _type(dtype: Any) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


# -- Element by element ---------------------------------------------------------------


def _simple(operation: str, **attributes: Any) -> Callable[..., str]:
    return lambda b, _, *values: b.add(operation, *values, **attributes)


def _logical(operation: str) -> Callable[..., str]:
    def rule(b: Builder, equation: Any, *values: Value) -> str:
        if equation.outvars[0].aval.dtype != bool:
            name = equation.primitive.name
            raise UserError(f"ONNX export knows JAX's operation {name} of truths only")
        return b.add(operation, *values)

    return rule


def _integer_pow(b: Builder, equation: Any, x: Value) -> str:
    power = equation.params["y"]
    if power == 2:
        return b.add("Mul", x, x)
    return b.add("Pow", x, np.asarray(power, x.dtype))


def _erfc(b: Builder, _: Any, x: Value) -> str:
    return b.add("Sub", np.ones((), x.dtype), b.add("Erf", x))


def _is_finite(b: Builder, _: Any, x: Value) -> str:
    return b.add("Not", b.add("Or", b.add("IsNaN", x), b.add("IsInf", x)))


def _convert(b: Builder, equation: Any, x: Value) -> str:
    dtype = np.dtype(equation.params["new_dtype"])
    return b.name(x) if dtype == x.dtype else b.add("Cast", x, to=_type(dtype))


def _select(b: Builder, equation: Any, which: Value, *cases: Value) -> str:
    if which.dtype != bool or len(cases) != 2:
        raise UserError("ONNX export selects between two cases only")
    return b.add("Where", which, cases[1], cases[0])


ELEMENTWISE: dict[str, Callable[..., str]] = {
    **{
        name: _simple(operation)
        for name, operation in {
            **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "neg": "Neg"},
            **{"max": "Max", "min": "Min", "pow": "Pow", "sqrt": "Sqrt", "exp": "Exp"},
            **{"log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf"},
            **{"sin": "Sin", "cos": "Cos", "abs": "Abs", "sign": "Sign"},
            **{"floor": "Floor", "ceil": "Ceil", "eq": "Equal", "lt": "Less"},
            **{"le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"},
        }.items()
    },
    "and": _logical("And"),
    "or": _logical("Or"),
    "xor": _logical("Xor"),
    "not": _logical("Not"),
    "rem": _simple("Mod", fmod=1),
    "ne": lambda b, _, x, y: b.add("Not", b.add("Equal", x, y)),
    "square": lambda b, _, x: b.add("Mul", x, x),
    "rsqrt": lambda b, _, x: b.add("Reciprocal", b.add("Sqrt", x)),
    "erfc": _erfc,
    "integer_pow": _integer_pow,
    "is_finite": _is_finite,
    "convert_element_type": _convert,
    "select_n": _select,
    **{
        name: lambda b, _, x: b.name(x)
        for name in ("copy", "copy_p", "name", "stop_gradient", "sharding_constraint")
    },
}


# -- Of whole axes ---------------------------------------------------------------------


def _out(equation: Any, name: str, i: int = 0) -> Value:
    aval = equation.outvars[i].aval
    return Value(aval.shape, aval.dtype, name)


def _fully(b: Builder, equation: Any, values: Sequence[Value]) -> list[Value]:
    shapes = [atom.aval.shape for atom in equation.invars]
    return [b.full(value, shape) for value, shape in zip(values, shapes)]


def _size(b: Builder, equation: Any) -> Value:
    """Makes a number of what is unknown yet."""
    made = b.add("Squeeze", b.size(equation.params["dim"]), [0])
    return _out(equation, b.add("Cast", made, to=_type(equation.outvars[0].aval.dtype)))


def _reshape(b: Builder, equation: Any, x: Value) -> Value:
    (x,) = _fully(b, equation, [x])
    return b.reshape(x, equation.outvars[0].aval.shape)


def _squeeze(b: Builder, equation: Any, x: Value) -> Value:
    axes = equation.params["dimensions"]
    shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    return Value(shape, x.dtype, b.add("Squeeze", x, axes))


def _reduce(operation: str) -> Callable[..., Value]:
    def rule(b: Builder, equation: Any, x: Value) -> Value:
        (x,) = _fully(b, equation, [x])
        axes = equation.params["axes"]
        if x.dtype == bool:
            x = Value(x.shape, x.dtype, b.add("Cast", x, to=_type(np.int32)))
        made = b.add(operation, x, axes, keepdims=0)
        if x.dtype == bool:
            made = b.add("Cast", made, to=_type(bool))
        return _out(equation, made)

    return rule


def _argmax(b: Builder, equation: Any, x: Value) -> Value:
    (x,) = _fully(b, equation, [x])
    (axis,) = equation.params["axes"]
    made = b.add("ArgMax", x, axis=axis, keepdims=0)
    return _out(equation, b.add("Cast", made, to=_type(equation.params["index_dtype"])))


def _slice(b: Builder, equation: Any, x: Value) -> Value:
    (x,) = _fully(b, equation, [x])
    begins, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(begins)
    cut = [
        (begin, end, axis, step)
        for axis, (begin, end, step) in enumerate(zip(begins, ends, steps))
        if (begin, step) != (0, 1) or end != x.shape[axis]
    ]
    made = b.add("Slice", x, *map(list, zip(*cut))) if cut else b.name(x)
    return _out(equation, made)


def _pad(b: Builder, equation: Any, x: Value, filling: Value) -> Value:
    (x,) = _fully(b, equation, [x, filling])[:1]
    before, behind, between = zip(*equation.params["padding_config"])
    if any(between) or min(before + behind) < 0:
        raise UserError("ONNX export pads at the ends of an axis only")
    axes = [i for i, ends in enumerate(zip(before, behind)) if any(ends)]
    sizes = [ends[i] for ends in (before, behind) for i in axes]
    made = b.add("Pad", x, sizes, filling, axes) if axes else b.name(x)
    return _out(equation, made)


def _concatenate(b: Builder, equation: Any, *values: Value) -> Value:
    values = tuple(_fully(b, equation, values))
    return _out(equation, b.add("Concat", *values, axis=equation.params["dimension"]))


def _stack(b: Builder, equation: Any, *values: Value) -> Value:
    axis = equation.params["axis"]
    parts = [b.add("Unsqueeze", x, [axis]) for x in _fully(b, equation, values)]
    return _out(equation, b.add("Concat", *parts, axis=axis))


def _unstack(b: Builder, equation: Any, x: Value) -> list[Value]:
    (x,) = _fully(b, equation, [x])
    axis = equation.params["axis"]
    return [
        _out(equation, b.add("Gather", x, np.asarray(i), axis=axis), i)
        for i in range(len(equation.outvars))
    ]


def _split(b: Builder, equation: Any, x: Value) -> list[Value]:
    (x,) = _fully(b, equation, [x])
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    made = b.add("Split", x, list(sizes), outputs=len(sizes), axis=axis)
    made = made if len(sizes) > 1 else [made]
    return [_out(equation, name, i) for i, name in enumerate(made)]


def _scan(b: Builder, equation: Any, *values: Value) -> list[Value]:
    """Makes a loop over the first axis, whose constants are those around it."""
    params, avals = equation.params, equation.outvars
    # Releases of JAX say it in different ways, but a round sees one entry of what is
    # scanned, so its number of axes tells what that is.
    inner, outer = params["jaxpr"].in_avals, equation.invars
    scanned = sum(a.ndim < b.aval.ndim for a, b in zip(inner, outer))
    results = params["jaxpr"].out_avals
    count = sum(a.ndim == b.aval.ndim for a, b in zip(results, avals))
    first = len(outer) - scanned - count
    values = tuple(_fully(b, equation, values))
    consts, carried = values[:first], values[first:]
    length, reverse = len(carried) - count, int(params["reverse"])
    inputs = [
        Value(value.shape[int(i >= count) :], value.dtype, b.new("scanned"))
        for i, value in enumerate(carried)
    ]
    around, b.nodes = b.nodes, []
    made = b.lower(params["jaxpr"], [*consts, *inputs], set(range(len(avals))))
    results = [
        Value(each.aval.shape[int(i >= count) :], each.aval.dtype)
        for i, each in enumerate(avals)
    ]
    # An output has a name of its own, also if it is an input or comes twice.
    names = [
        b.add("Identity", b.full(value, result.shape))
        for value, result in zip(made, results)
    ]
    body = onnx.helper.make_graph(
        b.nodes,
        b.new("body"),
        [about(value.name, value) for value in inputs],
        [about(name, result) for name, result in zip(names, results)],
    )
    b.nodes = around
    made = b.add(
        "Scan",
        *carried,
        outputs=len(avals),
        body=body,
        num_scan_inputs=length,
        scan_input_directions=[reverse] * length,
        scan_output_directions=[reverse] * (len(avals) - count),
    )
    made = [made] if isinstance(made, str) else made
    return [_out(equation, name, i) for i, name in enumerate(made)]


def about(name: str, value: Any) -> onnx.ValueInfoProto:
    """Returns what a graph says of an input or output, of its shape and type."""
    sizes = [n if isinstance(n, int) else str(n) for n in value.shape]
    return onnx.helper.make_tensor_value_info(name, _type(value.dtype), sizes)


def _cumsum(b: Builder, equation: Any, x: Value) -> Value:
    (x,) = _fully(b, equation, [x])
    axis, reverse = equation.params["axis"], int(equation.params["reverse"])
    return _out(equation, b.add("CumSum", x, np.asarray(axis), reverse=reverse))


def _place(b: Builder, begin: Value, most: Any) -> str:
    """Returns where a slice begins: earlier if it would end too late, as JAX does."""
    if begin.array is not None and not begin.array:
        return b.name([0])
    place = b.add("Min", begin, np.asarray(most, begin.dtype))
    place = b.add("Max", place, np.asarray(0, begin.dtype))
    return b.add("Cast", b.add("Reshape", place, [1]), to=_type(np.int64))


def _dynamic_slice(b: Builder, equation: Any, x: Value, *begin: Value) -> Value:
    (x,) = _fully(b, equation, [x])
    made = b.name(x)
    for axis, count in enumerate(equation.params["slice_sizes"]):
        if count != x.shape[axis]:
            place = _place(b, begin[axis], x.shape[axis] - count)
            made = b.add("Slice", made, place, b.add("Add", place, [count]), [axis])
    return _out(equation, made)


def _update(b: Builder, equation: Any, x: Value, new: Value, *begin: Value) -> Value:
    """Writes a slice along one axis, as what is before, it, and what is behind."""
    x, new = _fully(b, equation, [x, new, *begin])[:2]
    axes = [i for i, (n, m) in enumerate(zip(x.shape, new.shape)) if n != m]
    if not axes:
        return new
    if len(axes) > 1:
        raise UserError("ONNX export updates slices of one axis only")
    (axis,) = axes
    size, count = x.shape[axis], new.shape[axis]
    place = _place(b, begin[axis], size - count)
    before = b.add("Slice", x, [0], place, [axis])
    behind = b.add("Slice", x, b.add("Add", place, [count]), [size], [axis])
    return _out(equation, b.add("Concat", before, new, behind, axis=axis))


def _gather(b: Builder, equation: Any, x: Value, index: Value) -> Value:
    """Takes vectors at places of an axis, a slice, or vectors of each row alone."""
    x, index = _fully(b, equation, [x, index])
    params = equation.params
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    batch = numbers.operand_batching_dims
    taken, axes = numbers.collapsed_slice_dims, numbers.start_index_map
    rank = len(equation.outvars[0].aval.shape)
    offset, places = numbers.offset_dims, index.shape[:-1]
    whole = all(
        n == m
        for i, (n, m) in enumerate(zip(sizes, x.shape))
        if i not in (*axes, *batch)
    )
    if params["mode"] == jax.lax.GatherScatterMode.CLIP:
        most = [n - sizes[axis] for n, axis in zip(_sizes(x, axes), axes)]
        made = b.add("Max", index, np.zeros((), index.dtype))
        made = b.add("Min", made, np.asarray(most, index.dtype))
        index = Value(index.shape, index.dtype, made)
    if whole and not batch and not taken and not places:
        ends = b.add("Add", index, np.asarray([sizes[i] for i in axes], index.dtype))
        axes = np.asarray(axes, index.dtype)
        return _out(equation, b.add("Slice", x, index, ends, axes))
    if whole and not batch and taken == axes and len(axes) == 1:
        (axis,) = axes
        middle = range(axis, axis + len(places))
        if offset == tuple(i for i in range(rank) if i not in middle):
            index = b.reshape(index, places)
            return _out(equation, b.add("Gather", x, index, axis=axis))
    rows = tuple(range(len(batch)))
    if (
        whole
        and batch == numbers.start_indices_batching_dims == rows
        and taken == axes == (len(batch),)
        and offset == tuple(range(len(places), rank))
    ):
        index64 = b.add("Cast", index, to=_type(np.int64))
        return _out(equation, b.add("GatherND", x, index64, batch_dims=len(batch)))
    raise UserError(f"ONNX export does not know this gather of JAX: {numbers}")


def _sizes(x: Value, axes: Sequence[int]) -> list[Any]:
    return [x.shape[axis] for axis in axes]


def _dot(b: Builder, equation: Any, x: Value, y: Value) -> Value:
    """Multiplies matrices, batch by batch."""
    x, y = _fully(b, equation, [x, y])
    (x_sum, y_sum), (x_batch, y_batch) = equation.params["dimension_numbers"]
    x_free = [i for i in range(len(x.shape)) if i not in (*x_sum, *x_batch)]
    y_free = [i for i in range(len(y.shape)) if i not in (*y_sum, *y_batch)]
    if len(x.shape) == len(y.shape) == 2 and (x_sum, y_sum) == ((1,), (1,)):
        # As is, so that an embedding that is also the head is stored once.
        return _out(equation, b.add("Gemm", x, y, transB=1))
    batch, sums = tuple(_sizes(x, x_batch)), math.prod(_sizes(x, x_sum))
    rows, columns = math.prod(_sizes(x, x_free)), math.prod(_sizes(y, y_free))
    x = b.transpose(x, [*x_batch, *x_free, *x_sum])
    x = b.reshape(x, (*batch, rows, sums))
    y = b.transpose(y, [*y_batch, *y_sum, *y_free])
    y = b.reshape(y, (*batch, sums, columns))
    shape = (*batch, rows, columns)
    made = Value(shape, equation.outvars[0].aval.dtype, b.add("MatMul", x, y))
    return b.reshape(made, equation.outvars[0].aval.shape)


def _whole(b: Builder, equation: Any, *values: Value) -> Value:
    """Makes one operation of a composite that is named after it."""
    values = tuple(_fully(b, equation, values))
    # JAX keeps an attribute as its leaves and their tree.
    attributes = {
        name: jax.tree.unflatten(tree, leaves)
        for name, leaves, tree in equation.params["attributes"]
    }
    operation = equation.params["name"].removeprefix("onnx.")
    return _out(equation, b.add(operation, *values, **attributes))


RULES: dict[str, Callable[..., Any]] = {
    "argmax": _argmax,
    "concatenate": _concatenate,
    "cumsum": _cumsum,
    "dim_as_value": _size,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _update,
    "gather": _gather,
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce("ReduceMax"),
    "reduce_and": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reshape": _reshape,
    "scan": _scan,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": lambda b, eqn, x: b.transpose(x, eqn.params["permutation"]),
    "unstack": _unstack,
    **{f"onnx.{name}": _whole for name in ("Gelu", "LayerNormalization", "Softmax")},
}

# What is a jaxpr of its own.
INLINED = {
    *("jit", "pjit", "closed_call", "core_call", "composite"),
    *("custom_jvp_call", "custom_vjp_call", "remat", "remat2", "checkpoint"),
}
