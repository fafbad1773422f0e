"""The report of a held-out evaluation: one JSON file and one web page.

A report is a dict of plain JSON values. Only `title` must be there; what is missing is
left out of the page. A number that is None, NaN or infinite is shown as a dash or is
not drawn.

    title, workdir, split, task, model, command    texts
    step, examples    whole numbers
    created           a time, as in ISO 8601
    scores            [{"name", "value", "low", "high", "baseline": {"name", "value"}}],
                      the headline first; `low` and `high` bound the 95% bootstrap
                      interval; they and `baseline` may be missing
    overlap           {"exact", "near", "left_out", "checked_against", "samples",
                      "scores_without"}: how many examples of the split are also in
                      another one, the same and nearly the same; how many of them are
                      not among `examples`, by default none; some of them, [{"text",
                      "train_text", "similarity"}]; and the scores without any of them,
                      {name: value}. The last two may be missing
    curves            {name: [[step, value], ...]}, with the names of metrics.jsonl
    confusion         {"labels": [...], "matrix": [[...], ...]}: the number of examples
                      whose gold label is the row's and predicted label the column's
    per_class         [{"label", "precision", "recall", "f1", "support"}]
    calibration       [{"confidence", "accuracy", "count"}], a bin each: two means over
                      its examples, and their number
    roc               {"points": [[x, y], ...], "auc"}: false positive rates and true
                      positive rates
    seeds             {"values": {seed: value}, "mean", "low", "high"}: the headline
                      score of several runs, and the 95% interval of its mean
    exports           [{"name", "size_mb", "score", "before", "after", "agreement",
                      "max_error", "latency_ms", "jax_latency_ms", "peak_mb",
                      "jax_peak_mb"}]: what `tools.export` made, compared with JAX
    runs              [{"name", "scores": {name: value}}], where `scores` are the means
                      of several
    worst             [{"text", "gold", "predicted", "probability", "loss"}], the worst
                      first; `gold` and `predicted` are texts, lists of texts or
                      numbers; `probability` is the one given to `predicted`; all but
                      `text` may be missing
    config            a dict, nested
    versions          {name: version}
"""

import json
import math
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lm.atomic import write_json, write_text
from lm.cli import without_nan
from lm.page import (
    Chart,
    curve_chart,
    difference,
    escaped,
    figures,
    heat,
    interval,
    is_number,
    key,
    long_text,
    more,
    number,
    strip,
    strip_axis,
    table,
    thin,
    ticks,
)

SQUARE = 350  # the height of a chart whose axes are alike
MAX_LABELS = 20  # of a confusion matrix
CONFUSED = 5  # pairs of labels that are named
SHOWN_ROWS, SHOWN_EXAMPLES = 20, 8  # the others are behind a click
SHORT_CHARS = 40  # of an answer that has room in a line

Report = Mapping[str, Any]


def write(report: Report, folder: Path, name: str) -> Path:
    """Writes NAME.json and NAME.html; a reader sees the old file or the new one.

    What `tools.export` made in the folder is in them, too.

    Returns:
        The path of the page.

    Raises:
        UserError: If the folder cannot be written to.
    """
    proofs = sorted(folder.glob("export/*/proof.json"))
    exports = [{"name": p.parent.name, **json.loads(p.read_text())} for p in proofs]
    report = {**report, **({"exports": exports} if exports else {})}
    path, made = folder / f"{name}.html", render(report)
    write_json(folder / f"{name}.json", without_nan(report))
    write_text(path, made)
    return path


def refresh(folder: Path) -> list[Path]:
    """Writes the reports of a folder anew, with what has been exported since.

    Returns:
        Their pages.
    """
    return [
        write(json.loads(path.read_text()), folder, path.stem)
        for path in sorted(folder.glob("report-*.json"))
    ]


