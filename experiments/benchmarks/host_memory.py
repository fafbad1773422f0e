"""Peaks of the host's memory while a state is made, saved and restored in parts.

    python -m experiments.benchmarks.host_memory [--emb-dim=1024] [--devices=8]
    python -m experiments.benchmarks.host_memory --processes=4 --devices=1

Each process is a host. Its devices are forced ones of the CPU, whose memory is the
host's: their parts, one state over all hosts, are in its peak. What is beyond them is
what the host needs besides, and what compiling took.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.benchmarks.processes import free_port
from lm import cli, xla_flags
from lm.config import check_range
from lm.types import UserError

PHASES = ("make", "restore")

parser = cli.make_parser(__doc__)
parser.add_argument("--emb-dim", type=int, default=1024, help="D of a GPT")
parser.add_argument("--devices", type=int, default=8, help="of each process")
parser.add_argument("--processes", type=int, default=1, help="hosts")
parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
parser.add_argument("--port", help=argparse.SUPPRESS)
parser.add_argument("--index", type=int, help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Runs each phase in processes of its own."""
    if args.phase:
        return measure(args)
    for name in ("emb_dim", "devices", "processes"):
        check_range(f"--{name.replace('_', '-')}", getattr(args, name), 1)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for phase in PHASES:
            for index, peaks in enumerate(run(args, phase, folder)):
                print(f"host {index}: {line(peaks)}", flush=True)
                rows.setdefault(index, {}).update(peaks)
    return {"hosts": list(rows.values())}


def run(args: argparse.Namespace, phase: str, folder: str) -> list[dict[str, Any]]:
    """Returns what one phase took of each process.

    Raises:
        UserError: If one failed.
    """
    flags = f"--xla_force_host_platform_device_count={args.devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    xla_flags.apply(environment, "cpu", args.devices * args.processes)
    command = [sys.executable, "-m", "experiments.benchmarks.host_memory", "--json"]
    command += [f"--emb-dim={args.emb_dim}", f"--devices={args.devices}"]
    command += [f"--processes={args.processes}", f"--phase={phase}"]
    command += [f"--folder={folder}", f"--port={free_port()}"]
    started = [
        subprocess.Popen(
            [*command, f"--index={index}"],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(args.processes)
    ]
    said = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, said):
        if process.returncode:
            last = errors.strip().rpartition("\n")[2].removeprefix("error: ")
            raise UserError(f"a process that should {phase} the state failed: {last}")
    return [json.loads(out.strip().rpartition("\n")[2]) for out, _ in said]


def line(peaks: dict[str, Any]) -> str:
    """Returns what is said of one process."""
    total = peaks["state_bytes"]
    return f"{total / 1e6:,.0f} MB of state; more at the peak: " + ", ".join(
        f"{name} {more / 1e6:,.0f} MB ({more / total:.2f} states)"
        for name, more in peaks.items()
        if name != "state_bytes"
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the bytes of the state, and what a phase took of this process."""
    import jax

    if args.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{args.port}", args.processes, args.index)

    from lm import sharding
    from lm.data.pipeline import DataConfig
    from lm.models import gpt
    from lm.tasks import causal_lm
    from lm.text import tokenizers
    from lm.train.checkpoint import CheckpointConfig, Checkpoints
    from lm.train.config import Config
    from lm.train.loop import build

    model = gpt.Config(vocab_size=8192, emb_dim=args.emb_dim, num_heads=8)
    config = Config(
        model=model,
        task=causal_lm.Config(length=8),
        data=DataConfig(sources=("none",), tokenizer="none"),
        mesh=sharding.MeshConfig(data=1, fsdp=-1),
        batch_size=jax.device_count(),
    )
    built = build(config, tokenizers.train("bytes", []))
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(built.abstract))
    checkpoints = Checkpoints(args.folder, CheckpointConfig())

    peaks: dict[str, Any] = {"state_bytes": total}
    with sharding.use(built.mesh, config.mesh):
        if args.phase == "restore":
            before = now()
            jax.block_until_ready(checkpoints.restore(built.abstract))
            peaks["restore"] = peak() - before
        else:
            jax.eval_shape(built.init)
            before = now()
            state = jax.block_until_ready(built.init())
            peaks["make"] = peak() - before
            checkpoints.save(1, state, {"row": 0}, {})
            checkpoints.wait()
            peaks["save"] = peak() - before
    checkpoints.close()
    return peaks


def now() -> int:
    """Returns the bytes of this process in memory, and begins a new peak (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Returns the most bytes that it had since."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


if __name__ == "__main__":
    cli.run(main, parser)
