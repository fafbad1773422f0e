"""Laws of pipelines, in training: stages on eight devices are layers on one."""

import contextlib
import dataclasses
import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import metrics as metrics_lib
from lm import sharding
from lm.sharding import MeshConfig
from lm.text import tokenizers
from lm.train.checkpoint import Checkpoints
from lm.train.evaluation import put
from lm.train.loop import build, build_batches
from lm.train.optim import OptimConfig
from lm.types import UserError

# With packed rows and dropout. What differs by rounding would differ more by Adam.
SGD = OptimConfig(name="sgd", learning_rate=0.3)

ONE = MeshConfig(data=1)


@pytest.fixture
def make_pipeline(make_config):
    """Makes a config of 4 layers in 4 microbatches."""

    def make(kind="gpt", mesh=ONE, model=(), **changes):
        config = make_config(kind, mesh=mesh, **{"optim": SGD} | changes)
        fields = {"num_layers": 4, "pipeline_microbatches": 4} | dict(model)
        return dataclasses.replace(
            config, model=dataclasses.replace(config.model, **fields)
        )

    return make


@functools.cache
def compiled(config):
    """Returns the run of a config, its batches and its compiled step."""
    mesh = config.mesh
    number = mesh.pipeline * mesh.data * mesh.fsdp * mesh.tensor
    tokenizer = tokenizers.load(Path(config.data.tokenizer))
    run = build(config, tokenizer, jax.devices()[:number])
    batches = build_batches(run)
    with sharding.use(run.mesh, mesh):
        batch = put(run.mesh, batches.batch(0))
        step = run.jitted_step.lower(run.abstract, batch, run.numbers).compile()
    return run, batches, step


def losses(config, steps=3, state=None, first=0):
    """Returns the losses of some steps, and the state after them."""
    run, batches, step = compiled(config)
    found = []
    with sharding.use(run.mesh, config.mesh):
        state = run.init() if state is None else state
        for number in range(first, first + steps):
            batch = put(run.mesh, batches.batch(number))
            state, metrics = step(state, batch, run.numbers)
            found.append(metrics_lib.compute(jax.device_get(metrics))["loss"])
    return found, state


WITH_DATA = MeshConfig(pipeline=4, data=2)
# Embedding and head are split over the stages too.
RULES = tuple(
    "vocab=tensor+pipeline" if rule == "vocab=tensor" else rule
    for rule in MeshConfig().rules
)
WITH_FSDP_AND_TENSOR = MeshConfig(pipeline=2, data=1, fsdp=2, tensor=2, rules=RULES)


@pytest.mark.parametrize("mesh", [WITH_DATA, WITH_FSDP_AND_TENSOR])
def test_stages_are_one_device(make_pipeline, mesh):
    alone, _ = losses(make_pipeline())
    many, state = losses(make_pipeline(mesh=mesh))
    np.testing.assert_allclose(alone, many, rtol=1e-5)
    kernel = state.params["decoder"]["layers"]["mlp"]["wi"]["kernel"]
    parts = mesh.pipeline * mesh.fsdp * mesh.tensor
    assert kernel.addressable_shards[0].data.size * parts == kernel.size
    assert kernel.addressable_shards[0].data.shape[0] * mesh.pipeline == 4


def collectives(text, kind):
    """Returns the shapes of what collectives of a kind make, and their metadata."""
    found = re.findall(rf"= ([^=]*?) {kind}(?:-start)?\((.*)", text)
    return [
        (tuple(map(int, shape.split(","))), rest)
        for shapes, rest in found
        for shape in re.findall(r"\w\[([\d,]+)\]", shapes)
    ]


def test_only_activations_go_from_stage_to_stage(make_pipeline):
    """Not the stacked parameters, of which each stage has what it needs."""
    text = compiled(make_pipeline(mesh=WITH_DATA))[2].as_text()
    moved = collectives(text, "collective-permute")
    # Of a row: states, and backwards their gradients; positions and segments.
    assert sorted(shape for shape, _ in moved if len(shape) == 4) == 2 * [
        (1, 1, 32, 16)
    ]
    assert {shape for shape, _ in moved if len(shape) != 4} == {(1, 1, 32)}
    for kind in ("all-gather", "all-to-all", "reduce-scatter"):
        assert not collectives(text, kind)


def test_a_stage_gathers_a_layer_of_its_own(make_pipeline):
    text = compiled(make_pipeline(mesh=WITH_FSDP_AND_TENSOR))[2].as_text()
    gathered = collectives(text, "all-gather")
    kernels = [shape for shape, name in gathered if "vmap()/while" in name]
    # Of one stage, and of one layer.
    assert len(kernels) >= 6 and {shape[:2] for shape in kernels} == {(1, 1)}


def test_a_checkpoint_is_of_any_number_of_stages(make_pipeline, tmp_path):
    whole, _ = losses(make_pipeline())
    written = make_pipeline(mesh=WITH_FSDP_AND_TENSOR)
    _, state = losses(written, steps=2)
    with contextlib.closing(Checkpoints(tmp_path, written.checkpoint)) as checkpoints:
        checkpoints.save(2, state, {}, {})
        checkpoints.wait()
    read = make_pipeline()
    with contextlib.closing(Checkpoints(tmp_path, read.checkpoint)) as checkpoints:
        restored = checkpoints.restore(compiled(read)[0].abstract)
    assert restored is not None
    resumed, _ = losses(read, 1, restored[0], 2)
    np.testing.assert_allclose(resumed, whole[2:], rtol=1e-5)


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"model": {"pipeline_microbatches": 0}},
            "mesh.pipeline=2 works on microbatches, .* is 0; set it to 2 or 4$",
        ),
        (
            {"model": {"pipeline_microbatches": 3}},
            "the 4 rows .* model.pipeline_microbatches=3; set it to 2 or 4$",
        ),
        (
            {"grad_accum_steps": 4},
            "the 1 rows .* model.pipeline_microbatches=4; raise batch_size$",
        ),
        ({"model": {"num_layers": 3}}, "axis of 3 .* set mesh.pipeline to 1 or 3$"),
        ({"kind": "gated_cnn", "model": None}, "'gated_cnn' has no pipeline"),
    ],
)
def test_what_does_not_fit_is_named(make_pipeline, make_config, changes, message):
    mesh = MeshConfig(pipeline=2, data=2)
    make = make_pipeline
    if changes.get("model", ()) is None:
        changes = {k: v for k, v in changes.items() if k != "model"}
        make = make_config
    config = make(**changes, mesh=mesh)
    with pytest.raises(UserError, match=message):
        build(config, tokenizers.load(Path(config.data.tokenizer)), jax.devices()[:4])
