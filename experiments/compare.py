"""Sets finished workdirs side by side: what differs in them, and what it did.

    python -m experiments.compare runs/a runs/b runs/c --split=test
    python -m experiments.compare runs/bbc_seeds/* runs/other/* --fold-seeds

Shows the settings that are not the same in all; the scores on a split with their 95%
intervals; how much each differs from those of the first workdir, or of --baseline, with
the interval and the p-value of the paired bootstrap (`experiments.paired`), of 100, 300
or 1,000 resamples, as many as take some 20 seconds a column; and the curves of all in
one chart for each metric.

All are scored anew on the same examples, as `lm.evaluate` does it. What any of the
workdirs was trained on is left out. Of a language model documents are drawn where there
are enough, and otherwise rows, which a line then says. A p-value is of one metric and
one pair: of many of them some are small by chance.

--fold-seeds makes one column of workdirs that differ in nothing but their seed: the
mean of their scores and its 95% t interval. Differences are then those of means; their
intervals tell of other examples, not of other seeds.

The page is `compare.html` beside the first workdir, or --output.
"""

import json
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import paired
from experiments.compare_page import render, show
from lm import cli
from lm import config as config_lib
from lm.atomic import write_text
from lm.types import UserError

parser = cli.make_parser(__doc__)
parser.add_argument("workdir", nargs="+", help="the folders of runs of lm.train")
parser.add_argument("--split", default="test", help="default: test")
parser.add_argument(
    "--baseline", help="the workdir that others are compared with; default: the first"
)
parser.add_argument(
    "--fold-seeds", action="store_true", help="one column for runs of all seeds"
)
parser.add_argument("--output", help="an .html to write")


@dataclass(frozen=True)
class Run:
    """A workdir: what it was asked, and what it says of itself."""

    name: str
    folder: Path
    config: Any
    settings: dict[str, Any]
    facts: dict[str, Any]
    versions: dict[str, Any]
    log: list[dict[str, Any]]


@dataclass
class Column:
    """A run, or those of several seeds.

    Attributes:
        name: For people.
        runs: At least one.
        outputs: Of each run; none if they are not scored.
        scores: By metric, as `paired.compare` returns them.
    """

    name: str
    runs: list[Run]
    outputs: list[paired.Outputs] = field(default_factory=list)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What is told of the runs: the mean of numbers that are not the same."""
        found = {}
        for name in dict.fromkeys(name for run in self.runs for name in run.facts):
            values = [run.facts[name] for run in self.runs if name in run.facts]
            found[name] = sum(values) / len(values)
            if len(set(values)) == 1:
                found[name] = values[0]
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The settings; of several runs all seeds."""
        seeds = [run.config.seed for run in self.runs]
        settings = self.runs[0].settings
        return {**settings, "seed": seeds} if len(seeds) > 1 else settings


def main(args: Namespace) -> dict[str, Any]:
    """Compares, prints and writes the page."""
    output, baseline = _check(args)
    runs = [_read(name, Path(path)) for name, path in _names(args.workdir).items()]
    columns = _columns(runs, args.fold_seeds)
    columns.sort(key=lambda column: not any(r.folder == baseline for r in column.runs))
    notes = _score(columns, args.split)
    result = _result(columns, args.split, notes)
    show(result)
    write_text(output, render(result, {run.name: run.log for run in runs}))
    print(f"page: {output}")
    return {**result, "page": str(output)}


def _check(args: Namespace) -> tuple[Path, Path]:
    """Returns where the page goes and the folder of the baseline.

    Raises:
        UserError: If the flags or folders do not go together.
    """
    if len(args.workdir) < 2:
        raise UserError(f"only {args.workdir[0]} is given; name two workdirs or more")
    known: dict[Path, str] = {}
    for name in args.workdir:
        if (path := Path(name).resolve()) in known:
            raise UserError(f"{name} is the same folder as {known[path]}; name it once")
        known[path] = name
    baseline = args.baseline or args.workdir[0]
    if Path(baseline).resolve() not in known:
        raise UserError(
            f"--baseline={baseline} is none of the workdirs"
            f"{cli.suggest(baseline, args.workdir)}"
        )
    output = Path(args.output or Path(args.workdir[0]).parent / "compare.html")
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent} for --output; make it")
    if output.is_dir():
        raise UserError(f"--output={output} is a folder; name a file in it")
    if output.suffix != ".html":
        raise UserError(f"--output={output} is no page; let it end in .html")
    return output, Path(known[Path(baseline).resolve()])


