"""A process that trains trials, one after another.

It imports once, and runs that differ in numbers alone share what was compiled
(`lm.train.loop.build`): a trial costs little besides its training.
"""

import contextlib
import math
import multiprocessing
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from experiments.search.results import Metric
from lm.cli import suggest
from lm.memory import keep_freed
from lm.types import UserError

# What can be measured besides what `metrics.jsonl` has.
PARAMETERS, LATENCY = "model/parameters", "model/latency_ms"
LATENCY_RUNS = 20

# What a worker whose sweep was killed may need to end.
PATIENCE = 60.0

# A trial does not fail for want of room: it goes on once there is some.
_FULL = re.compile("[Nn]o space (left|for)|quota exceeded")

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class NoMetricError(UserError):
    """Runs have no metric of the name that was given."""


@dataclass(frozen=True)
class Job:
    """A trial to train.

    Attributes:
        config: A config file.
        overrides: Words such as `--config.seed=1`.
        workdir: Of the trial.
        log: A file that takes what the run prints.
        metrics: What is measured.
    """

    config: str
    overrides: tuple[str, ...]
    workdir: str
    log: str
    metrics: tuple[Metric, ...]


class Worker:
    """A process with a share of the machine, as another one sees it.

    Attributes:
        job: What it trains; None if it waits.
        began: When it was given that.
        is_pruning: Whether it was told to end that.
    """

    def __init__(self, share: Mapping[str, Any]):
        """Starts it.

        Args:
            share: `cores` that it runs on, and `env`.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, share), daemon=True)
        # A Ctrl-C is for all processes of a terminal; this one is not to hear it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.job: Job | None = None
        self.began = 0.0
        self.is_pruning = False

    def train(self, job: Job) -> None:
        """Gives it a trial."""
        self.job, self.began, self.is_pruning = job, time.monotonic(), False
        with contextlib.suppress(OSError):  # it is gone; `result` will tell
            self._connection.send(job)

    def prune(self) -> None:
        """Ends its trial after the step that it is at."""
        self.is_pruning = True
        self.end_trial()

    def end_trial(self) -> None:
        """Ends its trial, which can go on later."""
        if self.job and self._process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def result(self) -> dict[str, Any] | None:
        """Returns what became of its trial, if it has ended: `state` and more.

        The state is `done`, `failed`, `stopped`, or `died` if the process did.
        """
        if self.job is None:
            return None
        try:
            if not self._connection.poll():
                return None
            found = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"status {code}"
            found = {"state": "died", "error": f"its process ended by {how}"}
        self.job = None
        return found

    def close(self) -> None:
        """Ends the process; a trial saves its checkpoint first."""
        self.end_trial()
        with contextlib.suppress(OSError):
            if self.job:
                self._connection.poll(60)
            self._connection.close()
        self._process.join(5)
        self._process.kill()


def shares(parallel: int) -> list[dict[str, Any]]:
    """Divides the machine's cores, and its accelerators if it has any, into shares.

    Raises:
        UserError: If there are more shares than accelerators.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    name, devices = _devices()
    if devices and parallel > len(devices):
        raise UserError(
            f"--parallel={parallel} is more than the {len(devices)} devices here; "
            "lower it"
        )
    found = []
    for i in range(parallel):
        env = {}
        if devices:
            env = {name: ",".join(devices[i::parallel])}
        found.append({"cores": cores[i::parallel] or cores, "env": env})
    return found


