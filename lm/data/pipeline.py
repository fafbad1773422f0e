"""From documents to batches.

    sources ─ task.encode ─ stores ─ task.rows ─ order ─ task.features ─ batches

Texts are encoded once and kept; a batch is then looked up by its number: the order
says which rows it holds, the layout which pieces make a row, the task what features
they have. `tf.data` does this in parallel, ahead of the training step.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm.config import check_choice
from lm.data.ahead import read_ahead
from lm.data.order import Draw, Endless, OnePass, Order
from lm.data.packing import FEATURES, Piece, Rows
from lm.data.sources import open_source
from lm.data.store import Store, encode_chunks, from_documents, open_store
from lm.text.tokenizers import Tokenizer
from lm.types import UserError

BAD_ROWS = ("stop", "skip")


@dataclass(frozen=True)
class DataConfig:
    """Which texts, and how they are read.

    Attributes:
        sources: What `lm.data.sources.open_source` opens.
        tokenizer: A tokenizer's folder or file.
        weights: The share of training rows from each source. () means all sources are
            one corpus, every text once an epoch. Evaluation reads all once anyway.
        data_dir: Where TFDS data sets are.
        cache_dir: A local folder for encoded texts; "" means `data_dir`/cache.
        train_split: The split to train on.
        eval_split: The split to evaluate on while training.
        shuffle: Whether training rows come in another order every epoch.
        bad_rows: At a row that is broken or that the task cannot use, `stop` with an
            error, or `skip` it and count.
        prefetch: Batches to have ready ahead of the step.
        num_workers: Threads that make batches.
    """

    sources: tuple[str, ...]
    tokenizer: str
    weights: tuple[float, ...] = ()
    data_dir: str = "data"
    cache_dir: str = ""
    train_split: str = "train"
    eval_split: str = "validation"
    shuffle: bool = True
    bad_rows: str = "stop"
    prefetch: int = 8
    num_workers: int = 2

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.sources):
            raise UserError(
                f"data.weights has {len(self.weights)} numbers for "
                f"{len(self.sources)} data.sources; give one each, or none"
            )
        if any(not 0 < weight < np.inf for weight in self.weights):
            raise UserError("data.weights must all be above 0; leave the source out")
        check_choice("data.bad_rows", self.bad_rows, BAD_ROWS)
        for name in ("prefetch", "num_workers"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} must be at least 1")

    def named_sources(self) -> tuple[str, ...]:
        """Returns `sources`.

        Raises:
            UserError: If there are none, as in a workdir that was imported.
        """
        if not self.sources:
            raise UserError("data.sources names no text; set it, or give --source")
        return self.sources


# The pieces of one row: where each comes from, and the document's columns, of which
# `tokens` is cut to the piece.
Pieces = Sequence[tuple[Piece, Mapping[str, np.ndarray]]]


class DataTask(Protocol):
    """What the pipeline asks of a task; `lm.tasks.base.Task` adds the loss.

    Attributes:
        overlap: Units that a piece needs beyond its end: 1 where the target of a
            token is the next one.
    """

    overlap: int

    @property
    def encoding(self) -> str:
        """What `encode` depends on besides the tokenizer.

        Stored columns are reused as long as it stays the same.
        """
        ...

    def encode(
        self, examples: Sequence[Mapping[str, Any]]
    ) -> Sequence[dict[str, np.ndarray] | UserError]:
        """Turns examples into int32 columns, once; an empty dict drops an example.

        For one that is wrong it returns a UserError, which says where it is from.
        """
        ...

    def rows(self, lengths: Mapping[str, np.ndarray], train: bool, seed: int) -> Rows:
        """Lays documents, whose columns have these lengths, into rows."""
        ...

    def features(
        self, pieces: Pieces, capacity: tuple[int, ...], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Makes one row of a batch; no pieces make a row of padding."""
        ...


class Corpus:
    """Several stores as one."""

    def __init__(self, stores: Sequence[Store]):
        self._stores = stores
        self._ends = np.cumsum([store.num_docs for store in stores])

    def lengths(self) -> dict[str, np.ndarray]:
        """Returns each document's length in each column, int64 [n]."""
        parts = [store.lengths() for store in self._stores]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def cut(self, piece: Piece, overlap: int) -> dict[str, np.ndarray]:
        """Returns a piece's columns: `tokens` cut to it, the others whole."""
        which, doc = 0, piece.doc
        if len(self._stores) > 1:
            which = int(np.searchsorted(self._ends, doc, side="right"))
            doc -= int(self._ends[which - 1]) if which else 0
        columns = self._stores[which].document(doc)
        if "tokens" in columns:
            tokens = columns["tokens"]
            columns["tokens"] = tokens[piece.start : piece.stop + overlap]
        return columns


