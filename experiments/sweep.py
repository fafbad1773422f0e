"""Trains many variants of a config, loses none of them and shows them in one table.

    python -m experiments.sweep --config=configs/bbc.py --workdir=sweeps/bbc \\
        --sweep="optim.learning_rate=log(1e-4,1e-2); optim.weight_decay=0,0.1; \\
        seed=0..2" --strategy=random --trials=6 --parallel=2 \\
        --metric=eval/validation/accuracy

A sweep names keys of the config, with parts between `;`:

    seed=0..2                        0, 1 and 2
    optim.name=adamw,lion            these values
    optim.learning_rate=log(1e-5,1e-3)       any number between, on a log scale; also
                                     uniform(a,b), int(a,b) and logint(a,b)
    optim.learning_rate=log(1e-5,1e-3,5)     five of them, evenly spaced
    model.num_layers=2,4 & model.emb_dim=64,128      values that go together

Without --sweep the config file's `get_sweep()` is called, which builds one from the
functions of `experiments.search.space`.

Strategies: `grid` tries all; `random`, `tpe` (Bergstra et al. 2011,
https://papers.nips.cc/paper/4443), `cmaes` (Hansen 2016,
https://arxiv.org/abs/1604.00772) and `hyperband` (Li et al. 2018,
https://arxiv.org/abs/1603.06560; TPE chooses) try --trials points, each with every
seed. --pruner ends trials early that do badly in their evaluations.

A metric is a name of `metrics.jsonl`; or `model/parameters`, or `model/latency_ms` of a
prediction of one example. What ends in loss, perplexity, error, parameters or the like
is made small and all else great; `:min` or `:max` behind the name says so. With several
metrics, between commas, the page shows the Pareto front.

Every trial is a run of `lm.train` in the workdir, under `trials`. The same command goes
on where it was ended, however that was: finished trials stay, others go on from their
checkpoints; only if all have failed are they tried again.

On several machines the same command with the same --storage shares the trials between
them. It is the URL of a database that has nothing else:

    postgresql+psycopg://me:secret@host/sweep      pip install 'psycopg[binary]'
    mysql+pymysql://me:secret@host/sweep           pip install 'pymysql[rsa]'

The workdir must be of a file system that they share if a trial is to go on elsewhere.
`--emit=shell` prints one command a trial for a queue of your own; run the sweep when
they have run, and it takes their results in. `optuna-dashboard
sqlite:///WORKDIR/study.db` (pip install optuna-dashboard) looks into the database.
"""

import contextlib
import math
import shlex
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments.search import results, space, text
from experiments.search.plan import PRUNERS, STRATEGIES, Plan, workdir_of
from experiments.search.results import MODES, Metric
from experiments.search.space import MOST
from experiments.search.view import count
from experiments.search.worker import LATENCY, PARAMETERS
from lm import cli
from lm import config as config_lib
from lm.atomic import make_folder, write_text
from lm.config import check_choice, check_range
from lm.types import UserError

if TYPE_CHECKING:
    from experiments.search.study import Study

# How a metric's last part ends that is better when it is smaller.
SMALL = (
    *("loss", "perplexity", "error", "parameters", "_ms"),
    *("bits_per_char", "bits_per_byte"),
)

parser = cli.make_parser(__doc__)
parser.add_argument(
    "--config", required=True, help="a config file; --config.KEY=VALUE overrides"
)
parser.add_argument("--workdir", required=True, help="the folder of the sweep")
parser.add_argument("--sweep", default="", help="what is varied; see above")
parser.add_argument("--strategy", default="grid", help=", ".join(STRATEGIES))
parser.add_argument("--pruner", default="", help=", ".join(PRUNERS))
parser.add_argument("--trials", type=int, default=0, help="points; default: the grid's")
parser.add_argument("--metric", required=True, help="names, with commas between")
parser.add_argument("--parallel", type=int, default=1, help="runs at a time, here")
parser.add_argument("--seed", type=int, default=0, help="of the strategy")
parser.add_argument("--storage", default="", help="a database's URL; default: SQLite")
parser.add_argument("--dry-run", action="store_true", help="print the trials and end")
parser.add_argument("--emit", choices=["shell"], help="print a command for each trial")
parser.add_argument("--best", default="", help="write the best config to this file too")


