"""The training loop."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from lm import metrics as metrics_lib
from lm import sharding, tree
from lm.cli import suggest
from lm.data.pipeline import Pipeline, build_pipeline
from lm.models import build_model
from lm.tasks import Task, build_task
from lm.text.tokenizers import Tokenizer
from lm.train import perf, report
from lm.train import workdir as workdir_lib
from lm.train.checkpoint import Checkpoints
from lm.train.config import Config
from lm.train.evaluation import evaluate, put
from lm.train.optim import make_optimizer, make_schedule
from lm.train.state import TrainState, abstract_state, check_memory, init_state
from lm.train.step import make_eval_step, make_train_step
from lm.train.stop import Stop, on_signal
from lm.types import Batch, Params, UserError


@dataclass(frozen=True)
class Run:
    """All that the loop uses, built from a config before anything is computed."""

    config: Config
    mesh: Mesh
    tokenizer: Tokenizer
    task: Task
    model: nn.Module
    abstract: TrainState
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, metrics_lib.Metrics]]
    eval_step: Callable[[Params, Batch], metrics_lib.Metrics]


def build(config: Config, tokenizer: Tokenizer, devices: Sequence | None = None) -> Run:
    """Builds a run on `devices` (default: all); parameters exist as shapes only.

    Raises:
        UserError: If a batch does not divide over the devices.
    """
    mesh = sharding.build_mesh(config.mesh, devices)
    check_batches(config, mesh)
    model = build_model(config.model)
    task = build_task(config.task, tokenizer)
    schedule = make_schedule(config.optim, config.num_train_steps, config.warmup_steps)
    abstract, optimizer = abstract_state(
        model,
        lambda params: make_optimizer(config.optim, schedule, params),
        mesh,
        config.mesh,
        has_ema=config.optim.ema_decay > 0,
    )
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    return Run(
        config,
        mesh,
        tokenizer,
        task,
        model,
        abstract,
        lambda: init_state(model, optimizer, abstract, config.seed),
        jax.jit(
            make_train_step(config, model, task, optimizer, schedule),
            in_shardings=(layout, rows),
            out_shardings=(layout, everywhere),
            donate_argnums=0,
        ),
        jax.jit(
            make_eval_step(model, task),
            in_shardings=(layout.params, rows),
            out_shardings=everywhere,
        ),
    )


def check_batches(config: Config, mesh: Mesh) -> None:
    """Raises a UserError unless every batch divides over the devices and hosts."""
    shards = sharding.batch_shards(mesh)
    sizes = {
        "batch_size / grad_accum_steps": config.batch_size // config.grad_accum_steps,
        "eval.batch_size": config.eval.batch_size or config.batch_size,
    }
    for name, size in sizes.items():
        if size % shards:
            raise UserError(
                f"{name} is {size}, which does not divide over {shards} devices "
                "(mesh.data x mesh.fsdp); make it a multiple"
            )


def train(config: Config, workdir: Path, profile: range = range(0)) -> dict[str, Any]:
    """Trains, or goes on where the workdir's last sound checkpoint ends.

    Args:
        config: The run.
        workdir: Where all that it makes is kept.
        profile: Steps to trace with the profiler.

    Returns:
        `step`, the last evaluation's metrics, and `signal` if one ended the run.

    Raises:
        UserError: If something given does not fit, or too many updates in a row were
            skipped.
    """
    with workdir_lib.alone(workdir):
        run = build(config, workdir_lib.prepare(workdir, config))
        with sharding.use(run.mesh, config.mesh):
            return _train(run, workdir, profile)


def _train(run: Run, workdir: Path, profile: range) -> dict[str, Any]:
    """Finds out where to begin, and that nothing later will fail, and begins."""
    config = run.config
    check_memory(run.abstract)
    _check_evaluation(run)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    with contextlib.closing(checkpoints):
        restored = checkpoints.restore(run.abstract)
        state, position = restored or (run.init(), {})
        first_step = int(state.step)
        _check_profile(profile, first_step, config.num_train_steps)
        batches = build_batches(run, True, first_step * config.batch_size)
        _check_position(workdir, position, batches)
        display = report.Display(config.num_train_steps, first_step)
        writer = report.Writer(workdir, first_step)
        with (
            contextlib.closing(writer),
            contextlib.closing(display),
            on_signal() as stop,
        ):
            display.say(
                f"{config.model.name}: {tree.count(state.params):,} parameters, "
                f"{batches.num_rows:,} rows an epoch, {jax.device_count()} x "
                f"{jax.devices()[0].device_kind}"
                + (f"; resumed at step {first_step}" if restored else "")
            )
            return _loop(
                run,
                workdir,
                state,
                batches,
                checkpoints,
                writer,
                display,
                stop,
                profile,
            )


def _loop(
    run: Run,
    workdir: Path,
    state: TrainState,
    batches: Pipeline,
    checkpoints: Checkpoints,
    writer: report.Writer,
    display: report.Display,
    stop: Stop,
    profile: range,
) -> dict[str, Any]:
    config = run.config
    first_step = step = int(state.step)
    profile = range(max(profile.start, first_step), profile.stop)
    results = checkpoints.metrics(step) if step else {}
    is_evaluated = bool(results)
    stream = iter(batches)
    window = report.Window(step, perf.peak_flops())
    pending = None
    costs: dict[tuple[int, ...], tuple[int, float]] = {}
    began = time.perf_counter()

    def read(metrics: metrics_lib.Metrics, tokens: int, flops: float) -> None:
        """Takes in the metrics of the step before the one just dispatched."""
        window.read(metrics, tokens, flops)
        _check_skipped(config, window.step, metrics, checkpoints)
        if window.step == first_step + 1:
            seconds = time.perf_counter() - began
            display.say(f"first step after {seconds:.1f} s, compilation included")
            window.restart_clock()
        if window.step % config.log_every_steps == 0:
            values = window.flush()
            writer.write(window.step, values)
            display.show(window.step, values)

    while True:
        is_last = step >= config.num_train_steps
        stopped = stop.reached(step)
        ends = is_last or stopped
        evaluates = is_last or _due(step, config.eval_every_steps)
        evaluates &= step > 0 and not stopped
        evaluates &= step > first_step or not is_evaluated
        saves = ends or _due(step, config.checkpoint_every_steps)
        saves |= evaluates and config.checkpoint.keep_best > 0
        if pending is not None and (ends or evaluates or saves):
            read(*pending)
            pending = None
        pause = time.perf_counter()
        if evaluates:
            results = _evaluate(run, state)
            writer.write(step, results)
            display.say(report.summary(step, results))
        if saves and step > first_step:
            position = {"row": step * config.batch_size, "data": batches.fingerprint}
            checkpoints.save(step, state, position, results if evaluates else {})
        window.exclude(time.perf_counter() - pause)
        if ends:
            break
        if step == profile.stop:
            jax.block_until_ready(state)
        _trace(step, profile, workdir)
        waited = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - waited
        window.data_wait += waited
        state, metrics = run.train_step(state, put(run.mesh, batch))
        step += 1
        if pending is not None:
            read(*pending)
        shape = batch["inputs"].shape
        if shape not in costs:
            costs[shape] = _cost(run, batch)
        pending = (metrics, *costs[shape])
    if profile.start < step <= profile.stop:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
    checkpoints.wait()
    return {"step": step, **results} | ({"signal": stop.signal} if stopped else {})


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def build_batches(run: Run, train: bool, start_row: int = 0) -> Pipeline:
    """Returns the batches of training, from a row on, or those of an evaluation."""
    config, data = run.config, run.config.data
    eval_size = config.eval.batch_size or config.batch_size
    return build_pipeline(
        run.task,
        run.tokenizer,
        data,
        split=data.train_split if train else data.eval_split,
        batch_size=config.batch_size if train else eval_size,
        seed=config.seed,
        train=train,
        start_row=start_row,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _evaluate(run: Run, state: TrainState) -> dict[str, float]:
    batches = build_batches(run, False)
    limit = run.config.eval.max_batches or batches.num_batches
    chosen = (batch for _, batch in zip(range(limit), batches))
    values = evaluate(run.eval_step, state.averaged_params(), chosen, run.mesh)
    name = run.config.data.eval_split
    return {f"eval/{name}/{metric}": value for metric, value in values.items()}


def _cost(run: Run, batch: Mapping[str, Any]) -> tuple[int, float]:
    """Returns the tokens of a batch, over all hosts, and the FLOPs of a step on it."""
    hosts = jax.process_count()
    shapes = {k: (v.shape[0] * hosts, *v.shape[1:]) for k, v in batch.items()}
    tokens = sum(
        shapes[name][0] * shapes[name][1]
        for name in ("inputs", "encoder_inputs")
        if name in shapes
    )
    return tokens, perf.step_flops(run.config.model, run.abstract.params, shapes)


def _check_evaluation(run: Run) -> None:
    """Raises a UserError if what evaluations need is not there.

    They come after long training, and the last one before the last checkpoint.
    """
    batches = build_batches(run, False)
    shapes = jax.eval_shape(
        make_eval_step(run.model, run.task), run.abstract.params, batches.batch(0)
    )
    name = run.config.checkpoint.best_metric
    if name not in shapes:
        raise UserError(
            f"checkpoint.best_metric {name!r} is no metric of the task "
            f"{run.config.task.name}{suggest(name, sorted(shapes))}"
        )


def _check_position(
    workdir: Path, position: Mapping[str, Any], batches: Pipeline
) -> None:
    """Raises a UserError if a checkpoint's rows were of other data."""
    if position and position["data"] != batches.fingerprint:
        raise UserError(
            f"the texts that {workdir} was trained on have changed since its "
            "checkpoint; bring them back, or choose another --workdir"
        )


