"""Whole runs of `lm.train`: what they leave, kills, resumption, mistakes."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.data.pipeline import DataConfig
from lm.models import bert, t5
from lm.tasks import masked_lm, span_corruption
from lm.train import workdir as workdir_lib
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import GuardConfig
from lm.train.loop import train
from lm.train.optim import OptimConfig
from lm.types import UserError


def lines_of(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses_of(workdir):
    return {
        line["step"]: line["train/loss"]
        for line in lines_of(workdir)
        if "train/loss" in line
    }


@pytest.fixture(scope="module")
def six_steps(make_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("six_steps")
    train(make_config(), folder)
    return folder


@pytest.fixture
def trained(six_steps, tmp_path):
    """The workdir of a finished run of `make_config()`, the test's own."""
    return shutil.copytree(six_steps, tmp_path / "trained")


def test_a_workdir_explains_itself(make_config, tmp_path):
    config = make_config(eval_every_steps=3)
    result = train(config, tmp_path)
    assert result["step"] == 6
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "tokenizer", "checkpoints", "versions.json"} <= names
    assert any(name.startswith("events") for name in names)
    assert workdir_lib.load_config(tmp_path) == config
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["device_count"] == 8 and "jax" in versions
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines if "train/loss" in line] == [*range(1, 7)]
    assert [line["step"] for line in lines if "eval/validation/loss" in line] == [3, 6]
    logged = {name for line in lines for name in line}
    assert {
        *("train/loss", "train/accuracy", "train/perplexity", "train/bits_per_byte"),
        *("optim/learning_rate", "optim/grad_norm", "optim/update_norm"),
        *("optim/param_norm", "perf/steps_per_sec", "perf/tokens_per_sec", "perf/mfu"),
        *("perf/flops_per_sec", "perf/data_wait_fraction", "eval/validation/accuracy"),
    } <= logged


def test_loading_gives_the_state_that_was_saved(make_config, tmp_path):
    config = make_config(optim=OptimConfig(ema_decay=0.5), checkpoint_every_steps=2)
    train(config, tmp_path)
    loaded = workdir_lib.load(tmp_path)
    assert loaded.step == 6 and loaded.config == config
    assert workdir_lib.load(tmp_path, 4).step == 4


def test_a_finished_run_is_not_trained_on(make_config, trained, capsys):
    config = make_config()
    before = lines_of(trained)
    result = train(config, trained)
    assert result["step"] == 6 and "eval/validation/loss" in result
    assert lines_of(trained) == before
    train(dataclasses.replace(config, num_train_steps=4), trained)
    said = capsys.readouterr()
    assert "nothing is left to do: num_train_steps is 4" in said.out + said.err


def test_more_steps_may_be_asked_for(make_config, trained):
    config = make_config()
    more = dataclasses.replace(config, num_train_steps=8)
    assert train(more, trained)["step"] == 8
    assert sorted(losses_of(trained)) == [*range(1, 9)]


