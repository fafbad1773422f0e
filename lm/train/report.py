"""What a run says of itself: a progress bar, JSON lines, TensorBoard."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lm import cli
from lm import metrics as metrics_lib
from lm.atomic import write_text
from lm.train.evaluation import add
from lm.types import UserError

# Of an evaluation, in its line.
SHOWN_METRICS = 6

# Of these a window reports the last step's.
NOT_AVERAGED = ("optim/learning_rate", "optim/skipped", "optim/skipped_in_row")


class Writer:
    """Writes scalars to `metrics.jsonl` and to TensorBoard; process 0 only."""

    def __init__(self, workdir: Path, first_step: int):
        """Opens the files; lines past `first_step` belong to steps undone by a kill."""
        self._file = self._board = None
        if jax.process_index() != 0:
            return
        path = workdir / "metrics.jsonl"
        _forget_after(path, first_step)
        self._file = path.open("a")
        from clu import metric_writers  # imports TensorFlow, so only when needed

        self._board = metric_writers.AsyncWriter(
            metric_writers.SummaryWriter(str(workdir))
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step, **_finite(values)}) + "\n")
        self._file.flush()
        self._board.write_scalars(step, dict(values))

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN and no infinity: they are null."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _forget_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the half line of a killed process
    write_text(path, "".join(kept))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; the last may be half written by a run that goes on."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON lines: {error}") from error


class Window:
    """Sums metrics and times between two lines of the log.

    Attributes:
        step: Steps whose metrics were read.
        step_seconds: Of a step of the window that was flushed last.
        own_seconds: As far as this host did not wait for its devices.
    """

    def __init__(self, step: int, peak: float):
        """Starts an empty window; `peak` is the devices' FLOP/s."""
        self.step = step
        self._peak = peak
        self._sums = None
        self.step_seconds = self.own_seconds = 0.0
        self.restart_clock()

    def exclude(self, seconds: float) -> None:
        """Leaves out time that was not spent on steps."""
        self._start += seconds

    def restart_clock(self) -> None:
        """Forgets the time so far, for example a compilation's."""
        self.data_wait = self._flops = self._device_wait = 0.0
        self._timed = self._tokens = 0
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """Times what the devices take, or is waited for them."""
        began = time.perf_counter()
        yield
        self._device_wait += time.perf_counter() - began

    def read(self, metrics: metrics_lib.Metrics, tokens: int, flops: float) -> None:
        """Waits for a step's metrics and adds them, and what the step read and did."""
        with self.on_device():
            self._sums = add(self._sums, metrics)
        self._last = metrics
        self._timed += 1
        self._tokens += tokens
        self._flops += flops
        self.step += 1

    def flush(self) -> dict[str, float]:
        """Returns the metrics of the window, and starts the next one."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        assert self._sums is not None
        values = {
            name if "/" in name else f"train/{name}": value
            for name, value in metrics_lib.compute(self._sums).items()
        }
        values |= {name: self._last[name].compute() for name in NOT_AVERAGED}
        if self._timed:
            self.step_seconds = elapsed / self._timed
            self.own_seconds = (elapsed - self._device_wait) / self._timed
            values |= {
                "perf/steps_per_sec": self._timed / elapsed,
                "perf/tokens_per_sec": self._tokens / elapsed,
                "perf/flops_per_sec": self._flops / elapsed,
                "perf/mfu": self._flops / elapsed / self._peak,
                "perf/data_wait_fraction": self.data_wait / elapsed,
            }
        self._sums = None
        self.restart_clock()
        return values


class Display:
    """A progress bar on standard error, or plain lines where it is no terminal."""

    def __init__(self, total: int, first_step: int):
        """Shows a run of `total` steps from `first_step` on."""
        self._total = total
        self._bar = None
        self._quiet = jax.process_index() != 0
        if sys.stderr.isatty() and not self._quiet:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(
                "", total=total, completed=first_step, text=""
            )
            self._bar.start()

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif not self._quiet:
            cli.say(line)

    def show(self, step: int, values: Mapping[str, Any], note: str = "") -> None:
        """Shows training metrics, and what else there is to say."""
        text = f"loss {values['train/loss']:.4f}"
        if "perf/tokens_per_sec" in values:
            text += f"  {values['perf/tokens_per_sec']:,.0f} tokens/s"
        if note:
            text += f"  {note}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        else:
            self.say(f"step {step}/{self._total}  {text}")

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()


def summary(step: int, values: Mapping[str, float]) -> str:
    """Returns the first evaluation metrics as one line; `metrics.jsonl` has all.

    >>> summary(7, {"eval/validation/loss": 1.0})
    'step 7  eval/validation: loss 1.0000'
    """
    sets: dict[str, list[str]] = {}
    for name, value in values.items():
        group, _, metric = name.rpartition("/")
        sets.setdefault(group, []).append(f"{metric} {value:.4f}")
    shown = (f"{g}: {', '.join(v[:SHOWN_METRICS])}" for g, v in sets.items())
    return f"step {step}  " + "  ".join(shown)
