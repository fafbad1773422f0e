"""Scores models on the same examples, resampled together.

What is drawn is an example of a task that predicts. Of a language model's it is a
document, or several that share rows, for tokens of one document are alike; where there
are too few of them it is a row. Metrics are those of `Task.score`, or of `Task.loss`;
each is computed again of every resample, so that one that is no mean, such as F1 or
perplexity, has its own interval.
"""

import functools
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.crossval import device_rows, evaluator_of
from lm import cli
from lm import metrics as metrics_lib
from lm.types import UserError

# Resampling a column may take this long, and so many times it is done. They are few
# numbers, so that the same command seldom has another.
SECONDS = 20.0
SAMPLES = (100, 300, 1000)

# From so many documents on they are drawn: of few clusters a bootstrap is too sure
# (Cameron, Gelbach and Miller 2008, https://doi.org/10.1162/rest.90.3.414).
LEAST_DOCUMENTS = 20

Scores = dict[str, float]


@dataclass(frozen=True)
class Outputs:
    """What a model made of a split.

    Attributes:
        step: The checkpoint's.
        examples: What tells each of what can be drawn from others [n].
        score: Returns the metrics of those of these numbers, the most telling first.
        kind: What is drawn: `examples`, `documents`, `groups of documents` that share
            rows, or `rows`.
    """

    step: int
    examples: list[str]
    score: Callable[[np.ndarray], Scores]
    kind: str = "examples"


def predicts(task: Any) -> bool:
    """Returns whether a task has a prediction for each example."""
    from lm.tasks import Generative, Predictive

    return isinstance(task, Predictive | Generative)


# All that is in an example, by which it is known again.
name_of = cli.json_line


def outputs_of(
    folder: Path, split: str, seen: Collection[str] = (), seed: int = 0
) -> Outputs:
    """Runs a workdir's model over a split, as `lm.evaluate` does.

    Args:
        folder: The workdir.
        split: Its name.
        seen: Names of examples that are left out, of a task that predicts.
        seed: Of a task's noise: with the same one the same words are masked.

    Raises:
        UserError: If there is no such checkpoint or split, or all of it is left out.
    """
    from lm import sharding
    from lm.completion import Writer
    from lm.tasks import Generative
    from lm.train import workdir
    from lm.train.evaluation import read_examples

    loaded = workdir.load(folder)
    task = loaded.task
    mesh, size = device_rows(loaded.config)
    if not predicts(task):
        return _rows(loaded, mesh, split, size, seed)
    with sharding.use(mesh, sharding.MeshConfig()):
        if isinstance(task, Generative):
            examples, _ = read_examples(task, loaded.config.data, split)
            is_left = _left(examples, seen, split)
            examples = list(itertools.compress(examples, is_left))
            write = Writer(task, loaded.model, loaded.tokenizer, size)
            predictions = write(loaded.params, examples, cli.progress)
        else:
            evaluator = evaluator_of(loaded, split, seed)
            evaluator.keep(_left(evaluator.examples, seen, split))
            evaluator(loaded.params, cli.progress)
            examples, predictions = evaluator.examples, evaluator.predictions

    def score(chosen: np.ndarray) -> Scores:
        pairs = ((examples[i], predictions[i]) for i in chosen)
        return task.score(*zip(*pairs))  # pyright: ignore

    return Outputs(loaded.step, list(map(name_of, examples)), score)


def _left(examples: Sequence[Any], seen: Collection[str], split: str) -> list[bool]:
    """Returns which examples are scored.

    Raises:
        UserError: If none is.
    """
    is_left = [name_of(example) not in seen for example in examples]
    if not any(is_left):
        raise UserError(
            f"every text of {split} was trained on by one of the workdirs; choose "
            "another --split"
        )
    return is_left


def _rows(loaded: Any, mesh: Any, split: str, size: int, seed: int) -> Outputs:
    """Computes the metrics of each document, or of each row, by itself."""
    import jax

    from lm.data.pipeline import build_pipeline
    from lm.train.evaluation import in_turn
    from lm.train.step import make_eval_step

    pipeline = build_pipeline(
        loaded.task,
        loaded.tokenizer,
        loaded.config.data,
        split=split,
        batch_size=size,
        seed=seed,
        train=False,
    )
    step = make_eval_step(loaded.model, loaded.task)

    @jax.jit
    def by_row(params, batch):
        def one(row):
            return step(params, jax.tree.map(lambda x: x[None], row))[0]

        return jax.vmap(one)(batch), batch["example_mask"]

    found, numbers = [], range(pipeline.num_batches)
    call = functools.partial(by_row, loaded.params)
    shown = cli.progress(numbers, len(numbers))
    for _, (metrics, mask) in in_turn(call, pipeline, shown, mesh):
        found.append(jax.tree.map(lambda x, m=mask: np.float64(x[m > 0]), metrics))
    rows = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    documents = [
        {piece.doc for piece in row} for n in numbers for row in pipeline.documents(n)
    ]
    kind, groups = "documents", groups_of(documents)
    if max(groups) + 1 < LEAST_DOCUMENTS:
        kind, groups = "rows", np.arange(len(groups))
    elif max(groups) + 1 < len(set[int]().union(*documents)):
        kind = "groups of documents"
    drawn = jax.tree.map(lambda x: np.bincount(groups, x), rows)

    def score(chosen: np.ndarray) -> Scores:
        return metrics_lib.compute(jax.tree.map(lambda x: x[chosen].sum(), drawn))

    # The fingerprint is of the texts and their tokens, the weights of how they are cut.
    weights = drawn["loss"].weight
    names = [f"{pipeline.fingerprint} {i} {w}" for i, w in enumerate(weights)]
    return Outputs(loaded.step, names, score, kind)


