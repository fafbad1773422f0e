"""The charts on the page of a sweep: each returns "" if there is nothing to draw."""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.search import results
from experiments.search.charts import METRIC_SPAN, NOT_SET, Axis, Mark, Plot, cut
from experiments.search.charts import parallel as parallel_chart
from experiments.search.importance import importances
from experiments.search.view import Sweep, count
from lm.page import escaped, figures, is_number, more, table, thin
from lm.types import UserError

DRAWN, LEAST_DRAWN = 40_000, 30  # points of all curves of a chart, and of each at least
NAME = 40  # characters of a key
LOSS = "train/loss"


def parallel(sweep: Sweep) -> str:
    """A line for each point through its values."""
    axes = [(sweep.keys[key], axis) for key, axis in sweep.axes.items()]
    means = [point.means[0] for point in sweep.points]
    if finite := list(filter(is_number, means)):
        name = sweep.names[sweep.metrics[0].name]
        axes.append((name, Axis(finite, METRIC_SPAN, few=0)))
    if len(axes) < 2:
        return ""
    lines = []
    # The best is on top.
    for mark, point, mean in reversed(list(zip(sweep.marks(), sweep.points, means))):
        values = [point.overrides.get(key, NOT_SET) for key in sweep.keys]
        lines.append((values + [mean] * is_number(mean), mark))
    without = len(means) - len(finite)
    note = f" Dashed: {count(without, 'point')} without a value." if without else ""
    return (
        "<p class=soft>A line is a point; its color is its rank, from the worst"
        f"<span class=tones></span>to the best.{note}</p>"
        f"<div class=wide>{parallel_chart(axes, lines)}</div>"
        "<p class='about soft'>Under the mouse, a point is shown in all charts.</p>"
    )


def importance(sweep: Sweep) -> str:
    """Bars of how much of each metric's variance a key explains."""
    if not sweep.keys:
        return ""
    page, has_shares = "", False
    for i, metric in enumerate(sweep.metrics):
        shares, why = importances(sweep.points, sweep.axes, i)
        rows = (
            [
                f"<span title='{escaped(key)}'>{escaped(sweep.keys[key])}</span>",
                f"{share:.0%}",
                f'<i class=bar style="width:{100 * share:.1f}%"></i>',
            ]
            for key, share in shares.items()
        )
        name = escaped(metric.name)
        page += table("shares", [name, "", ""], rows) if shares else ""
        page += f"<p class=soft>{name}: {why}</p>" if why else ""
        has_shares |= bool(shares)
    note = (
        "<p class=soft>fANOVA (Hutter et al. 2014): the variance over all that was "
        "swept that each key alone explains, as shares of what they explain together, "
        "learned from the points that have a value. The fewer points, the rougher.</p>"
    )
    return page + note * has_shares


def scatter(sweep: Sweep) -> str:
    """A plot for each key."""
    pages = []
    for i, metric in enumerate(sweep.metrics):
        if not (values := sweep.values(i)) or not sweep.keys:
            continue
        y = Axis(values, METRIC_SPAN, few=0)
        plots = (_scatter_of(sweep, i, key, y) for key in sweep.keys)
        pages.append((metric.name, _figures(plots)))
    if not pages:
        return ""
    has_seeds = any(point.seeds > 1 for point in sweep.points)
    note = "<p class=soft>Large dots are points, small ones their seeds.</p>"
    page = note * has_seeds + pages[0][1]
    return page + "".join(more(escaped(name), rest) for name, rest in pages[1:])


def _scatter_of(sweep: Sweep, metric: int, key: str, y: Axis) -> tuple[str, Plot]:
    plot = Plot(sweep.axes[key], y, key, sweep.names[sweep.metrics[metric].name])
    marked = list(zip(sweep.marks(metric, brief=True), sweep.points))
    for mark, point in reversed(marked):
        x = point.overrides.get(key, NOT_SET)
        if point.seeds > 1:
            for trial in results.done(point.trials):
                if is_number(trial.values[metric]):
                    plot.dot((x, trial.values[metric]), "faint", mark, radius=2)
        if is_number(point.means[metric]):
            css = "top" if point is sweep.best else ""
            plot.dot((x, point.means[metric]), css, mark)
    return f"<b>{escaped(cut(sweep.keys[key], NAME))}</b>", plot


