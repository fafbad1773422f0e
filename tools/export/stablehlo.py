"""Functions in StableHLO, as `jax.export` writes them: to be run by JAX alone.

An artefact has `stablehlo/NAME.bin` for each signature, a function of the weights and
the inputs for CPU, CUDA and TPU; `stablehlo/weights.npz`, the weights once, by
their paths; and `stablehlo/about.json`. JAX promises to read what a release up to six
months older wrote, or three weeks newer
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).

Sizes are fixed, with a batch of 1. One of any size would put assertions into the
functions that an older release cannot read at all.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.atomic import write_json
from lm.train.workdir import Loaded
from tools.export.graph import Graph

FOLDER = "stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
QUANTIZATIONS = {"none": "float32"}

# What the runtime needs, and what it must do without.
REQUIRES = "jax numpy tokenizers sentencepiece"
BLOCKED = ("flax", "tensorflow", "lm", "tools")


def write(folder: Path, graph: Graph, loaded: Loaded, options: Namespace) -> None:
    """Writes `stablehlo/`: functions, weights and who made them."""
    del loaded, options
    made = folder / FOLDER
    made.mkdir()
    weights: dict[str, Any] = named(graph.params)
    np.savez(made / "weights.npz", **weights)
    leaves, structure = jax.tree.flatten(graph.params)
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in zip(weights, leaves)
    }
    conventions = set()
    for signature in graph.signatures:

        def function(weights: Any, inputs: Any, function=signature.function) -> Any:
            params = jax.tree.unflatten(structure, [weights[name] for name in shapes])
            return function(params, inputs)

        export = jax.export.export(jax.jit(function), platforms=PLATFORMS)
        exported = export(shapes, dict(signature.inputs))
        (made / f"{signature.name}.bin").write_bytes(exported.serialize())
        conventions.add(exported.calling_convention_version)
    write_json(
        made / "about.json",
        {
            "jax": jax.__version__,
            "platforms": list(PLATFORMS),
            "calling_convention": max(conventions),
            "inputs": {each.name: sorted(each.inputs) for each in graph.signatures},
        },
    )


def named(params: Any) -> dict[str, np.ndarray]:
    """Returns arrays by their paths, in JAX's order of the leaves.

    >>> list(named({"head": {"bias": 0, "kernel": 1}}))
    ['head/bias', 'head/kernel']
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(array)
        for path, array in jax.tree_util.tree_flatten_with_path(params)[0]
    }
