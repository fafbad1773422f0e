"""The web page of a sweep: one file, in the look of `lm.scorecard`'s reports.

A *point* is the trials that are equal in all but the seed. Points are numbered from 1,
the best first, in all charts and in the table.
"""

import datetime
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.search import plots, results
from experiments.search.charts import NOT_SET, cut, text_of
from experiments.search.results import Metric, Point, Trial
from experiments.search.space import as_flags
from experiments.search.view import TITLE, Sweep, count, half, states
from lm import scorecard
from lm.atomic import write_text
from lm.page import escaped, is_number, long_text, more, number, table

SHOWN_ROWS = 50  # of the table; the others are behind a click
CELL = 28  # characters of a value in the table
NO_MESSAGE = "no message"


def write_page(
    folder: Path,
    trials: Sequence[Trial],
    metrics: Sequence[Metric],
    command: str = "",
    base: Sequence[str] = (),
) -> Path:
    """Writes `index.html`; a reader sees the old file or the new one.

    Args:
        folder: The sweep's; curves are read from its trials' workdirs.
        trials: In any state.
        metrics: One or more.
        command: That made the sweep.
        base: The flags of `lm.train` that all trials have, for the command that trains
            the best.

    Returns:
        The path of the page.

    Raises:
        UserError: If the folder cannot be written to.
    """
    path = folder / "index.html"
    write_text(path, render(Sweep(folder, trials, metrics, command, base)))
    return path


def render(sweep: Sweep) -> str:
    """Returns the page, which needs nothing from outside."""
    style, script = (
        Path(__file__).with_suffix(end).read_text(encoding="utf-8")
        for end in (".css", ".js")
    )
    return scorecard.page(
        f"{sweep.folder.resolve().name}: {count(len(sweep.trials), 'trial')}",
        _facts(sweep),
        {title: draw(sweep) for title, draw in SECTIONS},
        headline=_headline(sweep),
        notes=_failures(sweep),
        style=style,
        script=script,
    )


def duration(seconds: float) -> str:
    """Returns a time as it is read.

    >>> duration(5), duration(200), duration(4000)
    ('5 s', '3 min 20 s', '1 h 06 min')
    """
    whole = round(seconds) if is_number(seconds) else 0
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


# The top of the page.


def _facts(sweep: Sweep) -> dict[str, str]:
    """Counts of trials by state, and what they took."""
    metrics = (f"{metric.name} ({metric.mode})" for metric in sweep.metrics)
    return {
        "sweep": escaped(sweep.folder),
        "metric": escaped(", ".join(metrics)),
        "trials": results.states(sweep.trials),
        "points": str(len(sweep.points)),
        "time of all trials": duration(sum(trial.seconds for trial in sweep.trials)),
        "written": f"{datetime.datetime.now().astimezone():%d %b %Y, %H:%M %Z}",
    }


def _headline(sweep: Sweep) -> str:
    """Shows the best value, how sure it is, and how many others are as good."""
    if not (best := sweep.best):
        return ""
    low, high = best.lows[0], best.highs[0]
    of = f" of {count(len(best.trials), 'trial')}" if len(best.trials) > 1 else ""
    lines = [f"one seed is done{of}, so there is no interval"]
    if is_number(half(best, 0)):
        others = sum(low <= point.means[0] <= high for point in sweep.points) - 1
        lines = [
            f"± <b>{number(half(best, 0))}</b>, the 95% interval of the mean of "
            f"{best.seeds} seeds: <b>{number(low)}\xa0–\xa0{number(high)}</b>",
            f"of the {len(sweep.points) - 1:,} other points {others:,} have their mean "
            "inside it",
        ]
    name = escaped(sweep.metrics[0].name)
    if best.overrides:
        lines.append(" · ".join(_said_overrides(sweep, best.overrides)))
    return (
        f"<div class=headline><div><span>{name}, the best point</span>"
        f"<b>{number(best.means[0])}</b></div><p>{'<br>'.join(lines)}</p></div>"
    )


def _said_overrides(sweep: Sweep, overrides: dict[str, Any]) -> Iterable[str]:
    for key, value in overrides.items():
        name, text = (cut(t, TITLE) for t in (sweep.keys[key], text_of(value)))
        yield f"{escaped(name)} <b>{escaped(text)}</b>"


def _failures(sweep: Sweep) -> str:
    """Says whether there is a value, and what failed."""
    failed = Counter(trial.error for trial in sweep.trials if trial.state == "failed")
    said = "" if sweep.best else "No point has a value yet. "
    if failed:
        error, times = failed.most_common(1)[0]
        all_failed = sum(failed.values())
        of = "" if len(failed) == 1 else f", {times:,} of them"
        said += (
            f"<b>{all_failed:,} of {count(len(sweep.trials), 'trial')} failed</b>{of} "
            f"with: {long_text(error or NO_MESSAGE)}"
        )
    return f'<div class="verdict bad">{said}</div>' if said else ""