def render(report: Report) -> str:
    """Returns the report as a web page without scripts and without outside parts."""
    return page(
        report["title"],
        _facts(report),
        {title: draw(report) for title, draw in SECTIONS},
        headline=_headline(report),
        notes=_overlap(report),
    )


def page(
    title: str,
    facts: Mapping[str, str],
    sections: Mapping[str, str],
    *,
    headline: str = "",
    notes: str = "",
    style: str = "",
    script: str = "",
) -> str:
    """Returns a web page in the look of the reports, with nothing from outside.

    Args:
        title: As text.
        facts: What stands below it, by name, as HTML.
        sections: By title, as HTML; those that are "" are left out.
        headline: HTML above the sections.
        notes: HTML below it.
        style: Further CSS.
        script: JavaScript.
    """
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    parts = [
        f"<section><h2>{head}</h2>{body}</section>"
        for head, body in sections.items()
        if body
    ]
    if script:
        parts.append(f"<script>{script}</script>")
    return string.Template(template).substitute(
        title=escaped(title),
        style=style,
        facts="".join(
            f"<div><dt>{name}</dt><dd>{value}</dd></div>"
            for name, value in facts.items()
        ),
        headline=headline,
        overlap=notes,
        sections="\n".join(parts),
    )


# The top of the page. Each returns "" if the report has nothing for it.


def _facts(report: Report) -> dict[str, str]:
    names = ("workdir", "step", "split", "task", "model", "examples")
    facts = {
        name: number(value) if is_number(value) else escaped(value)
        for name in names
        if (value := report.get(name)) is not None
    }
    if "created" in report:
        created = datetime.fromisoformat(report["created"])
        facts["created"] = f"{created:%d %b %Y, %H:%M %Z}"
    return facts


def _headline(report: Report) -> str:
    """Shows the first score, how sure it is, and what a simple model reaches."""
    if not report.get("scores"):
        return ""
    score = report["scores"][0]
    lines = []
    if bounds := interval(score):
        lines.append(f"95% interval <b>{bounds}</b>")
    if baseline := score.get("baseline"):
        value = baseline["value"]
        line = f"{escaped(baseline['name'])} <b>{number(value)}</b>"
        if bounds and is_number(value):
            is_below, is_above = value < score["low"], value > score["high"]
            where = "below" if is_below else "above" if is_above else "inside"
            line += f", {where} the interval"
        lines.append(line)
    return (
        f"<div class=headline><div><span>{escaped(score['name'])}</span>"
        f"<b>{number(score.get('value'))}</b></div><p>{'<br>'.join(lines)}</p></div>"
    )


def _overlap(report: Report) -> str:
    """Says whether the model was trained on what it is scored on."""
    if not (overlap := report.get("overlap")):
        return ""
    exact, near, left_out = (overlap.get(k, 0) for k in ("exact", "near", "left_out"))
    split = escaped(report.get("split", "this split"))
    other = escaped(overlap["checked_against"])
    if not exact + near:
        return (
            f'<div class="verdict good">No example of <b>{split}</b> is in '
            f"<b>{other}</b>, neither the same nor nearly the same.</div>"
        )
    of = f" of {report['examples'] + left_out:,}" if "examples" in report else ""
    verdict = (
        f"<b>{exact + near:,}{of} examples of {split} are also in {other}:</b> "
        f"{exact:,} the same, {near:,} nearly the same."
    )
    if left_out:
        verdict += f" {left_out:,} of them are not scored."
    if is_scored := exact + near > left_out:
        verdict += " The model may remember those that are scored."
    headline = report["scores"][0]["name"] if report.get("scores") else None
    if headline in (without := overlap.get("scores_without", {})):
        score = number(without[headline])
        verdict += f" Without them {escaped(headline)} is <b>{score}</b>."
    if samples := overlap.get("samples"):
        pairs = (
            f"<div class=pair><div><small>{split}</small>{long_text(sample['text'])}"
            f"</div><div><small>{other}, similarity {number(sample['similarity'])}"
            f"</small>{long_text(sample['train_text'])}</div></div>"
            for sample in samples
        )
        verdict += more(f"{len(samples)} of them", "".join(pairs))
    css = "bad" if is_scored else "good"
    return f'<div class="verdict {css}">{verdict}</div>'


