"""Trains on several hosts that are processes here, and kills some of them.

    python -m experiments.benchmarks.hosts --processes=2,4 --devices=2 --kills=4

For each number of processes: the losses beside those of one process, the scores of
`lm.evaluate` on as many, and a run that is killed (`kill -9` of any process, by turns
during a step and while a checkpoint is being written), stopped (SIGSTOP) and asked to
end (SIGTERM), and begun again each time. What it computes again must be the bits that
it computed before, and its end that of a run that nothing happens to.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.processes import free_port
from lm import cli
from lm.config import check_range
from lm.data.pipeline import DataConfig
from lm.models import gpt
from lm.tasks import causal_lm
from lm.text import tokenizers
from lm.train.config import Config
from lm.train.optim import OptimConfig
from lm.train.report import read_log
from lm.types import UserError

parser = cli.make_parser(__doc__)
parser.add_argument("--processes", default="2,4", help="numbers of processes")
parser.add_argument("--devices", type=int, default=2, help="of each process")
parser.add_argument("--kills", type=int, default=4, help="of each number of processes")
parser.add_argument("--steps", type=int, default=120)
parser.add_argument("--heartbeat-timeout", type=int, default=20)
parser.add_argument("--seed", type=int, default=0, help="of when and whom")

CONFIG = """
import json
from lm.config import to_config_dict
from lm.train.config import Config
def get_config():
    return to_config_dict(Config.of(json.loads({values!r})))
"""
WORDS = ("in", "the", "beginning", "was", "word", "and", "light", "made", "day")
BATCH_SIZE = 16
PATIENCE = 600.0


@dataclasses.dataclass
class Bench:
    """What all runs have in common."""

    folder: Path
    args: Namespace
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    started: list[subprocess.Popen] = dataclasses.field(default_factory=list)

    def launch(self, module: str, workdir: Path, count: int, *flags: str) -> list:
        """Starts `count` processes of a command, or one with all of the devices."""
        devices = self.args.devices if count > 1 else self.args.devices * 2
        env = os.environ | {
            # Compiling is most of what tiny runs do.
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        several = [f"--coordinator=127.0.0.1:{free_port()}", f"--num-processes={count}"]
        several += [f"--heartbeat-timeout={self.args.heartbeat_timeout}"]
        several += ["--start-timeout=300"]
        started = []
        for index in range(count):
            command = [sys.executable, "-m", module, f"--workdir={workdir}", "--json"]
            command += [*several, f"--process-id={index}"] if count > 1 else []
            out, err = (self.folder / f"{name}{index}" for name in ("out", "err"))
            with out.open("w") as stdout, err.open("w") as stderr:
                started.append(
                    subprocess.Popen(
                        [*command, *flags], stdout=stdout, stderr=stderr, env=env
                    )
                )
        self.started += started
        return started

    def close(self) -> None:
        """Ends all that still runs."""
        for process in self.started:
            process.kill()
            process.wait()

    def train(self, workdir: Path, count: int) -> list:
        """Starts training."""
        config = f"--config={self.folder / 'config.py'}"
        return self.launch("lm.train", workdir, count, config)

    def wait(self, processes: Sequence, statuses: Sequence[int]) -> list[str]:
        """Waits for the ends of processes; returns the last lines of what they say."""
        deadline = time.monotonic() + PATIENCE
        for process, expected in zip(processes, statuses):
            status = process.wait(max(deadline - time.monotonic(), 1))
            if status != expected:
                raise UserError(f"a process ended with {status}, not {expected}")
        said = [(self.folder / f"err{i}").read_text() for i in range(len(processes))]
        return [text.strip().rpartition("\n")[2] for text in said]

    def result(self, index: int = 0) -> dict[str, Any]:
        """Returns the JSON that a process printed."""
        return json.loads((self.folder / f"out{index}").read_text())

    def add(self, **row: Any) -> None:
        """Adds a row to the table."""
        self.rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def make_config(folder: Path, steps: int) -> None:
    """Writes texts, a tokenizer and a config that takes seconds."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 400), ("validation", 40)):
        lines = [
            " ".join(rng.choice(WORDS, rng.integers(2, 15))) for _ in range(number)
        ]
        text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text)
    tokenizers.train("bytes", []).save(folder / "bytes")
    config = Config(
        model=gpt.Config(
            vocab_size=280,
            emb_dim=32,
            num_layers=2,
            num_heads=2,
            max_len=64,
            dropout_rate=0.1,
            attention_dropout_rate=0.1,
        ),
        task=causal_lm.Config(length=64),
        data=DataConfig(
            sources=(str(folder / "{split}.jsonl"),),
            tokenizer=str(folder / "bytes"),
            data_dir=str(folder),
        ),
        optim=OptimConfig(learning_rate=1e-2),
        batch_size=BATCH_SIZE,
        num_train_steps=steps,
        warmup_steps=10,
        log_every_steps=1,
        checkpoint_every_steps=4,
    )
    values = json.dumps(dataclasses.asdict(config))
    (folder / "config.py").write_text(CONFIG.format(values=values))


