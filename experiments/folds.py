"""Which examples are trained on, stopped by and scored, in each fold of a data set."""

import hashlib
import itertools
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.atomic import make_folder, write_text
from lm.cli import suggest
from lm.types import UserError

Example = Mapping[str, Any]

# Of what a fold does not score, one part in so many chooses the step.
PARTS = 10


class Fold(NamedTuple):
    """Numbers of examples: to train on, to choose the step by, and to score."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def read(config: Any, splits: Sequence[str]) -> tuple[Any, list[Example]]:
    """Reads splits, with the labels of all of them together.

    Args:
        config: Of the run.
        splits: Their names.

    Returns:
        The task, and the examples that it can use.

    Raises:
        UserError: If it predicts nothing, or the texts cannot be used.
    """
    from lm.data.sources import open_source
    from lm.tasks import Predictive, build_task
    from lm.text import tokenizers
    from lm.train.evaluation import read_examples

    data, begun = config.data, config.init_from
    path = Path(begun, "tokenizer") if begun else Path(data.tokenizer)
    tokenizer = tokenizers.load(path)
    task = build_task(config.task, tokenizer)
    if not isinstance(task, Predictive):
        raise UserError(
            f"task {config.task.name} predicts nothing that can be scored; choose one "
            "that does, such as classify, tag or rank"
        )

    def rows() -> Iterator[Example]:
        for split in splits:
            for spec in data.sources:
                yield from open_source(spec, data.data_dir, data.bad_rows).examples(
                    split
                )

    task_config = task.resolve(config.task, rows(), data.bad_rows == "skip")
    task = build_task(task_config, tokenizer)
    found = [read_examples(task, data, split)[0] for split in splits]
    return task, [example for examples in found for example in examples]


def group(texts: Iterable[str], values: Iterable[Any] = ()) -> np.ndarray:
    """Numbers the groups that are on one side of every fold, [n].

    Args:
        texts: Examples of the same text, but for case and white space, are in one.
        values: So are those of the same value here, if there are any.

    >>> group(["a", "b", " A", "c", "d"], [1, 2, 3, 2, 4]).tolist()
    [0, 1, 0, 1, 2]
    """
    from scipy.sparse import csgraph, csr_array

    keys = [("text", " ".join(text.casefold().split())) for text in texts]
    n, numbers = len(keys), {}
    keys += [("value", json.dumps(value, default=str)) for value in values]
    ends = [numbers.setdefault(key, n + len(numbers)) for key in keys]
    starts = np.arange(len(keys)) % n
    size = n + len(numbers)
    edges = csr_array((np.ones(len(keys)), (starts, ends)), shape=(size, size))
    _, groups = csgraph.connected_components(edges, directed=False)
    return np.unique(groups[:n], return_inverse=True)[1]


def values_of(examples: Iterable[Example], name: str) -> list[Any]:
    """Returns a field of each example.

    Raises:
        UserError: If one lacks it.
    """
    values = []
    for example in examples:
        if name not in example:
            where = getattr(example, "where", "an example")
            raise UserError(
                f"--grouped-by: {where} has no {name!r}{suggest(name, list(example))}"
            )
        values.append(example[name])
    return values


def labels_of(task: Any, examples: Iterable[Example]) -> list[set[str]]:
    """Returns the labels of each example; none of a task that has no labels."""
    config = task.config
    if not getattr(config, "labels", ()):
        return [set() for _ in examples]
    return [set(task.labels_of(config, example)) for example in examples]


def make_folds(
    labels: Sequence[Collection[str]],
    groups: np.ndarray,
    number: int,
    seed: int,
    stratified: bool,
) -> list[Fold]:
    """Divides examples into folds; every one is scored in one of them.

    One seed makes the same folds again. No group is in two parts of a fold, and every
    label is trained on in each.

    Args:
        labels: Of each of n examples.
        groups: Of each, its number [n].
        number: Of folds.
        seed: Of the order.
        stratified: Whether an example has one label, and labels are as frequent in
            each fold as in all.

    Raises:
        UserError: If that cannot be.
    """
    available = len(np.unique(groups))
    if number > available:
        raise UserError(
            f"--folds={number} is more than there are "
            f"{'examples' if available == len(groups) else 'groups of examples'} "
            f"({available:,}); lower it"
        )
    strata = np.array([name for (name,) in labels]) if stratified else None
    counts = Counter() if strata is None else Counter(strata.tolist())
    for name, count in sorted(counts.items()):
        if count < number:
            raise UserError(
                f"the label {name!r} has {_examples(count)}, fewer than --folds="
                f"{number}; lower it, add some, or name the other labels in "
                "task.labels and set data.bad_rows=skip"
            )
    every = np.arange(len(groups))
    folds = []
    for rest, test in _divide(every, strata, groups, number, seed):
        name = f"fold {len(folds) + 1}"
        if not len(test):
            raise UserError(f"no group of examples is left for {name}; lower --folds")
        train, validation = _hold_back(rest, labels, strata, groups, seed, name)
        folds.append(Fold(train, validation, test))
    return folds


def _hold_back(
    rest: np.ndarray,
    labels: Sequence[Collection[str]],
    strata: np.ndarray | None,
    groups: np.ndarray,
    seed: int,
    name: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Divides what a fold does not score into what it trains on and what it stops by.

    Raises:
        UserError: If there is too little of it.
    """
    parts = min(PARTS, len(np.unique(groups[rest])))
    if strata is not None:
        parts = min(parts, max(Counter(strata[rest].tolist()).values()))
    if parts < 2:
        raise UserError(
            f"{name} has too few examples to train on some and choose the step by "
            "others; add some"
        )
    wanted, lacking = set().union(*labels), set()
    for train, validation in _divide(rest, strata, groups, parts, seed):
        missing = wanted.difference(*(labels[i] for i in train))
        if not missing and len(validation):
            return train, validation
        lacking |= missing
    label = min(lacking)
    number = sum(label in some for some in labels)
    raise UserError(
        f"{name} would train without the label {label!r}, of which there "
        f"{'is' if number == 1 else 'are'} {_examples(number)}; add some, or name the "
        "other labels in task.labels and set data.bad_rows=skip"
    )


