"""Times the compilation of a training step by the number of its layers.

    python -m experiments.benchmarks.compile_time

Scanned layers are compiled once, looped ones one by one. Each number is the smallest of
several compilations, without a cache.
"""

import time
from argparse import Namespace
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from lm import cli

parser = cli.make_parser(__doc__)
parser.add_argument("--layers", type=int, nargs="+", default=[6, 12, 48])
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--looped", action="store_true", help="also without scanning")


def seconds_to_compile(layers: int, scan: bool) -> float:
    """Returns the seconds of tracing, lowering and compiling a step."""
    import jax

    from experiments.benchmarks.lm_step import make_batch, make_config
    from lm import sharding
    from lm.text import tokenizers
    from lm.train.evaluation import put
    from lm.train.loop import build

    config = make_config("gpt", 8192, layers, 128, 4, 256, 8, False)
    config = replace(config, model=replace(config.model, scan_layers=scan))
    jax.clear_caches()
    run = build(config, tokenizers.train("bytes", []))
    with sharding.use(run.mesh, config.mesh):
        batch = put(run.mesh, make_batch(config))
        began = time.perf_counter()
        run.jitted_step.lower(run.abstract, batch, run.numbers).compile()  # pyright: ignore
        return time.perf_counter() - began


def main(args: Namespace) -> dict[str, Any]:
    kinds = {"scanned": True} | ({"looped": False} if args.looped else {})
    table = Table("layers", *(f"{kind}, s (ratio)" for kind in kinds))
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    seconds_to_compile(2, True)  # what is done once in a process
    for layers in args.layers:
        row = [str(layers)]
        for kind, scan in kinds.items():
            best = min(seconds_to_compile(layers, scan) for _ in range(args.repeats))
            found[kind].append(best)
            row.append(f"{best:.2f} ({best / found[kind][0]:.2f})")
        table.add_row(*row)
    Console().print(table)
    return {"layers": args.layers, "seconds": found}


if __name__ == "__main__":
    cli.run(main, parser)
