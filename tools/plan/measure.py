"""Compiles a run's steps for a topology from shapes alone, and says what they take."""

import contextlib
import dataclasses
import os
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm import decoding, sharding
from lm.nn.transformer import TransformerConfig
from lm.train import begin, perf
from lm.train.config import Config
from lm.train.loop import Run, build
from lm.train.workdir import load_config
from lm.types import PyTree, UserError
from tools.plan import hlo
from tools.plan.blank import BlankTokenizer, batch_shapes
from tools.plan.chips import GIB, Chip, Slice
from tools.plan.topology import devices

# Matmuls of [T, S] scores that a Pallas kernel does, by what its name says. Splash
# makes the scores of a block again for each of its gradients.
_KERNEL_MATMULS = (("dkv", 4), ("dq", 3), ("fwd", 2))

_OUT = re.compile(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", re.DOTALL
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class NoRoomError(Exception):
    """A program needs more memory than a chip has.

    Attributes:
        needed: Bytes.
        limit: Bytes.
    """

    def __init__(self, needed: float, limit: float):
        """Takes both."""
        super().__init__(f"{needed / GIB:.2f} GiB of {limit / GIB:.2f} GiB")
        self.needed, self.limit = needed, limit


@dataclasses.dataclass(frozen=True)
class Target:
    """What is compiled for: slices of one kind."""

    part: Slice
    num_slices: int = 1

    @property
    def chip(self) -> Chip:
        """Of all slices."""
        return self.part.chip

    @property
    def size(self) -> int:
        """Chips of all slices."""
        return self.part.size * self.num_slices


def take_source(config: Config) -> Config:
    """Returns the config with the model of its `init_from`, if there is one.

    Raises:
        UserError: If that is no workdir, or has learned fewer positions than needed.
    """
    if not config.init_from:
        return config
    return begin.take_model(config, load_config(Path(config.init_from)))


def build_run(config: Config, target: Target) -> Run:
    """Builds the run that `lm.train` would train, for the target's devices.

    Raises:
        UserError: If the mesh does not fit the devices, the model or the batch.
    """
    tokenizer = BlankTokenizer(config.model.vocab_size)
    if getattr(config.task, "labels", None) == ():  # training finds them in its texts
        task = dataclasses.replace(config.task, labels=("0", "1"))
        config = dataclasses.replace(config, task=task)
    return build(config, tokenizer, devices(target.part, target.num_slices))


def train_step(run: Run, target: Target) -> dict[str, Any]:
    """Compiles the training step; returns what it takes on each device.

    Raises:
        NoRoomError: If it does not fit.
    """
    config, chip = run.config, target.chip
    batch = batch_shapes(config, run.task, run.mesh)
    state = state_bytes(run)
    if sum(state.values()) > chip.usable:
        raise NoRoomError(sum(state.values()), chip.usable)
    with sharding.use(run.mesh, config.mesh):
        arguments = (run.abstract, batch, run.numbers)
        found = _compile(run.jitted_step, arguments, chip)
    shapes = {name: leaf.shape for name, leaf in batch.items()}
    rows = batch["inputs"].shape[0] if "inputs" in batch else config.batch_size
    model_flops = perf.step_flops(config.model, run.abstract.params, shapes)
    cost = found.pop("cost")
    kernels = _kernel_flops(run, cost)
    seconds = _seconds(run, target, cost, kernels)
    ideal = model_flops / target.size / _peak(run)
    memory = state | found.pop("memory")
    return found | {
        "rows": rows,
        "rows_per_device": rows / sharding.batch_shards(run.mesh, config.mesh),
        "memory": memory,
        "limit": chip.usable,
        "free": 1 - memory["total"] / chip.usable,
        "model_flops": model_flops / target.size,
        "compiled_flops": cost.flops,
        "kernel_flops": kernels,
        "seconds": seconds,
        "mfu_bound": ideal / max(seconds.values()),
        "mfu_bound_in_turn": ideal / sum(seconds.values()),
        "attention": attention(config, cost),
        **hlo.as_dict(cost),
    }


def decode_step(run: Run, target: Target, rows: int, length: int) -> dict[str, Any]:
    """Compiles the writing of one more token of each row.

    Args:
        run: Of a decoder.
        target: What is compiled for.
        rows: Over all devices.
        length: Of the cache.

    Raises:
        NoRoomError: If it does not fit.
    """
    config, mesh = run.config, run.mesh
    options = decoding.Config(max_new_tokens=length // 2, temperature=0.0)

    def placed(leaf: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
        named = sharding.parse_rules(config.mesh)
        rule = dict(named)
        parts: list[Any] = [rule.get(axis) if axis else None for axis in axes]
        for i, (size, axis) in enumerate(zip(leaf.shape, parts)):
            if axis and size % int(np.prod([mesh.shape[a] for a in axis])):
                parts[i] = None
        where = NamedSharding(mesh, PartitionSpec(*parts))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    ids = jax.ShapeDtypeStruct((rows, length // 2), np.int32)
    keys = jax.eval_shape(
        decoding.row_keys,
        jax.ShapeDtypeStruct((), np.uint32),
        jax.ShapeDtypeStruct((rows, 1), np.uint32),
    )
    batch = {"inputs": ids, "segment_ids": ids}
    if run.model.architecture != "decoder":  # pyright: ignore
        encoder = {"encoder_inputs": ids, "encoder_segment_ids": ids}
        batch |= encoder
    state: PyTree = jax.eval_shape(
        lambda params, batch, keys: decoding.start(
            run.model, params, batch, keys, options, length
        ),
        run.abstract.params,
        batch,
        keys,
    )
    axes = (None, "batch", None, "act_kv_heads", None)
    cache = jax.tree.map(
        lambda leaf: placed(leaf, *axes[: leaf.ndim]), state.context.cache
    )
    context = dataclasses.replace(
        state.context,
        cache=cache,
        logits=placed(state.context.logits, "batch", None),
        length=placed(state.context.length, "batch"),
    )
    state = dataclasses.replace(
        state,
        context=context,
        keys=placed(state.keys, "batch"),
        left=placed(state.left, "batch"),
    )
    vocabulary = decoding.Vocabulary(
        placed(jax.ShapeDtypeStruct((config.model.vocab_size,), bool)),
        placed(jax.ShapeDtypeStruct((), np.int32)),
    )
    with sharding.use(mesh, config.mesh):
        arguments = (run.model, run.abstract.params, vocabulary, state, options, 1)
        found = _compile(decoding.advance, arguments, target.chip)
    cost, memory = found.pop("cost"), found.pop("memory")
    seconds = _seconds(run, target, cost, 0.0)
    return found | {
        "rows": rows,
        "length": length,
        "memory": memory | {"parameters": _bytes(run.abstract.params)},
        "limit": target.chip.usable,
        "free": 1 - memory["total"] / target.chip.usable,
        "seconds": seconds,
        "tokens_per_second_bound": rows / max(seconds.values()),
        **hlo.as_dict(cost),
    }


def state_bytes(run: Run) -> dict[str, float]:
    """Returns the bytes of a run's state on each device."""
    state = run.abstract
    parameters = _bytes(state.params)
    average = 0.0 if state.ema_params is None else _bytes(state.ema_params)
    return {"parameters": parameters, "optimizer": _bytes(state.opt_state) + average}


def _bytes(tree: PyTree) -> float:
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def _compile(function: Any, arguments: tuple, chip: Chip) -> dict[str, Any]:
    began = time.monotonic()
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        raise no_room(str(error), chip) or error from error
    memory = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes
    program = memory.generated_code_size_in_bytes
    arguments_size = memory.argument_size_in_bytes
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    text = program_text(compiled, chip)
    return {
        "memory": {
            "arguments": arguments_size,
            "temporary": temporary,
            "program": program,
            "total": arguments_size + output + temporary + program,
        },
        "cost": hlo.cost(text),
        "compile_seconds": time.monotonic() - began,
        "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def program_text(compiled: Any, chip: Chip) -> str:
    """Returns the compiled program as text.

    Raises:
        UserError: If jaxlib is too old for it, as 0.10.2 is for some of v5p.
    """
    try:
        with _silenced():  # it prints a stack trace beside what it raises
            return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"it compiles for {chip.name}, but jaxlib {jax.__version__} cannot read "
            f"what libtpu made; plan with jax from 0.12 on: make install "
            f"PYTHON=python3.12 VENV=.venv312 ({reason})"
        ) from error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps from standard error what native code prints there."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def no_room(message: str, chip: Chip) -> NoRoomError | None:
    """Returns what the compiler says of memory, None if it says something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    if found := _OUT.search(message):
        sizes = [float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3)]
        return NoRoomError(*sizes)
    return NoRoomError(float("nan"), chip.usable)


def _peak(run: Run) -> float:
    """Returns the peak of one chip."""
    peak = perf.device_peak(run.mesh.devices.flat[0].device_kind)
    assert peak is not None
    return peak


def _kernel_flops(run: Run, cost: hlo.Cost) -> float:
    """Returns the FLOPs of the attention kernels, those that no mask saves."""
    model, total = run.config.model, 0.0
    if not isinstance(model, TransformerConfig):
        return total
    backbone: Any = getattr(run.model, "backbone", run.model)
    is_causal = backbone.architecture != "encoder"
    share = 0.5 if is_causal else 1.0
    for name, kernel in cost.kernels.items():
        matmuls = next((n for key, n in _KERNEL_MATMULS if key in name), 0)
        heads = [
            s for s in kernel.shapes if len(s.dims) >= 3 and s.dtype in ("bf16", "f32")
        ]
        if not heads or not matmuls:
            continue
        *rows, length, size = heads[0].dims
        seen = min(length, model.window or length)
        scores = float(np.prod(rows)) * length * seen * size
        total += kernel.calls * 2.0 * matmuls * scores * share
    return total


def _seconds(
    run: Run, target: Target, cost: hlo.Cost, kernel_flops: float
) -> dict[str, float]:
    """Returns the least time of a step, of the core and of the network of a slice.

    They go on at once, so a step takes no less than the longer one.
    """
    wire = sum(moved.wire for moved in cost.collectives.values())
    return {
        "compute": cost.cycles / target.chip.clock + kernel_flops / _peak(run),
        "communication": wire / target.chip.ici,
    }


def attention(config: Config, cost: hlo.Cost) -> str:
    """Says what attention was compiled to, and why it is not a kernel."""
    if any("splash" in name for name in cost.kernels):
        return "splash"
    model = config.model
    if not isinstance(model, TransformerConfig):
        return "none"
    if model.attention not in ("auto", "splash"):
        return f"xla, because model.attention is {model.attention}"
    for is_so, reason in (
        (model.attention_dropout_rate > 0, "splash has no dropout of attention"),
        (model.position_encoding == "relative", "splash adds no relative positions"),
        (bool(model.global_every), "splash has no windows of some layers alone"),
        (getattr(config.task, "prefix_lm", False), "splash has no prefix"),
    ):
        if is_so:
            return f"xla, because {reason}"
    return "xla, because splash takes lengths that are multiples of 128 only"