# The sections. Each returns "" if the report has nothing for it.


def _scores(report: Report) -> str:
    """A row for each score: its value and interval beside the baseline's."""
    if not (scores := report.get("scores")):
        return ""
    values = [score.get("value") for score in scores]
    baselines = [score.get("baseline", {}) for score in scores]
    others = [baseline.get("value") for baseline in baselines]
    without = report.get("overlap", {}).get("scores_without", {})
    axis = _score_axis(scores)
    columns = {"": [f"<b>{number(value)}</b>" for value in values]}
    if any(bounds := [interval(score) for score in scores]):
        columns[key("95% interval", 0)] = bounds
    if axis:
        columns[strip_axis(axis)] = [
            strip(axis, score, [value], other) if _is_near(value, values[0]) else ""
            for score, value, other in zip(scores, values, others)
        ]
    if without:
        columns["without overlap"] = [number(without.get(s["name"])) for s in scores]
    if names := dict.fromkeys(escaped(b["name"]) for b in baselines if b):
        columns[key(" or ".join(names), 1)] = list(map(number, others))
        columns["difference"] = list(map(difference, values, others))
    titles = [escaped(score["name"]) for score in scores]
    rows = zip(titles, *columns.values())
    return f"<div class=wide>{table('scores', ['', *columns], rows)}</div>"


