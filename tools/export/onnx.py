"""ONNX files: one for each function, and their weights in one file beside them.

An ONNX file has one function, and several must not each hold the weights of all. So
an artefact has `onnx/NAME.onnx` for each signature and `onnx/weights.bin`, which
onnxruntime maps into memory; together they are one folder to be moved.

An output that is also an input, as a cache is, has the prefix `next_` there, because
names are unique in a graph. The batch has any size.
"""

import contextlib
import functools
import hashlib
import importlib
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import onnx

from lm.nn.layers import ACTIVATIONS, Norm
from lm.train.workdir import Loaded
from lm.types import Array
from tools.export import onnx_ops
from tools.export.graph import Graph, Signature
from tools.export.quantization import quiet
from tools.export.stablehlo import named

FOLDER, WEIGHTS = "onnx", "weights.bin"

# What may be asked for, and what it does.
QUANTIZATIONS = {
    "none": "float32",
    "int8": "weights in int8, activations quantised as they come",
}

NOTE = """
Each function is a file, and `weights.bin` has the weights of all: move them together. A
cache that comes out is named `next_` and the name with which it comes in.
"""

# Bytes from which a constant is in the file of weights, where pages of memory begin.
PAGE = 4096

# What the runtime needs, and what it must do without.
REQUIRES = "onnxruntime numpy tokenizers sentencepiece"
BLOCKED = ("jax", "jaxlib", "flax", "tensorflow", "onnx", "lm", "tools")


def write(folder: Path, graph: Graph, loaded: Loaded, options: Namespace) -> None:
    """Writes `onnx/NAME.onnx` for each signature, and `onnx/weights.bin`.

    Raises:
        UserError: If an operation has no like in ONNX.
    """
    del loaded
    (folder / FOLDER).mkdir()
    places: dict[bytes, int] = {}
    with (folder / FOLDER / WEIGHTS).open("wb") as weights:
        for signature in graph.signatures:
            model = convert(signature, graph.params)
            if options.quantize == "int8":
                model = to_int8(model)
            for tensor in model.graph.initializer:
                _move(tensor, weights, places)
            onnx.save_model(model, folder / FOLDER / f"{signature.name}.onnx")
    for signature in graph.signatures:
        path = folder / FOLDER / f"{signature.name}.onnx"
        onnx.checker.check_model(path, full_check=True)


def convert(signature: Signature, params: Any) -> onnx.ModelProto:
    """Returns a function as a model that has its weights in itself.

    Raises:
        UserError: If an operation has no like in ONNX.
    """
    (batch,) = jax.export.symbolic_shape(onnx_ops.BATCH)
    shapes = {
        name: jax.ShapeDtypeStruct(
            shape.shape if name == "input_pos" else (batch, *shape.shape[1:]),
            shape.dtype,
        )
        for name, shape in signature.inputs.items()
    }
    with _marked():
        trace = jax.make_jaxpr(signature.function, return_shape=True)
        jaxpr, outputs = trace(params, shapes)
    values = [onnx_ops.constant(array, name) for name, array in named(params).items()]
    # JAX flattens dicts in the order of their keys.
    names = sorted(shapes)
    values += [
        onnx_ops.Value(shapes[name].shape, shapes[name].dtype, name) for name in names
    ]
    builder = onnx_ops.Builder()
    builder.begin(next(name for name in names if name != "input_pos"))
    made = builder.lower(jaxpr, values, set(range(len(outputs))))
    results = {
        f"next_{name}" if name in shapes else name: outputs[name]
        for name in sorted(outputs)
    }
    builder.finish(
        {
            name: builder.name(builder.full(value, shape.shape))
            for (name, shape), value in zip(results.items(), made)
        }
    )
    made_graph = onnx.helper.make_graph(
        builder.nodes,
        signature.name,
        [onnx_ops.about(name, shapes[name]) for name in names],
        [onnx_ops.about(name, shape) for name, shape in results.items()],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in builder.constants.items()
        ],
    )
    return onnx.helper.make_model(
        made_graph,
        opset_imports=[onnx.helper.make_opsetid("", onnx_ops.OPSET)],
        ir_version=10,
        producer_name="lm",
    )


def to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a model whose matrices are in int8, one scale for each column."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "model.onnx")
        with quiet():
            quantization.quantize_dynamic(
                model,
                path,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"EnableSubgraph": True},
            )
        return onnx.load_model(path)


def _move(tensor: onnx.TensorProto, weights: Any, places: dict[bytes, int]) -> None:
    """Moves a large constant into the file of weights, where equal ones are one."""
    data = tensor.raw_data
    if len(data) < PAGE:
        return
    key = hashlib.sha256(data).digest()
    if key not in places:
        weights.write(b"\0" * (-weights.tell() % PAGE))
        places[key] = weights.tell()
        weights.write(data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": WEIGHTS, "offset": places[key], "length": len(data)}
    for name, value in entries.items():
        tensor.external_data.add(key=name, value=str(value))


# -- What ONNX has one operation for ---------------------------------------------------

_soft = jax.lax.composite(jax.nn.softmax, name="onnx.Softmax")
_gelu = jax.lax.composite(
    lambda x, approximate: jax.nn.gelu(x, approximate=approximate == "tanh"),
    name="onnx.Gelu",
)
_ACTIVATIONS = {
    "gelu": functools.partial(_gelu, approximate="none"),
    "gelu_tanh": functools.partial(_gelu, approximate="tanh"),
}


def _softmax(x: Array, axis: int = -1) -> Array:
    return _soft(x, axis=axis)


@functools.partial(jax.lax.composite, name="onnx.LayerNormalization")
def _layer_norm(x: Array, scale: Array, *bias: Array, axis: int, epsilon: float):
    x -= x.mean(axis, keepdims=True)
    x *= jax.lax.rsqrt(jnp.square(x).mean(axis, keepdims=True) + epsilon)
    return sum(
        (jnp.expand_dims(each, range(x.ndim - 1)) for each in bias),
        x * jnp.expand_dims(scale, range(x.ndim - 1)),
    )


@contextlib.contextmanager
def _marked() -> Iterator[None]:
    """Marks what ONNX has one operation for, while a model is traced."""
    with (
        mock.patch.object(jax.nn, "softmax", _softmax),
        mock.patch.dict(ACTIVATIONS, _ACTIVATIONS),
        nn.intercept_methods(_normalise),
    ):
        yield


def _normalise(
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Marks a layer norm, whose parameters are there when it is called."""
    norm, name = context.module, context.method_name
    if not (isinstance(norm, Norm) and norm.kind == "layer" and name == "__call__"):
        return call(*args, **kwargs)
    scale = norm.get_variable("params", "scale")
    bias = [norm.get_variable("params", "bias")] if norm.use_bias else []
    return _layer_norm(*args, scale, *bias, axis=-1, epsilon=float(norm.eps))
