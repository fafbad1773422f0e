"""Labels: found in the training texts, kept in the config, checked everywhere else."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from lm.cli import suggest
from lm.types import UserError

T = TypeVar("T")

CLASS_WEIGHTS = ("none", "balanced")

LARGEST = float(np.finfo(np.float32).max)


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
        UserError: If there are too few, one of `labels` is never there, or two that
            were found differ only by blanks at their ends.

    >>> find([{"a": "spam"}, {"a": "ham"}, {"a": "ham"}], lambda e: [e["a"]], (), False)
    (('ham', 'spam'), (2, 1))
    """
    known = {name: number for number, name in enumerate(labels)}

    def checked(example: Mapping[str, Any]) -> Sequence[str]:
        found = labels_of(example)
        if labels:
            for name in found:
                index(example, name, known)
        return found

    counts = Counter(n for found in _each(examples, checked, skip) for n in found)
    names = tuple(labels) or _told_apart(sorted(counts))
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


def moments(
    examples: Iterable[Mapping[str, Any]], name: str, skip: bool
) -> tuple[float, float]:
    """Returns the mean of numbers and their standard deviation, or 1 if all are equal.

    Args:
        examples: For training.
        name: Of the field that has the number.
        skip: Whether to pass over an example that has none.

    Raises:
        UserError: If one has none and is not passed over, or all have none.

    >>> moments([{"age": 1}, {"age": "5"}], "age", False)
    (3.0, 2.0)
    """
    read = functools.partial(number, name=name)
    numbers = np.fromiter(_each(examples, read, skip), np.float64)
    mean, deviation = float(numbers.mean()), float(numbers.std())
    # Equal numbers may deviate from their mean by its rounding.
    return mean, deviation if deviation > 1e-12 * abs(mean) else 1.0


def _each(
    examples: Iterable[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any]], T],
    skip: bool,
) -> Iterator[T]:
    """Yields what is read of each training example, or of each good one.

    Raises:
        UserError: If there is none.
    """
    reason = UserError(
        "there are no training examples; check data.sources and data.train_split"
    )
    is_empty = True
    for example in examples:
        try:
            value = read(example)
        except UserError as error:
            if not skip:
                raise
            reason = error
        else:
            is_empty = False
            yield value
    if is_empty:
        raise reason


def _told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Returns labels of which no two differ only by blanks at their ends."""
    known = {}
    for name in names:
        other = known.setdefault(name.strip(), name)
        if other != name:
            raise UserError(
                f"the training examples have the labels {other!r} and {name!r}, which "
                "differ only by blanks at their ends; mend them"
            )
    return tuple(names)


class MissingFieldError(UserError):
    """An example lacks a field."""


def field(example: Mapping[str, Any], name: str, *used: str) -> Any:
    """Returns a field of an example.

    Args:
        example: It may have other fields, which a message may suggest.
        name: Of the field.
        used: Fields that, as `text`, have a use already and are not suggested.

    Raises:
        MissingFieldError: If it is missing.
        UserError: If it is null.
    """
    cure = "mend it, or name another field in the task's config"
    if name not in example:
        others = [other for other in example if other not in ("text", *used)]
        raise MissingFieldError(
            f"{where(example)} has no {name!r}{_near(name, others)}; {cure}"
        )
    if example[name] is None:
        raise UserError(f"{where(example)}: {name!r} is null; {cure}")
    return example[name]


def number(example: Mapping[str, Any], name: str) -> float:
    """Returns a field of an example that is a number, or a text of one.

    Raises:
        UserError: If it is missing, or is no number that float32 has.
    """
    value = field(example, name)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = np.nan
    if not abs(found) <= LARGEST:
        raise UserError(
            f"{where(example)}: {name!r} is {value!r:.60}, not a number; mend it"
        )
    return found


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