def _score_axis(scores: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the ticks for the scores; none where nothing stands beside them."""
    values, others = [], []
    for score in scores:
        if _is_near(score.get("value"), scores[0].get("value")):
            values.append(score["value"])
            others += [score.get("low"), score.get("high")]
            others.append(score.get("baseline", {}).get("value"))
    others = list(filter(is_number, others))
    return ticks(min(values + others), max(values + others)) if others else []


def _is_near(value: Any, headline: Any) -> bool:
    """Returns whether both have room on one axis."""
    if not (is_number(value) and is_number(headline)):
        return False
    return abs(headline) / 4 <= abs(value) <= abs(headline) * 4


def _seeds(report: Report) -> str:
    """The headline score of several runs."""
    seeds = report.get("seeds", {"values": {}})
    values = list(filter(is_number, seeds["values"].values()))
    if not values:
        return ""
    mean, bounds = seeds.get("mean"), interval(seeds)
    others = filter(is_number, (seeds.get("low"), mean, seeds.get("high")))
    drawn = [*values, *others]
    axis = ticks(min(drawn), max(drawn))
    each = ", ".join(f"{escaped(k)}: {number(v)}" for k, v in seeds["values"].items())
    return (
        f"<p>Mean of {len(seeds['values'])} runs <b>{number(mean)}</b>"
        + (f", 95% interval <b>{bounds}</b>" if bounds else "")
        + f"</p><div class=seeds>{strip_axis(axis)}{strip(axis, seeds, values, mean)}"
        f"</div><p class=soft>By seed: {each}</p>"
    )


def _runs(report: Report) -> str:
    """A column for each run."""
    if not (runs := report.get("runs")):
        return ""
    head = ["", *(escaped(run["name"]) for run in runs)]
    names = dict.fromkeys(name for run in runs for name in run["scores"])
    rows = (
        [escaped(name), *(number(run["scores"].get(name)) for run in runs)]
        for name in names
    )
    return f"<div class=wide>{table('scores', head, rows)}</div>"


def _exports(report: Report) -> str:
    """A row for each artefact, and what it is compared with."""
    if not (exports := report.get("exports")):
        return ""

    def pair(export: Mapping[str, Any], *names: str) -> str:
        return " → ".join(number(export.get(name)) for name in names)

    head = ["", "MB", "score", "equal", "error", "ms, JAX → here", "MB of memory"]
    rows = (
        [
            escaped(export["name"]),
            number(export.get("size_mb")),
            f"{escaped(export.get('score', ''))} {pair(export, 'before', 'after')}",
            number(export.get("agreement")),
            number(export.get("max_error")),
            pair(export, "jax_latency_ms", "latency_ms"),
            pair(export, "jax_peak_mb", "peak_mb"),
        ]
        for export in exports
    )
    return (
        f"<div class=wide>{table('scores', head, rows)}</div><p class=soft>Each was "
        "run in a process of its own on held-out examples. The score is that of JAX "
        "and its own; equal is the share of predictions that are; the error is the "
        "largest of the numbers in them; the time is that of one row, or of one token "
        "written, the median of 50.</p>"
    )


def _curves(report: Report) -> str:
    """A chart of the losses, one of what goes from 0 to 1, one of each other value."""
    groups: dict[str, dict[str, list]] = {}
    for name, curve in report.get("curves", {}).items():
        if points := thin(curve):
            label = name.rsplit("/", 1)[-1]
            is_share = all(0 <= value <= 1 for _, value in points)
            if is_share and label != "loss" and name.startswith(("train/", "eval/")):
                label = "score"
            groups.setdefault(label, {})[name] = points
    return figures(
        curve_chart(label, curves, report.get("step"))
        for label, curves in groups.items()
    )


def _probabilities(report: Report) -> str:
    """A reliability diagram and a ROC curve."""
    charts = []
    bins = [b for b in report.get("calibration", ()) if all(map(is_number, b.values()))]
    if bins := [b for b in bins if b["count"]]:
        total, most = (f(b["count"] for b in bins) for f in (sum, max))
        gaps = (b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
        chart = Chart((0, 1), (0, 1), "confidence", "accuracy", SQUARE)
        for b in bins:
            chart.bar(b["confidence"], b["count"] / most, "bin")
        chart.line([(0, 0), (1, 1)], "rule")
        points = [(b["confidence"], b["accuracy"]) for b in bins]
        chart.line(points, "s0")
        chart.dots(points, "s0")
        # Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3.
        error = number(sum(gaps) / total)
        caption = (
            f"<b>Calibration error (ECE) {error}</b>: the mean distance of accuracy "
            "from confidence. The bars show how many examples there are."
        )
        charts.append((caption, chart))
    if roc := report.get("roc"):
        chart = Chart(
            (0, 1), (0, 1), "false positive rate", "true positive rate", SQUARE
        )
        chart.line([(0, 0), (1, 1)], "rule")
        chart.line(thin(roc["points"]), "s0")
        charts.append((f"<b>Area under the ROC curve {number(roc['auc'])}</b>", chart))
    return figures(charts)


def _confusion(report: Report) -> str:
    """A heat map of the labels that are mistaken most, and the commonest mistakes."""
    if not (confusion := report.get("confusion")):
        return ""
    names, matrix = list(map(escaped, confusion["labels"])), confusion["matrix"]
    mistakes, of_label = Counter(), Counter()
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            if i != j and count:
                mistakes[i, j] = count
                of_label.update({i: count, j: count})
    worst = sorted(range(len(names)), key=lambda i: -of_label[i])
    chosen = sorted(worst[:MAX_LABELS])
    notes = ["Rows are the gold labels, columns the predicted ones."]
    if len(chosen) < len(names):
        notes.append(
            f"These are the {MAX_LABELS} of {len(names)} labels most mistaken."
        )
    if mistakes:
        pairs = "; ".join(
            f"{names[i]} as {names[j]} ({count:,})"
            for (i, j), count in mistakes.most_common(CONFUSED)
        )
        notes.append(f"Most often: {pairs}.")
    rows = (
        [
            names[i],
            *(heat(matrix[i][j], sum(matrix[i]), int(i != j)) for j in chosen),
            f"{sum(matrix[i]):,}",
        ]
        for i in chosen
    )
    head = ["", *(f"<span>{names[j]}</span>" for j in chosen), "all"]
    css = '"confusion many"' if len(chosen) > 8 else "confusion"
    return (
        f"<p class=soft>{' '.join(notes)}</p>"
        f"<div class=wide>{table(css, head, rows)}</div>"
    )


def _per_class(report: Report) -> str:
    """A row for each label, the weakest first."""
    rows = sorted(
        report.get("per_class", ()),
        key=lambda row: row["f1"] if is_number(row.get("f1")) else math.inf,
    )
    columns = ("precision", "recall", "f1", "support")
    head = ["", "precision", "recall", "f1", "", "examples"]
    cells = []
    for row in rows:
        precision, recall, f1, support = (row.get(column) for column in columns)
        width = f"{100 * f1:.1f}%" if is_number(f1) else "0"
        cells.append(
            [
                escaped(row["label"]),
                *map(number, (precision, recall, f1)),
                f'<i class=bar style="width:{width}"></i>',
                number(support),
            ]
        )
    if not cells:
        return ""
    page = table("labels", head, cells[:SHOWN_ROWS])
    if rest := cells[SHOWN_ROWS:]:
        page += more(f"{len(rest)} more", table("labels", head, rest))
    return f"<div class=wide>{page}</div>"


def _worst(report: Report) -> str:
    """The examples whose gold answer the model thought least likely."""
    cards = [_example(example) for example in report.get("worst", ())]
    page = "".join(cards[:SHOWN_EXAMPLES])
    if rest := cards[SHOWN_EXAMPLES:]:
        page += more(f"{len(rest)} more", "".join(rest))
    return page


def _example(example: Mapping[str, Any]) -> str:
    """Shows a text with its answers: in one line if they are short."""
    answers = {
        side: _answer(example[side])
        for side in ("gold", "predicted")
        if side in example
    }
    is_short = all(len(answer) <= SHORT_CHARS for answer in answers.values())
    notes = {side: long_text(answer) for side, answer in answers.items()}
    notes |= {
        name: number(example[name])
        for name in ("probability", "loss")
        if name in example
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd>{note}</dd></div>" for name, note in notes.items()
    )
    css = "line" if is_short else "block"
    return (
        f"<div class=example>{long_text(example['text'])}<dl class={css}>{items}</dl>"
        "</div>"
    )


def _answer(answer: Any) -> str:
    """Returns an answer as text.

    >>> _answer("sports"), _answer(["joy", "trust"]), _answer([]), _answer(3.25)
    ('sports', 'joy, trust', '–', '3.250')
    """
    if isinstance(answer, list | tuple):
        answer = ", ".join(answer)
    return (answer if isinstance(answer, str) else number(answer)) or "–"


def _made(report: Report) -> str:
    """What was run, with what."""
    page = ""
    if command := report.get("command"):
        page += f"<pre>{escaped(command)}</pre>"
    for part in ("config", "versions"):
        if values := report.get(part):
            rows = ([escaped(k), escaped(v)] for k, v in _flat(values))
            page += more(part.capitalize(), table("settings", [], rows))
    return page


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the full name and the value of each setting.

    >>> list(_flat({"optim": {"b1": 0.9}, "seed": 0}))
    [('optim.b1', '0.9'), ('seed', '0')]
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield prefix + name, value
        else:
            yield prefix + name, json.dumps(value)


SECTIONS = (
    ("Scores", _scores),
    ("Seeds", _seeds),
    ("Runs", _runs),
    ("Exports", _exports),
    ("Labels", _per_class),
    ("Confusion", _confusion),
    ("Probabilities", _probabilities),
    ("Training", _curves),
    ("Worst examples", _worst),
    ("How it was made", _made),
)
