"""The training loop."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from lm import distributed, sharding, tree
from lm import metrics as metrics_lib
from lm.adapt import lora
from lm.data.pipeline import Pipeline, build_pipeline
from lm.nn import pipeline
from lm.tasks import Task, build_task
from lm.text.tokenizers import Tokenizer
from lm.train import perf, report
from lm.train import workdir as workdir_lib
from lm.train.begin import warm_start
from lm.train.checkpoint import Checkpoints
from lm.train.config import Config
from lm.train.evaluation import Evaluator, host_rows, put
from lm.train.optim import Numbers, make_optimizer
from lm.train.state import TrainState, abstract_state, check_memory, init_state
from lm.train.step import make_train_step
from lm.train.stop import Stop, on_signal
from lm.train.word_vectors import embed_words
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
    numbers: Numbers
    jitted_init: Callable[..., TrainState]
    jitted_step: Callable[..., tuple[TrainState, metrics_lib.Metrics]]

    def init(self, given: Params | None = None) -> TrainState:
        """Returns the state of step 0; parameters may be given by their names."""
        return self.jitted_init(np.int32(self.config.seed), given or {})

    def train_step(
        self, state: TrainState, batch: Batch
    ) -> tuple[TrainState, metrics_lib.Metrics]:
        """Returns the state after a batch, and the batch's metrics."""
        return self.jitted_step(state, batch, self.numbers)


def build(config: Config, tokenizer: Tokenizer, devices: Sequence | None = None) -> Run:
    """Builds a run on `devices` (default: all); parameters exist as shapes only.

    Runs that differ in their numbers alone share what they compile.

    Raises:
        UserError: If a batch does not divide over the devices.
    """
    given = None if devices is None else tuple(devices)
    run = _build(config.without_numbers(), tokenizer, given)
    return dataclasses.replace(run, config=config, numbers=config.numbers)


@functools.lru_cache(maxsize=4)
def _build(config: Config, tokenizer: Tokenizer, devices: tuple | None) -> Run:
    mesh = sharding.build_mesh(config.mesh, devices)
    check_batches(config, mesh)
    task = build_task(config.task, tokenizer)
    model = lora.adapt(task.build_model(config.model), config.lora)
    abstract, optimizer = abstract_state(
        model,
        lambda params: make_optimizer(config.optimizer, config.numbers, params),
        mesh,
        config.mesh,
        has_ema=config.optim.ema_decay > 0,
    )
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    rows = sharding.batch_sharding(mesh, config.mesh)
    everywhere = sharding.replicated(mesh)
    return Run(
        config,
        mesh,
        tokenizer,
        task,
        model,
        abstract,
        config.numbers,
        init_state(model, optimizer, abstract),
        jax.jit(
            make_train_step(config, model, task),
            in_shardings=(layout, rows, everywhere),
            out_shardings=(layout, everywhere),
            donate_argnums=0,
        ),
    )


def check_batches(config: Config, mesh: Mesh) -> None:
    """Raises a UserError unless every batch divides over the devices and hosts."""
    shards = sharding.batch_shards(mesh, config.mesh)
    axes = " x ".join(f"mesh.{axis}" for axis in sharding.batch_axes(config.mesh))
    sizes = {
        "batch_size / grad_accum_steps": config.batch_size // config.grad_accum_steps,
        "eval.batch_size": config.eval.batch_size or config.batch_size,
    }
    for name, size in sizes.items():
        if size % shards:
            near = max(1, round(size / shards)) * shards
            raise UserError(
                f"{name} is {size}, which does not divide over {shards} devices "
                f"({axes}); make it a multiple, such as {near}"
            )
    rows = config.batch_size // config.grad_accum_steps // shards
    pipeline.check(config.model, rows, mesh.shape[pipeline.AXIS])


def train(config: Config, workdir: Path, profile: range = range(0)) -> dict[str, Any]:
    """Trains, or goes on where the workdir's last sound checkpoint ends.

    Args:
        config: The run.
        workdir: Where all that it makes is kept.
        profile: Steps to trace with the profiler.

    Returns:
        `step`, the metrics of an evaluation at that step if there was one, and
        `signal` if one ended the run.

    Raises:
        UserError: If something given does not fit, or too many updates in a row were
            skipped.
    """
    with workdir_lib.alone(workdir):
        run = build(*workdir_lib.prepare(workdir, config))
        with sharding.use(run.mesh, config.mesh):
            return _train(run, workdir, profile)


def _train(run: Run, workdir: Path, profile: range) -> dict[str, Any]:
    """Finds out where to begin, and that nothing later will fail, and begins."""
    config = run.config
    check_memory(run.abstract)
    # Evaluations come after long training: what they need is looked for now.
    evaluator = build_evaluator(run)
    evaluator.check_metric(config.checkpoint.best_metric, run.abstract.params)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    distributed.keeps(checkpoints.kept)
    with contextlib.closing(checkpoints), distributed.telling():
        restored = checkpoints.restore(run.abstract)
        state, position = restored or (_begin(run), {})
        first_step = int(state.step)
        trace = perf.Trace(profile, first_step, config.num_train_steps, workdir)
        batches = build_batches(run, first_step * config.batch_size)
        _check_position(workdir, position, batches)
        display = report.Display(config.num_train_steps, first_step)
        writer = report.Writer(workdir, first_step)
        with (
            contextlib.closing(writer),
            contextlib.closing(display),
            on_signal() as stop,
            distributed.telling(),
        ):
            display.say(
                f"{config.model.name}: {tree.count(state.params):,} parameters, "
                f"{batches.num_rows:,} rows an epoch, {jax.device_count()} x "
                f"{jax.devices()[0].device_kind}"
                + (f"; resumed at step {first_step}" if restored else "")
            )
            stages = run.mesh.shape[pipeline.AXIS]
            if stages > 1:
                parts = getattr(config.model, "pipeline_microbatches", 0)
                display.say(f"pipeline: {pipeline.describe(stages, parts)}")
            if first_step >= config.num_train_steps:
                display.say(
                    f"nothing is left to do: num_train_steps is "
                    f"{config.num_train_steps}"
                )
            session = Session(
                run, batches, evaluator, checkpoints, writer, display, stop, trace
            )
            return _loop(session, state)