def _check_skipped(
    config: Config, step: int, metrics: metrics_lib.Metrics, checkpoints: Checkpoints
) -> None:
    """Raises a UserError after too many skipped updates in a row."""
    in_row = int(metrics["optim/skipped_in_row"].total)
    if in_row >= config.guard.max_skipped:
        last = checkpoints.latest_step()
        kept = (
            "there is no checkpoint"
            if last is None
            else f"the checkpoint of step {last} is kept"
        )
        raise UserError(
            f"stopped at step {step}: {in_row} updates in a row were skipped because "
            f"the loss was not finite or spiked; {kept}; lower "
            "optim.learning_rate, raise warmup_steps, or set optim.grad_clip_norm, "
            "and train into another --workdir"
        )


def _check_profile(profile: range, first_step: int, num_train_steps: int) -> None:
    """Raises a UserError if none of the steps to trace will be taken."""
    if profile and not (profile.stop > first_step and profile.start < num_train_steps):
        raise UserError(
            f"--profile={profile.start}:{profile.stop} is outside of the steps from "
            f"{first_step} to {num_train_steps} that are left"
        )


def _trace(step: int, profile: range, workdir: Path) -> None:
    """Starts the profiler before the first step of the range, stops it after."""
    if profile and step == profile.start:
        jax.profiler.start_trace(str(workdir))
    elif profile and step == profile.stop:
        jax.profiler.stop_trace()
