"""What can be rented, what to do where something does not fit, and a real plan."""

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm import sharding
from lm.config import load
from lm.tasks import build_task
from lm.train.config import Config
from lm.train.workdir import as_json
from lm.types import UserError
from tools.plan import advice, measure, search
from tools.plan.blank import BlankTokenizer, batch_shapes
from tools.plan.chips import CHIPS, GIB, Slice
from tools.plan.hlo import Cost, Kernel
from tools.plan.measure import NoRoomError, Target

HAS_LIBTPU = (platform.system(), platform.machine()) == ("Linux", "x86_64")


def config_of(name="gpt_tiny", *overrides):
    return Config.of(load(f"configs/{name}.py", overrides))


# --- Slices -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, chips",
    [("v5e:1x1", 1), ("v5e:16x16", 256), ("v6e:8x8", 64), ("v5p:4x4x4", 64)]
    + [("v5p:8x8x8", 512), ("v5p:16x16x16", 4096), ("v5p:16x16x24", 6144)]
    + [("v4:2x2x1", 4), ("v5p:4x4x8", 128)],
)
def test_slices_for_rent_have_their_chips(name, chips):
    assert Slice.of(name).size == chips
    assert Slice.of(name).name == name


@pytest.mark.parametrize(
    "name, said",
    [
        ("v5e:32x32", "the nearest is v5e:16x16"),
        ("v5e:3x3", "the nearest is v5e:2x4"),
        ("v5e:4x2", "the nearest is v5e:2x4"),
        ("v5p:28x28x28", "the nearest is v5p:16x16x24"),
        ("v5p:4x4", "the nearest is v5p:2x2x4"),
        ("v5litepod:4x4", "no TPU 'v5litepod' in the table"),
        ("v5e-16", "is not a chip and a shape, such as v5e:4x4"),
    ],
)
def test_a_slice_that_nobody_rents_is_one_line_with_the_nearest(name, said):
    with pytest.raises(UserError) as caught:
        Slice.of(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_next_larger_slice_has_more_chips():
    for chip in CHIPS.values():
        sizes = [math.prod(shape) for shape in chip.shapes()]
        assert sizes == sorted(sizes) and sizes[-1] == chip.largest
        for shape in chip.shapes():
            larger = chip.next_larger(shape)
            assert larger is None or math.prod(larger) > math.prod(shape)


# --- Batches ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gpt_tiny", "bert_tiny", "t5_tiny", "squad", "wiki_rank", "word2vec_wiki"]
)
def test_a_batch_is_as_long_as_the_task_makes_it(name):
    config = config_of(name)
    task = build_task(config.task, BlankTokenizer(config.model.vocab_size))
    mesh = sharding.build_mesh(sharding.MeshConfig(data=2), jax.devices()[:2])
    batch = batch_shapes(config, task, mesh)
    assert all(leaf.shape[0] == config.batch_size for leaf in batch.values())
    assert batch["example_mask"].dtype == np.float32
    longest = max(leaf.shape[1] for leaf in batch.values() if len(leaf.shape) > 1)
    assert longest >= config.task.length or name == "wiki_rank"


# --- Memory -------------------------------------------------------------------------

MESSAGE = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
    "memory required for HLO temporaries (81.43G) exceeds available HBM (15.75G). HLO "
    "module: jit_step."
)


def test_what_the_compiler_says_of_memory_is_read():
    error = measure.no_room(MESSAGE, CHIPS["v5e"])
    assert error and (error.needed, error.limit) == (81.43 * GIB, 15.75 * GIB)
    assert measure.no_room("INTERNAL: RET_CHECK failure", CHIPS["v5e"]) is None


