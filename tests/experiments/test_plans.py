"""The plans that are committed: they are of the configs that are shipped, and fit."""

import json
import math

import pytest

from experiments.benchmarks import versus_maxtext as maxtext
from experiments.tpu import plans
from lm import config as config_lib
from lm.sharding import MESH_AXES
from lm.train.config import Config
from lm.types import UserError
from tools.plan.chips import Slice

COMMITTED = json.loads((plans.HERE / "plans.json").read_text())


def load(name, overrides):
    """Returns a run's config, from `KEY=VALUE` overrides."""
    flags = [f"--config.{override}" for override in overrides]
    return Config.of(config_lib.load(f"configs/{name}.py", flags))


def mesh_of(config, devices):
    """Returns the sizes of the mesh's axes on so many devices."""
    sizes = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
    fixed = math.prod(n for n in sizes.values() if n != -1)
    return {axis: devices // fixed if n == -1 else n for axis, n in sizes.items()}


@pytest.mark.parametrize("row", plans.ROWS, ids=plans.name_of)
def test_rows_divide_over_their_slices(row):
    name, topology, slices, overrides = row
    config = load(name, overrides)
    devices = Slice.of(topology).size * slices
    mesh = mesh_of(config, devices)
    assert math.prod(mesh.values()) == devices
    assert mesh["data"] % slices == 0
    shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    assert config.batch_size // config.grad_accum_steps % shards == 0
    model = config.model
    assert model.emb_dim % mesh["fsdp"] == 0
    assert model.kv_heads % mesh["tensor"] == 0 and model.mlp_size % mesh["tensor"] == 0


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_plans_fit(name):
    row = next(row for row in plans.ROWS if plans.name_of(row) == name)
    plan = COMMITTED[name]
    for override in row[3]:
        assert f"--config.{override}" in plan["command"]
    steps = [plan[step] for step in ("train", "decode") if step in plan]
    assert plan["fits"] and all(step["free"] >= 0.05 for step in steps)


def test_the_page_is_made_of_the_plans():
    page = (plans.HERE / "plans.md").read_text()
    assert page == plans.table(COMMITTED)
    assert all(plan["command"] in page for plan in COMMITTED.values())


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(UserError, match="--only=none is part of no row's name"):
        plans.main(plans.parser.parse_args(["--only=none"]))


def test_a_row_that_fails_ends_no_other(tmp_path, monkeypatch):
    def plan(row):
        if row[0] == "gpt2_124m":
            raise UserError("gpt2_124m: the compiler's own error")
        return COMMITTED["gpt2_124m v5e:2x2"]

    monkeypatch.setattr(plans, "HERE", tmp_path)
    monkeypatch.setattr(plans, "plan", plan)
    with pytest.raises(UserError, match="gpt2_124m: the compiler's own error"):
        plans.main(plans.parser.parse_args(["--only=v5e:2x2"]))
    assert list(json.loads((tmp_path / "plans.json").read_text())) == [
        "bert_base v5e:2x2"
    ]


@pytest.mark.parametrize("name", maxtext.CASES)
def test_maxtext_gets_the_shape_that_we_have(name):
    case = maxtext.CASES[name]
    path, *overrides = (word.removeprefix("--config") for word in case.ours)
    overrides = [word.removeprefix(".") for word in overrides]
    config = load(path.removeprefix("=configs/").removesuffix(".py"), overrides)
    theirs = dict(word.split("=", 1) for word in (*maxtext.SHARED, *case.theirs))
    chips = Slice.of(case.topology).size
    assert theirs["compile_topology"] == case.topology.split(":")[0] + f"-{chips}"
    rows = int(theirs["per_device_batch_size"]) * chips
    assert config.batch_size == rows and config.grad_accum_steps == 1
    assert int(theirs["max_target_length"]) == config.task.length
    assert theirs["remat_policy"] == config.model.remat
    assert mesh_of(config, chips)["fsdp"] == chips
    if "base_emb_dim" in theirs:  # the other has MaxText's own shape of Llama 3 8B
        model = config.model
        assert int(theirs["base_emb_dim"]) == model.emb_dim
        assert int(theirs["base_mlp_dim"]) == model.mlp_size
        assert int(theirs["base_num_decoder_layers"]) == model.num_layers
        assert int(theirs["base_num_query_heads"]) == model.num_heads
        assert int(theirs["head_dim"]) == model.head_size
        assert int(theirs["vocab_size"]) == model.vocab_size
    else:
        assert theirs["model_name"] == "llama3-8b"


def test_both_sides_are_set_side_by_side(monkeypatch, tmp_path, capsys):
    moved = {"all-gather": {"calls": 2.0, "bytes": 4e9, "wire": 3e9}}
    ours = {"arguments": 1e9, "temporary": 2e9, "cycles": 3e9, "compile_seconds": 1.0}
    ours |= {"collectives": moved, "kernels": {"splash": 2.0}}
    theirs = ours | {"temporary": 4e9, "kernels": {}}
    monkeypatch.setattr(maxtext, "compile_ours", lambda case: dict(ours))
    monkeypatch.setattr(maxtext, "compile_theirs", lambda *_: dict(theirs))
    python = tmp_path / "python"
    python.touch()
    flags = ["--only=1.3B", f"--maxtext-python={python}"]
    (row,) = maxtext.main(maxtext.parser.parse_args(flags))["rows"]
    assert row["ratio"]["temporary"] == 0.5 and row["ratio"]["cycles"] == 1.0
    printed = capsys.readouterr().out
    assert "splash x 2" in printed and "4.00 in 2" in printed
    with pytest.raises(UserError, match="run make .venv-maxtext/.installed"):
        maxtext.main(maxtext.parser.parse_args(["--maxtext-python=nowhere"]))
