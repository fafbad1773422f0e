"""Smaller weights for TF Lite files, and what a loss of score comes from."""

import contextlib
import dataclasses
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import tree
from lm.train.evaluation import read_examples
from lm.train.workdir import Loaded
from lm.types import UserError
from tools.export.flatbuffer import compact
from tools.export.graph import Graph
from tools.export.runtime import encoders
from tools.export.runtime.tokenizer import Tokenizer

# What may be asked for, and what it does.
QUANTIZATIONS = {
    "none": "float32",
    "float16": "weights in float16, arithmetic in float32",
    "int8": "weights in int8, activations quantised as they come",
    "int8_weights": "weights in int8, arithmetic in float32",
    "int8_static": "weights and activations in int8, their ranges from examples",
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

Inputs = Mapping[str, np.ndarray]
# Of each signature.
Rows = dict[str, Sequence[Inputs]]

# Examples by whose values ranges of numbers are found.
NUM_ROWS = 64


def quantize(
    model: bytes,
    how: str,
    calibration: Rows,
    *,
    is_encoder: bool,
    part: str = ".*",
) -> bytes:
    """Returns a TF Lite file with smaller weights.

    Args:
        model: In float32.
        how: Of `QUANTIZATIONS`.
        calibration: Of `int8_static`: inputs of each signature.
        is_encoder: Whether no table of embeddings is a head too. Then one scale serves
            all of a table: a scale for each row of 128 weights is 9% of the file.
        part: A pattern of the names of those operations that are quantised.

    Raises:
        UserError: If the model's sizes do not allow it.
    """
    if how == "none":
        return model
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    made = quantizer.Quantizer(bytearray(model))
    every, lookup = TFLOperationName.ALL_SUPPORTED, TFLOperationName.EMBEDDING_LOOKUP
    of_table = (
        QuantGranularity.TENSORWISE if is_encoder else QuantGranularity.CHANNELWISE
    )
    match how:
        case "float16":
            recipe = [{**rule, "regex": part} for rule in _FLOAT16]
            made.load_quantization_recipe(recipe)
        case "int8":
            made.add_dynamic_config(part, every, 8)
            made.add_dynamic_config(part, lookup, 8, of_table)
        case "int8_weights":
            made.add_weight_only_config(part, every, 8)
            made.add_weight_only_config(part, lookup, 8, of_table)
        case "int8_static":
            made.add_static_config(part, every, 8, 8)
            made.add_dynamic_config(part, lookup, 8, of_table)
        case "int4":
            made.add_dynamic_config(part, every, 4, QuantGranularity.BLOCKWISE_32)
            made.add_dynamic_config(part, lookup, 8, of_table)
    try:
        with quiet():
            rows: Any = calibration
            ranges = made.calibrate(rows) if how == "int8_static" else None
            result = made.quantize(ranges, enable_progress_report=False)
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:300]
        raise UserError(
            f"--quantize={how} does not fit the model: {line}; choose another"
        ) from error
    return compact(bytes(result.quantized_model or b""))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back a quantiser's progress bars, and its advice."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def blame(
    model: bytes,
    quantize: Callable[..., bytes],
    graph: Graph,
    rows: Rows,
) -> str:
    """Returns the layer that, quantised alone, changes the outputs most.

    Args:
        model: In float32.
        quantize: From it and `part` to one that is smaller.
        graph: What the model was made of.
        rows: Inputs of each signature.
    """
    from ai_edge_litert.interpreter import Interpreter

    def outputs(model: bytes) -> Iterator[np.ndarray]:
        interpreter = Interpreter(model_content=model, num_threads=2)
        for name, inputs in rows.items():
            run = interpreter.get_signature_runner(name)
            for row in inputs:
                yield from run(**row).values()

    exact, errors = list(outputs(model)), {}
    for layer in layers(graph):
        made = quantize(model, part=f".*/{layer}/.*")
        pairs = zip(exact, outputs(made), strict=True)
        errors[layer] = max(float(np.abs(a - b).max()) for a, b in pairs)
    worst = max(errors, key=lambda layer: errors[layer])
    return f"{worst}, which alone changes an output by {errors[worst]:.3g}"


def rows(folder: Path, loaded: Loaded, graph: Graph, sources: str) -> Rows:
    """Returns inputs of each signature, as an artefact makes them of training data.

    Args:
        folder: The artefact.
        loaded: The model.
        graph: Its functions. What writes gets each token alone.
        sources: Other data; by default the run's.

    Raises:
        UserError: If the data is not for the task.
    """
    data = loaded.config.data
    if sources:
        data = dataclasses.replace(data, sources=tuple(sources.split(",")))
    examples, documents = read_examples(loaded.task, data, data.train_split, NUM_ROWS)
    if graph.architecture != "encoder":
        tokens = np.concatenate([next(iter(d.values())) for d in documents])
        return _single_tokens(graph, tokens[:NUM_ROWS])
    about = json.loads((folder / "signature.json").read_text())
    reader = encoders.build(None, Tokenizer(folder / "tokenizer"), about)
    found: dict[int, list[dict[str, np.ndarray]]] = {}
    for example in examples:
        for row in reader.rows(**example):
            found.setdefault(row["inputs"].shape[1], []).append(row)
    return {
        signature.name: [
            {name: row[name] for name in signature.inputs}
            for row in found.get(signature.length, ())
        ]
        for signature in graph.signatures
    }


def _single_tokens(graph: Graph, tokens: np.ndarray) -> Rows:
    """Returns inputs of `decode`, one for each token, with an empty cache."""
    signature = graph.signatures[-1]
    empty = {
        name: np.zeros(each.shape, each.dtype)
        for name, each in signature.inputs.items()
    }
    return {
        signature.name: [{**empty, "tokens": token.reshape(1, 1)} for token in tokens]
    }


def layers(graph: Graph) -> list[str]:
    """Returns the names of layers with a kernel, such as `layers_0/mlp/wi`."""
    names: Sequence[str] = jax.tree.leaves(tree.names(graph.params))
    kernels = [name.removesuffix("/kernel") for name in names if "kernel" in name]
    return ["/".join(name.split("/")[-3:]) for name in kernels]