@pytest.fixture
def start(make_config, tmp_path):
    """Starts `lm.train` in a process of its own."""

    def start(workdir, **changes):
        config = make_config(**changes)
        file = tmp_path / "config.py"
        values = json.dumps(dataclasses.asdict(config))
        file.write_text(
            "import json\n"
            "from lm.config import to_config_dict\n"
            "from lm.train.config import Config\n"
            "def get_config():\n"
            f"    return to_config_dict(Config.of(json.loads({values!r})))\n"
        )
        return subprocess.Popen(
            [sys.executable, "-m", "lm.train", f"--config={file}"]
            + [f"--workdir={workdir}", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        )

    return start


def wait_for(workdir, step, process):
    deadline = time.monotonic() + 120
    while max(losses_of(workdir), default=0) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_is_killed_ends_bit_equal_to_one_that_is_not(start, tmp_path):
    run = {"num_train_steps": 100, "checkpoint_every_steps": 11, "warmup_steps": 20}
    run |= {"eval_every_steps": 30}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for step, sent in ((25, signal.SIGKILL), (50, signal.SIGTERM)):
        process = start(killed, **run)
        wait_for(killed, step, process)
        process.send_signal(sent)
        out, err = process.communicate()
        if sent == signal.SIGTERM:
            assert process.returncode == 128 + sent, err
            stopped = max(losses_of(killed))
            assert f"stopped at step {stopped}" in err
            # Without the scores of an evaluation that was of an earlier step.
            assert json.loads(out) == {"step": stopped, "signal": sent}
            assert (killed / "checkpoints" / str(stopped)).exists()
        else:
            assert process.returncode == -sent
    process = start(killed, **run)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert f"resumed at step {stopped}" in err
    assert json.loads(out)["step"] == 100
    process = start(whole, **run)
    out_whole, err = process.communicate()
    assert process.returncode == 0, err
    assert losses_of(killed) == losses_of(whole)
    assert sorted(losses_of(whole)) == [*range(1, 101)]
    assert json.loads(out) == json.loads(out_whole)


def mistake(config, workdir):
    with pytest.raises(UserError) as caught:
        train(config, workdir)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_another_config_is_refused_and_nothing_is_lost(make_config, trained):
    config = make_config()
    other = dataclasses.replace(config, batch_size=16)
    said = mistake(other, trained)
    assert "batch_size is 8 there and 16 here" in said and "another --workdir" in said
    assert train(config, trained)["step"] == 6


def test_a_second_run_is_kept_out_of_a_workdir_and_changes_nothing(
    make_config, tmp_path
):
    config = make_config()
    other = dataclasses.replace(config, seed=7)
    with workdir_lib.alone(tmp_path):
        workdir_lib.prepare(tmp_path, config)
        assert "another process trains in" in mistake(other, tmp_path)
        assert workdir_lib.load_config(tmp_path) == config
    assert train(config, tmp_path)["step"] == 6


def test_what_an_evaluation_needs_is_missed_before_the_first_step(
    make_config, corpus, tmp_path
):
    config = make_config(checkpoint=CheckpointConfig(best_metric="acuracy"))
    said = mistake(config, tmp_path)
    assert "did you mean 'accuracy'" in said and not losses_of(tmp_path)
    data = dataclasses.replace(make_config().data, eval_split="dev")
    assert "dev" in mistake(make_config(data=data), tmp_path)
    assert not losses_of(tmp_path)


def test_any_split_may_be_evaluated_and_be_best(make_config, tmp_path):
    config = make_config()
    data = dataclasses.replace(config.data, eval_split="train")
    train(dataclasses.replace(config, data=data), tmp_path)
    assert workdir_lib.load(tmp_path, "best").step == 6


def test_a_state_larger_than_the_memory_is_named_before_it_is_made(
    make_config, tmp_path
):
    config = make_config()
    model = dataclasses.replace(config.model, emb_dim=4_000_000)
    said = mistake(dataclasses.replace(config, model=model), tmp_path)
    assert "make the model smaller" in said


def test_checkpoints_without_their_config_are_not_trained_on(make_config, trained):
    config = make_config()
    (trained / "config.json").unlink()
    assert "no" in mistake(config, trained)
    assert not list((trained / "checkpoints").glob("damaged*"))


def test_a_run_resumes_with_its_own_tokenizer_and_other_resources(
    make_config, corpus, tmp_path
):
    shutil.copytree(corpus / "bytes", tmp_path / "original")
    config = make_config()
    data = dataclasses.replace(config.data, tokenizer=str(tmp_path / "original"))
    config = dataclasses.replace(config, data=data)
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "original")
    more = dataclasses.replace(
        config,
        num_train_steps=8,
        model=dataclasses.replace(config.model, remat="full"),
        data=dataclasses.replace(data, num_workers=1, cache_dir=str(tmp_path / "c")),
    )
    assert train(more, tmp_path / "run")["step"] == 8


def test_buckets_are_counted_by_their_own_length(make_config, tmp_path):
    config = make_config(num_train_steps=12)
    task = dataclasses.replace(config.task, packing="bucket")
    train(dataclasses.replace(config, task=task, log_every_steps=1), tmp_path)
    tokens = {
        round(line["perf/tokens_per_sec"] / line["perf/steps_per_sec"])
        for line in lines_of(tmp_path)
        if "perf/tokens_per_sec" in line
    }
    assert tokens == {8 * 16, 8 * 32}


def test_a_mistake_before_the_first_checkpoint_does_not_claim_the_workdir(
    make_config, corpus, tmp_path
):
    data = DataConfig(
        sources=(str(tmp_path / "nothere.txt"),),
        tokenizer=str(corpus / "sentinels"),
        data_dir=str(corpus),
    )
    assert "nothere.txt" in mistake(make_config(data=data), tmp_path / "run")
    config = make_config()
    assert train(config, tmp_path / "run")["step"] == 6
    loaded = workdir_lib.load(tmp_path / "run")
    assert loaded.config == config and not loaded.tokenizer.sentinel_ids


