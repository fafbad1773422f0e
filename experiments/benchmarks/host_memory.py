"""Peaks of the host's memory while a state is made, saved and restored in parts.

    python -m experiments.benchmarks.host_memory [--emb-dim=1024] [--devices=8]
    python -m experiments.benchmarks.host_memory --processes=4 --devices=1

Each process is a host. Its devices are forced ones of the CPU, whose memory is the
host's: their parts, one state over all hosts, are in its peak. What is beyond them is
what the host needs besides, and what compiling took.
"""

import argparse
import gc
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from lm import xla_flags

PHASES = ("make", "restore")


def main() -> None:
    """Runs each phase in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emb-dim", type=int, default=1024, help="D of a GPT")
    parser.add_argument("--devices", type=int, default=8, help="of each process")
    parser.add_argument("--processes", type=int, default=1, help="hosts")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        measure(args)
        return
    flags = f"--xla_force_host_platform_device_count={args.devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    xla_flags.apply(environment, "cpu", args.devices * args.processes)
    command = [sys.executable, "-m", "experiments.benchmarks.host_memory"]
    with tempfile.TemporaryDirectory() as folder:
        for phase in PHASES:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            own = [f"--phase={phase}", f"--folder={folder}", f"--port={port}"]
            started = [
                subprocess.Popen(
                    [*command, *sys.argv[1:], *own, f"--index={index}"], env=environment
                )
                for index in range(args.processes)
            ]
            statuses = [process.wait() for process in started]
            if any(statuses):
                sys.exit(f"error: a process that should {phase} the state failed")


def measure(args: argparse.Namespace) -> None:
    """Prints what one phase took of this process at its peak."""
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
    run = build(config, tokenizers.train("bytes", []))
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.abstract))
    checkpoints = Checkpoints(args.folder, CheckpointConfig())

    def show(name: str, before: int) -> None:
        more = peak() - before
        print(
            f"host {args.index}: {name:8}{total / 1e6:8.0f} MB of state"
            f"{more / 1e6:8.0f} MB more at the peak, {more / total:.2f} states",
            flush=True,
        )

    with sharding.use(run.mesh, config.mesh):
        if args.phase == "restore":
            before = now()
            state = checkpoints.restore(run.abstract)
            jax.block_until_ready(state)
            show("restore", before)
        else:
            jax.eval_shape(run.init)
            before = now()
            state = jax.block_until_ready(run.init())
            show("make", before)
            checkpoints.save(1, state, {"row": 0}, {})
            checkpoints.wait()
            show("save", before)
    checkpoints.close()


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
    main()
