"""What a sweep tries: a plan, which says what each trial sets by its number alone."""

import dataclasses
import functools
import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.search.results import SEED, Metric
from experiments.search.space import Factor, Row, Space, Table, short

STRATEGIES = ("grid", "random", "tpe", "cmaes", "hyperband")
PRUNERS = ("none", "median", "hyperband")

Params = dict[str, Any]  # a factor's name → its value


@dataclass(frozen=True)
class Plan:
    """A sweep: with S seeds, trial k is point k // S with seed k % S.

    Attributes:
        command: What every trial trains: the config's path and overrides.
        config: What these make.
        space: Which overrides are tried, without the seed.
        seeds: Those that every point is trained with; () means the config's.
        metrics: What is to be reached.
        strategy: One of `STRATEGIES`.
        pruner: One of `PRUNERS`.
        num_points: Points to try.
        first_step: Before which no trial is pruned.
        last_step: Of a trial.
        seed: Of the strategy.
    """

    command: tuple[str, ...]
    config: dict[str, Any]
    space: Space
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    strategy: str
    pruner: str
    num_points: int
    first_step: int
    last_step: int
    seed: int = 0

    @property
    def seeds_each(self) -> int:
        """S, the trials of a point."""
        return max(len(self.seeds), 1)

    @property
    def num_trials(self) -> int:
        """Runs in all."""
        return self.num_points * self.seeds_each

    @property
    def base(self) -> list[str]:
        """The flags of `lm.train` that all trials have."""
        config, *overrides = self.command
        return [f"--config={config}", *overrides]

    def overrides(self, number: int) -> Row | None:
        """Returns what a trial sets; None if that depends on the trials before."""
        params = self.params(number)
        return None if params is None else self.row(number, params)

    def row(self, number: int, params: Params) -> Row:
        """Returns what a trial sets that has these parameters."""
        found: Row = {}
        for factor in self.space.factors:
            value = params[name_of(factor)]
            if isinstance(factor, Table):
                found |= factor.rows[choices(factor).index(value)]
            else:
                found[factor.key] = value
        if self.seeds:
            found[SEED] = self.seeds[number % self.seeds_each]
        return found

    def params(self, number: int) -> Params | None:
        """Returns a trial's parameters; None if they depend on the trials before."""
        point, factors = number // self.seeds_each, self.space.factors
        if self.strategy == "grid":
            return _nth(factors, point)
        if self.strategy != "random":
            return None
        if math.isfinite(self.space.size):  # each of them at most once
            order = _different(int(self.space.size), self.num_points, self.seed)
            return _nth(factors, order[point])
        rng = random.Random(f"{self.seed}/{point}")
        return {name_of(factor): _draw(rng, factor) for factor in factors}

    def signature(self) -> dict[str, Any]:
        """Returns what must stay for a sweep to go on, as JSON: all but its length."""
        values = dataclasses.asdict(self)
        values["space"] = [_brief(str(factor)) for factor in self.space.factors]
        del values["num_points"]
        return json.loads(json.dumps(values))


def _brief(text: str) -> str:
    """Returns a text that is not long: MySQL keeps 64 KB, and people read less."""
    if len(text) <= 200:
        return text
    return f"{text[:150]} … {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def workdir_of(number: int) -> str:
    """Returns where a trial trains, in the sweep's folder."""
    return f"trials/{number:04d}"


def name_of(factor: Factor) -> str:
    """Returns the name of a factor: its keys."""
    return " & ".join(factor.keys)


def choices(table: Table) -> list[Any]:
    """Returns a plain value for each row of a table, all different.

    >>> choices(Table(({"a": 1, "b": "x"}, {"a": 2, "b": "x"})))
    ['a=1 b=x', 'a=2 b=x']
    """
    if len(table.keys) == 1:
        values = [row[table.keys[0]] for row in table.rows]
        if all(isinstance(value, bool | int | float | str) for value in values):
            return values
    values = [short(row) for row in table.rows]
    if len(set(values)) == len(values):
        return values
    return [f"{number}: {value}" for number, value in enumerate(values)]


def _nth(factors: Sequence[Factor], number: int) -> Params:
    """Returns a row of a grid, whose first factor is slowest."""
    params = {}
    for factor in reversed(factors):
        assert isinstance(factor, Table)
        values = choices(factor)
        number, index = divmod(number, len(values))
        params[name_of(factor)] = values[index]
    return params


@functools.lru_cache(maxsize=4)
def _different(below: int, number: int, seed: int) -> list[int]:
    """Returns different numbers at random; of more of them these are the first."""
    rng, found = random.Random(seed), {}
    while len(found) < number:
        found[rng.randrange(below)] = None
    return list(found)


def _draw(rng: random.Random, factor: Factor) -> Any:
    if isinstance(factor, Table):
        return rng.choice(choices(factor))
    low, high = factor.low, factor.high
    if factor.is_integer and factor.is_log:  # a number has the scale around it
        low, high = low - 0.5, high + 0.5
    if factor.is_log:
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
    elif factor.is_integer:
        drawn = rng.randint(int(low), int(high))
    else:
        drawn = rng.uniform(low, high)
    if factor.is_integer:
        drawn = round(drawn)
    return min(max(drawn, factor.low), factor.high)