def test_changed_texts_are_noticed_on_resuming(make_config, corpus, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text((corpus / "train.jsonl").read_text())
    data = DataConfig(
        sources=(f"{texts}",), tokenizer=str(corpus / "bytes"), data_dir=str(tmp_path)
    )
    config = make_config(data=data)
    train(config, tmp_path / "run")
    with texts.open("a") as file:
        file.write('\n{"text": "and one more"}')
    more = dataclasses.replace(config, num_train_steps=8)
    assert "have changed" in mistake(more, tmp_path / "run")


def test_a_vocabulary_that_does_not_fit_is_named(make_config, tmp_path):
    config = make_config()
    model = dataclasses.replace(config.model, vocab_size=200)
    said = mistake(dataclasses.replace(config, model=model), tmp_path)
    assert "has 261 tokens but model.vocab_size is 200" in said
    assert not (tmp_path / "config.json").exists()


def test_another_tokenizer_in_the_workdir_is_named(make_config, corpus, trained):
    config = make_config()
    data = dataclasses.replace(config.data, tokenizer=str(corpus / "sentinels"))
    other = dataclasses.replace(config, data=data)
    assert "made with another tokenizer" in mistake(other, trained)


def test_a_corpus_shorter_than_a_batch_is_named(make_config, tmp_path):
    config = make_config(batch_size=4096)
    said = mistake(config, tmp_path)
    assert "fewer than batch_size 4096" in said and "lower it" in said


def test_an_evaluation_makes_no_rows_that_are_padding_alone(make_config, tmp_path):
    config = make_config()
    few, many = config.eval, dataclasses.replace(config.eval, batch_size=2**40)
    results = [
        train(dataclasses.replace(config, eval=evaluation), tmp_path / name)
        for name, evaluation in (("few", few), ("many", many))
    ]
    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_a_model_that_does_not_fit_the_task_is_named(make_config, corpus, tmp_path):
    config = make_config()
    data = dataclasses.replace(config.data, tokenizer=str(corpus / "sentinels"))
    config = dataclasses.replace(config, data=data)
    shape = {name: getattr(config.model, name) for name in ("vocab_size", "max_len")}
    for model, task in (
        (bert.Config(**shape), config.task),
        (t5.Config(**shape), config.task),
        (config.model, masked_lm.Config(length=16)),
        (config.model, span_corruption.Config(length=16, targets_length=8)),
    ):
        said = mistake(dataclasses.replace(config, model=model, task=task), tmp_path)
        assert f"task {task.name} is not for a {model.name} model; set" in said


def test_a_workdir_that_cannot_be_written_is_named(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write to the workdir" in mistake(
        make_config(), tmp_path / "file/run"
    )


def test_a_run_that_diverges_stops_with_the_last_good_checkpoint(make_config, tmp_path):
    config = make_config(
        num_train_steps=40,
        checkpoint_every_steps=2,
        optim=OptimConfig(name="sgd", learning_rate=1e30, grad_clip_norm=0.0),
        guard=GuardConfig(max_skipped=3),
        warmup_steps=0,
        checkpoint=CheckpointConfig(keep_last=9),
    )
    said = mistake(config, tmp_path)
    assert "3 updates in a row were skipped" in said
    assert "is kept; lower optim.learning_rate" in said


def test_profiling_leaves_a_trace_even_if_the_run_ends_first(make_config, tmp_path):
    config = make_config()
    train(config, tmp_path, profile=range(4, 90))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    with pytest.raises(UserError, match="outside of the steps from 6 to 6"):
        train(config, tmp_path, profile=range(2, 4))


def test_a_length_over_the_models_is_named(make_config):
    config = make_config()
    task = dataclasses.replace(config.task, length=64)
    with pytest.raises(UserError, match="task.length 64 exceeds model.max_len 32"):
        dataclasses.replace(config, task=task)


def test_a_full_disk_is_said_before_anything_is_written(
    make_config, trained, monkeypatch
):
    config = make_config()
    full = shutil.disk_usage(trained)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    more = dataclasses.replace(config, num_train_steps=8)
    assert "no space for a checkpoint" in mistake(more, trained)
    monkeypatch.undo()
    assert train(more, trained)["step"] == 8