# What workdirs say of themselves.


def _names(workdirs: Sequence[str]) -> dict[str, str]:
    """Returns the workdirs by the shortest ends of their paths that are all different.

    >>> _names(["runs/a/seed-0", "runs/b/seed-0"])
    {'a/seed-0': 'runs/a/seed-0', 'b/seed-0': 'runs/b/seed-0'}
    """
    parts = [Path(workdir).resolve().parts for workdir in workdirs]
    size = 1
    while len({part[-size:] for part in parts}) < len(parts):
        size += 1
    return {"/".join(part[-size:]): w for part, w in zip(parts, workdirs)}


def _read(name: str, folder: Path) -> Run:
    """Reads a workdir.

    Raises:
        UserError: If it is none, or has no checkpoint.
    """
    from flax.traverse_util import flatten_dict

    from lm.train import workdir
    from lm.train.report import read_log
    from tools.inspect import describe

    config = workdir.load_config(folder)
    found = describe(folder)
    if not found["checkpoints"]:
        raise UserError(
            f"no checkpoint in {folder}/checkpoints; train it, or leave it out"
        )
    log = read_log(folder / "metrics.jsonl")
    facts = {
        "parameters": found["parameters"],
        "steps": max(found["step"], *found["checkpoints"]),
        "training seconds": training_seconds(log),
    }
    path = folder / "versions.json"
    versions = config_lib.read(path) if path.exists() else {}
    settings = flatten_dict(workdir.as_json(config), sep=".")
    return Run(name, folder, config, settings, facts, versions, log)  # pyright: ignore


def training_seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Returns how long the steps took, without compiling, evaluating and saving.

    >>> rates = [{"step": 10, "perf/steps_per_sec": 5.0},
    ...          {"step": 10, "eval/validation/loss": 1.0},
    ...          {"step": 30, "perf/steps_per_sec": 4.0}]
    >>> training_seconds(rates)
    7.0
    """
    seconds, before = 0.0, 0
    for line in log:
        if rate := line.get("perf/steps_per_sec"):
            seconds += (line["step"] - before) / rate
            before = line["step"]
    return seconds


def _columns(runs: Sequence[Run], fold_seeds: bool) -> list[Column]:
    """Puts runs that differ in nothing but the seed together, if so asked."""
    if not fold_seeds:
        return [Column(run.name, [run]) for run in runs]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps({**run.settings, "seed": None}, sort_keys=True)
        groups.setdefault(key, []).append(run)
    return [
        Column(
            f"{some[0].name} ({len(some)} seeds)" if some[1:] else some[0].name, some
        )
        for some in groups.values()
    ]


def _differences(values: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the keys whose values are not all the same, with all values.

    >>> _differences([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}])
    {'b': [2, 3, None]}
    """
    values = list(values)
    keys = dict.fromkeys(key for each in values for key in each)
    rows = {key: [each.get(key) for each in values] for key in keys}
    return {k: row for k, row in rows.items() if any(v != row[0] for v in row)}


# What they score.


