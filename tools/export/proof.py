"""Whether an artefact predicts what the model in JAX does, how fast, and how large.

The artefact is run in a fresh process that has neither JAX nor anything of ours, on
examples of a split that was not trained on, from their texts to their predictions. JAX
is timed in a process of its own too.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import cli, decoding, sharding
from lm.completion import Completer, Writer
from lm.data.pipeline import DataConfig, one_pass
from lm.tasks import Generative, Predictive
from lm.tasks.base import apply, marked
from lm.train.evaluation import Predictor, read_examples
from lm.train.workdir import Loaded
from lm.types import Array, Batch, Params, UserError
from tools.export.graph import Graph

CHILDREN = Path(__file__).with_name("children")

# How often a function is run to be timed, after some runs that are not.
REPEATS, WARM_UP = 50, 5

# Of a model that only continues texts: its prompts, the tokens that each begins with,
# and those that are written.
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 20, 16, 100

Example = Mapping[str, Any]


def prove(
    folder: Path,
    workdir: Path,
    loaded: Loaded,
    graph: Graph,
    data: DataConfig,
    split: str,
    limit: int,
    blocked: Sequence[str],
) -> dict[str, Any]:
    """Compares an artefact with the model in JAX.

    Args:
        folder: The artefact.
        workdir: Of the model.
        loaded: The model.
        graph: What was exported.
        data: Where the split is.
        split: Of the examples.
        limit: How many to take of each source; 0 means all.
        blocked: Modules that the artefact must do without.

    Returns:
        `examples`, `score` (its name), `before` and `after`, `agreement` (the share of
        equal predictions), `max_error` of the numbers in them, of a SavedModel that
        takes text `text_in` (how often that is as good), and of the function that
        is run most `latency_ms` (a median) and `peak_mb` of the process (None off
        Linux), and JAX's beside them.

    Raises:
        UserError: If the artefact does not run.
    """
    task = loaded.task
    examples, documents = read_examples(task, data, split, limit)
    if isinstance(task, Predictive | Generative):
        # As a user's JSON would have them.
        examples = [json.loads(cli.json_line(example)) for example in examples]
        before, prompts = _predict(loaded, examples), []
    else:
        examples, prompts = [], _prompts(loaded, graph, documents[:PROMPTS])
        before = _continue(loaded, prompts)
    timed = graph.signatures[-1]
    job = {
        "examples": examples,
        "prompts": prompts,
        "timed": {
            "name": timed.name,
            "inputs": {
                name: {"shape": each.shape, "dtype": str(each.dtype)}
                for name, each in timed.inputs.items()
            },
        },
        "repeats": REPEATS,
        "warm_up": WARM_UP,
        "step": loaded.step,
        "lengths": sorted({signature.length for signature in graph.signatures}),
    }
    with cli.Status(f"running it on {len(before)} examples of {split}") as status:
        script = [CHILDREN / "run_artefact.py", folder.resolve()]
        made = _run(script, job, [",".join(blocked)], status)
    beside = _time_jax(workdir, job)
    after = made["predictions"]
    if prompts:
        scored = _likelihoods(prompts, made["likelihoods"])
    else:
        scored = _scores(task, examples, before, after)
    return {
        "examples": len(before),
        **scored,
        **_difference(before, after),
        **({"text_in": float(np.mean(made["text_in"]))} if "text_in" in made else {}),
        "latency_ms": made["latency_ms"],
        "jax_latency_ms": beside["latency_ms"],
        "peak_mb": made["peak_mb"],
        "jax_peak_mb": beside["peak_mb"],
    }


def _time_jax(workdir: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the same function in JAX, in a fresh process."""
    with cli.Status("running the model in JAX") as status:
        module = ["-m", "tools.export.children.run_jax", workdir]
        return _run(module, job, [], status)


