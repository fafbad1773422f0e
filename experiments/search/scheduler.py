"""Gives the trials of a study to processes of this machine, until none is left."""

import contextlib
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from experiments.search import results, space
from experiments.search.page import duration, write_page
from experiments.search.plan import workdir_of
from experiments.search.results import Metric, Trial
from experiments.search.study import Study, masked
from experiments.search.worker import Job, Worker, no_metric, shares
from lm import cli
from lm.types import UserError

# A trial whose process dies is tried so many times in all.
ATTEMPTS = 3

# Seconds between two looks at the workers, two writings of the page, two signs of life.
POLL, WRITE, BEAT = 0.1, 10.0, 60.0
SHOW = 1.0  # and two pictures in a terminal
SHOWN = 8  # points in the live table


class _Tail:
    """The lines that a run adds to its `metrics.jsonl`."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yields the whole lines since the last call."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            if file.seek(0, 2) < self._offset:  # a resumed run took lines away
                self._offset = 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                with contextlib.suppress(json.JSONDecodeError):
                    yield json.loads(line)


@dataclass
class _Task:
    """A trial that a worker trains."""

    worker: Worker
    job: Job
    tail: _Tail
    label: str
    attempts: int = 1
    step: int = 0
    reported: int = 0
    value: float = math.nan


class Scheduler:
    """Gives trials to workers until none is left."""

    def __init__(self, study: Study, root: Path, parallel: int):
        """Starts nothing yet.

        Args:
            study: Whose trials they are.
            root: The sweep's folder.
            parallel: Trials at a time; each has its share of the cores and devices.
        """
        self._study, self._plan, self._root = study, study.plan, root
        self._shares = shares(parallel)
        cache = {}
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            cache = {
                "JAX_COMPILATION_CACHE_DIR": str((self._root / "cache").resolve()),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        for share in self._shares:
            share["env"] = cache | share["env"]
        self._workers: list[Worker] = []
        self._tasks: dict[int, _Task] = {}
        self._console = Console(stderr=True)
        self._written = self._beaten = time.monotonic()

    def run(self) -> None:
        """Trains what is left."""
        shown = -math.inf
        live = Live(console=self._console, auto_refresh=False, transient=True)
        with live if self._console.is_terminal else contextlib.nullcontext():
            while self._give() or self._tasks:
                for number in list(self._tasks):
                    self._look_at(number)
                if time.monotonic() - self._beaten > BEAT:
                    self._beaten = time.monotonic()
                    self._study.beat()
                if self._console.is_terminal and time.monotonic() - shown > SHOW:
                    shown = time.monotonic()
                    live.update(self._view(), refresh=True)
                time.sleep(POLL)

    def close(self) -> None:
        """Ends the workers; what they train can go on later."""
        busy = {number: task.worker for number, task in self._tasks.items()}
        for worker in busy.values():
            worker.end_trial()
        for worker in self._workers:
            worker.close()
        for number, worker in busy.items():
            self._study.note(number, time.monotonic() - worker.began)
        self._write()

    def _give(self) -> bool:
        """Gives trials to workers that have none; returns whether there were any."""
        busy = {id(task.worker) for task in self._tasks.values()}
        given = False
        for i in range(len(self._shares)):
            if i < len(self._workers) and id(self._workers[i]) in busy:
                continue
            claimed = self._study.claim()
            if claimed is None:
                break
            if i == len(self._workers):
                self._workers.append(Worker(self._shares[i]))
            self._train(self._workers[i], *claimed)
            given = True
        return given

    def _train(self, worker: Worker, number: int, row: space.Row) -> None:
        config, *overrides = self._plan.command
        workdir = self._root / workdir_of(number)
        job = Job(
            config,
            (*overrides, *space.as_flags(row)),
            str(workdir),
            str(self._root / "logs" / f"{number:04d}.txt"),
            self._plan.metrics,
        )
        worker.train(job)
        tail = _Tail(workdir / "metrics.jsonl")
        self._tasks[number] = _Task(worker, job, tail, space.short(row))

    def _look_at(self, number: int) -> None:
        """Takes in how far a trial is, and how it ended."""
        task = self._tasks[number]
        found = task.worker.result()
        name = self._plan.metrics[0].name
        for line in task.tail.read():
            task.step = line.get("step", 0)
            self._check_names(line)
            value = line.get(name)
            if value is None or line["step"] <= task.reported:
                continue
            task.value, task.reported = value, line["step"]
            if self._study.report(number, line["step"], value) and not found:
                task.worker.prune()
        if found is None:
            return
        seconds = time.monotonic() - task.worker.began
        state, error = found["state"], found.get("error", "")
        if state == "refused":
            raise UserError(error)
        is_pruned = task.worker.is_pruning
        if state == "died":
            self._replace(task)
        if state in ("died", "stopped") and is_pruned:
            state = "pruned"
        if state in ("died", "stopped"):
            self._study.note(number, seconds)
            if task.attempts < ATTEMPTS:
                task.attempts += 1
                cli.say(f"trial {number} goes on: {error or 'it was stopped'}")
                task.worker.train(task.job)
                return
            state, seconds = "failed", 0.0
        del self._tasks[number]
        kept = {"step": found.get("step", task.step), "seconds": seconds}
        if state == "failed":
            kept["error"] = error or "it was stopped"
        self._study.finish(number, state, values=found.get("values"), **kept)
        self._tell(number, task, state, found)
        if time.monotonic() - self._written > WRITE:
            self._write()

    def _check_names(self, line: Mapping[str, Any]) -> None:
        """Ends a sweep whose metric is not among those of a line of its kind."""
        for metric in self._plan.metrics:
            kind = metric.name.partition("/")[0] + "/"
            is_kind = any(name.startswith(kind) for name in line)
            if is_kind and metric.name not in line:
                raise no_metric(metric.name, line)

    def _replace(self, task: _Task) -> None:
        """Starts a worker in the place of one that is gone."""
        index = self._workers.index(task.worker)
        task.worker.close()
        task.worker = self._workers[index] = Worker(self._shares[index])

    def _tell(self, number: int, task: _Task, state: str, found: Any) -> None:
        """Says how a trial ended."""
        values = found.get("values") or ()
        said = [f"{m.name} {v:.4g}" for m, v in zip(self._plan.metrics, values)]
        said += [found["error"]] if "error" in found else []
        parts = f"trial {number} {state}", task.label, ", ".join(said)
        cli.say(": ".join(filter(None, parts)))

    def _view(self) -> Group:
        """Returns what a terminal shows while trials run."""
        trials = self._study.trials()
        ended = [t for t in trials if t.state in ("done", "pruned", "failed")]
        bar = ProgressBar(len(trials), len(ended))
        line = results.states(trials)
        if timed := [trial.seconds for trial in ended if trial.seconds]:
            left = (len(trials) - len(ended)) * statistics.mean(timed)
            line += f"; about {duration(left / len(self._shares))} left"
        running = Table("trial", "sets", "step", self._plan.metrics[0].name, box=None)
        for number, task in sorted(self._tasks.items()):
            value = "" if math.isnan(task.value) else f"{task.value:.4g}"
            steps = f"{task.step}/{self._plan.last_step}"
            running.add_row(str(number), task.label, steps, value)
        return Group(line, bar, running, table_of(trials, self._plan.metrics, SHOWN))

    def _write(self) -> None:
        """Writes the tables and the page."""
        trials, plan = self._study.trials(), self._plan
        results.write_tables(self._root, trials, plan.metrics)
        words = ["python", "-m", "experiments.sweep", *map(masked, sys.argv[1:])]
        write_page(self._root, trials, plan.metrics, shlex.join(words), plan.base)
        self._written = time.monotonic()


def table_of(trials: Sequence[Trial], metrics: Sequence[Metric], most: int) -> Table:
    """Returns the points, the best first."""
    keys = [key for key in results.keys_of(trials) if key != results.SEED]
    names = space.short_names((metric.name for metric in metrics), "/")
    heads = space.short_names(keys, ".") | names
    table = Table(*heads.values(), "seeds", "time", "state")
    for point in results.fold(trials, metrics)[:most]:
        cells = [_shown(point.overrides.get(key, "")) for key in keys]
        for mean, low, high in zip(point.means, point.lows, point.highs):
            spread = "" if math.isnan(low) else f" ({low:.4g} to {high:.4g})"
            cells.append("" if math.isnan(mean) else f"{mean:.4g}{spread}")
        cells += [str(point.seeds), duration(point.seconds)]
        table.add_row(*cells, results.states(point.trials))
    return table


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else space.as_word(value)
