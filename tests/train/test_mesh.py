"""Every mesh trains to the losses of one device, and no device holds what all share."""

import dataclasses
import functools
import json
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import metrics as metrics_lib
from lm import sharding, tree
from lm.models import gpt
from lm.sharding import MeshConfig
from lm.tasks import causal_lm
from lm.text import tokenizers
from lm.train.evaluation import put
from lm.train.loop import build, build_batches
from lm.train.optim import OptimConfig

# Long enough for attention in blocks. [B, T, D] is more than any device needs at once.
B, T, D = 8, 128, 192
DENSE = gpt.Config(
    **{"vocab_size": 280, "emb_dim": D, "num_layers": 2, "num_heads": 4},
    **{"num_kv_heads": 2, "mlp_dim": 192, "max_len": T, "position_encoding": "rotary"},
    **{"dropout_rate": 0.1, "attention_dropout_rate": 0.1, "remat": "full"},
)
MODELS = {
    "dense": DENSE,
    # Far too few places, so that which token finds one tells meshes apart.
    "experts": dataclasses.replace(
        DENSE,
        num_experts=4,
        expert_capacity_factor=0.5,
        expert_group_size=64,
        expert_z_weight=0.01,
    ),
}
MESHES = {
    "context": {"context": 8},
    "all": {"fsdp": 2, "context": 2, "tensor": 2},
    "expert": {"expert": 4, "tensor": 2},
    "expert and context": {"fsdp": 2, "expert": 2, "context": 2},
}
CASES = [("dense", name) for name in ("context", "all")]
CASES += [("experts", name) for name in ("expert", "expert and context")]


@functools.cache
def run_steps(config, devices=None):
    """Returns the run, the losses of some steps, and the state after them."""
    run = build(config, tokenizers.load(Path(config.data.tokenizer)), devices)
    batches = build_batches(run)
    losses = []
    with sharding.use(run.mesh, config.mesh):
        state = run.init()
        for number in range(3):
            batch = put(run.mesh, batches.batch(number))
            state, found = run.train_step(state, batch)
            metrics = metrics_lib.compute(jax.device_get(found))
            losses.append([metrics["loss"], metrics["optim/grad_norm"]])
            if config.model.num_experts:
                losses[-1] += [metrics["expert_balance"], metrics["expert_dropped"]]
        return run, losses, state


@pytest.fixture(scope="session")
def make_mesh_config(make_config):
    def make(kind, **mesh):
        return make_config(
            model=MODELS[kind],
            task=causal_lm.Config(length=T),
            optim=OptimConfig(name="sgd", learning_rate=0.3),
            batch_size=B,
            mesh=MeshConfig(**mesh),
        )

    return make


@pytest.mark.parametrize(("kind", "mesh"), CASES)
def test_every_mesh_has_the_losses_of_one_device(make_mesh_config, kind, mesh):
    """Of packed rows, with all dropout on and the experts' places scarce."""
    _, alone, _ = run_steps(make_mesh_config(kind), tuple(jax.devices()[:1]))
    _, found, _ = run_steps(make_mesh_config(kind, **MESHES[mesh]))
    np.testing.assert_allclose(found, alone, rtol=2e-5)
    if kind == "experts":
        assert all(0.05 < dropped < 0.95 for *_, dropped in found)


@pytest.mark.parametrize(("kind", "mesh"), CASES)
def test_no_device_holds_what_all_share(make_mesh_config, kind, mesh):
    """In the compiled step no array is as large as one of all tokens."""
    run, _, state = run_steps(make_mesh_config(kind, **MESHES[mesh]))
    sizes = array_sizes(run, state)
    assert {s: n for s, n in sizes.items() if n >= B * T * D} == {}


def test_gathered_kernels_are_not_kept_for_the_backward_pass(make_mesh_config):
    """Or each device would hold those of all layers, whole."""
    model = dataclasses.replace(DENSE, remat="none", num_layers=3, mlp_dim=320)
    config = dataclasses.replace(make_mesh_config("dense", fsdp=8), model=model)
    run = build(config, tokenizers.load(Path(config.data.tokenizer)))
    assert 3 * 320 * D not in array_sizes(run, run.abstract).values()


def array_sizes(run, state):
    """Returns how many numbers each array of the compiled step has, by its shape."""
    with sharding.use(run.mesh, run.config.mesh):
        batch = put(run.mesh, build_batches(run).batch(0))
        program = run.jitted_step.lower(state, batch, run.numbers).compile().as_text()
    shapes = set(re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", program))
    return {shape: math.prod(map(int, shape.split(","))) for shape in shapes}


def test_sixteen_devices_are_one(make_mesh_config, tmp_path):
    _, alone, _ = run_steps(make_mesh_config("experts"), tuple(jax.devices()[:1]))
    mesh = {"data": 1, "fsdp": 2, "expert": 2, "context": 2, "tensor": 2}
    file = tmp_path / "config"
    file.write_bytes(pickle.dumps(make_mesh_config("experts", **mesh)))
    flags = os.environ["XLA_FLAGS"].replace("count=8", "count=16")
    lines = (
        "import json, pickle, sys",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "from test_mesh import run_steps",
        f"config = pickle.load(open({str(file)!r}, 'rb'))",
        "print(json.dumps(run_steps(config)[1]))",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(found, alone, rtol=2e-5)


@pytest.mark.parametrize(
    ("kind", "mesh"), [("dense", {"fsdp": 8}), ("experts", {"fsdp": 4, "expert": 2})]
)
def test_each_device_has_its_part_of_the_state(make_mesh_config, kind, mesh):
    """All but what is named here; and so has what makes the state."""
    config = dataclasses.replace(make_mesh_config(kind, **mesh), optim=OptimConfig())
    run = build(config, tokenizers.load(Path(config.data.tokenizer)))
    parts = {}

    def collect(name, leaf):
        part = math.prod(leaf.sharding.shard_shape(leaf.shape))
        if leaf.size > 1:  # not a counter
            parts.setdefault(leaf.size // part, set()).add(name.split("/")[-2])

    tree.map_with_names(collect, run.abstract)
    assert parts[1] == {"attn_norm", "mlp_norm", "final_norm"}
    # The embedding, and of experts the router and attention, are not split over both.
    matrices = {"query", "key", "value", "out", "token"}
    if kind == "dense":
        assert parts[8] == matrices | {"wi", "wo"}
    else:
        assert (parts[4], parts[8]) == (matrices | {"router"}, {"wi", "wo"})


def test_no_device_makes_more_than_its_part_of_the_state(make_mesh_config):
    """So a model that fits only in parts is made in parts."""
    config = dataclasses.replace(make_mesh_config("dense", fsdp=8), optim=OptimConfig())
    run = build(config, tokenizers.load(Path(config.data.tokenizer)))
    total = sum(leaf.size * 4 for leaf in jax.tree.leaves(run.abstract))
    with sharding.use(run.mesh, config.mesh):
        memory = run.jitted_init.lower(np.int32(0), {}).compile().memory_analysis()
    used = memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert used < total / 4
