"""The space of a sweep: which keys of a config take which values.

A space is a product of factors. A factor is a table, whose rows are overrides that go
together, or a distribution, whose one key takes any number of an interval. In a config
file it is what `get_sweep` returns; `experiments.search.text` has the form for the
command line.

    def get_sweep():
        return product(
            log("optim.learning_rate", 1e-5, 1e-3),
            zipped(choice("model.num_layers", 2, 4), choice("model.emb_dim", 64, 128)),
            choice("seed", 0, 1, 2),
        )

Values are `typed` by the config before they are used.
"""

import itertools
import math
import operator
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections.config_dict import ConfigDict

from lm.config import choose, is_choice, override
from lm.types import UserError

Row = dict[str, Any]  # dotted path in the config → value

# Name → (is_integer, is_log).
FUNCTIONS = {
    "uniform": (False, False),
    "log": (False, True),
    "int": (True, False),
    "logint": (True, True),
}

# Rows that are made or tried one by one.
MOST = 10_000


@dataclass(frozen=True)
class Distribution:
    """Any number from `low` to `high`, both included, for one key.

    Attributes:
        function: One of `FUNCTIONS`: its scale, and whether numbers are whole.
        key: The dotted path in the config.
        low: The least number.
        high: The greatest one.
    """

    function: str
    key: str
    low: float
    high: float

    def __post_init__(self):
        if not -sys.float_info.max <= self.low < self.high <= sys.float_info.max:
            raise UserError(f"{self} must have two numbers, the lower one first")
        if self.is_log and self.low <= 0:
            plain = "int" if self.is_integer else "uniform"
            raise UserError(f"{self} must begin above 0; raise it, or write {plain}")

    def __str__(self) -> str:
        ends = (repr(end).removesuffix(".0") for end in (self.low, self.high))
        return f"{self.key}={self.function}({','.join(ends)})"

    @property
    def is_integer(self) -> bool:
        """Whether numbers are whole."""
        return FUNCTIONS[self.function][0]

    @property
    def is_log(self) -> bool:
        """Whether it is uniform in the logarithm."""
        return FUNCTIONS[self.function][1]

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    @property
    def size(self) -> float:
        """Infinity; of whole numbers too, which may be very many."""
        return math.inf


