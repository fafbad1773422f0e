"""Metrics and predictions of a whole split."""

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from lm import cli, distributed, sharding
from lm import metrics as metrics_lib
from lm.data.pipeline import DataConfig, Pipeline, build_pipeline, one_pass
from lm.data.sources import open_source
from lm.tasks import Predictive, Task
from lm.text.tokenizers import Tokenizer
from lm.train.step import make_eval_step
from lm.types import Array, Batch, Params, UserError

Example = Mapping[str, Any]
Prediction = dict[str, Any]

NOTHING = (
    "of {} nothing is predicted, so its loss is no number; give more text, or let the "
    "task leave out less of it, as task.subsample does"
)


class Evaluator:
    """Evaluates parameters on one split, as often as asked.

    Attributes:
        split: Its name.
        examples: Those of a task that predicts, as far as they are scored.
        predictions: Of these, as of the last call.
        nothing: Why the loss of the last call is no number, "" if it is one.
    """

    nothing = ""

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        model: nn.Module,
        mesh: Mesh,
        data: DataConfig,
        *,
        split: str,
        batch_size: int,
        max_batches: int = 0,
        seed: int = 0,
    ):
        """Reads the split.

        Args:
            task: What is measured.
            tokenizer: The task's.
            model: The task's.
            mesh: Where it runs.
            data: Where the split is.
            split: Its name.
            batch_size: Rows at a time, over all hosts.
            max_batches: Where to stop; 0 means the whole split.
            seed: Of a task's noise.

        Raises:
            UserError: If there is no such split, or it is empty or broken.
        """
        self.split = split
        self.examples: list[Example] = []
        self.predictions: list[Prediction] = []
        self._task, self._mesh, self._batch_size = task, mesh, batch_size
        if isinstance(task, Predictive):
            limit = max_batches * batch_size
            self.examples, self._documents = read_examples(task, data, split, limit)

        def batches(size: int) -> Pipeline:
            if isinstance(task, Predictive):
                return one_pass(task, self._documents, size, host_rows(mesh, size))
            return build_pipeline(
                task,
                tokenizer,
                data,
                split=split,
                batch_size=size,
                seed=seed,
                train=False,
                host=host_rows(mesh, size),
            )

        self._batches = batches(batch_size)
        shards = sharding.batch_shards(mesh)
        enough = -(-self._batches.num_rows // shards) * shards
        if enough < batch_size:  # the rest would be padding
            self._batch_size, self._batches = enough, batches(enough)
        self._limit = 0 if self.examples else max_batches
        self._jitted = _jitted_eval_step(model, task, mesh)

    @property
    def num_batches(self) -> int:
        """How many batches are evaluated."""
        number = self._batches.num_batches
        return min(self._limit or number, number)

    def keep(self, chosen: Sequence[bool]) -> None:
        """Leaves out examples for which `chosen` is False."""
        self.examples = list(itertools.compress(self.examples, chosen))
        self._documents = list(itertools.compress(self._documents, chosen))
        size = self._batch_size
        self._batches = one_pass(
            self._task, self._documents, size, host_rows(self._mesh, size)
        )

    def __call__(
        self, params: Params, watch: Callable[..., Iterable] = lambda x, total: x
    ) -> dict[str, float]:
        """Returns the metrics of all batches together.

        Args:
            params: On the mesh.
            watch: Shows how far it is, as `lm.cli.progress` does.
        """
        total, found = None, _ByExample(self._batches, len(self.examples))
        numbers = watch(range(self.num_batches), self.num_batches)
        step = functools.partial(self._jitted, params)
        for number, results in in_turn(step, self._batches, numbers, self._mesh):
            metrics, outputs = results
            total = add(total, metrics)
            found.add(number, outputs)
        assert total is not None
        self.nothing = "" if total["loss"].weight else NOTHING.format(self.split)
        return metrics_lib.compute(total) | self._score(found.rows())

    def _score(self, rows: Sequence[Sequence[Batch]]) -> dict[str, float]:
        """Keeps the predictions of a task that has any, and scores them."""
        if not isinstance(self._task, Predictive):
            return {}
        decode = self._task.decode
        decoded = [decode(*pair) for pair in zip(self.examples, rows)]
        self.predictions = self._task.together(self.examples, decoded)
        return self._task.score(self.examples, self.predictions)

    def check_metric(self, name: str, params: Params) -> None:
        """Raises a UserError unless evaluations will have a metric of this name.

        Args:
            name: The metric's.
            params: Shapes are enough.
        """
        # Batches of different buckets have outputs of different shapes.
        made: dict[Any, Any] = {}
        found = _ByExample(self._batches, len(self.examples))
        metrics: metrics_lib.Metrics = {}
        for number in range(self.num_batches if self.examples else 1):
            batch = self._batches.batch(number)
            rows = {
                name: jax.ShapeDtypeStruct(
                    (self._batch_size, *value.shape[1:]), value.dtype
                )
                for name, value in batch.items()
            }
            shapes = tuple(value.shape for value in rows.values())
            if shapes not in made:
                made[shapes] = jax.eval_shape(self._jitted, params, rows)
            metrics, outputs = made[shapes]
            found.add(
                number,
                jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), outputs),
            )
        names = {*metrics, *self._score(found.rows())}
        if name not in names:
            raise UserError(
                f"checkpoint.best_metric {name!r} is no metric of this task"
                f"{cli.suggest(name, sorted(names))}"
            )


