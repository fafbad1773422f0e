"""What the trials of a sweep reached: points, the best, the Pareto front, tables."""

import csv
import dataclasses
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.atomic import write_json, write_text
from lm.cli import valid, without_nan
from lm.types import UserError

STATES = ("done", "pruned", "failed", "running", "waiting")
MODES = ("max", "min")

# Trials that differ only in this are one point.
SEED = "seed"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: Its place in the sweep.
        overrides: Dotted path in the config → value, `seed` included if it is swept.
        state: One of `STATES`.
        values: Of the metrics, in their order; () unless it is done.
        seconds: Of training; 0 if it has not begun.
        step: That it reached.
        error: The last line of what ended a failed one.
        workdir: Relative to the sweep's folder.
    """

    number: int
    overrides: dict[str, Any]
    state: str
    values: tuple[float, ...]
    seconds: float
    step: int
    error: str
    workdir: str


@dataclass(frozen=True)
class Metric:
    """What a sweep makes as great, or as small, as it can.

    Attributes:
        name: In `metrics.jsonl`, for example `eval/validation/accuracy`.
        mode: One of `MODES`.
    """

    name: str
    mode: str

    def __post_init__(self):
        if self.mode not in MODES:
            raise UserError(f"{self.name}: mode {self.mode!r} is neither max nor min")


@dataclass(frozen=True)
class Point:
    """The trials that are equal in all overrides but the seed.

    Attributes:
        overrides: Without the seed.
        trials: In the order of their numbers.
        means: Of each metric over the seeds that are done; NaN if there are none, or if
            one of them is not finite: a mean of the others would hide it. Trials of one
            seed count as one, whose values are their means.
        lows: Of the 95% interval of each mean; NaN for one seed.
        highs: Likewise.
    """

    overrides: dict[str, Any]
    trials: tuple[Trial, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]

    @property
    def seeds(self) -> int:
        """The number of different seeds that are done."""
        return len(_by_seed(self.trials))

    @property
    def is_whole(self) -> bool:
        """Whether all its trials are done."""
        return len(done(self.trials)) == len(self.trials)

    @property
    def seconds(self) -> float:
        """The time that all its trials took."""
        return sum(trial.seconds for trial in self.trials)


def done(trials: Sequence[Trial]) -> list[Trial]:
    """Returns those that have values."""
    return [trial for trial in trials if trial.state == "done" and trial.values]


def states(trials: Sequence[Trial]) -> str:
    """Returns how many trials are in which state."""
    counts = Counter(trial.state for trial in trials)
    return ", ".join(f"{counts[s]:,} {s}" for s in STATES if counts[s])


def identity(value: Any) -> str:
    """Returns a text that equal values of a config share, and no others.

    >>> identity((1, 2)) == identity([1, 2]), identity(True) == identity(1)
    (True, False)
    """
    return json.dumps(value, sort_keys=True, default=str)


def fold(trials: Sequence[Trial], metrics: Sequence[Metric]) -> list[Point]:
    """Returns the points of trials, the best first.

    The order is that of the first metric, and of the next one where it is equal. Points
    of which a trial failed, was pruned or is still to end come after all others, for
    the mean of the rest may be too good; those without a value come last.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        groups.setdefault(identity(_without_seed(trial)), []).append(trial)
    points = [_point(group, metrics) for group in groups.values()]
    return sorted(points, key=lambda point: _place(point, metrics))


def best(points: Sequence[Point], metrics: Sequence[Metric]) -> Point | None:
    """Returns the best point, as `fold` orders them; None if none has a value."""
    found = [point for point in points if math.isfinite(point.means[0])]
    return min(found, key=lambda point: _place(point, metrics), default=None)


def _place(point: Point, metrics: Sequence[Metric]) -> list[float]:
    has_value = math.isfinite(point.means[0])
    return [not has_value, not point.is_whole, *map(_badness, point.means, metrics)]


def front(values: Sequence[Sequence[float]], modes: Sequence[str]) -> list[int]:
    """Returns which are on the Pareto front, the best in the first value first.

    On it is what no other is at least as good as in all values, and better in one.
    What has a NaN or an infinity is not. The time is quadratic.

    Args:
        values: Of each, one for every mode.
        modes: "max" or "min".

    >>> front([(0.9, 5), (0.8, 3), (0.7, 4)], ("max", "min"))
    [0, 1]
    """
    costs = {
        i: tuple(-v if mode == "max" else v for v, mode in zip(row, modes))
        for i, row in enumerate(values)
        if all(map(math.isfinite, row))
    }

    def is_beaten(cost: tuple[float, ...]) -> bool:
        return any(
            other != cost and all(a <= b for a, b in zip(other, cost))
            for other in costs.values()
        )

    return sorted((i for i in costs if not is_beaten(costs[i])), key=lambda i: costs[i])