@dataclass(frozen=True)
class Table:
    """Rows of overrides, one of which is taken."""

    rows: tuple[Row, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that any row sets, in order."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row))

    @property
    def size(self) -> float:
        """The number of rows."""
        return len(self.rows)


Factor = Table | Distribution


@dataclass(frozen=True)
class Space:
    """A product of factors that have no key in common; without factors, one empty row.

    Attributes:
        factors: The first changes slowest.
    """

    factors: tuple[Factor, ...] = ()

    def __post_init__(self):
        for key in self.keys:
            if not isinstance(key, str):
                raise UserError(f"{key!r} is not the name of a key of the config")
            if self.keys.count(key) > 1:
                raise UserError(f"{key} is in the sweep twice; leave one out")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that a row may set, in order."""
        return tuple(key for factor in self.factors for key in factor.keys)

    @property
    def size(self) -> float:
        """The number of rows; infinity if there is a distribution."""
        return math.prod(factor.size for factor in self.factors)


# Combinators.


def choice(key: str, *values: Any) -> Space:
    """Returns the space of some values of a key.

    >>> rows(choice("seed", 0, 1))
    [{'seed': 0}, {'seed': 1}]
    """
    if not values:
        raise UserError(f"{key} has no values to choose from; name some")
    return _table({key: value} for value in values)


def uniform(key: str, low: float, high: float, points: int | None = None) -> Space:
    """Returns an interval of a key, or so many evenly spaced points of it.

    >>> rows(uniform("optim.b1", 0.8, 1.0, 3))
    [{'optim.b1': 0.8}, {'optim.b1': 0.9}, {'optim.b1': 1.0}]
    """
    return spread("uniform", key, low, high, points)


def log(key: str, low: float, high: float, points: int | None = None) -> Space:
    """Returns the same on a logarithmic scale.

    >>> rows(log("optim.eps", 1e-8, 1e-6, 3))
    [{'optim.eps': 1e-08}, {'optim.eps': 1e-07}, {'optim.eps': 1e-06}]
    """
    return spread("log", key, low, high, points)


def integers(
    key: str, low: int, high: int, points: int | None = None, log: bool = False
) -> Space:
    """Returns the same of whole numbers, to which points are rounded.

    >>> rows(integers("batch_size", 8, 32, 3, log=True))
    [{'batch_size': 8}, {'batch_size': 16}, {'batch_size': 32}]
    """
    return spread("logint" if log else "int", key, low, high, points)


def spread(
    function: str, key: str, low: Any, high: Any, points: int | None = None
) -> Space:
    """Returns a distribution by the name of its function, or points of it.

    Raises:
        UserError: If the numbers do not suit the function.
    """
    is_integer, is_log = FUNCTIONS[function]
    number = operator.index if is_integer else float
    try:
        whole = Distribution(function, key, number(low), number(high))
    except (TypeError, ValueError, OverflowError):
        kind = "whole numbers" if is_integer else "numbers"
        raise UserError(f"{key}={function}({low},{high}) must have {kind}") from None
    if points is None:
        return Space((whole,))
    if not (isinstance(points, int) and 2 <= points <= MOST):
        raise UserError(f"{whole} can have 2 to {MOST:,} points, not {points}")
    to, back = (math.log, math.exp) if is_log else (float, float)
    first, last = to(whole.low), to(whole.high)
    shares = (i / (points - 1) for i in range(1, points - 1))
    inner = (back(first * (1 - share) + last * share) for share in shares)
    # Twelve digits: 0.0001 instead of 9.999999999999999e-05.
    inner = (round(x) if is_integer else float(f"{x:.12g}") for x in inner)
    values = (whole.low, *inner, whole.high)
    if len(set(values)) < points:
        raise UserError(f"{whole} has no {points} different points; ask for fewer")
    return choice(key, *values)


def product(*spaces: Space) -> Space:
    """Returns every row of each with every row of the others."""
    return Space(tuple(factor for space in spaces for factor in space.factors))


def zipped(*spaces: Space) -> Space:
    """Returns each row of one with those of the others at the same place.

    >>> rows(zipped(choice("a", 1, 2), choice("b", 3, 4)))
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]

    Raises:
        UserError: If their numbers of rows differ, or a key is in two.
    """
    product(*spaces)  # refuses a key that is in two
    columns = [rows(space) for space in spaces]
    for space, column in zip(spaces, columns):
        if len(column) != len(columns[0]):
            one, two = (" & ".join(s.keys) for s in (spaces[0], space))
            raise UserError(
                f"{one} has {len(columns[0]):,} rows and {two} has {len(column):,}; "
                "to be zipped they must have the same number"
            )
    return _table(map(_joined, zip(*columns)))


def union(*spaces: Space) -> Space:
    """Returns the rows of one, then those of the next; of equal rows the first."""
    # As 1, 1.0 and True are equal, and lists have no hash.
    found = {repr(sorted(row.items())): row for space in spaces for row in rows(space)}
    return _table(found.values())


def chain(*spaces: Space) -> Space:
    """Returns the rows of one, then those of the next, equal rows too.

    >>> len(rows(chain(choice("a", 1, 2), choice("a", 2))))
    3
    """
    return _table(row for space in spaces for row in rows(space))


def _table(found: Iterable[Row]) -> Space:
    return Space((Table(tuple(found)),))


def _joined(parts: Iterable[Row]) -> Row:
    return {key: value for part in parts for key, value in part.items()}


# Rows.


def rows(space: Space, limit: int = MOST) -> list[Row]:
    """Returns all rows; the first key changes slowest.

    Raises:
        UserError: If a key has no end, or there are more than `limit` rows.
    """
    for factor in space.factors:
        if isinstance(factor, Distribution):
            points = f"{str(factor)[:-1]},5)"
            raise UserError(f"{factor} has no end; {points} would be 5 points of it")
    if space.size > limit:
        raise UserError(
            f"{'; '.join(space.keys)} make {space.size:,} rows, more than {limit:,}; "
            "name fewer values"
        )
    return [_joined(parts) for parts in itertools.product(*map(_tried, space.factors))]


def _tried(factor: Factor) -> Sequence[Row]:
    """Returns the rows of a table, and the ends of a distribution."""
    if isinstance(factor, Table):
        return factor.rows
    return [{factor.key: factor.low}, {factor.key: factor.high}]


def split_seed(space: Space) -> tuple[Space, list[int]]:
    """Returns a typed space without its seeds, and them; [] if it has none.

    >>> split_seed(product(choice("optim.b1", 0.9), choice("seed", 0, 1)))[1]
    [0, 1]

    Raises:
        UserError: If the seed goes together with other keys, or has no end.
    """
    own = tuple(factor for factor in space.factors if "seed" in factor.keys)
    if not own:
        return space, []
    if own[0].keys != ("seed",):
        raise UserError(
            f"the seed goes with other keys in {' & '.join(own[0].keys)}; sweep it "
            "by itself, as in seed=0..2"
        )
    others = tuple(factor for factor in space.factors if factor not in own)
    return Space(others), [row["seed"] for row in rows(Space(own))]


def as_flags(row: Row) -> list[str]:
    """Returns the words that hand a row to lm.train; `shlex.join` is for a shell.

    >>> as_flags({"optim.b1": 0.9, "optim.freeze": ("embed",)})
    ['--config.optim.b1=0.9', "--config.optim.freeze=('embed',)"]
    """
    return [f"--config.{key}={as_word(value)}" for key, value in row.items()]


def as_word(value: Any) -> str:
    """Returns what `lm.config.override` reads as a value."""
    if hasattr(value, "tolist"):  # NumPy's
        value = value.tolist()
    if isinstance(value, str):
        return value
    return repr(tuple(value) if isinstance(value, list) else value)


def short(row: Row) -> str:
    """Returns a label, in which keys are as short as `short_names` makes them.

    >>> short({"optim.learning_rate": 0.00001, "seed": 1})
    'learning_rate=1e-05 seed=1'
    >>> short({"model.dropout_rate": 0.1, "task.dropout_rate": 0.3})
    'model.dropout_rate=0.1 task.dropout_rate=0.3'
    """
    texts = (f"{v:g}" if isinstance(v, float) else as_word(v) for v in row.values())
    return " ".join(map("=".join, zip(short_names(row, ".").values(), texts)))


def short_names(names: Iterable[str], separator: str) -> dict[str, str]:
    """Returns the shortest end of each name that no other one has.

    >>> short_names(["optim.b1", "model.rate", "task.rate"], ".")
    {'optim.b1': 'b1', 'model.rate': 'model.rate', 'task.rate': 'task.rate'}
    """
    ends = {name: _ends(name, separator) for name in names}
    counts = Counter(end for found in ends.values() for end in found)
    return {
        name: next((end for end in found if counts[end] == 1), name)
        for name, found in ends.items()
    }


def _ends(name: str, separator: str) -> list[str]:
    parts = name.split(separator)
    return [separator.join(parts[i:]) for i in reversed(range(len(parts)))]


# Typing by the config.


def typed(space: Space, config: ConfigDict) -> Space:
    """Returns the space with every value as lm.train would have it in the config.

    The configs of all rows are built, with the two ends of each distribution. If they
    are more than `MOST`, so many are as it takes to have each row of a factor in one.

    Raises:
        UserError: If a key is unknown, a value has another type, or a config is wrong.
    """
    from lm.train.config import Config

    values = config.to_dict()
    scratch = ConfigDict(values)
    found = Space(tuple(_typed_factor(factor, scratch) for factor in space.factors))
    tables = [_tried(factor) for factor in found.factors]
    tried: Iterable[Sequence[Row]] = itertools.product(*tables)
    if math.prod(map(len, tables)) > MOST:
        endless = zip(*map(itertools.cycle, tables))
        tried = itertools.islice(endless, max(map(len, tables)))
    for row in map(_joined, tried):
        try:
            Config.of(_merged(values, row))
        except UserError as error:
            raise UserError(f"with {short(row) or 'no change'}: {error}") from error
    return found


def _typed_factor(factor: Factor, scratch: ConfigDict) -> Factor:
    """Returns a factor with values as the config has them."""
    try:
        tried = tuple(_typed_row(row, scratch) for row in _tried(factor))
    except UserError as error:
        where = f"{factor}: " if isinstance(factor, Distribution) else ""
        raise UserError(f"{where}{error}") from error
    if isinstance(factor, Table):
        return Table(tried)
    if not all(isinstance(row[factor.key], int | float) for row in tried):
        raise UserError(f"{factor}: {factor.key} is not a number; name its values")
    return factor


def _typed_row(row: Row, scratch: ConfigDict) -> Row:
    """Returns a row with its values as lm.train has them, which sets names first."""
    if any(map(is_choice, row)):
        scratch = ConfigDict(scratch.to_dict())
    found = {key: _typed_value(key, row[key], scratch) for key in _names_first(row)}
    return {key: found[key] for key in row}


def _names_first(row: Row) -> list[str]:
    return sorted(row, key=lambda key: not is_choice(key))


def _typed_value(key: str, value: Any, scratch: ConfigDict) -> Any:
    """Returns what lm.train makes of a value, which reaches it as a word."""
    (word,) = as_flags({key: value})
    override(scratch, word)
    found: Any = scratch
    for name in key.split("."):
        found = found[name]
    if isinstance(found, str) and not isinstance(value, str):
        raise UserError(f"config.{key} must be of type str, not {value!r}")
    return found


def _merged(values: Mapping[str, Any], row: Row) -> dict[str, Any]:
    """Returns nested values with those of a row in their places."""
    merged = dict(values)
    for key in _names_first(row):
        name, _, rest = key.partition(".")
        if is_choice(key):
            merged[name] = choose(name, row[key], merged[name])
        else:
            merged[name] = _merged(merged[name], {rest: row[key]}) if rest else row[key]
    return merged