def _begin(run: Run) -> TrainState:
    """Returns the state of step 0, with what `init_from` or `embedding_from` has."""
    config, params = run.config, run.abstract.params
    if path := config.model.embedding_from:
        return run.init(embed_words(params, run.tokenizer, path, config.seed))
    if not config.init_from:
        return run.init()
    workdir = Path(config.init_from)
    source = workdir_lib.load_config(workdir)
    model = build_task(source.task, run.tokenizer).build_model(source.model)
    found, step = workdir_lib.load_params(workdir, source, model, run.mesh, config.mesh)
    where = f"{workdir} at step {step}"
    return run.init(warm_start(params, found, where))


@dataclass(frozen=True)
class Session:
    """What the loop reads from and writes to."""

    run: Run
    batches: Pipeline
    evaluator: Evaluator
    checkpoints: Checkpoints
    writer: report.Writer
    display: report.Display
    stop: Stop
    trace: perf.Trace


def _loop(session: Session, state: TrainState) -> dict[str, Any]:
    run, config = session.run, session.run.config
    batches, checkpoints = session.batches, session.checkpoints
    writer, display = session.writer, session.display
    first_step = step = int(state.step)
    results = {}
    if first_step:
        results = distributed.from_first(lambda: checkpoints.metrics(first_step))
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
            paces, slow = distributed.pace(window.own_seconds, window.step_seconds)
            writer.write(window.step, values | paces)
            display.show(window.step, values, slow)

    while True:
        distributed.mark(step)
        is_last = step >= config.num_train_steps
        stopped = session.stop.reached(step)
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
            results = _evaluate(session.evaluator, state)
            if session.evaluator.nothing:
                display.say(session.evaluator.nothing)
            writer.write(step, results)
            display.say(report.summary(step, results))
        if saves and step > first_step:
            position = {"row": step * config.batch_size, "data": batches.fingerprint}
            checkpoints.save(step, state, position, results if evaluates else {})
        if evaluates or (is_evaluated and step == first_step):
            ends |= _is_stale(session, step)
        window.exclude(time.perf_counter() - pause)
        if ends:
            break
        session.trace.at(step, state)
        waited = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - waited
        window.data_wait += waited
        batch_on_mesh = put(run.mesh, batch)
        with window.on_device():
            state, metrics = run.train_step(state, batch_on_mesh)
        step, results = step + 1, {}
        if pending is not None:
            read(*pending)
        shape = batch["inputs"].shape
        if shape not in costs:
            costs[shape] = _cost(run, batch)
        pending = (metrics, *costs[shape])
    session.trace.stop(state)
    checkpoints.wait()
    signal = {"signal": session.stop.signal} if stopped else {}
    return {"step": step, **results, **signal}


def _is_stale(session: Session, step: int) -> bool:
    """Returns whether evaluations have long not been better than the best."""
    config = session.run.config
    if not config.eval.patience:
        return False
    session.checkpoints.wait()
    best = distributed.from_first(session.checkpoints.best_step)
    is_stale = step - best >= config.eval.patience * config.eval_every_steps
    if is_stale:
        name = config.checkpoint.best_metric
        session.display.say(f"stopped early: the best {name} is that of step {best}")
    return is_stale


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def build_batches(run: Run, start_row: int = 0) -> Pipeline:
    """Returns the batches of training, from a row on."""
    config, data = run.config, run.config.data
    return build_pipeline(
        run.task,
        run.tokenizer,
        data,
        split=data.train_split,
        batch_size=config.batch_size,
        seed=config.seed,
        train=True,
        start_row=start_row,
        host=host_rows(run.mesh, config.batch_size),
    )


def build_evaluator(run: Run) -> Evaluator:
    """Returns the evaluator of the split that is evaluated while training."""
    config = run.config
    return Evaluator(
        run.task,
        run.tokenizer,
        run.model,
        run.mesh,
        config.data,
        split=config.data.eval_split,
        batch_size=config.eval.batch_size or config.batch_size,
        max_batches=config.eval.max_batches,
        seed=config.seed,
    )


def _evaluate(evaluator: Evaluator, state: TrainState) -> dict[str, float]:
    values = evaluator(state.averaged_params())
    return {f"eval/{evaluator.split}/{name}": x for name, x in values.items()}


def _cost(run: Run, batch: Mapping[str, Any]) -> tuple[int, float]:
    """Returns the tokens of a batch, over all hosts, and the FLOPs of a step on it."""
    shapes = {k: (run.config.batch_size, *v.shape[1:]) for k, v in batch.items()}
    tokens = sum(
        shapes[name][0] * shapes[name][1]
        for name in ("inputs", "encoder_inputs")
        if name in shapes
    )
    return tokens, perf.step_flops(run.config.model, run.abstract.params, shapes)


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
        checkpoints.wait()
        raise UserError(
            f"stopped at step {step}: {in_row} updates in a row were skipped because "
            f"the loss was not finite or spiked; {checkpoints.kept()}; lower "
            "optim.learning_rate, raise warmup_steps, or set optim.grad_clip_norm, "
            "and train into another --workdir"
        )