def _score(columns: Sequence[Column], split: str) -> list[str]:
    """Scores the columns whose task is that of the first.

    Returns:
        Why which column is not scored, or cannot be paired with the first.
    """
    first, notes, chosen = columns[0], [], []
    name = first.runs[0].config.task.name
    for column in columns:
        config = column.runs[0].config
        if config.task.name != name:
            notes.append(
                f"{column.name} is not scored: its task is {config.task.name}, that of "
                f"{first.name} is {name}"
            )
        elif not config.data.sources:
            notes.append(f"{column.name} is not scored: its config names no texts")
        else:
            chosen.append(column)
    runs = [run for column in chosen for run in column.runs]
    seen = _seen(runs, split)
    for column in chosen:
        for run in column.runs:
            cli.say(f"{run.name}: {split}")
            seed = first.runs[0].config.seed
            column.outputs.append(paired.outputs_of(run.folder, split, seen, seed))
    if chosen and (drawn := chosen[0].outputs[0]).kind == "rows":
        notes.append(
            f"{split} has fewer than {paired.LEAST_DOCUMENTS} documents, too few to be "
            f"drawn; its {len(drawn.examples):,} rows are, as if none had to do with "
            "another: intervals and p-values are too small"
        )
    alike = [column for column in chosen if column is first]
    for column in chosen:
        if column is first or first not in chosen:
            continue
        if why := paired.apart(first.outputs[0], column.outputs[0]):
            notes.append(
                f"{column.name} cannot be paired with {first.name} on {split}: {why}"
            )
        else:
            alike.append(column)
    for group in [alike, *([column] for column in chosen if column not in alike)]:
        if group:
            score_of = {c.name: paired.mean_of(c.outputs) for c in group}
            number = len(group[0].outputs[0].examples)
            found = paired.compare(score_of, first.name, number)
            for column in group:
                column.scores = found[column.name]
    for column in chosen:
        _over_seeds(column)
    return notes


def _seen(runs: Sequence[Run], split: str) -> set[str]:
    """Returns the names of examples whose text one of the runs was trained on."""
    from lm.evaluate import find_seen
    from lm.tasks import build_task
    from lm.train import workdir
    from lm.train.evaluation import read_examples

    seen: set[str] = set()
    done = []
    for run in runs:
        data, task_config = run.config.data, run.config.task
        task: Any = build_task(task_config, workdir.load_tokenizer(run.folder))
        key = data, task_config, task.tokenizer.fingerprint
        if key in done or not paired.predicts(task):
            continue
        done.append(key)
        examples, _ = read_examples(task, data, split)
        kinds, _ = find_seen(task, examples, data, split)
        names = map(paired.name_of, examples)
        seen |= {name for name, kind in zip(names, kinds) if kind == "exact"}
    return seen


def _over_seeds(column: Column) -> None:
    """Replaces the intervals of a mean over seeds by those of its t distribution."""
    import numpy as np

    from lm.tasks.intervals import interval_of_seeds

    if len(column.outputs) > 1:
        numbers = np.arange(len(column.outputs[0].examples))
        found = [outputs.score(numbers) for outputs in column.outputs]
        for name, row in column.scores.items():
            values = [scores[name] for scores in found]
            row["value"], row["low"], row["high"] = interval_of_seeds(values)


def _result(columns: Sequence[Column], split: str, notes: list[str]) -> dict[str, Any]:
    """Gathers what is shown; lists have a value for each column."""
    scored = [column for column in columns if column.scores]
    first = scored[0] if scored else columns[0]
    metrics = [m for m in first.scores if all(m in c.scores for c in scored)]
    facts = [column.facts for column in columns]
    keys = list(dict.fromkeys(key for each in facts for key in each))
    return {
        "columns": [column.name for column in columns],
        "workdirs": [[str(run.folder) for run in c.runs] for c in columns],
        "task": columns[0].runs[0].config.task.name,
        "split": split,
        "baseline": columns[0].name,
        "examples": len(first.outputs[0].examples) if scored else 0,
        "drawn": first.outputs[0].kind if scored else "examples",
        "steps": [[each.step for each in c.outputs] for c in columns],
        "facts": {key: [each.get(key) for each in facts] for key in keys},
        "config": _differences(column.settings for column in columns),
        "versions": _differences(column.runs[0].versions for column in columns),
        "scores": {m: [c.scores.get(m) for c in columns] for m in metrics},
        "notes": notes,
    }


if __name__ == "__main__":
    cli.run(main, parser)
