"""What the page of a sweep is made of, and what things are called on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from experiments.search import results
from experiments.search.charts import NOT_SET, Axis, Mark, cut, text_of
from experiments.search.results import Metric, Point, Trial
from experiments.search.space import short_names
from lm.page import is_number, number

TITLE = 60  # characters of a value where the mouse is


@dataclass(frozen=True)
class Sweep:
    """What a page is made of.

    Attributes:
        folder: The sweep's.
        trials: All of them.
        metrics: The first is the one by which points are ordered.
        command: That made the sweep; "" if it is not known.
        base: The flags of `lm.train` that all trials have; () if they are not known.
    """

    folder: Path
    trials: Sequence[Trial]
    metrics: Sequence[Metric]
    command: str
    base: Sequence[str]

    @cached_property
    def points(self) -> list[Point]:
        """The best first."""
        return results.fold(self.trials, self.metrics)

    @cached_property
    def best(self) -> Point | None:
        """The first one, if it has a value."""
        return results.best(self.points, self.metrics)

    @cached_property
    def keys(self) -> dict[str, str]:
        """What is swept but for the seed, and how it is called on the page."""
        keys = results.keys_of(self.trials)
        return short_names([key for key in keys if key != results.SEED], ".")

    @cached_property
    def names(self) -> dict[str, str]:
        """The metrics, and how they are called on the page."""
        return short_names([metric.name for metric in self.metrics], "/")

    @cached_property
    def axes(self) -> dict[str, Axis]:
        """Of each key."""
        return {
            key: Axis(point.overrides.get(key, NOT_SET) for point in self.points)
            for key in self.keys
        }

    def values(self, metric: int) -> list[float]:
        """Returns a metric's finite values, of seeds and of points."""
        means = [point.means[metric] for point in self.points]
        seeds = [trial.values[metric] for trial in results.done(self.trials)]
        return list(filter(is_number, means + seeds))

    def tones(self, metric: int) -> list[float | None]:
        """Returns how good each point is by its rank, from 0 to 1."""
        means = [point.means[metric] for point in self.points]
        worst_first = sorted(
            set(filter(is_number, means)), reverse=self.metrics[metric].mode == "min"
        )
        last = len(worst_first) - 1
        ranks = {
            value: i / last if last else 1.0 for i, value in enumerate(worst_first)
        }
        return [ranks.get(mean) for mean in means]

    def marks(self, metric: int = 0, brief: bool = False) -> list[Mark]:
        """Returns the mark of each point, with its overrides unless it is brief."""
        name = self.names[self.metrics[metric].name]
        found = []
        for i, (point, tone) in enumerate(zip(self.points, self.tones(metric))):
            title = f"point {i + 1}: {name} {self.said(metric, point)}"
            if not brief:
                title += f", {count(point.seeds, 'seed')}, {states(point)}"
                title += "".join(
                    f"\n{self.keys[key]} {cut(text_of(value), TITLE)}"
                    for key, value in point.overrides.items()
                )
            found.append(Mark(i, title, tone))
        return found

    def said(self, metric: int, point: Point) -> str:
        """Returns a point's value and how sure it is."""
        mean, width = point.means[metric], half(point, metric)
        return number(mean) + (f" ± {number(width)}" if is_number(width) else "")


def count(number: int, name: str) -> str:
    """Returns a number of things.

    >>> count(1, "trial"), count(2, "trial")
    ('1 trial', '2 trials')
    """
    return f"{number:,} {name}" + "s" * (number != 1)


def half(point: Point, metric: int) -> float:
    """Returns half the width of a mean's interval, NaN if it has none."""
    return (point.highs[metric] - point.lows[metric]) / 2


def states(point: Point) -> str:
    """Returns the states of its trials, with counts if they differ."""
    found = {trial.state for trial in point.trials}
    return found.pop() if len(found) == 1 else results.states(point.trials)