def curves(sweep: Sweep) -> str:
    """A plot of each metric, and of the training loss, by step."""
    logs = [_log(sweep.folder / trial.workdir) for trial in sweep.trials]
    rank = {t.number: i for i, p in enumerate(sweep.points) for t in p.trials}
    marks = sweep.marks(brief=True)
    plots = []
    for name in dict.fromkeys([*sweep.names, LOSS]):
        found = [
            (rank[trial.number], trial, points)
            for trial, log in zip(sweep.trials, logs)
            if (points := thin([(r["step"], r[name]) for r in log if name in r]))
        ]
        if not found:
            continue
        steps, values = zip(*(xy for *_, points in found for xy in points))
        x = Axis((0, max(steps)), math.inf, few=0)
        middle = statistics.median_low(values)
        y = Axis((min(values), middle, max(values)), METRIC_SPAN, few=0)
        plot = Plot(x, y, "step", name.rsplit("/", 1)[-1])
        for point, trial, points in sorted(found, key=lambda item: -item[0]):
            is_best = sweep.points[point] is sweep.best
            few = points if is_best else _few(points, DRAWN // len(found))
            title = f"{marks[point].title}\ntrial {trial.number}, {trial.state}"
            mark = Mark(point, title, marks[point].tone)
            css = "top" if is_best else "faint"
            plot.line(few, css, mark)
            if len(few) == 1:
                plot.dot(few[0], css, mark, radius=2)
        caption = f"<b>{escaped(name)}</b>, {count(len(found), 'trial')}"
        plots.append((caption, plot))
    note = "<p class=soft>The best point's runs are bold.</p>"
    return note + _figures(plots) if plots else ""


def pareto(sweep: Sweep) -> str:
    """A plot of each two metrics, and the front of both."""
    pairs = itertools.combinations(range(len(sweep.metrics)), 2)
    plots = [_pareto_of(sweep, *pair) for pair in pairs]
    return _figures(plot for plot in plots if plot)


def _pareto_of(sweep: Sweep, a: int, b: int) -> tuple[str, Plot] | None:
    pairs = [(point.means[a], point.means[b]) for point in sweep.points]
    finite = [pair for pair in pairs if all(map(is_number, pair))]
    if not finite:
        return None
    modes = sweep.metrics[a].mode, sweep.metrics[b].mode
    names = [sweep.names[sweep.metrics[i].name] for i in (a, b)]
    x, y = (Axis(column, METRIC_SPAN, few=0) for column in zip(*finite))
    plot = Plot(x, y, f"{names[0]} ({modes[0]})", f"{names[1]} ({modes[1]})")
    front = results.front(pairs, modes)
    worse = [max if mode == "min" else min for mode in modes]
    line = [pairs[i] for i in front[:1]]
    for i, j in itertools.pairwise(front):
        # Between two points, what both are at least as good as.
        line += [tuple(f(*both) for f, both in zip(worse, zip(pairs[i], pairs[j])))]
        line += [pairs[j]]
    plot.line(line, "front")
    marks = sweep.marks(brief=True)
    for i in reversed(range(len(pairs))):
        if all(map(is_number, pairs[i])):
            plot.dot(pairs[i], "top" if i in front else "", marks[i])
    return f"<b>{escaped(names[1])}</b> against {escaped(names[0])}", plot


def _figures(plots: Iterable[tuple[str, Plot]]) -> str:
    # All that it asks of a chart is its svg().
    return figures(plots)  # pyright: ignore[reportArgumentType]


def _log(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's log that have a step; none if it is broken."""
    from lm.train.report import read_log

    try:
        lines = read_log(workdir / "metrics.jsonl")
    except UserError:
        return []
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def _few(points: Sequence[Any], most: int) -> list[Any]:
    """Leaves out points of a curve, but not its last."""
    size = math.ceil(len(points) / max(most, LEAST_DRAWN))
    return [*points[:-1:size], points[-1]]
