"""Runs an artefact as its user would: of ours there is only what the artefact has.

    python run_artefact.py FOLDER JOB.json MADE.json jax,flax,lm

Reads the examples of JOB, writes what is predicted and how long it took to MADE. The
modules that are named last cannot be imported.
"""

import json
import sys
from pathlib import Path

folder, job_path, made_path, blocked = sys.argv[1:]
for name in blocked.split(","):
    sys.modules[name] = None  # pyright: ignore
from timing import measured  # noqa: E402

sys.path[0] = folder
import numpy as np  # noqa: E402
from runtime import load  # noqa: E402

job = json.loads(Path(job_path).read_text())
model = load(folder)
found = {"predictions": [], "likelihoods": []}


def is_same(outputs, fields):
    """Returns whether what was made of texts is what is made of their tokens."""
    if "prediction" in outputs:
        return outputs["prediction"].decode() == found["predictions"][-1]["prediction"]
    (row,) = model.rows(**fields)
    made = model.run(row)
    return all(np.allclose(outputs[name], made[name], atol=1e-4) for name in made)


of_text = getattr(getattr(model, "backend", None), "of_text", lambda fields: None)
for fields in job["examples"]:
    found["predictions"].append(model.predict(**fields))
    if outputs := of_text(fields):
        found.setdefault("text_in", []).append(is_same(outputs, fields))
    print(len(found["predictions"]), flush=True)
for prompt in job["prompts"]:
    found["predictions"].append(model.complete(prompt["ids"], prompt["num_new"]))
    if hasattr(model, "log_probs"):
        targets = prompt["targets"]
        scores = model.log_probs(prompt["source"], targets)
        found["likelihoods"].append(
            [
                float(scores[np.arange(len(targets)), targets].sum()),
                int((scores.argmax(axis=1) == targets).sum()),
            ]
        )
    print(len(found["predictions"]), flush=True)
timed = job["timed"]
inputs = {
    name: np.ones(each["shape"], each["dtype"])
    for name, each in timed["inputs"].items()
}


def run():
    """Runs the function that is run most; a bundle writes a token."""
    if hasattr(model, "backend"):
        return model.backend.run(timed["name"], inputs)
    return model.generate("a", 1)


found |= measured(run, job["repeats"], job["warm_up"])
Path(made_path).write_text(json.dumps(found))
