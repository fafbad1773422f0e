"""Scores a trained model on a whole split.

    python -m lm.evaluate --workdir=runs/gpt --split=test

Rows are padded to full batches and padding weighs nothing; every token is scored
exactly once. A document longer than a row is cut into windows; with --stride each
window scores only that many new tokens and sees the ones before as context.
"""

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

from lm import cli
from lm.config import check_range
from lm.types import UserError

parser = cli.make_parser(__doc__)
parser.add_argument("--workdir", required=True, help="the folder of a run of lm.train")
parser.add_argument("--split", default="", help="default: the config's eval_split")
parser.add_argument(
    "--source", action="append", default=[], help="other texts than the config's"
)
parser.add_argument("--step", default="latest", help="latest, best, or a step's number")
parser.add_argument("--stride", type=int, default=0, help="new tokens a window")
parser.add_argument("--batch-size", type=int, default=0, help="rows at a time")
parser.add_argument("--max-batches", type=int, default=0, help="0: the whole split")


def main(args: Namespace) -> dict[str, Any]:
    """Evaluates and prints one metric a line."""
    import jax

    from lm import sharding
    from lm.data.pipeline import build_pipeline
    from lm.tasks import build_task
    from lm.train import workdir
    from lm.train.evaluation import evaluate
    from lm.train.step import make_eval_step

    for name in ("stride", "batch_size", "max_batches"):
        check_range(f"--{name.replace('_', '-')}", getattr(args, name), 0)
    loaded = workdir.load(Path(args.workdir), args.step)
    config, task, data = loaded.config, loaded.task, loaded.config.data
    if args.stride:
        if not hasattr(config.task, "stride"):
            raise UserError(f"--stride: task {config.task.name} has no windows")
        task_config = dataclasses.replace(config.task, stride=args.stride)
        task = build_task(task_config, loaded.tokenizer)
    if args.source:
        data = dataclasses.replace(data, sources=tuple(args.source), weights=())
    mesh = sharding.build_mesh(sharding.MeshConfig())
    shards = sharding.batch_shards(mesh)
    batch_size = args.batch_size or config.eval.batch_size or config.batch_size
    if batch_size % shards:
        raise UserError(
            f"--batch-size {batch_size} does not divide over {shards} devices"
        )
    split = args.split or data.eval_split
    batches = build_pipeline(
        task,
        loaded.tokenizer,
        data,
        split=split,
        batch_size=batch_size,
        seed=config.seed,
        train=False,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    limit = args.max_batches or batches.num_batches
    chosen = (batch for _, batch in zip(range(limit), cli.progress(batches, limit)))
    with sharding.use(mesh, sharding.MeshConfig()):
        eval_step = jax.jit(make_eval_step(loaded.model, task))
        values = evaluate(eval_step, loaded.params, chosen, mesh)
    print(f"{args.workdir} at step {loaded.step}, {split}:")
    for name, value in values.items():
        print(f"  {name:<14} {value:.4f}")
    named = {f"eval/{split}/{name}": value for name, value in values.items()}
    return {"step": loaded.step, **named}


if __name__ == "__main__":
    cli.run(main, parser)
