"""Labels: found in the training texts, kept in the config, checked everywhere else."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.cli import suggest
from lm.types import UserError

CLASS_WEIGHTS = ("none", "balanced")


def find(
    examples: Iterable[Mapping[str, Any]],
    labels_of: Callable[[Mapping[str, Any]], Sequence[str]],
    labels: Sequence[str],
    skip: bool,
    least: int = 2,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns all labels and how often each is there.

    Args:
        examples: For training.
        labels_of: Returns the labels of one.
        labels: Those that may be there; () means all that are, in the order of the
            alphabet.
        skip: Whether to pass over an example that has none or another.
        least: How many labels it takes.

    Raises:
        UserError: If there are too few, or one of `labels` is never there.

    >>> find([{"a": "spam"}, {"a": "ham"}, {"a": "ham"}], lambda e: [e["a"]], (), False)
    (('ham', 'spam'), (2, 1))
    """
    known = {name: number for number, name in enumerate(labels)}
    counts = Counter()
    for example in examples:
        try:
            found = labels_of(example)
            if labels:
                for name in found:
                    index(example, name, known)
        except UserError:
            if skip:
                continue
            raise
        counts.update(found)
    names = tuple(labels) or tuple(sorted(counts))
    if missing := [name for name in names if not counts[name]]:
        raise UserError(
            f"no training example has the label {missing[0]!r}; add some, or take it "
            "out of task.labels"
        )
    if len(names) < least:
        raise UserError(
            f"the training examples have {len(names)} label"
            f"{'' if len(names) == 1 else 's'} ({', '.join(names)}), too few to tell "
            "apart; check task.label and data.train_split"
        )
    return names, tuple(counts[name] for name in names)


def field(example: Mapping[str, Any], name: str) -> Any:
    """Returns a field of an example.

    Raises:
        UserError: If it is missing or null.
    """
    value = example.get(name)
    if value is None:
        raise UserError(
            f"{where(example)} has no {name!r}{_near(name, list(example))}; mend it, "
            "or name another field in the task's config"
        )
    return value


def index(example: Mapping[str, Any], label: str, ids: Mapping[str, int]) -> int:
    """Returns the number of a label.

    Raises:
        UserError: If there is no such label.
    """
    if label not in ids:
        raise UserError(
            f"{where(example)} has the label {label!r}, which is none of task.labels"
            f"{_near(label, list(ids))}; mend it, or leave such rows out with "
            "data.bad_rows=skip"
        )
    return ids[label]


def where(example: Mapping[str, Any]) -> str:
    """Returns the file and line, or the like, that an example is from."""
    return getattr(example, "where", "the example")


def balanced(counts: Sequence[int]) -> np.ndarray:
    """Returns a weight for each class, such that all weigh the same in total [C].

    >>> (balanced([1, 3]) * [1, 3]).round(3).tolist()
    [2.0, 2.0]
    """
    numbers = np.asarray(counts, np.float32)
    return numbers.sum() / (len(numbers) * numbers)


def _near(name: str, names: Sequence[str]) -> str:
    return suggest(name, names) if len(names) <= 50 else ""
