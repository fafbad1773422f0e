"""Fine-tunes an imported model beside transformers on PyTorch, on the same texts.

    python -m tools.fetch_data minilm bbc imdb wiki
    python -m tools.import_hf --from=data/minilm --workdir=runs/minilm
    python -m experiments.benchmarks.finetune --model=data/minilm --task=bbc

Both begin with the same weights, take the steps of `configs/minilm.py` with the same
optimizer, rows and lengths, and are scored on the test split: accuracy, or of wiki
recall@10. Seconds are those of whole processes, imports and compilation included, but
without the scoring; the step is the median of a run's. Our runs share a compilation
cache (JAX_COMPILATION_CACHE_DIR), as runs that differ in the seed alone can: the first
fills it. The peer, which `make bench` installs, pads each batch to its longest text.
Runs take turns.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmarks.processes import last_line, run, steps_per_sec
from lm import cli
from lm import config as config_lib
from lm.config import check_choice, check_range
from lm.types import UserError

TASKS = {"bbc": "accuracy", "imdb": "accuracy", "wiki": "recall@10"}
THREADS = 2

parser = cli.make_parser(__doc__)
parser.add_argument("--model", required=True, help="the folder of the checkpoint")
parser.add_argument("--task", default="bbc", help=", ".join(TASKS))
parser.add_argument("--seeds", type=int, default=3, help="runs of each")
parser.add_argument(
    "--peer-python",
    default=".venv-bench/bin/python",
    help="a Python that has torch and transformers",
)


def main(args: Namespace) -> dict[str, Any]:
    check_choice("--task", args.task, tuple(TASKS))
    check_range("--seeds", args.seeds, 1)
    for path, cure in (
        (args.model, "name a folder with config.json"),
        (args.peer_python, "run make bench"),
    ):
        if not Path(path).exists():
            raise UserError(f"no {path}; {cure}")
    path = f"configs/minilm.py:{args.task}"
    config = config_lib.load(path)
    found: dict[str, list[dict[str, float]]] = {"lm": [], "transformers": []}
    with tempfile.TemporaryDirectory() as temporary:
        job = _job(args, config, Path(temporary))
        for seed in range(args.seeds):
            workdir = Path(temporary, f"run-{seed}")
            cache = Path(temporary, "cache")
            found["lm"].append(_ours(path, args.task, workdir, seed, cache))
            cli.say(f"lm, seed {seed}: {found['lm'][-1]}")
            peer = [args.peer_python, _PEER, json.dumps(job | {"seed": seed})]
            found["transformers"].append(last_line(peer))
            cli.say(f"transformers, seed {seed}: {found['transformers'][-1]}")
    return _show(args, config, found)


_PEER = str(Path(__file__).with_name("transformers_finetune.py"))


def _job(args: Namespace, config: Any, folder: Path) -> dict[str, Any]:
    """Writes the texts for the peer; returns what it is to do."""
    from lm.data.sources import open_source

    query = config.task.get("query", "")
    paths = {}
    for split in ("train", "test"):
        source = open_source(config.data.sources[0], config.data.data_dir, "skip")
        rows = [dict(row) for row in source.examples(split)]
        if query:
            rows = [row for row in rows if (row.get(query) or "").strip()]
        paths[split] = str(folder / f"{split}.jsonl")
        lines = [json.dumps(row, default=str) for row in rows]
        Path(paths[split]).write_text("\n".join(lines))
    return {
        **paths,
        "model": args.model,
        "query": query,
        "query_length": config.task.get("query_length", 0),
        "length": config.task.length,
        "steps": config.num_train_steps,
        "warmup_steps": config.warmup_steps,
        "batch_size": config.batch_size,
        "learning_rate": config.optim.learning_rate,
        "weight_decay": config.optim.weight_decay,
        "threads": THREADS,
    }


def _ours(
    path: str, task: str, workdir: Path, seed: int, cache: Path
) -> dict[str, float]:
    train = [sys.executable, "-m", "lm.train", f"--config={path}"]
    train += [f"--workdir={workdir}", f"--config.seed={seed}"]
    began = time.perf_counter()
    run(train, {"JAX_COMPILATION_CACHE_DIR": str(cache)})
    seconds = time.perf_counter() - began
    evaluate = [sys.executable, "-m", "lm.evaluate", f"--workdir={workdir}"]
    scores = last_line([*evaluate, "--split=test", "--json"])
    return {
        "score": scores[f"eval/test/{TASKS[task]}"],
        "seconds": seconds,
        "step": statistics.median(1 / rate for rate in steps_per_sec(workdir)),
    }


def _show(
    args: Namespace, config: Any, found: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    title = f"{args.task}, {config.num_train_steps} steps of {config.batch_size} rows"
    table = Table(
        *("", f"{TASKS[args.task]}, mean (min-max)"),
        *("seconds, first", "later", "step, ms"),
        title=f"{title}, {os.cpu_count()} cores",
    )
    for name, runs in found.items():
        scores = [run["score"] for run in runs]
        seconds = [run["seconds"] for run in runs]
        table.add_row(
            name,
            f"{statistics.mean(scores):.4f} ({min(scores):.4f}-{max(scores):.4f})",
            f"{seconds[0]:.1f}",
            f"{statistics.median(seconds[1:]):.1f}" if seconds[1:] else "",
            f"{1e3 * statistics.median(run['step'] for run in runs):.0f}",
        )
    Console().print(table)
    return found


if __name__ == "__main__":
    cli.run(main, parser)