# The sections. Each returns "" if the sweep has nothing for it.


def _best(sweep: Sweep) -> str:
    """Where the best point's runs are, and how it is trained and scored."""
    if not (best := sweep.best):
        return ""
    runs = results.done(best.trials)
    folder = shlex.quote(str(sweep.folder / runs[0].workdir))
    words = [
        *(sweep.base or ("--config=CONFIG",)),
        *as_flags(runs[0].overrides),
        f"--workdir={sweep.folder / 'best'}",
    ]
    train = shlex.join(["python", "-m", "lm.train", *words])
    which = "the first of these" if len(runs) > 1 else "what is there"
    commands = f"{train}\npython -m lm.evaluate --workdir={folder} --split=test"
    return (
        f"<p>Trained in {_links(runs)}. To train it again, and to score {which}:</p>"
        f"<pre>{escaped(commands)}</pre><p class=soft>It was chosen among "
        f"{count(len(sweep.points), 'point')} by this value, which therefore flatters "
        "it; a split that chose nothing tells what it is worth.</p>"
    )


def _pareto(sweep: Sweep) -> str:
    """What no other point beats in all metrics."""
    if len(sweep.metrics) < 2 or not (drawn := plots.pareto(sweep)):
        return ""
    points = results.pareto(sweep.points, sweep.metrics)
    # Two points may be equal.
    front = [i for i, p in enumerate(sweep.points) if any(p is q for q in points)]
    both = "both" if len(sweep.metrics) == 2 else "all"
    return (
        "<p class=soft>No other point is at least as good in both as one of the front, "
        f"and better in one.</p>{drawn}<p><b>{count(len(front), 'point')}</b> not "
        f"beaten in {both} metrics:</p>{_table(sweep, front)}"
    )


def _points(sweep: Sweep) -> str:
    """A row for each point, the best first."""
    numbers = range(len(sweep.points))
    page = _table(sweep, numbers[:SHOWN_ROWS])
    if rest := numbers[SHOWN_ROWS:]:
        page += more(f"{len(rest):,} more", _table(sweep, rest))
    return page


def _made(sweep: Sweep) -> str:
    """What was run."""
    return f"<pre>{escaped(sweep.command)}</pre>" if sweep.command else ""


# Their parts.


def _table(sweep: Sweep, numbers: Iterable[int]) -> str:
    """Returns a table of these points."""
    points = [(i, sweep.points[i]) for i in numbers]
    columns: dict[str, Callable[[Point], str]] = {}
    for i, metric in enumerate(sweep.metrics):
        head = f"<span title='{escaped(metric.name)}'>"
        head += f"{escaped(sweep.names[metric.name])}</span>"
        columns[head] = lambda point, i=i: f"<b>{sweep.said(i, point)}</b>"
    columns["seeds"] = lambda point: str(point.seeds)
    for key, name in sweep.keys.items():
        head = f"<span title='{escaped(key)}'>{escaped(cut(name, CELL))}</span>"
        columns[head] = lambda point, key=key: _cell(point.overrides.get(key, NOT_SET))
    columns["time"] = lambda point: duration(point.seconds)
    columns["state"] = lambda point: escaped(states(point))
    columns["trials"] = lambda point: _links(point.trials)
    rows = (
        [f"<span data-p={i}>{i + 1}</span>", *(f(p) for f in columns.values())]
        for i, p in points
    )
    return f"<div class=wide>{table('points', ['', *columns], rows)}</div>"


def _cell(value: Any) -> str:
    if value is NOT_SET:
        return "<small>not set</small>"
    text = text_of(value)
    if len(text) <= CELL:
        return escaped(text)
    return f"<span title='{escaped(text)}'>{escaped(cut(text, CELL))}</span>"


def _links(trials: Iterable[Trial]) -> str:
    return ", ".join(
        f"<a href='{quote(trial.workdir)}/'>{trial.number}</a>" for trial in trials
    )


def _errors(sweep: Sweep) -> str:
    """A row for each error, the commonest first."""
    by_error: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        if trial.state == "failed":
            by_error.setdefault(trial.error or NO_MESSAGE, []).append(trial)
    rows = (
        [long_text(error), str(len(some)), _links(some)]
        for error, some in sorted(by_error.items(), key=lambda item: -len(item[1]))
    )
    errors = table("errors", ["", "count", "trials"], rows)
    return f"<div class=wide>{errors}</div>" if by_error else ""


SECTIONS = (
    ("Best point", _best),
    ("Parallel coordinates", plots.parallel),
    ("Importance", plots.importance),
    ("Values", plots.scatter),
    ("Curves", plots.curves),
    ("Pareto front", _pareto),
    ("Points", _points),
    ("Errors", _errors),
    ("How it was made", _made),
)
