"""Tells what is in the workdirs of `lm.train`: models, runs, scores.

python -m tools.inspect runs/gpt [runs/bert …]
"""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lm import cli

parser = cli.make_parser(__doc__)
parser.add_argument("workdir", nargs="+", help="the folder of a run")


def describe(workdir: Path) -> dict[str, Any]:
    """Returns what a workdir says of itself.

    Raises:
        UserError: If it is no workdir.
    """
    import flax.linen as nn

    from lm import tree
    from lm.tasks import build_task
    from lm.train import workdir as workdir_lib
    from lm.train.report import read_log
    from lm.train.state import abstract_params

    config = workdir_lib.load_config(workdir)
    task = build_task(config.task, workdir_lib.load_tokenizer(workdir))
    params = nn.unbox(abstract_params(task.build_model(config.model)))
    log = read_log(workdir / "metrics.jsonl")
    trained = [line for line in log if "train/loss" in line]
    split = f"eval/{config.data.eval_split}/"
    evaluated = [line for line in log if f"{split}loss" in line]
    rates = sorted(
        line["perf/tokens_per_sec"] for line in trained if "perf/tokens_per_sec" in line
    )
    checkpoints = (workdir / "checkpoints").glob("*")
    last = evaluated[-1] if evaluated else {}
    return {
        "workdir": str(workdir),
        "model": config.model.name,
        "task": config.task.name,
        "parameters": tree.count(params),
        "step": trained[-1]["step"] if trained else 0,
        "num_train_steps": config.num_train_steps,
        "checkpoints": sorted(int(p.name) for p in checkpoints if p.name.isdigit()),
        "tokens_per_sec": rates[len(rates) // 2] if rates else None,
        "train/loss": trained[-1]["train/loss"] if trained else None,
        **{key: value for key, value in last.items() if key.startswith(split)},
    }


def main(args: Namespace) -> dict[str, Any]:
    """Prints a column for each workdir."""
    found = [describe(Path(workdir)) for workdir in args.workdir]
    table = Table("", *(row["workdir"] for row in found), title=None)
    keys = list(dict.fromkeys(key for row in found for key in row))
    for key in keys[1:]:
        table.add_row(key, *(_shown(row.get(key)) for row in found))
    Console().print(table)
    return {"workdirs": found}


def _shown(value: Any) -> str:
    """Writes a value for people.

    >>> _shown(1234567), _shown(0.123456), _shown([200, 400]), _shown(None)
    ('1,234,567', '0.1235', '200, 400', '-')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    cli.run(main, parser)
