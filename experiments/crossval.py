"""Trains a config several times: how much its scores owe to the data, and to chance.

    python -m experiments.crossval --config=configs/bbc.py --workdir=runs/bbc_folds \\
        --folds=5
    python -m experiments.crossval --config=configs/bbc.py --workdir=runs/bbc_seeds \\
        --seeds=5

With --folds the examples of --splits are divided into so many parts, by label where an
example has one. Each part in turn is scored, once, by a model of the others, of which a
tenth is its validation split. Examples of the same text, and with --grouped-by of the
same value of a field, stay together. --leave-one-out makes every example a part, or
every group; all predictions are then scored together.

Without folds the config's own splits are used. --seeds trains every model so many
times, from the config's seed on; the folds stay the same.

The interval is the 95% interval of the mean over folds, or over seeds if there are no
folds. That of folds is too narrow rather than too wide, since they train on many of the
same examples (Bengio and Grandvalet 2004,
https://www.jmlr.org/papers/v5/grandvalet04a.html).

The same command goes on where it was ended. In the workdir are `crossval.json`,
`crossval.html`, and for every fold its data and the workdirs of its runs.
"""

import dataclasses
import datetime
import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import folds as folds_lib
from experiments.folds import Example, Fold
from lm import cli, scorecard
from lm import config as config_lib
from lm.atomic import make_folder, write_json
from lm.config import check_range
from lm.memory import keep_freed
from lm.types import UserError

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--config", required=True, help="a config file; --config.KEY=VALUE overrides"
)
parser.add_argument("--workdir", required=True, help="the folder of all runs")
number_of_folds = parser.add_mutually_exclusive_group()
number_of_folds.add_argument("--folds", type=int, help="2 or more")
number_of_folds.add_argument("--leave-one-out", action="store_true")
parser.add_argument("--grouped-by", metavar="FIELD", help="of an example")
parser.add_argument(
    "--splits", help="to make folds of; default: the config's train_split,eval_split"
)
parser.add_argument("--split", help="to score, without folds; default: test")
parser.add_argument("--seeds", type=int, default=1, help="runs of each fold")

# Folds that --leave-one-out may make.
MOST = 100

# Characters of a column of the table, and how the names of scores begin that have none.
COLUMN = 18
NOT_SHOWN = ("precision_", "recall_")