@dataclass(frozen=True)
class Pipeline:
    """Batches of one host, by their number or one after the other.

    A batch is a dict of arrays [B / hosts, …]; `example_mask` float32 is 0 in rows that
    only fill up the last batch of an evaluation.

    Attributes:
        num_rows: Rows of an epoch, over all hosts and sources.
        num_batches: Batches of an epoch.
        fingerprint: Of all that decides what the rows are: the encoded texts, the
            tokenizer, the task's encoding, the mixture and the seed.
        task: What the features are.
        corpora: The encoded texts.
        layouts: Of each corpus.
        order: Which rows a batch holds.
        host: Which rows of a batch are this host's.
        is_endless: Whether batches go on after an epoch.
        seed: Of the features.
        prefetch: Batches to have ready.
        num_workers: Threads that make batches.
    """

    num_rows: int
    num_batches: int
    fingerprint: str
    task: DataTask
    corpora: Sequence[Corpus]
    layouts: Sequence[Rows]
    order: Order
    host: Sequence[int]
    is_endless: bool
    seed: int
    prefetch: int
    num_workers: int

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """Makes this host's part of a batch."""
        draws = self.order.batch(number)
        first = draws[0]
        capacity = self.layouts[first.corpus].capacity(first.row)
        mine = [draws[i] if i < len(draws) else None for i in self.host]
        features = [self._features(draw, capacity) for draw in mine]
        batch = {name: np.stack([f[name] for f in features]) for name in features[0]}
        is_real = [draw is not None for draw in mine]
        batch["example_mask"] = np.array(is_real, np.float32)
        return batch

    def documents(self, number: int) -> list[list[Piece]]:
        """Returns the pieces in each row of a batch, of all hosts.

        Rows that only fill up the last batch of an evaluation are left out.
        """
        return [
            self.layouts[draw.corpus].pieces(draw.epoch, draw.row)
            for draw in self.order.batch(number)
        ]

    def _features(
        self, draw: Draw | None, capacity: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """Makes one row, or one of padding."""
        if draw is None:
            return self.task.features([], capacity, _rng(self.seed, 0))
        corpus = self.corpora[draw.corpus]
        pieces = [
            (piece, corpus.cut(piece, self.task.overlap))
            for piece in self.layouts[draw.corpus].pieces(draw.epoch, draw.row)
        ]
        return self.task.features(pieces, capacity, _rng(self.seed, draw.number))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches from the first on: endlessly in training, else once.

        Arrays are read-only.
        """
        # Loading it takes seconds, which whoever only asks for `num_rows` is spared.
        import tensorflow as tf

        # JAX computes: TensorFlow must not claim a GPU's memory.
        tf.config.set_visible_devices([], "GPU")
        sample = self.batch(0)
        failures: list[Exception] = []

        def make(number: np.int64) -> list[np.ndarray]:
            try:
                batch = self.batch(int(number))
                return [batch[name] for name in sample]
            except Exception as error:
                failures.append(error)
                raise

        dtypes = [tf.as_dtype(array.dtype) for array in sample.values()]
        stop = np.iinfo(np.int64).max if self.is_endless else self.num_batches
        dataset = tf.data.Dataset.range(stop).map(
            lambda number: tf.numpy_function(make, [number], dtypes),
            num_parallel_calls=self.num_workers,
            deterministic=True,
        )
        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = self.num_workers
        arrays = dataset.with_options(options).as_numpy_iterator()
        op_error = tf.errors.OpError  # at Python's exit the module is gone
        try:
            for values in read_ahead(arrays, self.prefetch):
                yield dict(zip(sample, values))
        except op_error:
            # TensorFlow keeps only the text of what went wrong.
            if failures:
                raise failures[0] from None
            raise


def build_pipeline(
    task: DataTask,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    split: str,
    batch_size: int,
    seed: int,
    train: bool,
    start_row: int = 0,
    host: Sequence[int] = (),
) -> Pipeline:
    """Encodes the texts if need be and returns their batches.

    Args:
        task: What the features are.
        tokenizer: The task's.
        config: Texts and order.
        split: Of every source.
        batch_size: Rows of a batch, over all hosts.
        seed: Of order and features. Row g of the stream depends on it and on g alone
            (where rows are bucketed, also on `batch_size`).
        train: Endless and shuffled, or each row once and in order.
        start_row: Where in the endless stream to begin.
        host: Which rows of a batch are this host's; () means all.

    Raises:
        UserError: If a split is empty or shorter than a batch of training, or what is
            given does not fit otherwise.
    """
    if seed < 0:
        raise UserError(f"seed is {seed}; it must be at least 0")
    specs = config.named_sources()
    stores = [_store(task, tokenizer, config, spec, split) for spec in specs]
    is_mixture = train and bool(config.weights)
    groups = [[store] for store in stores] if is_mixture else [stores]
    order_seed = seed if config.shuffle else -1
    corpora = [Corpus(group) for group in groups]
    layouts = [task.rows(corpus.lengths(), train, order_seed) for corpus in corpora]
    num_rows = sum(rows.num_rows for rows in layouts)
    least = batch_size if train else 1
    if num_rows < least or not all(rows.num_rows for rows in layouts):
        raise UserError(
            f"{', '.join(config.sources)} {split} makes {num_rows} rows, fewer than "
            + (
                f"batch_size {least}; lower it or task.length, or "
                if train
                else "one; "
            )
            + "add text"
        )
    if train:
        weights = config.weights if is_mixture else (1.0,)
        order = Endless(layouts, weights, batch_size, order_seed, start_row)
        num_batches = num_rows // batch_size
    else:
        order = OnePass(layouts[0], batch_size)
        num_batches = order.num_batches
    made_of = [
        [store.checksum for store in stores],
        [*config.weights, config.shuffle] if train else [],
        [tokenizer.fingerprint, task.encoding, seed, split],
    ]
    return Pipeline(
        num_rows=num_rows,
        num_batches=num_batches,
        fingerprint=hashlib.sha256(json.dumps(made_of).encode()).hexdigest(),
        task=task,
        corpora=corpora,
        layouts=layouts,
        order=order,
        host=host or range(batch_size),
        is_endless=train,
        seed=seed,
        prefetch=config.prefetch,
        num_workers=config.num_workers,
    )


def one_pass(
    task: DataTask,
    documents: Sequence[Mapping[str, np.ndarray]],
    batch_size: int,
    host: Sequence[int] = (),
) -> Pipeline:
    """Returns the batches of documents in memory, each row once and in order.

    Args:
        task: What the features are.
        documents: Encoded, with the same columns each; at least one. A piece of
            document i in `Pipeline.documents` is of `documents[i]`.
        batch_size: Rows of a batch, over all hosts.
        host: Which rows of a batch are this host's; () means all.
    """
    store = from_documents(documents)
    rows = task.rows(store.lengths(), False, -1)
    order = OnePass(rows, batch_size)
    return Pipeline(
        num_rows=rows.num_rows,
        num_batches=order.num_batches,
        fingerprint=store.checksum,
        task=task,
        corpora=[Corpus([store])],
        layouts=[rows],
        order=order,
        host=host or range(batch_size),
        is_endless=False,
        seed=0,
        prefetch=DataConfig.prefetch,
        num_workers=DataConfig.num_workers,
    )


def _store(
    task: DataTask, tokenizer: Tokenizer, config: DataConfig, spec: str, split: str
) -> Store:
    """Opens the encoded texts of one source."""
    cache = config.cache_dir or f"{config.data_dir.rstrip('/')}/cache"
    if "://" in cache:
        raise UserError(
            f"encoded texts cannot be kept in {cache}; set data.cache_dir to a local "
            "folder"
        )
    source = open_source(spec, config.data_dir, config.bad_rows)
    name = f"{spec} {split}"
    key = {
        "source": spec,
        "split": split,
        "texts": source.fingerprint(split),
        "tokenizer": tokenizer.fingerprint,
        "encoding": task.encoding,
        "bad_rows": config.bad_rows,
    }
    try:
        return open_store(
            Path(cache),
            name,
            key,
            lambda: encode_chunks(source.examples(split), task.encode, source.bad_rows),
        )
    finally:
        source.bad_rows.say(name)


def _rng(seed: int, number: int) -> np.random.Generator:
    """Returns the random numbers of one row.

    Philox (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405) makes a stream
    for every key and counter at once, without the mixing that `default_rng` does.
    """
    key = np.array([seed, FEATURES], np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, number], np.uint64))
    return np.random.Generator(bits)