def groups_of(rows: Sequence[Collection[int]]) -> np.ndarray:
    """Returns a number for each row, the same one where rows share a document.

    >>> groups_of([{0}, {0, 1}, {2, 3}, {4}, {4}]).tolist()
    [0, 0, 1, 2, 2]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    row = np.repeat(np.arange(len(rows)), [len(documents) for documents in rows])
    document = np.array([number for documents in rows for number in documents])
    size = len(rows) + document.max(initial=0) + 1  # a node for each row and document
    edges = row, len(rows) + document
    graph = coo_array((np.ones(len(row)), edges), (size, size))
    _, groups = connected_components(graph, directed=False)
    return np.unique(groups[: len(rows)], return_inverse=True)[1]


def mean_of(outputs: Sequence[Outputs]) -> Callable[[np.ndarray], Scores]:
    """Returns what scores examples by the mean of several models' metrics."""

    def score(chosen: np.ndarray) -> Scores:
        found = [each.score(chosen) for each in outputs]
        shared = (n for n in found[0] if all(n in scores for scores in found))
        return {name: float(np.mean([s[name] for s in found])) for name in shared}

    return outputs[0].score if len(outputs) == 1 else score


def compare(
    scores: Mapping[str, Callable[[np.ndarray], Scores]], baseline: str, n: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores columns on n examples, all on the same resamples.

    The paired bootstrap of Koehn (2004, https://aclanthology.org/W04-3250/, section 4):
    of each resample the difference of two systems is taken. The interval holds 95% of
    the differences. The p-value is two-sided: twice the smaller share of resamples
    where the difference is at most 0, or at least 0, each with one more in it
    (Davison and Hinkley 1997, Bootstrap Methods and their Application, equation 4.11).

    Args:
        scores: Of each column, what scores examples of these numbers.
        baseline: The column that the others are compared with.
        n: Number of examples.

    Returns:
        For each column and metric `value`, `low`, `high` and, but for the baseline's,
        `difference`, a dict of the same, `p`, and `samples`, how many it is of.

    Raises:
        UserError: If there are no examples.

    >>> right = np.arange(100) % 10 < [[10], [8], [5]]
    >>> def accuracy(row):
    ...     return lambda chosen: {"accuracy": float(row[chosen].mean())}
    >>> found = compare(dict(zip(("all", "most", "half"), map(accuracy, right))),
    ...                 "most", 100)
    >>> difference = found["half"]["accuracy"]["difference"]
    >>> round(difference["value"], 2), difference["p"] < 0.01
    (-0.3, True)
    """
    from lm.tasks.intervals import bootstrap

    drawn: list[dict[tuple[str, str, bool], float]] = []

    def score(chosen: np.ndarray) -> Scores:
        found = {column: of(chosen) for column, of in scores.items()}
        values = {}
        for column, metrics in found.items():
            for name, value in metrics.items():
                values[column, name, False] = value
                if column != baseline and name in found.get(baseline, {}):
                    values[column, name, True] = value - found[baseline][name]
        drawn.append(values)
        return values  # pyright: ignore

    seconds = 1.0
    for _ in range(2 if n else 0):  # the first call loads what it needs
        began = time.perf_counter()
        score(np.arange(n))
        seconds = time.perf_counter() - began
    drawn.clear()
    affordable = [n for n in SAMPLES if n * seconds <= SECONDS * len(scores)]
    samples = max(affordable, default=SAMPLES[0])
    bounds: Any = bootstrap(score, n, samples, watch=cli.progress)
    whole, *resampled = drawn
    found: dict[str, dict[str, dict[str, Any]]] = {column: {} for column in scores}
    for (column, name, is_difference), value in whole.items():
        key = column, name, is_difference
        row = {"value": value, **dict(zip(("low", "high"), bounds.get(key, ())))}
        if is_difference:
            differences = [v[key] for v in resampled if key in v]
            row |= {"p": p_value(differences), "samples": len(differences)}
            found[column][name]["difference"] = row
        else:
            found[column][name] = row
    return found


def p_value(differences: Sequence[float]) -> float:
    """Returns how often chance alone makes differences of both signs.

    >>> p_value([0.1] * 99), p_value([0.0] * 99), p_value([-0.1, 0.1])
    (0.02, 1.0, 1.0)
    """
    sides = (sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    return min(1.0, 2 * (min(sides) + 1) / (len(differences) + 1))


def apart(a: Outputs, b: Outputs) -> str:
    """Says why two cannot be paired; "" if they can."""
    if len(a.examples) != len(b.examples):
        return f"{len(a.examples):,} examples there, {len(b.examples):,} here"
    pairs = enumerate(itertools.starmap(str.__eq__, zip(a.examples, b.examples)), 1)
    first = next((number for number, is_same in pairs if not is_same), None)
    return "" if first is None else f"example {first:,} is another"