Run = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What is trained on and scored, once for every seed.

    Attributes:
        name: For people.
        config: Of its runs, but for the seed.
        split: To score.
        chosen: Which of the split's examples are scored; () means all.
        fold: What is in its splits; None if they are the config's own.
        is_one_of_many: Whether it is too small to be scored alone.
    """

    name: str
    config: Any
    split: str
    chosen: Sequence[bool] = ()
    fold: Fold | None = None
    is_one_of_many: bool = False


def main(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    """Trains and scores all runs, prints what they reach and writes it."""
    keep_freed()
    values = config_lib.load(args.config, overrides)
    _check(args)
    from lm.train import workdir
    from lm.train.config import Config

    config, root = Config.of(values), Path(args.workdir)
    has_folds = bool(args.folds or args.leave_one_out)
    task, examples, parts = (_folds if has_folds else _own_splits)(args, config)
    lines = folds_lib.lines_of(examples)
    digest = folds_lib.digest(lines, (part.fold for part in parts if part.fold))
    names = ("folds", "leave_one_out", "grouped_by", "splits", "split")
    asked = {f"--{n.replace('_', '-')}": getattr(args, n) for n in names}
    plan = {**workdir.as_json(config), **asked, "texts": digest}
    seeds = range(config.seed, config.seed + args.seeds)
    with workdir.alone(root):
        _claim(root, plan)
        found: list[Run] = []
        for part in parts:
            if part.fold:
                folds_lib.write_texts(root / part.name / "data", part.fold, lines)
            found += [_run(part, root, seed) for seed in seeds]
        if args.leave_one_out:
            found = _together(task, examples, parts, found)
        report = _report(config, root, plan, found)
        scorecard.write(report, root, "crossval")
    _print(report)
    return report


def _check(args: Namespace) -> None:
    """Raises a UserError about flags that do not go together."""
    has_folds = args.folds is not None or args.leave_one_out
    if args.folds is not None:
        check_range("--folds", args.folds, 2)
    check_range("--seeds", args.seeds, 1)
    if not args.workdir:
        raise UserError("--workdir is empty; name a folder")
    for name in ("grouped_by", "splits") if not has_folds else ("split",):
        if getattr(args, name) is not None:
            cure = "leave it out" if has_folds else "set --folds or --leave-one-out"
            raise UserError(f"--{name.replace('_', '-')} does not go here; {cure}")
    if not has_folds and args.seeds == 1:
        raise UserError(
            "one run on the config's own splits is lm.train's; set --folds, "
            "--leave-one-out or --seeds"
        )


# What is trained on.


def _folds(args: Namespace, config: Any) -> tuple[Any, list[Example], list[Part]]:
    """Reads the splits and divides them."""
    data = config.data
    if data.weights:
        raise UserError(
            "folds are of all sources together; set --config.data.weights='()'"
        )
    splits = (args.splits or f"{data.train_split},{data.eval_split}").split(",")
    task, examples = folds_lib.read(config, list(dict.fromkeys(splits)))
    by = args.grouped_by
    values = folds_lib.values_of(examples, by) if by is not None else ()
    groups = folds_lib.group(map(task.text_of, examples), values)
    number = args.folds or len(np.unique(groups))
    if args.leave_one_out:
        _check_number(config.task.name, number)
    labels = folds_lib.labels_of(task, examples)
    is_one = getattr(task.config, "kind", "") == "one"
    folds = folds_lib.make_folds(
        labels, groups, number, config.seed, is_one and not args.leave_one_out
    )
    names = [name for name in ("counts", "moments") if hasattr(task.config, name)]
    found = dict.fromkeys(names, ())
    task_config = dataclasses.replace(task.config, **found)
    parts = []
    for k, fold in enumerate(folds, 1):
        folder = Path(args.workdir) / f"fold-{k}" / "data"
        own = dataclasses.replace(
            data,
            # As they are: a text is where the config's own sources put it.
            sources=(f"{folder}/{{split}}.jsonl?text=",),
            data_dir=str(folder),
            cache_dir="",
            train_split="train",
            eval_split="validation",
        )
        its = dataclasses.replace(config, task=task_config, data=own)
        parts.append(Part(f"fold-{k}", its, "test", (), fold, args.leave_one_out))
    return task, examples, parts


def _check_number(name: str, number: int) -> None:
    """Raises a UserError unless it makes sense to leave one out, so many times."""
    if name == "rank":
        raise UserError(
            "a text is ranked among those of its split, and --leave-one-out leaves it "
            "alone; set --folds"
        )
    if number > MOST:
        raise UserError(
            f"--leave-one-out would make {number:,} folds, more than {MOST}; set "
            "--folds=10"
        )


def _own_splits(args: Namespace, config: Any) -> tuple[Any, list[Example], list[Part]]:
    """Reads the config's splits, and leaves out of the scored one what is trained on.

    Raises:
        UserError: If nothing is left.
    """
    from lm.data.sources import open_source
    from lm.text.overlap import find_overlap
    from lm.train.evaluation import read_examples

    data = config.data
    task, train = folds_lib.read(config, [data.train_split])
    split = args.split or "test"
    try:
        for spec in data.sources:
            next(open_source(spec, data.data_dir, data.bad_rows).examples(split), None)
    except UserError:
        if args.split:
            raise
        split = data.eval_split
    examples, _ = read_examples(task, data, split)
    found = find_overlap(map(task.text_of, train), list(map(task.text_of, examples)))
    seen = {overlap.index for overlap in found if overlap.kind == "exact"}
    cli.say(
        f"of {len(examples):,} texts of {split} {len(seen):,} are in "
        f"{data.train_split} and left out"
    )
    if len(seen) == len(examples):
        raise UserError(
            f"every text of {split} is in {data.train_split}; choose another --split"
        )
    chosen = [index not in seen for index in range(len(examples))]
    return task, [*train, *examples], [Part("", config, split, chosen)]


def _claim(root: Path, plan: Mapping[str, Any]) -> None:
    """Writes down what is made in a folder.

    Raises:
        UserError: If something else was.
    """
    from flax.traverse_util import flatten_dict

    path = root / "plan.json"
    new = json.loads(json.dumps(plan))
    if not path.exists():
        make_folder(root)
        write_json(path, new)
    after, before = (flatten_dict(v, sep=".") for v in (new, config_lib.read(path)))
    for key in sorted(before.keys() | after.keys()):
        old, value = before.get(key), after.get(key)
        if old != value:
            change = "the texts or their folds have changed"
            if key != "texts":
                change = f"{key} is {old!r} there and {value!r} here"
            raise UserError(
                f"{root} was made by another command: {change}; choose another "
                "--workdir, or restore the value"
            )


# What is trained and scored.


def _folder(part: Part, root: Path, seed: int) -> Path:
    """Returns the workdir of a run."""
    if part.fold is None:
        return root / f"seed-{seed}"
    name = "run" if seed == part.config.seed else f"run-{seed}"
    return root / part.name / name


def _run(part: Part, root: Path, seed: int) -> Run:
    """Trains and scores once; what is there of it already is not done again.

    Returns:
        `name`, `fold`, `seed`, `step`, `examples` (how many are scored), `scores` and,
        of one of many, `predictions`.
    """
    import jax

    from lm.train.loop import train

    folder = _folder(part, root, seed)
    path, name = folder / "scores.json", f"{part.name} seed {seed}".strip()
    if path.exists():
        return config_lib.read(path)
    cli.say(f"{name}: {folder}")
    try:
        ended = train(dataclasses.replace(part.config, seed=seed), folder)
        if number := ended.get("signal"):
            print(f"stopped in {name}; the same command goes on from there")
            raise cli.Ended({"name": name, **ended}, 128 + number)
        run = {"name": name, "fold": part.name, "seed": seed}
        found = {**run, **_score(folder, part)}
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    # Each run compiles its own programs.
    jax.clear_caches()
    write_json(path, found)
    return found


def device_rows(config: Any) -> tuple[Any, int]:
    """Returns a mesh of all devices, and rows of a batch that divide over them."""
    from lm import sharding

    mesh = sharding.build_mesh(sharding.MeshConfig())
    shards = sharding.batch_shards(mesh)
    size = config.eval.batch_size or config.batch_size
    return mesh, -(-size // shards) * shards


def evaluator_of(loaded: Any, split: str, seed: int) -> Any:
    """Returns the evaluator of a workdir's model on all devices."""
    from lm.train.evaluation import Evaluator

    mesh, size = device_rows(loaded.config)
    return Evaluator(
        loaded.task,
        loaded.tokenizer,
        loaded.model,
        mesh,
        loaded.config.data,
        split=split,
        batch_size=size,
        seed=seed,
    )


