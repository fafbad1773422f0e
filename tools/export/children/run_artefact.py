"""Runs an artefact as its user would: of ours there is only what the artefact has.

    python run_artefact.py FOLDER JOB.json MADE.json jax,flax,lm

Reads the examples of JOB, writes what is predicted and how long it took to MADE. The
modules that are named last cannot be imported.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np


def main(folder, job_path, made_path, blocked):
    for name in blocked.split(","):
        sys.modules[name] = None  # pyright: ignore
    from timing import measured  # pyright: ignore

    sys.path[0] = folder
    from runtime import load  # pyright: ignore

    job = json.loads(Path(job_path).read_text())
    model = load(folder)
    found = {"predictions": [], "likelihoods": []}
    of_text = getattr(getattr(model, "backend", None), "of_text", lambda fields: None)
    for fields in job["examples"]:
        found["predictions"].append(model.predict(**fields))
        if outputs := of_text(fields):
            same = is_same(model, outputs, fields, found["predictions"][-1])
            found.setdefault("text_in", []).append(same)
        print(len(found["predictions"]), flush=True)
    for prompt in job["prompts"]:
        judge = model if hasattr(model, "log_probs") else of_bundle(folder)
        found["predictions"].append(model.complete(prompt["ids"], prompt["num_new"]))
        targets = prompt["targets"]
        scores = judge.log_probs(prompt["source"], targets)
        total = scores[np.arange(len(targets)), targets].sum()
        right = (scores.argmax(axis=1) == targets).sum()
        found["likelihoods"].append([float(total), int(right)])
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


def is_same(model, outputs, fields, predicted):
    """Returns whether what was made of texts is what is made of their tokens."""
    if "prediction" in outputs:
        return outputs["prediction"].decode() == predicted["prediction"]
    row, *_ = model.rows(**fields)  # of a query and its text, the text is first
    made = model.run(row)
    return all(np.allclose(outputs[name], made[name], atol=1e-4) for name in made)


@functools.cache
def of_bundle(folder):
    """Returns what tells likelihoods, which a bundle does not: its TF Lite file."""
    from runtime import Tokenizer, Writer, open_model  # pyright: ignore

    about = json.loads(Path(folder, "signature.json").read_text())
    backend = open_model(Path(folder, "proof"))
    return Writer(backend, Tokenizer(Path(folder, "tokenizer")), about)


if __name__ == "__main__":
    main(*sys.argv[1:])
