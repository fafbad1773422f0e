"""Checkpoints: written by Orbax in the background, checked when they are read.

A checkpoint is the state, the position in the data, the metrics of an evaluation and
a checksum of every leaf. It gets its name when it is complete. One that is half
written or damaged is named, set aside and passed over for the one before it; it is
never deleted.
"""

import contextlib
import functools
import gc
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from lm import cli, distributed, tree
from lm.config import check_choice
from lm.train.state import TrainState
from lm.types import Array, Params, PyTree, UserError


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are kept.

    Attributes:
        keep_last: The newest ones, at least 1.
        keep_best: The best ones by `best_metric`; a checkpoint is then written at
            every evaluation.
        best_metric: Of an evaluation, for example `loss` or `accuracy`.
        best_mode: Whether `min` or `max` is best.
    """

    keep_last: int = 2
    keep_best: int = 1
    best_metric: str = "loss"
    best_mode: str = "min"

    def __post_init__(self):
        check_choice("checkpoint.best_mode", self.best_mode, ("min", "max"))
        if self.keep_last < 1:
            raise UserError("checkpoint.keep_last must be at least 1")
        if self.keep_best < 0:
            raise UserError("checkpoint.keep_best must not be negative")


# What keeps a checkpoint from being read and is no fault of the checkpoint's.
NOT_DAMAGE = ("PermissionError", "PERMISSION_DENIED", "MemoryError", "ut of memory")

NO_SCORE = (-math.inf, 0.0)

PART_BYTES = 2**26


class Checkpoints:
    """The checkpoints of a workdir; each is a folder named after its step."""

    def __init__(self, folder: Path, config: CheckpointConfig, in_parts: bool = False):
        """Opens the folder, which need not exist yet.

        Args:
            folder: Where it is.
            config: What is kept.
            in_parts: Whether parameters are cut into files of `PART_BYTES`, so that the
                host's memory need not hold them all at once.
        """
        # They log tracebacks of what is caught, and said in one line, here.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._folder = folder.resolve()
        self._config = config
        self._in_parts = in_parts
        self._saved: int | None = None
        kept: list[policies.PreservationPolicy] = [policies.LatestN(config.keep_last)]
        if config.keep_best:
            kept.append(
                policies.BestN(
                    get_metric_fn=self._score,  # pyright: ignore
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_ocdbt=not in_parts),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=False,
                # Without it Orbax writes no metrics.
                best_fn=self._score,  # pyright: ignore
                preservation_policy=policies.AnyPreservationPolicy(kept),
            ),
        )

    def _score(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Returns what is highest for the best checkpoint, and the first of equals."""
        sign = 1 if self._config.best_mode == "max" else -1
        for name, value in metrics.items():
            if name.rpartition("/")[2] == self._config.best_metric and value == value:
                return sign * value, -metrics["step"]
        return NO_SCORE

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in rising order."""
        return sorted(self._manager.all_steps(read=True))

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the metrics that were saved with a checkpoint, often none."""
        return self._manager.metrics(step) or {}

    def latest_step(self) -> int | None:
        """Returns the newest step, or None; waits for one that is being written."""
        self.wait()
        return max(self.steps(), default=None)

    def kept(self) -> str:
        """Says which checkpoint there is, from any thread and without Orbax."""
        steps = [int(p.name) for p in self._folder.glob("[0-9]*") if p.name.isdigit()]
        if not steps:
            return "there is no checkpoint"
        return f"the checkpoint of step {max(steps)} is kept"

    def save(
        self,
        step: int,
        state: PyTree,
        position: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Writes a checkpoint; returns once the state may change.

        Args:
            step: Its name.
            state: A `TrainState`, or the part of one that there is. All is kept.
            position: JSON values from which the data go on.
            metrics: Of an evaluation at this step, or none.

        Raises:
            UserError: If there is no space for it, or the last one was not written.
        """
        self.wait()
        self._check_space(state)
        meta = {"position": dict(position), "checksums": checksums(state)}
        parts = None
        if self._in_parts:
            part = ocp.SaveArgs(chunk_byte_size=PART_BYTES)
            parts = jax.tree.map(lambda _: part, state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state, save_args=parts),
                meta=ocp.args.JsonSave(meta),
            ),
            metrics={"step": step, **metrics} if metrics else None,
            force=True,
        )
        self._saved = step

    def _check_space(self, state: PyTree) -> None:
        needed = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        )
        free = shutil.disk_usage(self._folder.parent).free
        if free < needed:
            raise UserError(
                f"no space for a checkpoint of {needed / 1e6:,.2f} MB in "
                f"{self._folder}, where {free / 1e6:,.2f} MB are free; free some, and "
                "the same command goes on"
            )

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the newest sound checkpoint, each leaf as `abstract` places it.

        The devices need not be those, nor as many as those, that wrote it.

        Returns:
            The state and the position, or None if there is no checkpoint.

        Raises:
            UserError: If there are checkpoints and none is sound.
        """
        if jax.process_index() == 0:
            for path in sorted(self._folder.glob("[0-9]*.orbax-checkpoint-tmp*")):
                self._set_aside(path, "it is half written")
        found = distributed.from_first(self.steps)
        for step in reversed(found):
            try:
                state, meta = self._read(step, abstract)
                return state, meta["position"]
            except _DamagedError as error:
                path = self._folder / str(step)
                if error.is_here and distributed.is_several():
                    # The others may be reading on, and wait for this host.
                    with contextlib.suppress(FileNotFoundError):
                        self._set_aside(path, str(error))
                    raise UserError(
                        f"checkpoint {path} is damaged: {error}; it is set aside, and "
                        "the same commands go on from the one before"
                    ) from error
                distributed.together()
                if jax.process_index() == 0:
                    self._set_aside(path, str(error))
                distributed.together()
                self._manager.reload()
        if found or any(self._folder.glob("damaged-*[0-9]")):
            raise UserError(
                f"none of the checkpoints in {self._folder} is sound; bring one back "
                "from a copy, or choose another --workdir"
            )
        return None

    def restore_params(
        self, abstract: Params, step: int | str, name: str
    ) -> tuple[Params, int]:
        """Restores parameters alone, and changes nothing on disk.

        Args:
            abstract: Their shapes and where they go.
            step: A step's number, `latest` or `best`.
            name: The field of the state that they are, `params` or `ema_params`.

        Returns:
            The parameters and their step.

        Raises:
            UserError: If there is no such checkpoint, or it is damaged. For `latest`,
                a damaged one is passed over for the one before it.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self._folder}; train it with lm.train")
        chosen = steps[::-1] if step == "latest" else [self._find(step, steps)]
        trouble = ""
        for number in chosen:
            try:
                state, _ = self._read(number, {name: abstract}, partial=True)
                return state[name], number
            except _DamagedError as error:
                trouble = f"checkpoint {self._folder / str(number)} is damaged: {error}"
                if error.is_here and distributed.is_several():
                    break
                _say(trouble)
        raise UserError(f"{trouble}; choose another --step")

    def best_step(self) -> int:
        """Returns the step of the best checkpoint; the first of equals.

        Raises:
            UserError: If none has the metric.
        """
        self.wait()
        steps = self.steps()
        scores = {step: self._score(self.metrics(step)) for step in steps}
        if max(scores.values(), default=NO_SCORE) == NO_SCORE:
            raise UserError(
                f"no checkpoint in {self._folder} has the metric "
                f"{self._config.best_metric!r}, so none is best; use --step=latest"
            )
        return max(steps, key=lambda step: scores[step])

    def _find(self, step: int | str, steps: Sequence[int]) -> int:
        if step == "best":
            return self.best_step()
        if not str(step).isdigit() or int(step) not in steps:
            raise UserError(
                f"no checkpoint of step {step!r} in {self._folder}; there are "
                f"{', '.join(map(str, steps))}, latest and best"
            )
        return int(step)

    def _read(
        self, step: int, abstract: PyTree, partial: bool = False
    ) -> tuple[PyTree, dict[str, Any]]:
        """Reads and checks a checkpoint, or the part of its state in `abstract`."""
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        parts = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                abstract, restore_args=restore_args, partial_restore=partial
            ),
            meta=ocp.args.JsonRestore(),
        )
        self._check_sizes(step)
        self._check_shapes(step, abstract)
        read, trouble = _attempt(lambda: self._manager.restore(step, args=parts))
        if read is None and any(word in trouble for word in NOT_DAMAGE):
            raise UserError(f"cannot read {self._folder / str(step)}: {trouble}")
        if read is None:
            raise _DamagedError(trouble, is_here=True)
        expected = read.meta.get("checksums", {})
        for name, checksum in checksums(read.state).items():
            if checksum != expected.get(name):
                raise _DamagedError(f"{name} has another checksum")
        return read.state, read.meta

    def _set_aside(self, path: Path, why: str) -> None:
        """Renames what cannot be used, so that its step can be written again."""
        kept = path.with_name(f"damaged-{path.name}")
        number = 1
        while kept.exists():
            number += 1
            kept = path.with_name(f"damaged-{path.name}-{number}")
        _say(f"checkpoint {path} is passed over: {why}; kept as {kept.name}")
        path.rename(kept)

    def _check_sizes(self, step: int) -> None:
        """Raises if a file is shorter than written, which TensorStore says at length.

        A run killed just after a checkpoint leaves it without `files.json`.
        """
        path = self._folder / str(step) / "files.json"
        try:
            sizes = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return  # the checksums tell as well, if less clearly
        for name, size in sizes.items():
            file = path.parent / name
            if not file.exists() or file.stat().st_size != size:
                raise _DamagedError(f"{name} is missing or not as long as written")

    def _check_shapes(self, step: int, abstract: PyTree) -> None:
        """Raises a UserError if a checkpoint is of another model: that is no damage."""
        saved, _ = _attempt(lambda: self._manager.item_metadata(step)["state"].tree)
        if saved is None:
            return
        shapes = _shapes(saved)
        for name, shape in _shapes(abstract).items():
            if shapes.get(name) != shape:
                raise UserError(
                    f"the checkpoint {self._folder / str(step)} is of another model: "
                    f"{name} is {shapes.get(name, 'missing')} there and {shape} here; "
                    "bring back its config.json, or choose another --workdir"
                )

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            UserError: If the last checkpoint could not be written.
        """
        step, self._saved = self._saved, None
        _, trouble = _attempt(self._manager.wait_until_finished)
        if trouble:
            cure = "free some space" if "No space left" in trouble else "mend that"
            raise UserError(
                f"cannot write the checkpoint of step {step} to {self._folder}; "
                f"{cure}, and the same command goes on from the one before ({trouble})"
            )
        if step is None or jax.process_index() != 0:
            return
        folder = self._folder / str(step)
        sizes = {
            str(path.relative_to(folder)): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        temporary = folder / "files.tmp"
        temporary.write_text(json.dumps(sizes))
        temporary.replace(folder / "files.json")

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self.wait()
        self._manager.close()


def _attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """Calls Orbax; returns the result and "", or None and what it raised as a line.

    TensorStore leaves coroutines behind, whose end Python prints as tracebacks: they
    are ended here, unheard.
    """
    try:
        return call(), ""
    except Exception as error:
        trouble = f"{type(error).__name__}: {' '.join(str(error).split())}"
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.collect()
    sys.unraisablehook = hook
    space = "No space left on device"
    return None, space if space in trouble else trouble[:160]


class _DamagedError(Exception):
    """A checkpoint is not as it was written.

    Attributes:
        is_here: Whether this host may be the only one that knows.
    """

    def __init__(self, why: str, is_here: bool = False):
        super().__init__(why)
        self.is_here = is_here


def checksums(state: PyTree) -> dict[str, int]:
    """Returns a sum, modulo 2³², of the bits of each leaf, by the leaf's name.

    It does not depend on how a leaf is laid over devices.
    """

    # One after the other, and row by row where rows are whole: a CPU makes a copy of
    # what it sums.
    sums = jax.tree.map(lambda leaf: int(_sum_of_bits(leaf, _has_rows(leaf))), state)
    return dict(zip(jax.tree.leaves(tree.names(sums)), jax.tree.leaves(sums)))


def _has_rows(x: Array) -> bool:
    return x.ndim > 2 and x.sharding.shard_shape(x.shape)[0] == x.shape[0]


@functools.partial(jax.jit, static_argnums=1)
def _sum_of_bits(x: Array, by_row: bool) -> Array:
    kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")

    def add(x: Array, weights: Array, first_axis: int) -> Array:
        bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
        for axis in range(x.ndim):
            place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            weights = weights + place * _weight(axis + first_axis)
        return (bits * weights).sum(dtype=jnp.uint32)

    one = jnp.uint32(1)
    if not by_row:
        return add(x, one, 0)
    weights = one + jnp.arange(x.shape[0], dtype=jnp.uint32) * _weight(0)
    rows = jax.lax.map(lambda pair: add(pair[0], pair[1], 1), (x, weights))
    return rows.sum(dtype=jnp.uint32)


def _weight(axis: int) -> Array:
    """Even, and another for each axis: swapped values change a sum, as does a bit."""
    return jnp.uint32(2 * (0x9E3779B1 * (axis + 1) % 2**30))


def _shapes(state: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each leaf by its name."""
    found = {}
    tree.map_with_names(
        lambda name, leaf: found.setdefault(name, tuple(leaf.shape)), state
    )
    return found


def _say(line: str) -> None:
    if jax.process_index() == 0:
        cli.say(line)
