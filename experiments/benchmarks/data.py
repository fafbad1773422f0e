"""Times tokenising, packing and the whole pipeline beside the step that they feed.

    python -m experiments.benchmarks.data --config=configs/gpt_tiny.py

Tokenising is what `lm.train` does once with a corpus; packing makes batches from the
stored tokens, in one thread. Both must be far ahead of the step's tokens a second.
"""

import tempfile
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lm import cli
from lm import config as config_lib

parser = cli.make_parser(__doc__)
parser.add_argument("--config", default="configs/gpt_tiny.py")
parser.add_argument("--steps", type=int, default=20, help="batches and steps to time")


def main(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    import jax

    from lm import sharding
    from lm.data.sources import open_source
    from lm.data.store import encode_chunks
    from lm.text import tokenizers
    from lm.train.config import Config
    from lm.train.evaluation import put
    from lm.train.loop import build, build_batches

    config = Config.of(config_lib.load(args.config, overrides))
    cache = tempfile.mkdtemp()
    config = replace(config, data=replace(config.data, cache_dir=cache))
    run = build(config, tokenizers.load(Path(config.data.tokenizer)))
    source = open_source(config.data.sources[0], config.data.data_dir)
    examples = list(source.examples(config.data.train_split))
    began = time.perf_counter()
    tokens = sum(
        len(document["tokens"])
        for chunk in encode_chunks(examples, run.task.encode)
        for document in chunk
    )
    rates = {"tokenising": tokens / (time.perf_counter() - began)}
    batches = build_batches(run)
    per_batch = config.batch_size * config.task.length
    batches.batch(0)
    began = time.perf_counter()
    for number in range(args.steps):
        batches.batch(number)
    rates["packing"] = args.steps * per_batch / (time.perf_counter() - began)
    with sharding.use(run.mesh, config.mesh):
        batch = put(run.mesh, batches.batch(0))
        state, metrics = run.train_step(run.init(), batch)
        jax.block_until_ready(metrics)
        began = time.perf_counter()
        for _ in range(args.steps):
            state, metrics = run.train_step(state, batch)
            jax.block_until_ready(metrics)
        rates["training step"] = args.steps * per_batch / (time.perf_counter() - began)
    step = rates["training step"]
    table = Table("", "tokens/s", "x the step")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / step:.1f}")
    Console().print(table)
    return {"tokens_per_sec": rates}


if __name__ == "__main__":
    cli.run(main, parser, extra_prefix="--config.")
