"""Times a training step here and in transformers on PyTorch, side by side.

    make bench

The same models (learned positions, LayerNorm, biases, tied embeddings, no dropout),
AdamW with clipping, rows of 256 tokens of a vocabulary of 8,192. Either side runs in a
process of its own; they take turns of a few steps, so that both see the same machine,
and the ratio is the median over pairs of turns. The time to the first step is that of
a fresh process: imports, initialisation, compilation and the step.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lm import cli
from lm.types import UserError

SHAPES = {
    "4x128": {"layers": 4, "width": 128, "heads": 4, "batch_size": 16},
    "6x384": {"layers": 6, "width": 384, "heads": 6, "batch_size": 8},
}
LENGTH, VOCAB_SIZE = 256, 8192

parser = cli.make_parser(__doc__)
parser.add_argument("--turns", type=int, default=7, help="turns of each side a row")
parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
parser.add_argument("--only", default="", help="rows whose name contains this")
parser.add_argument("--bfloat16", action="store_true", help="matmuls in bfloat16")
parser.add_argument(
    "--peer-python",
    default=".venv-bench/bin/python",
    help="a Python that has torch and transformers",
)


class Side:
    """A process that takes steps when asked."""

    def __init__(self, command: list[str], shape: dict[str, Any]):
        self._process = subprocess.Popen(
            [*command, json.dumps(shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        )
        self.first_step = self._read()["first_step"]
        self.peak_bytes = 0

    def _read(self) -> dict[str, float]:
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None and stderr is not None
        line = stdout.readline()
        if not line:
            last = stderr.read().strip().splitlines()[-1:]
            raise UserError(f"{self._process.args[0]} failed: {' '.join(last)}")  # pyright: ignore
        return json.loads(line)

    def turn(self, steps: int) -> float:
        """Takes steps; returns the seconds of one."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._read()
        self.peak_bytes = answer["peak_bytes"]
        return answer["seconds"] / steps

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def measure(args: Namespace, kind: str, size: str) -> dict[str, Any]:
    shape = {"kind": kind, "vocab_size": VOCAB_SIZE, "length": LENGTH, **SHAPES[size]}
    shape |= {"bfloat16": args.bfloat16}
    peer_file = str(Path(__file__).with_name("transformers_step.py"))
    ours = Side([sys.executable, "-m", "experiments.benchmarks.lm_step"], shape)
    peer = Side([args.peer_python, peer_file], shape)
    tokens = shape["batch_size"] * LENGTH
    pairs = []
    for _ in range(args.turns + 1):
        pairs.append((ours.turn(args.steps), peer.turn(args.steps)))
    pairs = pairs[1:]  # the first turn warms up
    ours.close()
    peer.close()
    return {
        "row": f"{kind} {size}",
        "lm_tokens_per_sec": tokens / statistics.median(a for a, _ in pairs),
        "peer_tokens_per_sec": tokens / statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
        "ratio_min": min(b / a for a, b in pairs),
        "ratio_max": max(b / a for a, b in pairs),
        "lm_first_step_sec": ours.first_step,
        "peer_first_step_sec": peer.first_step,
        "lm_peak_mb": ours.peak_bytes / 1e6,
        "peer_peak_mb": peer.peak_bytes / 1e6,
    }


def main(args: Namespace) -> dict[str, Any]:
    if not Path(args.peer_python).exists():
        raise UserError(f"no {args.peer_python}; run make bench, which installs it")
    wanted = [
        (kind, size)
        for kind in ("gpt", "bert")
        for size in SHAPES
        if args.only in f"{kind} {size}"
    ]
    if not wanted:
        raise UserError(f"--only={args.only} is part of no row's name")
    rows = [measure(args, *row) for row in cli.progress(wanted, len(wanted))]
    table = Table(
        *("", "lm tok/s", "transformers tok/s", "ratio (min-max)"),
        *("first step, s", "peak MB"),
        title=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    )
    for row in rows:
        table.add_row(
            row["row"],
            f"{row['lm_tokens_per_sec']:,.0f}",
            f"{row['peer_tokens_per_sec']:,.0f}",
            f"{row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})",
            f"{row['lm_first_step_sec']:.1f} / {row['peer_first_step_sec']:.1f}",
            f"{row['lm_peak_mb']:,.0f} / {row['peer_peak_mb']:,.0f}",
        )
    Console().print(table)
    return {"rows": rows}


if __name__ == "__main__":
    cli.run(main, parser)