def _score(folder: Path, part: Part) -> Run:
    """Scores a trained model as `lm.evaluate` does."""
    from lm import sharding
    from lm.train import workdir

    loaded = workdir.load(folder)
    evaluator = evaluator_of(loaded, part.split, loaded.config.seed)
    if part.chosen:
        evaluator.keep(part.chosen)
    mesh = sharding.build_mesh(sharding.MeshConfig())
    with sharding.use(mesh, sharding.MeshConfig()):
        evaluator(loaded.params, cli.progress)
    examples, predictions = evaluator.examples, evaluator.predictions
    found = {"step": loaded.step, "examples": len(examples)}
    found["scores"] = loaded.task.score(examples, predictions)  # pyright: ignore
    return found | ({"predictions": predictions} if part.is_one_of_many else {})


# What they reach.


def _together(
    task: Any, examples: Sequence[Example], parts: Sequence[Part], runs: Sequence[Run]
) -> list[Run]:
    """Scores the predictions of all folds as one split, for each seed."""
    order = np.concatenate([part.fold.test for part in parts if part.fold])
    gold = [examples[i] for i in order]
    found = []
    for seed in dict.fromkeys(run["seed"] for run in runs):
        some = [run for run in runs if run["seed"] == seed]
        predictions = [p for run in some for p in run["predictions"]]
        scores = task.score(gold, predictions)
        run = {"name": f"seed {seed}", "fold": "", "seed": seed}
        found.append({**run, "examples": len(gold), "scores": scores})
    return found


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns name, value (the mean), low and high (of its interval) of each score.

    Runs of one `fold` count as one, of which the scores are their means: they are
    tested by the same examples. A score that some do not have is that of the others.

    >>> runs = [{"fold": k, "scores": {"f1": k / 4}} for k in (1, 1, 2, 3)]
    >>> [(row["name"], row["value"]) for row in summary(runs)]
    [('f1', 0.5)]
    """
    from lm.tasks.intervals import interval_of_seeds

    names = dict.fromkeys(name for run in runs for name in run["scores"])
    rows = []
    for name in names:
        by_fold: dict[Any, list[float]] = {}
        for number, run in enumerate(runs):
            if name in run["scores"]:
                fold = run["fold"] or number
                by_fold.setdefault(fold, []).append(run["scores"][name])
        mean, low, high = interval_of_seeds([np.mean(v) for v in by_fold.values()])  # pyright: ignore
        bounds = {"low": low, "high": high} if len(by_fold) > 1 else {}
        rows.append({"name": name, "value": mean, **bounds})
    return rows


def _report(
    config: Any, root: Path, plan: Mapping[str, Any], runs: Sequence[Run]
) -> dict[str, Any]:
    """Gathers what there is to know; `lm.scorecard` has the form."""
    scores = summary(runs)
    name = scores[0]["name"]
    report = {
        "title": f"{root.name}: {len(runs)} runs",
        "workdir": str(root),
        "task": config.task.name,
        "model": config.model.name,
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "experiments.crossval", *sys.argv[1:]]),
        "scores": scores,
        "runs": [{k: v for k, v in r.items() if k != "predictions"} for r in runs],
        "config": plan,
    }
    if not any(run["fold"] for run in runs):
        values = {str(run["seed"]): run["scores"].get(name) for run in runs}
        bounds = {key: scores[0].get(key) for key in ("low", "high")}
        report["seeds"] = {"values": values, "mean": scores[0]["value"], **bounds}
    return report


def _print(report: Mapping[str, Any]) -> None:
    """Prints the main scores: a row for each run, and the means."""
    from rich.console import Console
    from rich.table import Table

    rows = [row for row in report["scores"] if not row["name"].startswith(NOT_SHOWN)]
    console = Console()
    rows = rows[: max(1, console.width // COLUMN - 1)]
    table = Table("", *(row["name"] for row in rows))
    for run in report["runs"]:
        values = (run["scores"].get(row["name"]) for row in rows)
        cells = ("-" if value is None else f"{value:.4f}" for value in values)
        table.add_row(run["name"], *cells)
    table.add_section()
    means, bounds = [], []
    for row in rows:
        value, low, high = (row.get(key) for key in ("value", "low", "high"))
        half = "" if high is None else f" ± {high - value:.4f}"
        means.append(f"{value:.4f}{half}")
        bounds.append("-" if high is None else f"{low:.4f}–{high:.4f}")
    table.add_row("mean", *means)
    table.add_row("95% interval", *bounds)
    console.print(table)
    print(f"report: {report['workdir']}/crossval.html")


if __name__ == "__main__":
    cli.run(main, parser, extra_prefix="--config.")
