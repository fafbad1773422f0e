"""Checkpoints survive other meshes, damage and kills."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import build_model
from lm.sharding import MeshConfig, build_mesh
from lm.train.checkpoint import CheckpointConfig, Checkpoints, checksums
from lm.train.optim import Numbers, make_optimizer
from lm.train.state import abstract_state, init_state
from lm.types import UserError

LOSS = "eval/validation/loss"


@pytest.fixture
def make_state(make_config):
    """Makes a state, and its shapes, on some devices."""

    def make(mesh_config, number, name="adamw", seed=0):
        config = make_config()
        optim = dataclasses.replace(config.optim, name=name)
        model = build_model(config.model)
        mesh = build_mesh(mesh_config, jax.devices()[:number])
        abstract, optimizer = abstract_state(
            model,
            lambda params: make_optimizer(optim, Numbers.of(optim), params),
            mesh,
            mesh_config,
            has_ema=True,
        )
        return init_state(model, optimizer, abstract)(seed, {}), abstract

    return make


def small_state(value=1.0):
    return {"params": {"a": jnp.full((40, 50), float(value)), "b": jnp.arange(3)}}


def abstract_of(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    for step in (1, 2):
        checkpoints.save(step, small_state(step), {"row": step}, {})
    checkpoints.close()
    return tmp_path


def restore(folder):
    checkpoints = Checkpoints(folder, CheckpointConfig())
    try:
        return checkpoints.restore(abstract_of(small_state()))
    finally:
        checkpoints.close()


EIGHT = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize(
    "written, read",
    [((EIGHT, 8), (MeshConfig(), 1)), ((MeshConfig(), 1), (EIGHT, 8))],
    ids=["8 to 1", "1 to 8"],
)
def test_restores_on_other_devices(tmp_path, make_state, name, written, read):
    state, _ = make_state(*written, name)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(3, state, {"row": 24}, {})
    checkpoints.wait()
    other, abstract = make_state(*read, name, seed=1)
    restored, position = checkpoints.restore(abstract)
    checkpoints.close()
    assert position == {"row": 24}
    jax.tree.map(np.testing.assert_array_equal, state, restored)
    for leaf, like in zip(jax.tree.leaves(restored), jax.tree.leaves(other)):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_nothing_there_is_no_error(tmp_path):
    assert restore(tmp_path / "new") is None
    assert not (tmp_path / "new").exists()


def files_of(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def largest_file(folder):
    files = [folder / name for name in files_of(folder) if name.parts[0] == "state"]
    return max(files, key=lambda path: path.stat().st_size)


# TensorStore leaves coroutines behind when a file's bytes make no sense.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_damaged_file_is_noticed_or_harmless(folder, tmp_path_factory, capfd):
    """Whatever happens to a file, what is restored is what was saved."""
    passed_over = 0
    for number, name in enumerate(files_of(folder / "2")):
        for how in ("deleted", "truncated", "flipped"):
            copy = tmp_path_factory.mktemp("copy") / f"{number}-{how}"
            shutil.copytree(folder, copy)
            file = copy / "2" / name
            data = bytearray(file.read_bytes())
            if how == "deleted":
                file.unlink()
            elif how == "truncated":
                file.write_bytes(data[: len(data) // 2])
            else:
                data[len(data) // 2] ^= 0xFF
                file.write_bytes(data)
            state, position = restore(copy)
            step = position["row"]
            jax.tree.map(np.testing.assert_array_equal, state, small_state(step))
            said = capfd.readouterr().err
            if step == 1:
                passed_over += 1
                assert "2 is passed over" in said
                assert (copy / "damaged-2").exists()
    assert passed_over > 20


def test_a_half_written_checkpoint_is_named_and_kept(folder, capfd):
    (folder / "3.orbax-checkpoint-tmp").mkdir()
    (folder / "3.orbax-checkpoint-tmp" / "part").write_text("x")
    _, position = restore(folder)
    assert position == {"row": 2}
    assert "3.orbax-checkpoint-tmp is passed over: it is half" in capfd.readouterr().err
    assert (folder / "damaged-3.orbax-checkpoint-tmp" / "part").exists()


def test_a_step_set_aside_can_be_written_again_and_again(folder, capfd):
    for number in (1, 2):
        largest_file(folder / "2").unlink()
        checkpoints = Checkpoints(folder, CheckpointConfig())
        _, position = checkpoints.restore(abstract_of(small_state()))
        assert position == {"row": 1}
        checkpoints.save(2, small_state(2), {"row": 2}, {})
        checkpoints.close()
        assert len(list(folder.glob("damaged-2*"))) == number
    assert restore(folder)[1] == {"row": 2}


def test_no_sound_checkpoint_is_an_error_not_a_fresh_start(folder):
    for step in ("1", "2"):
        (folder / step / "meta" / "metadata").write_text("{")
    for _ in range(3):
        with pytest.raises(UserError, match="none of the checkpoints .* is sound"):
            restore(folder)


def test_a_run_killed_in_its_first_checkpoint_may_begin_anew(tmp_path):
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    assert restore(tmp_path) is None
    assert restore(tmp_path) is None


def test_keeps_the_last_and_the_best(tmp_path):
    config = CheckpointConfig(keep_last=2, keep_best=1)
    checkpoints = Checkpoints(tmp_path, config)
    for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0], 1):
        checkpoints.save(step, small_state(step), {}, {LOSS: loss})
    checkpoints.save(6, small_state(6), {}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    abstract = abstract_of(small_state()["params"])
    for choice, step in (("best", 2), ("latest", 6), (5, 5), ("5", 5)):
        params, found = checkpoints.restore_params(abstract, choice, "params")
        assert found == step and params["a"][0, 0] == step
    for choice in ("7", "lowest"):
        with pytest.raises(UserError, match="there are 2, 5, 6, latest and best"):
            checkpoints.restore_params(abstract, choice, "params")
    checkpoints.close()


def test_parameters_alone_pass_over_a_damaged_one_and_touch_nothing(folder, capfd):
    largest = largest_file(folder / "2")
    largest.write_bytes(largest.read_bytes()[:-5])
    before = files_of(folder)
    checkpoints = Checkpoints(folder, CheckpointConfig())
    abstract = abstract_of(small_state()["params"])
    params, step = checkpoints.restore_params(abstract, "latest", "params")
    assert step == 1 and params["a"][0, 0] == 1
    assert "2 is damaged" in capfd.readouterr().err
    with pytest.raises(UserError, match="2 is damaged: .*; choose another --step"):
        checkpoints.restore_params(abstract, "2", "params")
    with pytest.raises(UserError, match="none is best; use"):
        checkpoints.restore_params(abstract, "best", "params")
    checkpoints.close()
    assert files_of(folder) == before


def test_a_metric_that_is_not_there_never_keeps_a_checkpoint_from_being_written(
    tmp_path,
):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(best_metric="f1"))
    checkpoints.save(1, small_state(), {}, {LOSS: 1.0})
    checkpoints.wait()
    assert checkpoints.steps() == [1]
    abstract = abstract_of(small_state()["params"])
    with pytest.raises(UserError, match="has the metric 'f1', so none is best"):
        checkpoints.restore_params(abstract, "best", "params")
    checkpoints.close()


def test_a_loss_that_is_no_number_is_not_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    for step, loss in ((1, 2.0), (2, float("nan"))):
        checkpoints.save(step, small_state(step), {}, {LOSS: loss})
    checkpoints.wait()
    abstract = abstract_of(small_state()["params"])
    assert checkpoints.restore_params(abstract, "best", "params")[1] == 1
    checkpoints.close()


def test_a_checkpoint_of_another_model_is_refused_and_stays(folder):
    other = {"params": {"a": jnp.zeros((40, 51)), "b": jnp.arange(3)}}
    before = files_of(folder)
    checkpoints = Checkpoints(folder, CheckpointConfig())
    with pytest.raises(UserError, match="of another model: params/a is .40, 50. there"):
        checkpoints.restore(abstract_of(other))
    checkpoints.close()
    assert files_of(folder) == before


def test_a_half_written_list_of_files_condemns_nothing(folder):
    (folder / "2" / "files.json").write_text("")
    assert restore(folder)[1] == {"row": 2}


def test_checksums_see_a_bit_and_not_the_layout(make_state):
    alone, _ = make_state(MeshConfig(), 1)
    spread, _ = make_state(EIGHT, 8)
    assert checksums(alone) == checksums(spread)
    state = {"x": jnp.array([1.0, 2.0]), "n": jnp.array([1, 2], jnp.bfloat16)}
    swapped = state | {"x": state["x"][::-1]}
    assert checksums(state)["x"] != checksums(swapped)["x"]
    changed = state | {"x": state["x"].at[1].set(np.nextafter(np.float32(2), 3))}
    assert checksums(state)["x"] != checksums(changed)["x"]
    assert checksums(state)["n"] == checksums(changed)["n"]
