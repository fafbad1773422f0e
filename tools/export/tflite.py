"""TF Lite files by the direct route: StableHLO to a flatbuffer, without TensorFlow."""

import contextlib
import functools
import importlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.nn.layers import Embed
from lm.nn.transformer import ACTIVATIONS
from lm.types import UserError
from tools.export.graph import Graph

# What may be asked for, and what it does.
QUANTIZATIONS = {
    "none": "float32",
    "float16": "weights in float16, arithmetic in float32",
    "int8": "weights in int8, activations quantised as they come",
    "int8_weights": "weights in int8, arithmetic in float32",
    "int4": "weights in int4, blocks of 32, and embeddings in int8",
}

_FLOAT16 = [
    {
        "regex": ".*",
        "operation": "*",
        "algorithm_key": "float_casting",
        "op_config": {
            "weight_tensor_config": {"num_bits": 16, "dtype": "FLOAT"},
            "compute_precision": "FLOAT",
            "explicit_dequantize": True,
        },
    }
]


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


def convert(graph: Graph) -> bytes:
    """Returns a TF Lite file whose signatures share their weights.

    Lookups in tables and GELU are one operation each, so that tables can be quantised.

    Raises:
        UserError: If the model has an operation that TF Lite lacks.
    """
    # Compiled, and without types.
    load: Any = importlib.import_module
    converter = load("litert_converter.converter_api_ext")
    ir, passmanager, stablehlo = (
        load(f"litert_converter.mlir.{name}")
        for name in ("ir", "passmanager", "dialects.stablehlo")
    )
    context = ir.Context()
    converter.prepare_mlir_context(context)
    modules = []
    for signature in graph.signatures:
        function = functools.partial(signature.function, graph.params)
        with nn.intercept_methods(_look_up), _marked_activations():
            exported = jax.export.export(
                jax.jit(function, keep_unused=True), platforms=["cpu"]
            )(dict(signature.inputs))
        with context:
            module = stablehlo.deserialize_portable_artifact(
                context, exported.mlir_module_serialized
            )
        # JAX flattens dicts in the order of their keys.
        converter.set_signature(
            module.operation,
            signature.name,
            sorted(signature.inputs),
            sorted(signature.outputs),
        )
        modules.append(module)
    merged = converter.merge_modules(modules)
    config = converter.ConvertToTFLConfig()
    config.model_origin_framework = "JAX"
    config.unsafe_fuse_dynamic_shaped_broadcast = True
    config.canonicalizing_inf_as_min_max_float = True
    try:
        with context:
            passes = passmanager.PassManager()
            converter.run_convert_to_tfl_passes(merged, passes, config)
            return converter.export_flatbuffer_to_bytes(merged.operation)
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"TF Lite has no operation for this model: {line}") from error


def quantize(model: bytes, how: str) -> bytes:
    """Returns a TF Lite file with smaller weights; `how` is of `QUANTIZATIONS`.

    Raises:
        UserError: If the model's sizes do not allow it.
    """
    if how == "none":
        return model
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    made = quantizer.Quantizer(bytearray(model))
    every, lookup = TFLOperationName.ALL_SUPPORTED, TFLOperationName.EMBEDDING_LOOKUP
    match how:
        case "float16":
            made.load_quantization_recipe(_FLOAT16)
        case "int8":
            made.add_dynamic_config(".*", every, 8)
        case "int8_weights":
            made.add_weight_only_config(".*", every, 8)
        case "int4":
            made.add_dynamic_config(".*", every, 4, QuantGranularity.BLOCKWISE_32)
            made.add_dynamic_config(".*", lookup, 8)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            result = made.quantize(enable_progress_report=False)
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(
            f"--quantize={how} does not fit the model: {line}; choose another"
        ) from error
    return bytes(result.quantized_model or b"")


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
