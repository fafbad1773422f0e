"""Times a function of a model in JAX, compiled, in a process of its own.

python -m tools.export.children.run_jax WORKDIR JOB.json MADE.json
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from lm.train import workdir
from tools.export import graph
from tools.export.children.timing import measured


def main(folder: str, job_path: str, made_path: str) -> None:
    job = json.loads(Path(job_path).read_text())
    made_of = graph.build(workdir.load(Path(folder), job["step"]), job["lengths"])
    name = job["timed"]["name"]
    (signature,) = (each for each in made_of.signatures if each.name == name)
    params, step = jax.device_put(made_of.params), jax.jit(signature.function)
    inputs = {name: np.ones(s.shape, s.dtype) for name, s in signature.inputs.items()}
    found = measured(
        lambda: jax.device_get(step(params, inputs)), job["repeats"], job["warm_up"]
    )
    Path(made_path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