def _divide(
    chosen: np.ndarray,
    strata: np.ndarray | None,
    groups: np.ndarray,
    parts: int,
    seed: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields what is outside of each part of the chosen examples, and what is in it."""
    from sklearn import model_selection

    is_grouped = len(np.unique(groups[chosen])) < len(chosen)
    kind = "Stratified" * (strata is not None) + "Group" * is_grouped + "KFold"
    splitter = getattr(model_selection, kind)(parts, shuffle=True, random_state=seed)
    columns = (None if strata is None else strata[chosen], groups[chosen])
    with warnings.catch_warnings():
        # Of a label with fewer examples than parts.
        warnings.simplefilter("ignore", UserWarning)
        pairs = list(splitter.split(chosen, *columns))
    for outside, inside in pairs:
        yield chosen[outside], chosen[inside]


def _examples(number: int) -> str:
    return f"{number:,} example{'' if number == 1 else 's'}"


def lines_of(examples: Iterable[Example]) -> list[str]:
    """Returns each example as a line of JSON."""
    return [json.dumps(example, default=_plain) for example in examples]


def _plain(value: Any) -> Any:
    """Returns an array, a number of NumPy's or the like as JSON has it."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def digest(lines: Iterable[str], folds: Iterable[Fold]) -> str:
    """Returns what changes with the texts, and with what is in which fold."""
    found = hashlib.sha256("\n".join(lines).encode())
    for numbers in itertools.chain(*folds):
        found.update(numbers.astype(np.int64).tobytes() + b"|")
    return found.hexdigest()


def write_texts(folder: Path, fold: Fold, lines: Sequence[str]) -> None:
    """Writes the splits of a fold as JSON lines, but for those that are there."""
    make_folder(folder)
    for split, numbers in fold._asdict().items():
        path = folder / f"{split}.jsonl"
        if not path.exists():
            write_text(path, "".join(f"{lines[i]}\n" for i in numbers))
