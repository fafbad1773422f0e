"""TF Lite files, for phones: StableHLO to a flatbuffer, without TensorFlow.

TensorFlow's own converter is a second way, by which the first can be checked.
"""

import contextlib
import functools
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

from lm.nn import attention
from lm.nn.layers import ACTIVATIONS, Embed
from lm.train.workdir import Loaded
from lm.types import UserError
from tools.export import loops, quantization
from tools.export.graph import Graph
from tools.export.quantization import QUANTIZATIONS

__all__ = ["BLOCKED", "QUANTIZATIONS", "REQUIRES", "cause", "write"]

# What the runtime needs, and what it must do without.
REQUIRES = "ai-edge-litert numpy tokenizers sentencepiece"
BLOCKED = ("jax", "jaxlib", "flax", "tensorflow", "lm", "tools")

# The score of what may not be attended to. In 8 bits a larger one would leave the
# others no room.
MILD = -30.0

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


def write(folder: Path, graph: Graph, loaded: Loaded, options: Namespace) -> None:
    """Writes `model.tflite`.

    Raises:
        UserError: If the model has an operation that TF Lite lacks, or cannot be
            quantised so.
    """
    if options.quantize == "int8_static" and graph.architecture != "encoder":
        raise UserError(
            "--quantize=int8_static is for a model that reads; choose int8 for one "
            "that writes"
        )
    quantize = _quantizer(folder, graph, loaded, options)
    model = quantize(_float(graph, options))
    (folder / "model.tflite").write_bytes(model)


def cause(folder: Path, graph: Graph, loaded: Loaded, options: Namespace) -> str:
    """Returns which layer loses most by being quantised."""
    if options.quantize == "none":
        return ""
    return quantization.blame(
        _float(graph, options),
        _quantizer(folder, graph, loaded, options),
        graph,
        quantization.rows(folder, loaded, graph, options.calibration),
    )


def _float(graph: Graph, options: Namespace) -> bytes:
    mask = MILD if options.quantize == "int8_static" else attention.MASKED
    with mock.patch.object(attention, "MASKED", mask):
        if options.converter == "tensorflow":
            return convert_by_tensorflow(graph)
        return convert(graph)


def _quantizer(
    folder: Path, graph: Graph, loaded: Loaded, options: Namespace
) -> Callable[..., bytes]:
    calibration = {}
    if options.quantize == "int8_static":
        calibration = quantization.rows(folder, loaded, graph, options.calibration)
    return functools.partial(
        quantization.quantize,
        how=options.quantize,
        is_encoder=graph.architecture == "encoder",
        calibration=calibration,
    )


def convert(graph: Graph) -> bytes:
    """Returns a TF Lite file whose signatures share their weights.

    Lookups in tables and GELU are one operation each, so that tables can be quantised;
    loops over time are loops.

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
        with _marked(), mock.patch.object(jax.lax, "scan", loops.scan):
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
    with _refused(), context:
        passes = passmanager.PassManager()
        converter.run_convert_to_tfl_passes(merged, passes, config)
        return loops.to_while(converter.export_flatbuffer_to_bytes(merged.operation))


def convert_by_tensorflow(graph: Graph) -> bytes:
    """Returns what `convert` does, made by `tf.lite.TFLiteConverter`.

    The weights are variables: as constants TensorFlow needs many times their memory.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    from tools.export.saved_model import tensorflow_target

    root: Any = tf.Module()
    root.params = jax.tree.map(lambda x: tf.Variable(x, trainable=False), graph.params)
    functions = {}
    for signature in graph.signatures:
        call = jax2tf.convert(signature.function, with_gradient=False)
        specs = {
            name: tf.TensorSpec(each.shape, each.dtype, name)
            for name, each in signature.inputs.items()
        }
        functions[signature.name] = tf.function(
            functools.partial(call, root.params),
            input_signature=[specs],
            autograph=False,
        )
    # The marks are newer than what TensorFlow is given else.
    with tempfile.TemporaryDirectory() as folder, _refused():
        with tensorflow_target("1.9.0"), _marked():
            tf.saved_model.save(root, folder, functions)
        names = list(functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=names
        )
        return converter.convert()


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Turns a converter's error into one line."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(f"TF Lite has no operation for this model: {line}") from error


@contextlib.contextmanager
def _marked() -> Iterator[None]:
    """Marks a model's lookups and activations while it is traced."""
    with nn.intercept_methods(_look_up), mock.patch.dict(ACTIVATIONS, _MARKED):
        yield


def _look_up(
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Marks the lookup of an `Embed`."""
    module = context.module
    if not (isinstance(module, Embed) and context.method_name == "__call__"):
        return call(*args, **kwargs)
    (ids,) = args
    vectors = _take(ids.reshape(-1), module.embedding)
    return vectors.reshape(*ids.shape, -1)
