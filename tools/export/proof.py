"""Whether an artefact does what the model in JAX does on real examples; how fast."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import sharding
from lm.data.pipeline import DataConfig
from lm.train.evaluation import Predictor, read_examples
from lm.train.workdir import Loaded
from lm.types import UserError
from tools.export.graph import Signature

# How often the longest row is run to be timed.
REPEATS = 50

# Runs the artefact where there is neither JAX nor anything of ours.
_CHILD = r"""
import json, re, sys, time
for name in ("jax", "jaxlib", "flax", "tensorflow", "lm", "tools"):
    sys.modules[name] = None
folder, texts, outputs, repeats = sys.argv[1:]
sys.path.insert(0, folder)
import numpy as np
from client import Model
model = Model(folder)
rows = [model.row(*each) for each in json.load(open(texts))]
made = [model.run(row) for row in rows]
np.savez(outputs, **{k: np.concatenate([each[k] for each in made]) for k in made[0]})
longest = max(rows, key=lambda row: row["inputs"].shape[1])
seconds = []
for _ in range(int(repeats)):
    began = time.perf_counter()
    model.run(longest)
    seconds.append(time.perf_counter() - began)
status = open("/proc/self/status").read() if sys.platform == "linux" else ""
peak = re.search(r"VmHWM:\s*(\d+)", status)
print(json.dumps({
    "length": longest["inputs"].shape[1],
    "seconds": sorted(seconds)[len(seconds) // 2],
    "peak_mb": int(peak[1]) / 1024 if peak else None,
}))
"""


def prove(
    folder: Path,
    loaded: Loaded,
    signatures: Sequence[Signature],
    data: DataConfig,
    split: str,
    limit: int,
) -> dict[str, Any]:
    """Compares an artefact with the model in JAX.

    Args:
        folder: The artefact.
        loaded: The model.
        signatures: What was exported.
        data: Where the split is.
        split: Of the examples.
        limit: How many to take of each source; 0 means all.

    Returns:
        `examples`, `score` (its name), `before` and `after`, `agreement` (the share of
        equal predictions), `max_error` of probabilities or numbers, and of the longest
        row `latency_ms` and `jax_latency_ms`, each with 2 threads or what JAX takes,
        and `peak_mb` of the process, None off Linux.

    Raises:
        UserError: If the artefact does not run.
    """
    task: Any = loaded.task
    examples, _ = read_examples(task, data, split, limit)
    predict = Predictor(
        task, loaded.model, sharding.build_mesh(sharding.MeshConfig()), 32
    )
    before = predict(loaded.params, examples)
    outputs, ran = _run(folder, [task.texts(example) for example in examples])
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise UserError("the artefact's outputs are not finite; export another format")
    after = []
    for index, example in enumerate(examples):
        output = {name: values[index] for name, values in outputs.items()}
        after.append(task.decode(example, [output]))
    scores = task.score(examples, before), task.score(examples, after)
    name = next(iter(scores[0]))
    pairs = list(zip(before, after))
    return {
        "examples": len(examples),
        "score": name,
        "before": scores[0][name],
        "after": scores[1][name],
        "agreement": float(np.mean([_choice(a) == _choice(b) for a, b in pairs])),
        "max_error": float(
            max(np.abs(_values(a) - _values(b)).max() for a, b in pairs)
        ),
        "latency_ms": 1e3 * ran["seconds"],
        "jax_latency_ms": 1e3 * _jax_seconds(signatures, ran["length"]),
        "peak_mb": ran["peak_mb"],
    }


def _run(
    folder: Path, texts: Sequence[Sequence[str]]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Runs an artefact in a fresh process; returns its outputs and how it went."""
    with tempfile.TemporaryDirectory() as temporary:
        rows, made = Path(temporary, "texts.json"), Path(temporary, "outputs.npz")
        rows.write_text(json.dumps(texts))
        command = [sys.executable, "-c", _CHILD, folder.resolve(), rows, made]
        done = subprocess.run(
            [*map(str, command), str(REPEATS)], capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
            raise UserError(f"the artefact does not run: {reason}")
        with np.load(made) as arrays:
            return dict(arrays), json.loads(done.stdout.splitlines()[-1])


def _jax_seconds(signatures: Sequence[Signature], length: int) -> float:
    """Returns the median time of a row of a length in JAX, compiled."""
    (signature,) = [s for s in signatures if s.inputs["inputs"].shape[1] == length]
    step = jax.jit(signature.function)
    row = {name: np.ones(s.shape, s.dtype) for name, s in signature.inputs.items()}
    jax.block_until_ready(step(row))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(step(row))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def _choice(prediction: Mapping[str, Any]) -> Any:
    """Returns what is predicted, without how sure it is."""
    return prediction.get("label", prediction.get("labels"))


def _values(prediction: Mapping[str, Any]) -> np.ndarray:
    """Returns the numbers of a prediction."""
    if "probabilities" in prediction:
        return np.array(list(prediction["probabilities"].values()))
    return np.array([prediction["value"]])
