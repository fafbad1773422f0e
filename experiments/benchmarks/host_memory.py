"""Peaks of the host's memory while a state is made, saved and restored in parts.

    python -m experiments.benchmarks.host_memory [--emb-dim=1024] [--devices=8]

Devices are forced ones of the CPU, whose memory is the host's: their parts, one state
all together, are in each peak. What is beyond one state is what the host needs besides,
and what compiling took.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PHASES = ("make", "restore")


def main() -> None:
    """Runs each phase in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emb-dim", type=int, default=1024, help="D of a GPT")
    parser.add_argument("--devices", type=int, default=8, help="that share the state")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        measure(args)
        return
    flags = f"--xla_force_host_platform_device_count={args.devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    with tempfile.TemporaryDirectory() as folder:
        for phase in PHASES:
            own = [f"--phase={phase}", f"--folder={folder}"]
            command = [sys.executable, "-m", "experiments.benchmarks.host_memory"]
            subprocess.run([*command, *sys.argv[1:], *own], env=environment, check=True)


def measure(args: argparse.Namespace) -> None:
    """Prints what one phase took at its peak."""
    import jax

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
        batch_size=args.devices,
    )
    run = build(config, tokenizers.train("bytes", []))
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.abstract))
    checkpoints = Checkpoints(args.folder, CheckpointConfig())

    def show(name: str, before: int) -> None:
        more = peak() - before
        print(
            f"{name:8}{total / 1e6:8.0f} MB of state{more / 1e6:8.0f} MB more at the "
            f"peak, {more / total:.2f} states",
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