@functools.lru_cache(maxsize=4)
def _jitted_eval_step(model: nn.Module, task: Task, mesh: Mesh) -> Callable:
    """Compiles what runs share that differ in their numbers alone."""
    return jax.jit(make_eval_step(model, task), out_shardings=sharding.replicated(mesh))


def read_examples(
    task: Task, data: DataConfig, split: str, limit: int = 0
) -> tuple[list[Example], list[dict[str, np.ndarray]]]:
    """Reads and encodes a split for a task; bad examples as `data.bad_rows` says.

    Args:
        task: Whose examples they are.
        data: Where the split is.
        split: Its name.
        limit: How many to read of each source; 0 means all.

    Raises:
        UserError: If there is no such split, or it is empty or broken.
    """
    found: list[tuple[Example, dict[str, np.ndarray]]] = []
    for spec in data.named_sources():
        source = open_source(spec, data.data_dir, data.bad_rows)
        some = list(itertools.islice(source.examples(split), limit or None))
        for example, document in zip(some, task.encode(some)):
            if isinstance(document, UserError):
                source.bad_rows.add(document)
            elif document:
                found.append((example, document))
        source.bad_rows.say(f"{spec} {split}")
    if not found:
        raise UserError(f"{', '.join(data.sources)} {split} has no example to score")
    examples, documents = zip(*found)
    return list(examples), list(documents)


class Predictor:
    """Predicts examples in batches."""

    def __init__(self, task: Predictive, model: nn.Module, mesh: Mesh, batch_size: int):
        """Compiles nothing yet.

        Args:
            task: What is predicted.
            model: The task's.
            mesh: Where it runs.
            batch_size: Rows at a time, over all hosts.
        """
        self._task, self._mesh, self._batch_size = task, mesh, batch_size
        self._jitted = jax.jit(
            lambda params, batch: task.predict(model, params, batch),
            out_shardings=sharding.replicated(mesh),
        )

    def __call__(self, params: Params, examples: Sequence[Example]) -> list[Prediction]:
        """Returns the prediction of each example."""
        if not examples:
            return []
        documents = self._task.encode_inputs(examples)
        size = self._batch_size
        batches = one_pass(self._task, documents, size, host_rows(self._mesh, size))
        found = _ByExample(batches, len(examples))
        step = functools.partial(self._jitted, params)
        numbers = range(batches.num_batches)
        for number, outputs in in_turn(step, batches, numbers, self._mesh):
            found.add(number, outputs)
        decode = self._task.decode
        return [decode(*pair) for pair in zip(examples, found.rows())]


def in_turn(
    step: Callable[[Batch], Any], batches: Pipeline, numbers: Iterable[int], mesh: Mesh
) -> Iterator[tuple[int, Any]]:
    """Yields what a step makes of each batch, on the host.

    A batch is dispatched before the one before it is read.
    """
    pending = None
    for number in numbers:
        distributed.mark()
        following = number, step(put(mesh, batches.batch(number)))
        if pending:
            yield pending[0], jax.device_get(pending[1])
        pending = following
    if pending:
        yield pending[0], jax.device_get(pending[1])


class _ByExample:
    """Sorts rows of outputs by the example that they are of."""

    def __init__(self, batches: Pipeline, num_examples: int):
        self._batches = batches
        self._found: list[list[tuple[int, Batch]]] = [[] for _ in range(num_examples)]

    def add(self, number: int, outputs: Batch) -> None:
        """Takes in the outputs [B, …] of a batch; a task may have none."""
        if outputs:
            for row, pieces in enumerate(self._batches.documents(number)):
                for piece in pieces:
                    values = {name: value[row] for name, value in outputs.items()}
                    self._found[piece.doc].append((piece.start, values))

    def rows(self) -> list[list[Batch]]:
        """Returns the rows of each example, in the order of its text."""
        begin = operator.itemgetter(0)
        return [[v for _, v in sorted(rows, key=begin)] for rows in self._found]


def host_rows(mesh: Mesh, batch_size: int) -> Sequence[int]:
    """Returns the rows of a batch that this host's devices hold, in rising order.

    Hosts between which a row is split (by `tensor`, for example) hold the same rows.
    """
    size, parts = batch_size // sharding.batch_shards(mesh), _host_parts(mesh)
    first, end = parts[0], parts[-1] + 1
    if len(parts) == end - first:  # no list of a batch that may be of any size
        return range(first * size, end * size)
    return [row for part in parts for row in range(part * size, part * size + size)]


def _host_parts(mesh: Mesh) -> list[int]:
    """Returns which of the parts of a batch's rows this host's devices hold."""
    parts = sharding.batch_shards(mesh)
    where = sharding.batch_sharding(mesh).addressable_devices_indices_map((parts,))
    return sorted({index[0].indices(parts)[0] for index in where.values() if index})


def put(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> Batch:
    """Makes the global batch of which `batch` has the rows of `host_rows`."""
    where, mine = sharding.batch_sharding(mesh), _host_parts(mesh)

    def whole(value: np.ndarray) -> Array:
        size = len(value) // len(mine)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            first = (index[0].start or 0) if index else 0
            place = mine.index(first // size) * size
            return value[place : place + size]

        shape = (size * sharding.batch_shards(mesh), *value.shape[1:])
        return jax.make_array_from_callback(shape, where, part)

    return {name: whole(value) for name, value in batch.items()}


def add(
    total: metrics_lib.Metrics | None, new: metrics_lib.Metrics
) -> metrics_lib.Metrics:
    """Adds device metrics to a sum on the host in float64, waiting for them."""
    new = jax.tree.map(np.float64, jax.device_get(new))
    return new if total is None else metrics_lib.merge(total, new)