# How a config begins that a sweep wrote.
_BEST = '"""The best of a sweep'


def main(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    """Runs what is left of a sweep."""
    plan = _plan(args, overrides)
    if args.dry_run or args.emit:
        return _print_plan(args, plan)
    make_folder(Path(args.workdir))
    if args.best:
        _check_place(Path(args.best))
    from experiments.search.scheduler import Scheduler
    from experiments.search.study import Study, one_line

    root = Path(args.workdir)
    study = Study(root, plan, args.storage)
    with one_line(study.url):
        with contextlib.closing(Scheduler(study, root, args.parallel)) as scheduler:
            scheduler.run()
        return _report(args, study)


def _check_place(path: Path) -> None:
    """Raises a UserError unless a sweep may write its best config there."""
    if path.suffix != ".py":
        raise UserError(f"--best={path} is no config file; let it end in .py")
    if path.is_file() and not path.read_text(errors="replace").startswith(_BEST):
        raise UserError(f"--best={path} exists, and no sweep wrote it; name another")
    make_folder(path.parent)
    try:
        with path.open("a"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write --best={path}: {error.strerror}; choose another place"
        ) from error


def _plan(args: Namespace, overrides: list[str]) -> Plan:
    """Checks all that can be checked before anything runs."""
    check_choice("--strategy", args.strategy, STRATEGIES)
    pruner = args.pruner or ("hyperband" if args.strategy == "hyperband" else "none")
    check_choice("--pruner", pruner, PRUNERS)
    check_range("--parallel", args.parallel, 1)
    check_range("--trials", args.trials, 0)
    if not args.workdir:
        raise UserError("--workdir is empty; name a folder")
    if (Path(args.workdir) / "config.json").exists():
        raise UserError(
            f"{args.workdir} is a workdir of lm.train, not of a sweep; choose another"
        )
    config = config_lib.load(args.config, overrides)
    file = args.config.partition(":")[0]
    whole = (
        text.parse(args.sweep)
        if args.sweep
        else config_lib.call(file, "get_sweep", cure="give --sweep")
    )
    if not isinstance(whole, space.Space):
        raise UserError(
            f"get_sweep() of {file} returned {type(whole).__name__}, not a Space; "
            "build one with the functions of experiments.search.space"
        )
    whole = space.typed(whole, config)
    for one in map(space.Space, zip(whole.factors)) if args.sweep else ():
        if one.size < math.inf and space.union(one).size < one.size:
            raise UserError(f"{one.keys[0]} has equal values; leave one out")
    varied, seeds = space.split_seed(whole)
    metrics = [_metric(word) for word in args.metric.split(",")]
    _check_metrics(metrics, config)
    if len(metrics) > 1 and args.strategy == "cmaes":
        raise UserError("--strategy=cmaes goes by one --metric; tpe takes several")
    if len(metrics) > 1 and pruner != "none":
        raise UserError(f"--pruner={pruner} goes by one --metric; name one")
    first, last = int(config.eval_every_steps), int(config.num_train_steps)  # pyright: ignore
    if pruner != "none" and not 0 < first < last:
        raise UserError(
            f"--pruner={pruner} goes by evaluations; set --config.eval_every_steps to "
            "less than num_train_steps"
        )
    if pruner != "none" and metrics[0].name in (PARAMETERS, LATENCY):
        raise UserError(
            f"--pruner={pruner} goes by evaluations, and {metrics[0].name} is none"
        )
    size = varied.size
    if args.strategy == "grid" and not math.isfinite(size):
        space.rows(varied)  # says which key has no end
    if args.strategy != "grid" and not args.trials:
        raise UserError(f"--strategy={args.strategy} needs --trials=N")
    number = int(min(args.trials or size, size))
    trials = number * max(len(seeds), 1)
    if trials > MOST:
        raise UserError(
            f"the sweep has {trials:,} trials, more than {MOST:,}; "
            "name fewer values, or set a lower --trials"
        )
    return Plan(
        command=(args.config, *overrides),
        config=config.to_dict(),
        space=varied,
        seeds=tuple(seeds),
        metrics=tuple(metrics),
        strategy=args.strategy,
        pruner=pruner,
        num_points=number,
        first_step=first,
        last_step=last,
        seed=args.seed,
    )


def _metric(word: str) -> Metric:
    """Parses `name` or `name:mode`.

    >>> _metric("eval/validation/loss"), _metric("train/accuracy:min").mode
    (Metric(name='eval/validation/loss', mode='min'), 'min')
    """
    name, _, mode = word.strip().partition(":")
    if not name:
        raise UserError("--metric has an empty name; leave out the comma")
    if mode:
        check_choice("--metric: the mode", mode, MODES)
    return Metric(name, mode or ("min" if name.endswith(SMALL) else "max"))


def _check_metrics(metrics: Sequence[Metric], config: Any) -> None:
    """Refuses metrics that no run can have."""
    names = [metric.name for metric in metrics]
    split = config.data.eval_split
    for name in names:
        kind, _, rest = name.rpartition("/")
        if names.count(name) > 1:
            raise UserError(f"--metric has {name} twice; leave one out")
        if name.startswith("model/"):
            check_choice("--metric", name, (PARAMETERS, LATENCY))
        elif not kind or (kind.startswith("eval") and kind != f"eval/{split}"):
            raise UserError(
                f"a run has no metric {name!r}; did you mean 'eval/{split}/{rest}'?"
            )


def _print_plan(args: Namespace, plan: Plan) -> dict[str, Any]:
    commands = []
    for number in range(plan.num_trials):
        row = plan.overrides(number)
        if row is None:
            raise UserError(
                f"--strategy={plan.strategy} chooses while it runs; list the trials of "
                "grid or random, and run this one on each machine"
            )
        commands.append(shlex.join(_command(args, plan, number, row)))
    if args.emit:
        print("\n".join(commands))
    else:
        for number, command in enumerate(commands):
            print(f"trial {number}: {space.short(plan.overrides(number) or {})}")
            print(f"  {command}")
        print(count(plan.num_trials, "trial"))
    return {"trials": commands}


def _command(args: Namespace, plan: Plan, number: int, row: space.Row) -> list[str]:
    return [
        *("python", "-m", "lm.train", *plan.base),
        *space.as_flags(row),
        f"--workdir={Path(args.workdir) / workdir_of(number)}",
    ]


def _report(args: Namespace, study: "Study") -> dict[str, Any]:
    """Prints what came of a sweep, and writes the best config.

    Raises:
        UserError: If no trial has a value.
    """
    from experiments.search.scheduler import table_of

    root, metrics = Path(args.workdir), study.plan.metrics
    trials = study.trials()
    points = results.fold(trials, metrics)
    Console().print(table_of(trials, metrics, len(points)))
    best = results.best(points, metrics)
    if best is None:
        is_busy = any(trial.state == "running" for trial in trials)
        why = "others still train" if is_busy else "all were pruned"
        why = next((trial.error for trial in trials if trial.error), why)
        raise UserError(f"no trial has a value: {why}; the logs are in {root / 'logs'}")
    for path in (root / "best.py", *([Path(args.best)] if args.best else [])):
        write_text(path, best_config(study.plan, best))
    also = f"; the best also to {args.best}" if args.best else ""
    print(f"wrote {root / 'index.html'}, results.csv, results.json and best.py{also}")
    if others := sum(trial.state == "running" for trial in trials):
        print(f"others still train {count(others, 'trial')}; run it again for all")
    return {
        "best": best.overrides,
        "values": dict(zip((metric.name for metric in metrics), best.means)),
        "trials": dict(Counter(trial.state for trial in trials)),
    }


def best_config(plan: Plan, point: results.Point) -> str:
    """Returns a config file that trains a point of a sweep."""
    config, *overrides = plan.command
    words = [*overrides, *space.as_flags(point.overrides)]
    reached = ", ".join(
        f"{metric.name} {mean:.4g}" for metric, mean in zip(plan.metrics, point.means)
    )
    seeds = "1 seed" if point.seeds == 1 else f"mean of {point.seeds} seeds"
    lines = "".join(f"    {word!r},\n" for word in words)
    return (
        f'{_BEST} of {config}: {reached}, {seeds}."""\n\n'
        "from lm.config import load\n\n"
        f"OVERRIDES = (\n{lines})\n\n\n"
        f"def get_config():\n    return load({config!r}, OVERRIDES)\n"
    )


if __name__ == "__main__":
    cli.run(main, parser, extra_prefix="--config.")