def pareto(points: Sequence[Point], metrics: Sequence[Metric]) -> list[Point]:
    """Returns the Pareto front of the points' means, as `front` orders it."""
    modes = [metric.mode for metric in metrics]
    return [points[i] for i in front([point.means for point in points], modes)]


def keys_of(trials: Sequence[Trial]) -> list[str]:
    """Returns all that is swept, in the order of its first trial, the seed last."""
    keys = dict.fromkeys(key for trial in trials for key in trial.overrides)
    return sorted(keys, key=lambda key: key == SEED)


def write_tables(
    folder: Path, trials: Sequence[Trial], metrics: Sequence[Metric]
) -> list[Path]:
    """Writes `results.csv`, a row for each trial, and `results.json`.

    In the CSV file a cell of what a trial does not have is empty, and of a list is
    JSON. `read_tables` reads the JSON file, which has the points, too; a value that is
    not finite is null in it.

    Returns:
        Their paths.

    Raises:
        UserError: If the folder cannot be written to.
    """
    sheet, whole = folder / "results.csv", folder / "results.json"
    write_text(sheet, valid(_csv(trials, metrics)))
    points = [
        {
            **_fields(point),
            "trials": [trial.number for trial in point.trials],
            "seeds": point.seeds,
            "seconds": point.seconds,
        }
        for point in fold(trials, metrics)
    ]
    tables = {
        "metrics": list(map(_fields, metrics)),
        "trials": list(map(_fields, trials)),
        "points": points,
    }
    write_json(whole, tables)
    return [sheet, whole]


def read_tables(folder: Path) -> tuple[list[Trial], list[Metric]]:
    """Returns the trials and metrics of a folder's `results.json`.

    A value that was not finite is NaN; a tuple in the overrides is a list.

    Raises:
        UserError: If it is missing or is not what `write_tables` writes.
    """
    path = folder / "results.json"
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        metrics = [Metric(**metric) for metric in tables["metrics"]]
        trials = [
            Trial(
                **{
                    **trial,
                    "values": tuple(
                        math.nan if v is None else v for v in trial["values"]
                    ),
                }
            )
            for trial in tables["trials"]
        ]
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; name a sweep's folder"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a sweep's: {error!r}; run it again") from error
    return trials, metrics


def _without_seed(trial: Trial) -> dict[str, Any]:
    return {key: v for key, v in trial.overrides.items() if key != SEED}


def _point(trials: Sequence[Trial], metrics: Sequence[Metric]) -> Point:
    runs = _by_seed(trials)
    columns = (
        [sum(trial.values[i] for trial in some) / len(some) for some in runs]
        for i in range(len(metrics))
    )
    means, lows, highs = zip(*map(_mean, columns))
    return Point(_without_seed(trials[0]), tuple(trials), means, lows, highs)


def _by_seed(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Returns the trials that are done, those of one seed together."""
    seeds: dict[str, list[Trial]] = {}
    for trial in done(trials):
        seeds.setdefault(identity(trial.overrides.get(SEED)), []).append(trial)
    return list(seeds.values())


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean of the seeds, and its interval."""
    from lm.tasks.intervals import interval_of_seeds

    if not values or not all(map(math.isfinite, values)):
        return math.nan, math.nan, math.nan
    return interval_of_seeds(values)


def _badness(value: float, metric: Metric) -> float:
    """Returns what is less the better a value is, infinite if it is not finite."""
    if not math.isfinite(value):
        return math.inf
    return -value if metric.mode == "max" else value


def _fields(item: Any) -> dict[str, Any]:
    """Returns a dataclass's fields as JSON values, but for its trials."""
    names = (field.name for field in dataclasses.fields(item))
    return without_nan({n: getattr(item, n) for n in names if n != "trials"})


def _csv(trials: Sequence[Trial], metrics: Sequence[Metric]) -> str:
    keys, names = keys_of(trials), [metric.name for metric in metrics]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ["number", "state", *keys, *names, "seconds", "step", "error", "workdir"]
    writer.writerow(head)
    for trial in trials:
        overrides = [
            _cell(trial.overrides[key]) if key in trial.overrides else ""
            for key in keys
        ]
        values = trial.values or [""] * len(names)
        rest = trial.seconds, trial.step, trial.error, trial.workdir
        writer.writerow([trial.number, trial.state, *overrides, *values, *rest])
    return file.getvalue()


def _cell(value: Any) -> Any:
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if is_plain else identity(value)