def _devices() -> tuple[str, list[str]]:
    """Returns the variable that shows devices to a process, and the devices."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return "", []
    for name, files in (
        ("CUDA_VISIBLE_DEVICES", "nvidia[0-9]*"),
        ("TPU_VISIBLE_CHIPS", "accel[0-9]*"),
    ):
        if name in os.environ:
            return name, [d for d in os.environ[name].split(",") if d]
        if number := len(list(Path("/dev").glob(files))):
            return name, [str(i) for i in range(number)]
    return "", []


def _work(connection: Connection, share: Mapping[str, Any]) -> None:
    """Trains what is sent, until the other end is gone."""
    keep_freed()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # between trials there is nothing
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if share["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share["cores"])
    os.environ.update(share["env"])
    jobs: queue.Queue[Job] = queue.Queue()

    def receive() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                jobs.put(connection.recv())
        os._exit(0)  # the other process is gone, perhaps killed

    threading.Thread(target=receive, daemon=True).start()
    while True:
        connection.send(_train(jobs.get()))


def _train(job: Job) -> dict[str, Any]:
    """Returns `state`, with `values` or `error`, and `step`."""
    with contextlib.suppress(OSError):  # no space, as the run will find, too
        Path(job.log).parent.mkdir(parents=True, exist_ok=True)
        with Path(job.log).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    # At once, but where the loop of training catches it to save a checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        return outcome(job)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()


def outcome(job: Job) -> dict[str, Any]:
    """Trains; returns `state`, with `values` or `error`, and `step`.

    The state is as of `Worker.result`, or `refused` if no trial could do better.
    """
    try:
        return _run(job)
    except NoMetricError as error:
        return {"state": "refused", "error": str(error)}
    except UserError as error:
        state = "refused" if _FULL.search(str(error)) else "failed"
        return {"state": state, "error": str(error)}
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        if _FULL.search(line):
            line += "; free some space, and the same command goes on"
            return {"state": "refused", "error": line}
        import traceback

        with contextlib.suppress(OSError):
            traceback.print_exc()
        return {"state": "failed", "error": f"{type(error).__name__}: {line}"}


def _run(job: Job) -> dict[str, Any]:
    from lm.config import load
    from lm.train.config import Config
    from lm.train.loop import train

    workdir = Path(job.workdir)
    config = Config.of(load(job.config, job.overrides))
    _wait_for(workdir)
    result = train(config, workdir)
    if "signal" in result:
        return {"state": "stopped", "step": result["step"]}
    values = [measure(workdir, metric, result) for metric in job.metrics]
    for metric, value in zip(job.metrics, values):
        if not math.isfinite(value):
            error = f"{metric.name} is {value} at step {result['step']}"
            return {"state": "failed", "error": error, "step": result["step"]}
    return {"state": "done", "values": values, "step": result["step"]}


def measure(workdir: Path, metric: Metric, result: Mapping[str, Any]) -> float:
    """Returns a metric of a trained workdir.

    That of an evaluation is the last one's, or the best one's if the config keeps the
    best checkpoint by it.

    Raises:
        UserError: If the run has no such metric.
    """
    from lm.train.report import read_log
    from lm.train.workdir import load_config
    from tools.inspect import describe

    if metric.name == PARAMETERS:
        return float(describe(workdir)["parameters"])
    if metric.name == LATENCY:
        return _latency(workdir)
    lines = read_log(workdir / "metrics.jsonl")
    found = [line[metric.name] for line in lines if metric.name in line]
    found = [math.nan if value is None else value for value in found]
    if not found and metric.name not in result:
        names = sorted({n for line in lines for n in line} | {*result} - {"signal"})
        raise no_metric(metric.name, names)
    if not found:
        return result[metric.name]
    checkpoint = load_config(workdir).checkpoint
    if checkpoint.keep_best and metric.name.endswith(f"/{checkpoint.best_metric}"):
        pick = min if checkpoint.best_mode == "min" else max
        return pick([x for x in found if math.isfinite(x)], default=math.nan)
    return found[-1]


def no_metric(name: str, names: Iterable[str]) -> NoMetricError:
    """Returns what to raise if runs have metrics of these names only."""
    known = sorted(n for n in names if "/" in n)
    return NoMetricError(f"a run has no metric {name!r}{suggest(name, known)}")


def _wait_for(workdir: Path) -> None:
    """Waits for one who trains there and is about to end."""
    from lm.train.workdir import alone

    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(UserError), alone(workdir):
            return
        time.sleep(0.1)


def _latency(workdir: Path) -> float:
    """Returns the median time of a prediction of one example, in milliseconds."""
    from lm.tasks import Predictive
    from lm.train.evaluation import Predictor, read_examples
    from lm.train.workdir import load

    loaded = load(workdir)
    if not isinstance(loaded.task, Predictive):
        raise UserError(f"{LATENCY} needs a task that predicts; leave it out")
    from lm import sharding

    mesh = sharding.build_mesh(loaded.config.mesh)
    predictor = Predictor(loaded.task, loaded.model, mesh, 1)
    data = loaded.config.data
    examples, _ = read_examples(loaded.task, data, data.eval_split, 1)
    times = []
    with sharding.use(mesh, loaded.config.mesh):
        for _ in range(LATENCY_RUNS + 1):
            began = time.perf_counter()
            predictor(loaded.params, examples[:1])
            times.append(time.perf_counter() - began)
    return 1e3 * sorted(times[1:])[LATENCY_RUNS // 2]
