"""What `experiments.compare` shows: tables in the terminal, and a page.

A result has a list with a value for each column; `experiments.compare` makes it.
"""

import datetime
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.crossval import NOT_SHOWN
from lm import cli, page, scorecard

SHOWN, WIDE = 60, 16  # characters of a setting, and of what has room in a line
METRICS, CHARTS = 3, 6  # that are not behind a click

Result = Mapping[str, Any]

# The lines of metrics.jsonl, by the name of the run.
Logs = Mapping[str, Sequence[Mapping[str, Any]]]


def _shown(value: Any) -> str:
    """Writes a setting.

    >>> _shown(None), _shown("adamw"), _shown(""), _shown(0.001), _shown([1, 2])
    ('–', 'adamw', '""', '0.001', '[1, 2]')
    """
    if value is None:
        return "–"
    is_text = value and isinstance(value, str)
    text = value if is_text else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 2] + " …"


def _settings(result: Result) -> dict[str, list[str]]:
    """Returns the rows that tell the columns apart."""
    rows = {name: list(map(page.number, row)) for name, row in result["facts"].items()}
    for part in ("config", "versions"):
        rows |= {key: list(map(_shown, row)) for key, row in result[part].items()}
    return rows


def _signed(row: Mapping[str, Any]) -> str:
    """Returns a difference with its interval."""
    bounds = [page.difference(row.get(key), 0.0) for key in ("low", "high")]
    return f"{page.difference(row['value'], 0.0)} ({' to '.join(bounds)})"


def show(result: Result) -> None:
    """Prints what differs, the scores and their differences."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def show_rows(title: str, rows: Mapping[str, Sequence[str]]) -> None:
        table = Table()
        for head in (title, *result["columns"]):
            table.add_column(escape(head), overflow="fold")
        for name, cells in rows.items():
            table.add_row(*map(escape, (name, *cells)))
        console.print(table)

    console = Console()
    show_rows("settings that differ", _settings(result))
    for note in result["notes"]:
        cli.say(note)
    metrics = [m for m in _in_order(result["scores"]) if not m.startswith(NOT_SHOWN)]
    rows = {metric: list(map(_cell, result["scores"][metric])) for metric in metrics}
    if rows:
        drawn = f"{result['examples']:,} {result['drawn']}"
        show_rows(f"{result['split']}, {drawn}", rows)


def _cell(score: Mapping[str, Any] | None) -> str:
    """Returns a score, its interval, and how it differs, in a line each."""
    if score is None:
        return "–"
    lines = [page.number(score["value"]), page.interval(score)]
    if other := score.get("difference"):
        lines += [_signed(other), f"p {other['p']:.3f}", ""]
    return "\n".join(lines)


def _in_order(metrics: Iterable[str]) -> list[str]:
    """Puts those last that tell little by themselves.

    >>> _in_order(["recall_macro", "f1_macro"])
    ['f1_macro', 'recall_macro']
    """
    return sorted(metrics, key=lambda m: m.rsplit("/", 1)[-1].startswith(NOT_SHOWN))


def render(result: Result, logs: Logs) -> str:
    """Returns the page, in the form of a report of `lm.scorecard`."""
    command = shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]])
    created = datetime.datetime.now().astimezone()
    facts = {
        "task": result["task"],
        "split": result["split"],
        result["drawn"]: page.number(result["examples"]),
        "compared with": result["baseline"],
        "created": f"{created:%d %b %Y, %H:%M %Z}",
    }
    sections = {
        "Scores": _scores(result),
        "Settings that differ": _settings_table(result),
        "Training": _curves(logs),
        "How it was made": f"<pre>{page.escaped(command)}</pre>",
    }
    return scorecard.page(
        " / ".join(result["columns"]),
        {name: page.escaped(value) for name, value in facts.items()},
        sections,
        notes="".join(
            f'<p></p><div class="verdict bad">{page.escaped(note)}</div>'
            for note in result["notes"]
        ),
    )


def _scores(result: Result) -> str:
    """A table for each metric, with a row for each column."""
    tables = [_metric(result, metric) for metric in _in_order(result["scores"])]
    if not tables:
        return ""
    body = "".join(tables[:METRICS])
    if rest := tables[METRICS:]:
        body += page.more(f"{len(rest)} more", "".join(rest))
    note = (
        f"Intervals hold 95% of the scores of {result['drawn']} drawn again and "
        "again; of several seeds they are those of their mean (Student's t). "
    )
    differences = [
        score["difference"]
        for row in result["scores"].values()
        for score in row
        if score and "difference" in score
    ]
    if differences:
        draws = max(each["samples"] for each in differences)
        note += (
            "A difference is that of the paired bootstrap: both are scored on the "
            f"same {draws:,} draws, so that no p is below {2 / (draws + 1):.3f}. It is "
            "of one metric and one pair: of many some are small by chance."
        )
    return f"{body}<p class=soft>{note}</p>"


def _metric(result: Result, metric: str) -> str:
    """A row for each column: its score, and how much it differs."""
    row = result["scores"][metric]
    values = [s.get(k) for s in row if s for k in ("value", "low", "high")]
    drawn: list[Any] = list(filter(page.is_number, values))
    axis = page.ticks(min(drawn), max(drawn)) if drawn else []
    base = (row[0] or {}).get("value")
    cells = []
    for name, score in zip(result["columns"], row):
        if score is None:
            continue
        other = score.get("difference", {})
        cells.append(
            [
                page.escaped(name),
                f"<b>{page.number(score.get('value'))}</b>",
                page.interval(score),
                page.strip(axis, score, [score.get("value")], base) if axis else "",
                _signed(other) if other else "",
                f"{other['p']:.3f}" if other else "",
            ]
        )
    strip = page.strip_axis(axis) if axis else ""
    other = page.key(f"difference from {page.escaped(result['baseline'])}", 1)
    head = ["", "", page.key("95% interval", 0), strip, other, "p"]
    return (
        f"<p><b>{page.escaped(metric)}</b></p><div class=wide style='margin-bottom: "
        f"1.8rem'>{page.table('scores', head, cells)}</div>"
    )


def _settings_table(result: Result) -> str:
    """A row for each setting that differs."""
    head = ["", *map(page.escaped, result["columns"])]
    rows = (
        # A long one is cut into lines, or the others have no room.
        [
            page.escaped(name),
            *(page.long_text(c) if len(c) > WIDE else page.escaped(c) for c in cells),
        ]
        for name, cells in _settings(result).items()
    )
    return f"<div class=wide>{page.table('differences', head, rows)}</div>"


def _curves(logs: Logs) -> str:
    """A chart for each metric with a curve for each run."""
    curves: dict[str, dict[str, list]] = {}
    for name, log in logs.items():
        for line in log:
            for metric, value in line.items():
                if metric.startswith(("train/", "eval/")):
                    of_run = curves.setdefault(metric, {}).setdefault(name, [])
                    of_run.append([line["step"], value])
    charts = []
    # The loss tells of all tasks.
    for metric in sorted(_in_order(curves), key=lambda m: not m.endswith("/loss")):
        found = {name: page.thin(points) for name, points in curves[metric].items()}
        if found := {name: points for name, points in found.items() if points}:
            charts.append(page.curve_chart(metric, found, None))
    body = page.figures(charts[:CHARTS])
    if rest := charts[CHARTS:]:
        body += page.more(f"{len(rest)} more", page.figures(rest))
    return body