@pytest.mark.parametrize(
    "overrides, needed, state, said",
    [
        ((), 81.4, 1.0, "set model.remat=full; or set grad_accum_steps=128"),
        (("--config.model.remat=full",), 81.4, 1.0, "set grad_accum_steps=128"),
        (("--config.mesh.fsdp=4",), 20.0, 14.0, "set mesh.fsdp=8; or take"),
        (
            ("--config.mesh.fsdp=16",),
            *(20.0, 14.0),
            "take --topology=v5e:4x8, mesh.fsdp=-1 and mesh.data=1",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_with_what_should(overrides, needed, state, said):
    config = config_of("gpt_1_3b", "--config.mesh.fsdp=1", *overrides)
    config = dataclasses.replace(config, grad_accum_steps=16)
    error = NoRoomError(needed * GIB, 15.75 * GIB)
    target = Target(Slice.of("v5e:4x4"))
    line = advice.no_room("gpt_1_3b", config, target, error, state * GIB, 2)
    assert said in line and "\n" not in line


def test_a_program_that_jaxlib_is_too_old_for_is_one_line_with_the_cure():
    class Compiled:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\nat 0x0")

    with pytest.raises(UserError, match=r"v5p.*0\.12 on.*\(INTERNAL: RET_CH.*\)$"):
        measure.program_text(Compiled(), CHIPS["v5p"])


# --- Kernels ------------------------------------------------------------------------


def test_a_kernel_counts_the_matmuls_that_no_mask_saves():
    class Run:
        config = config_of()
        model = type("Model", (), {"architecture": "decoder"})

    shape = measure.hlo.Shape("bf16", (2, 4, 256, 128))
    cost = Cost(kernels={"splash_mha_dkv_no_residuals": Kernel(3, (shape,) * 3)})
    scores = 2 * 4 * 256 * 256 * 128
    assert measure._kernel_flops(Run, cost) == 3 * 4 * 2 * scores / 2
    Run.model.architecture = "encoder"
    assert measure._kernel_flops(Run, cost) == 3 * 4 * 2 * scores
    Run.model = type("Head", (), {"backbone": Run.model})
    assert measure._kernel_flops(Run, cost) == 3 * 4 * 2 * scores


def test_labels_that_training_would_find_need_no_texts(monkeypatch):
    monkeypatch.setattr(measure, "devices", lambda *_: tuple(jax.devices()[:4]))
    run = measure.build_run(config_of("bbc"), Target(Slice.of("v5e:2x2")))
    shapes = batch_shapes(run.config, run.task, run.mesh)
    assert shapes["label"].shape == (run.config.batch_size,)
    assert run.abstract.params["head"]["kernel"].shape[-1] == 2


def test_the_model_of_init_from_is_planned(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "devices", lambda *_: tuple(jax.devices()[:4]))
    target = Target(Slice.of("v5e:2x2"))
    config = config_of("gpt_tiny", f"--config.init_from={tmp_path}")
    with pytest.raises(UserError, match=str(tmp_path)):
        measure.take_source(config)
    other = config_of("gpt_tiny", "--config.model.num_layers=2")
    (tmp_path / "config.json").write_text(json.dumps(as_json(other)))
    run = measure.build_run(measure.take_source(config), target)
    assert run.config.model.num_layers == 2


@pytest.mark.parametrize(
    "override, said",
    [
        ("--config.model.attention_dropout_rate=0.1", "no dropout of attention"),
        ("--config.model.position_encoding=relative", "no relative positions"),
        ("--config.model.attention=xla", "model.attention is xla"),
        ("--config.task.prefix_lm=True", "no prefix"),
    ],
)
def test_why_attention_is_no_kernel_is_said(override, said):
    line = measure.attention(config_of("gpt_tiny", override), Cost())
    assert line.startswith("xla, because") and said in line


# --- Search -------------------------------------------------------------------------


def test_candidates_divide_and_may_fit():
    config, target = config_of("gpt_1_3b"), Target(Slice.of("v5e:4x4"))
    parameters = 1_300_000_000
    found = search.candidates(config, target, parameters)
    assert found and len(set(found)) == len(found)
    for one in found:
        flags = dict(
            flag.removeprefix("--config.").split("=") for flag in one.flags(target)
        )
        product = [int(flags[f"mesh.{axis}"]) for axis in ("data", "fsdp", "tensor")]
        assert math.prod(product) == 16
        assert config.model.num_heads % one.tensor == 0
        assert 16 * parameters / (one.fsdp * one.tensor) < target.chip.usable
    assert found[0].tensor == 1


def test_candidates_of_several_slices_split_data_over_them():
    config, target = config_of("gpt_1_3b"), Target(Slice.of("v5e:4x4"), 2)
    for one in search.candidates(config, target, 1_300_000_000):
        assert 32 // (one.fsdp * one.tensor) % 2 == 0


def trial(bound, fits=True):
    train = {
        "rows_per_device": 4.0,
        "memory": {"total": 3 * GIB},
        "limit": 15.75 * GIB,
        "mfu_bound": bound,
        "mfu_bound_in_turn": bound / 2,
        "collectives": {"all-gather": {"bytes": 5e9}},
    }
    plan = {"mesh": {"fsdp": 16}, "remat": "full", "train": train}
    flags = ["--config.mesh.fsdp=16"]
    return {"flags": flags, "plan": plan} if fits else {"flags": flags, "error": "<no>"}


def test_the_page_ranks_the_trials_and_says_what_did_not_fit(capsys):
    trials = sorted([trial(0.4), trial(0, False), trial(0.6)], key=search._rank)
    result = {
        "trials": trials,
        "topology": "v5e:4x4",
        "num_slices": 1,
        "candidates": 9,
        "output": "out",
    }
    rows = search.rows_of(result)
    assert [row[5] for row in rows] == ["60.0%", "40.0%", ""]
    page = search.render("gpt", result)
    assert "<svg" in page and "&lt;no&gt;" in page and "<no>" not in page
    search.show(result)
    out = capsys.readouterr().out
    assert "60.0%" in out and "the first: --config.mesh.fsdp=16" in out


# --- A real plan --------------------------------------------------------------------


def run(*words):
    """Runs Python without the settings of tests, which libtpu does not know."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def run_plan(*flags):
    return run("-m", "tools.plan", *flags)


@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is for Linux on x86-64")
def test_a_plan_of_a_real_step():
    done = run_plan(
        *("--config=configs/gpt_tiny.py", "--topology=v5e:2x2", "--json"),
        *("--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.model.remat=full"),
        *("--config.model.dropout_rate=0.1", "--config.model.dtype=bfloat16"),
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    train, decode = plan["train"], plan["decode"]
    assert plan["fits"] and plan["mesh"] == {"fsdp": 4}
    assert train["attention"] == "splash"
    layers = config_of().model.num_layers
    assert set(train["kernels"].values()) == {layers, 2 * layers}  # with remat
    # The state is a quarter on each device, but for vectors.
    whole = 4 * train["memory"]["parameters"]
    assert 2 * whole <= 4 * train["memory"]["optimizer"] <= 2.01 * whole
    # All that the model multiplies is there, and the forward pass again.
    compiled = train["compiled_flops"] + train["kernel_flops"]
    assert 1 <= compiled / train["model_flops"] <= 1.6
    assert train["collectives"] and train["endless_loops"] == 0
    assert 0 < train["mfu_bound_in_turn"] <= train["mfu_bound"] < 1
    assert decode["kernels"] == {} and decode["cycles"] > 0


SHARDED_MATMUL = """
import sys
from tools.plan import chips, topology
part = chips.Slice.of(sys.argv[1])
topology.prepare(part)
import jax
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.sharding.Mesh(topology.devices(part), "x")
rows = NamedSharding(mesh, PartitionSpec("x"))
matrix = jax.ShapeDtypeStruct((512, 512), "bfloat16", sharding=rows)
jax.jit(lambda x, w: x @ w).lower(matrix, matrix).compile()
"""


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is for Linux on x86-64")
def test_the_compiler_takes_the_flags_that_training_sets(name):
    done = run("-c", SHARDED_MATMUL, name)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu is for Linux on x86-64")
def test_a_model_that_cannot_fit_is_one_line_before_anything_is_compiled():
    done = run_plan(
        *("--config=configs/gpt_1_3b.py", "--topology=v5e:1x1"),
        "--config.model.num_layers=48",
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: gpt_1_3b does not fit v5e:1x1")
    assert "--topology=v5e:2x2" in done.stderr and done.stderr.count("\n") == 1