def _predict(loaded: Loaded, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Predicts in JAX; what is written, by the likeliest token each time."""
    task, model = loaded.task, loaded.model
    if isinstance(task, Predictive):
        mesh = sharding.build_mesh(sharding.MeshConfig())
        return Predictor(task, model, mesh, 32)(loaded.params, examples)
    assert isinstance(task, Generative)
    write = Writer(task, model, loaded.tokenizer, 32, beam_size=0)
    return write(loaded.params, examples)


def _prompts(
    loaded: Loaded, graph: Graph, documents: Sequence[Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
    """Makes prompts of the texts of a task that learns from texts alone.

    Each has `ids` to continue or answer, by `num_new` tokens, `targets` that are likely
    after `source`, and what JAX thinks of them: `likelihood`, the sum of their log
    probabilities, and how many of them are the likeliest.
    """
    prompts, num_new = [], NEW_TOKENS
    size = graph.places
    score = jax.jit(functools.partial(_score, loaded.model))
    for document in documents:
        batch = one_pass(loaded.task, [document], 1).batch(0)
        batch.pop("prefix_mask", None)
        likelihood = jax.device_get(score(loaded.params, batch))
        row = {name: value[0] for name, value in batch.items()}
        real = row["segment_ids"] > 0
        if "encoder_inputs" in row:
            ids = source = row["encoder_inputs"][row["encoder_segment_ids"] > 0]
            room = size
        else:
            source = row["inputs"][:1]
            # As the text of the prompt would be encoded, wherever it was cut.
            text = loaded.tokenizer.decode(row["inputs"][real][:PROMPT_TOKENS])
            tokens = loaded.tokenizer.encode(text)
            ids = np.concatenate([marked(loaded.tokenizer)[:1], tokens])
            room = size - len(ids) + 1  # the last one is not read
        named = {"ids": ids, "source": source, "targets": row["targets"][real]}
        prompt = {name: value.tolist() for name, value in named.items()}
        prompts.append(prompt | {"likelihood": [x.item() for x in likelihood]})
        num_new = min(room, num_new)
    return [{**prompt, "num_new": num_new} for prompt in prompts]


def _score(model: Any, params: Params, batch: Batch) -> tuple[Array, Array]:
    """Returns the log probability of all targets, and how many are the likeliest."""
    real, targets = batch["segment_ids"] > 0, batch["targets"]
    logits = apply(model, params, batch, None).logits.dense().astype(np.float32)
    scores = jax.nn.log_softmax(logits)
    of_target = jnp.take_along_axis(scores, targets[:, :, None], axis=-1)[:, :, 0]
    right = scores.argmax(axis=-1) == targets
    return (real * of_target).sum(), (real & right).sum()


def _continue(
    loaded: Loaded, prompts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Continues prompts in JAX by the likeliest token each time."""
    num_new = prompts[0]["num_new"]
    config = decoding.Config(max_new_tokens=num_new, temperature=0.0)
    completer = Completer(loaded.model, loaded.params, loaded.tokenizer, config)
    read = [completer.read("", np.array(p["ids"], np.int32)) for p in prompts]
    return [
        {
            "prediction": found.text,
            "finish_reason": found.finish_reason,
            "log_prob": found.log_prob,
        }
        for found in completer.complete(read)
    ]


def _likelihoods(
    prompts: Sequence[Mapping[str, Any]], made: Sequence[tuple[float, int]]
) -> dict[str, Any]:
    """Returns how likely held-out tokens are, and how often they are the likeliest."""
    number = sum(len(prompt["targets"]) for prompt in prompts)
    before, after = (
        np.sum(each, axis=0) / number
        for each in ([prompt["likelihood"] for prompt in prompts], made)
    )
    return {
        "score": "accuracy",
        "before": float(before[1]),
        "after": float(after[1]),
        "loss_before": -float(before[0]),
        "loss_after": -float(after[0]),
    }


def _scores(
    task: Any,
    examples: Sequence[Example],
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
) -> dict[str, Any]:
    """Returns the task's most telling score of both.

    A cross-encoder, which ranks many texts for a query in an evaluation, is given pairs
    here: its score is how often it orders two neighbours as before.
    """
    if "score" in before[0] and "answer" not in before[0]:
        up = [np.diff([p["score"] for p in each]) > 0 for each in (before, after)]
        order = float(np.mean(up[0] == up[1])) if len(before) > 1 else 1.0
        return {"score": "order", "before": 1.0, "after": order}
    if isinstance(task, Predictive):
        before[:] = task.together(examples, before)
        after[:] = task.together(examples, after)
    scores = [task.score(examples, predictions) for predictions in (before, after)]
    name = next(iter(scores[0]))
    return {"score": name, "before": scores[0][name], "after": scores[1][name]}


def _difference(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns `agreement` and, of those predictions that agree, `max_error`.

    A bundle predicts texts and no numbers.
    """
    known = [{name: a[name] for name in b} for a, b in zip(before, after, strict=True)]
    pairs = [(_parts(a), _parts(b)) for a, b in zip(known, after)]
    errors = [
        abs(x - y)
        for (same, a), (other, b) in pairs
        if same == other
        for x, y in zip(a, b, strict=True)
    ]
    return {
        "agreement": float(np.mean([a == b for (a, _), (b, _) in pairs])),
        "max_error": max(errors, default=None),
    }


def _parts(value: Any) -> tuple[Any, list[float]]:
    """Takes the numbers out of a prediction: what is left is what was chosen.

    >>> _parts({"label": "a", "probabilities": {"a": 0.75, "b": 0.25}})
    ({'label': 'a', 'probabilities': {'a': None, 'b': None}}, [0.75, 0.25])
    """
    numbers: list[float] = []

    def left(value: Any) -> Any:
        if isinstance(value, float):
            numbers.append(value)
            return None
        if isinstance(value, Mapping):
            return {name: left(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [left(item) for item in value]
        return value

    return left(value), numbers


def _run(
    command: Sequence[Any],
    job: Mapping[str, Any],
    more: Sequence[str],
    status: cli.Status,
) -> dict[str, Any]:
    """Runs a child of `CHILDREN` on a job; returns what it wrote.

    Raises:
        UserError: If it fails.
    """
    with tempfile.TemporaryDirectory() as temporary:
        given, made = Path(temporary, "job.json"), Path(temporary, "made.json")
        given.write_text(json.dumps(job))
        words = [sys.executable, *command, given, made, *more]
        errors = Path(temporary, "errors")
        with errors.open("w") as file:
            # Options of the XLA here may be unknown to that of TensorFlow.
            env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
            env["PYTHONDONTWRITEBYTECODE"] = "1"  # the artefact is as it was made
            child = subprocess.Popen(
                [str(word) for word in words],
                env=env,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    status.update(f"ran {line.strip()} examples")
                child.wait()
            finally:
                child.kill()
        if child.returncode:
            lines = errors.read_text().strip().splitlines() or ["it was killed"]
            raise UserError(f"the artefact does not run: {lines[-1]}")
        return json.loads(made.read_text())