def losses_of(workdir: Path) -> dict[int, float]:
    """Returns the loss of each step that is logged."""
    rows = read_log(workdir / "metrics.jsonl")
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def checksums_of(workdir: Path, step: int) -> dict[str, int]:
    """Returns the sums of the bits of a checkpoint's leaves."""
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(path.read_text())["checksums"]


def until(what: Callable[[], Any], processes: Sequence, folder: Path) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            said = [(folder / f"err{i}").read_text() for i in range(len(processes))]
            last = {text.strip().rpartition("\n")[2] for text in said}
            raise UserError(
                "the run ended, or did not go on, before it was to be killed: "
                + " | ".join(last)
            )
        time.sleep(0.01)


def compare(before: dict[int, float], after: dict[int, float]) -> str:
    """Says whether steps that were computed twice gave the same bits."""
    twice = before.keys() & after.keys()
    same = all(before[step] == after[step] for step in twice)
    return f"{'bit-equal' if same else 'DIFFERENT'} on {len(twice)} steps"


def disturb(bench: Bench, count: int, whole: Path, rng: random.Random) -> None:
    """Kills, stops and ends a run again and again; compares it with a whole one."""
    args, workdir = bench.args, bench.folder / f"disturbed{count}"
    kinds = [("step", "save")[i % 2] for i in range(args.kills)] + ["stop", "end"]
    last = args.steps - 10
    before: dict[int, float] = {}
    for number, kind in enumerate(kinds):
        processes = bench.train(workdir, count)
        # Not before it has gone on from where it was.
        reached = max(before, default=0) + rng.randint(2, last // len(kinds))

        def is_there(reached: int = reached, kind: str = kind) -> bool:
            if max(losses_of(workdir), default=0) < reached:
                return False
            tmp = workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")
            return kind != "save" or any(tmp)

        until(is_there, processes, bench.folder)
        victim = (number + 1) % count if kind != "step" else number % count
        sent = {"stop": signal.SIGSTOP, "end": signal.SIGTERM}.get(kind, signal.SIGKILL)
        began = time.monotonic()
        processes[victim].send_signal(sent)
        if kind == "end":
            bench.wait(processes, [128 + sent] * count)
            said = f"all saved step {bench.result()['step']}"
        else:
            others = [p for p in processes if p is not processes[victim]]
            for other in others:
                if other.wait(PATIENCE) != 1:
                    raise UserError(f"a process ended with {other.returncode}, not 1")
            index = (victim + 1) % count
            text = (bench.folder / f"err{index}").read_text()
            said = text.strip().rpartition("\n")[2]
        seconds = time.monotonic() - began
        processes[victim].kill()
        processes[victim].wait()
        after = losses_of(workdir)
        bench.add(
            processes=count,
            event=f"{kind} of process {victim}",
            seconds=round(seconds, 1),
            again=compare(before, after),
            said=said,
        )
        before = after
    bench.wait(bench.train(workdir, count), [0] * count)
    again = compare(losses_of(whole), losses_of(workdir))
    same = checksums_of(whole, args.steps) == checksums_of(workdir, args.steps)
    end = "the state at the end is bit-equal" if same else "the state DIFFERS"
    bench.add(processes=count, event="all of it", again=again, said=end)


def main(args: Namespace) -> dict[str, Any]:
    """Runs all, and prints a line for each."""
    words = args.processes.split(",")
    if not all(word.isdecimal() and int(word) > 1 for word in words):
        raise UserError(f"--processes={args.processes} is not as 2,4, each from 2 on")
    counts = [int(word) for word in words]
    for flag, least in (("devices", 1), ("kills", 0), ("steps", 40)):
        check_range(f"--{flag}", getattr(args, flag), least)
    with (
        tempfile.TemporaryDirectory(prefix="lm-hosts-") as name,
        contextlib.closing(Bench(Path(name), args)) as bench,
    ):
        rng = random.Random(args.seed)
        make_config(bench.folder, args.steps)
        alone = bench.folder / "alone"
        bench.wait(bench.train(alone, 1), [0])
        expected, losses = bench.result(), losses_of(alone)
        for count in counts:
            whole = bench.folder / f"whole{count}"
            began = time.monotonic()
            bench.wait(bench.train(whole, count), [0] * count)
            seconds = time.monotonic() - began
            found = losses_of(whole)
            worst = max(abs(found[step] / losses[step] - 1) for step in losses)
            bench.add(
                processes=count,
                event="undisturbed",
                seconds=round(seconds, 1),
                said=f"losses within {worst:.1e} of one process's",
            )
            bench.wait(
                bench.launch("lm.evaluate", whole, count, "--split=validation"),
                [0] * count,
            )
            name = "eval/validation/loss"
            results = [bench.result(index) for index in range(count)]
            worst = max(abs(result[name] / expected[name] - 1) for result in results)
            bench.add(
                processes=count,
                event="lm.evaluate",
                said=f"loss within {worst:.1e} of one process's",
            )
            disturb(bench, count, whole, rng)
    return {"rows": bench.rows}


if __name__ == "__main__":
    cli.run(main, parser)
