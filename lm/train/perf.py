"""How much arithmetic a step is, and how much the device could do."""

import functools
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import tree
from lm.nn.base import ModelConfig
from lm.types import Params, UserError

# Dense bfloat16 peak of one chip, in FLOP/s, from the vendors' data sheets. The
# first pattern found in `device_kind`, in lower case, counts.
PEAK_FLOPS = (
    (r"tpu v6", 918e12),
    (r"tpu (v5 ?lite|v5e)", 197e12),
    (r"tpu v5", 459e12),
    (r"tpu v4", 275e12),
    (r"tpu v3", 61.5e12),
    (r"tpu v2", 22.5e12),
    (r"b200", 2250e12),
    (r"h100|h200", 989e12),
    (r"a100", 312e12),
    (r"l40s", 362e12),
    (r"l4", 121e12),
    (r"t4", 65e12),
)


def step_flops(
    config: ModelConfig, params: Params, shapes: Mapping[str, tuple[int, ...]]
) -> float:
    """Returns the model's FLOPs of a training step on a batch of these shapes.

    As Chowdhery et al. (2022), https://arxiv.org/abs/2204.02311, appendix B: 6 for
    each weight of a matmul and each token it meets, and `mixing_flops` of the model,
    such as those of attention (none is saved by a causal mask, none counted for
    what is recomputed).
    """
    rows, length = shapes["inputs"]
    tokens = rows * length
    sources = int(np.prod(shapes.get("encoder_inputs", (0,))))
    predicted = int(np.prod(shapes.get("masked_positions", (tokens,))))

    num_experts = getattr(config, "num_experts", 0)
    share = getattr(config, "experts_per_token", 0) / max(num_experts, 1)
    has_head = "backbone" in params.get("base", params)

    def matmul(name: str, leaf: Any) -> float:
        name = re.sub("^(base/)?(backbone/)?", "", name)
        if name.startswith(("type", "embedder/position")):
            return 0.0
        if name == "embedder/token/embedding":
            is_output = config.tie_embeddings and not has_head
            return 6.0 * leaf.size * predicted * is_output
        if name.startswith("dense"):  # of a row's pooled states
            met = rows
        elif name.startswith(("head", "transform")):
            met = predicted
        elif sources and re.search(r"^encoder|cross_attention/(key|value)", name):
            met = sources
        else:
            met = tokens
        if "/experts/" in name:  # a token meets some of them
            met *= share
        if "/layer/" in name:  # of all layers
            met *= getattr(config, "num_layers", 1)
        return 6.0 * leaf.size * met if name.endswith("kernel") else 0.0

    total = sum(jax.tree.leaves(tree.map_with_names(matmul, params)))
    source_length = sources and shapes["encoder_inputs"][1]
    return total + rows * config.mixing_flops(length, source_length)


def device_peak(kind: str) -> float | None:
    """Returns the peak of a device by its `device_kind`, None if the table lacks it."""
    found = (peak for name, peak in PEAK_FLOPS if re.search(name, kind.lower()))
    return next(found, None)


@functools.cache
def peak_flops() -> float:
    """Returns the peak of all devices: from a table, else as measured.

    A device that the table lacks, such as a CPU, is credited with the rate of one
    large float32 matmul.
    """
    device = jax.local_devices()[0]
    if peak := device_peak(device.device_kind):
        return peak * jax.device_count()
    n = 1024
    best = float("inf")
    # One device's rate, whatever mesh is current.
    with jax.set_mesh(jax.make_mesh((1,), ("one",), devices=[device])):
        x = jnp.ones((n, n))
        multiply = jax.jit(jnp.matmul)
        for _ in range(8):
            start = time.perf_counter()
            multiply(x, x).block_until_ready()
            best = min(best, time.perf_counter() - start)
    # Devices of a CPU are threads of the same cores, so they are not summed.
    return 2.0 * n**3 / best * jax.process_count()


class Trace:
    """Traces some steps with JAX's profiler."""

    def __init__(self, steps: range, first_step: int, num_train_steps: int, to: Path):
        """Starts nothing yet.

        Args:
            steps: Which; empty for none.
            first_step: Of the run.
            num_train_steps: Where the run ends.
            to: The folder for the trace.

        Raises:
            UserError: If none of the steps will be taken.
        """
        if steps and not (steps.stop > first_step and steps.start < num_train_steps):
            raise UserError(
                f"--profile={steps.start}:{steps.stop} is outside of the steps from "
                f"{first_step} to {num_train_steps} that are left"
            )
        # Processes on one machine would write to the same file.
        mine = steps if jax.process_index() == 0 else range(0)
        self._steps = range(max(mine.start, first_step), mine.stop)
        self._to = to
        self._is_on = False

    def at(self, step: int, state: Any) -> None:
        """Starts or stops where that is due, before a step is dispatched."""
        if self._steps and step == self._steps.start:
            jax.profiler.start_trace(str(self._to))
            self._is_on = True
        elif step == self._steps.stop:
            self.stop(state)

    def stop(self, state: Any) -> None:
        """Waits for the state, so that the trace has all of its step, and stops."""
        if self._is_on:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
        self._is_on = False
