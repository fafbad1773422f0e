"""Fine-tuning: labels, beginning from another run, stopping early, predicting."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lm import evaluate, predict, tree
from lm.adapt.lora import LoraConfig
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import classify, masked_lm
from lm.train import workdir as workdir_lib
from lm.train.begin import resolve
from lm.train.checkpoint import CheckpointConfig
from lm.train.config import EvalConfig
from lm.train.loop import train
from lm.train.optim import OptimConfig
from lm.types import UserError

MODEL = bert.Config(
    vocab_size=280,
    emb_dim=16,
    num_layers=2,
    num_heads=2,
    max_len=32,
    position_encoding="rotary",
    norm_position="pre",
)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory, corpus):
    """Texts whose label is the word they begin with."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    words = ["red", "green", "blue", "warm", "cold"]
    for split, number in (("train", 96), ("validation", 24), ("test", 24)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for i in range(number):
                label = words[i % 3]
                text = " ".join([label, *rng.choice(words[3:], 2), split[:2], str(i)])
                file.write(json.dumps({"text": text, "label": label}) + "\n")
    return folder


@pytest.fixture(scope="session")
def make_labelled(make_config, labelled, corpus):
    def make(**changes):
        values = {
            "model": MODEL,
            "task": classify.Config(length=32, pooling="mean"),
            "data": DataConfig(
                sources=(str(labelled / "{split}.jsonl"),),
                tokenizer=str(corpus / "bytes"),
                data_dir=str(labelled),
            ),
            "batch_size": 16,
            "num_train_steps": 40,
        }
        return make_config("bert", **values | changes)

    return make


def test_a_run_learns_and_explains_itself(make_labelled, tmp_path, labelled):
    result = train(make_labelled(num_train_steps=80), tmp_path)
    assert result["eval/validation/accuracy"] > 0.9
    assert result["eval/validation/f1_macro"] > 0.9
    task = workdir_lib.load_config(tmp_path).task
    assert task.labels == ("blue", "green", "red") and task.counts == (32, 32, 32)
    # The labels are the run's: the training texts may be gone.
    found = run(predict, "--json", "--text=red warm", workdir=tmp_path)
    (prediction,) = found["predictions"]
    assert prediction["label"] == "red"
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """Of the intervals in a report, which would take longer than all else."""
    monkeypatch.setattr(evaluate, "RESAMPLES", (20, 20))


def run(module, *flags, workdir):
    return module.main(module.parser.parse_args([f"--workdir={workdir}", *flags]))


def test_the_same_command_goes_on_though_labels_are_not_given(make_labelled, tmp_path):
    config = make_labelled(num_train_steps=4)
    train(config, tmp_path)
    longer = dataclasses.replace(config, num_train_steps=6)
    assert train(longer, tmp_path)["step"] == 6
    other = dataclasses.replace(config.task, labels=("red", "green", "blue"))
    with pytest.raises(UserError, match="task.labels is"):
        train(dataclasses.replace(longer, task=other), tmp_path)


@pytest.fixture(scope="module")
def pretrained(make_config, tmp_path_factory):
    """A masked language model; a test that changes the folder copies it."""
    folder = tmp_path_factory.mktemp("pretrained")
    train(make_config("bert", model=MODEL, task=masked_lm.Config(length=32)), folder)
    return folder


@pytest.fixture(scope="module")
def one_step(make_labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_step")
    train(make_labelled(num_train_steps=1, warmup_steps=0), folder)
    return folder


@pytest.fixture
def trained(one_step, tmp_path):
    """A workdir of one step of training, the test's own."""
    return shutil.copytree(one_step, tmp_path / "trained")


def test_a_run_begins_from_the_parameters_of_another(
    pretrained, make_labelled, tmp_path, capfd
):
    folder = shutil.copytree(pretrained, tmp_path / "pretrained")
    config = make_labelled(
        init_from=str(folder),
        model=dataclasses.replace(MODEL, emb_dim=32, dropout_rate=0.2),
        optim=OptimConfig(learning_rate=0.0),
        num_train_steps=2,
    )
    train(config, tmp_path / "fine")
    assert "new: head/bias, head/kernel" in capfd.readouterr().err
    found = workdir_lib.load(tmp_path / "fine")
    # The architecture is the other run's, the regularisation this one's.
    assert (found.config.model.emb_dim, found.config.model.dropout_rate) == (16, 0.2)
    before = workdir_lib.load(folder).params
    backbone = found.params["backbone"]
    assert set(before) - set(backbone) == {"head", "transform", "transform_norm"}
    for name in backbone:
        jax.tree.map(np.testing.assert_array_equal, backbone[name], before[name])
    # It goes on though what it began from is gone.
    folder.rename(tmp_path / "elsewhere")
    assert train(dataclasses.replace(config, num_train_steps=3), tmp_path / "fine")


def test_more_positions_than_were_learned_are_refused(make_labelled):
    few = dataclasses.replace(MODEL, position_encoding="learned", max_len=8)
    source = make_labelled(model=few, task=classify.Config(length=8))
    with pytest.raises(UserError, match="exceeds the 8 positions that the model of a"):
        resolve(make_labelled(init_from="a"), source)


def test_a_frozen_backbone_stays(pretrained, make_labelled, tmp_path):
    optim = OptimConfig(learning_rate=1e-2, freeze=("^backbone/",))
    train(make_labelled(init_from=str(pretrained), optim=optim), tmp_path / "fine")
    before, after = workdir_lib.load(pretrained), workdir_lib.load(tmp_path / "fine")
    for name, part in after.params["backbone"].items():
        jax.tree.map(np.testing.assert_array_equal, part, before.params[name])
    assert np.abs(after.params["head"]["bias"]).max() > 0


def test_it_stops_early_and_the_best_is_used(make_labelled, tmp_path, capfd):
    config = make_labelled(
        optim=OptimConfig(learning_rate=0.0),  # nothing gets better
        eval=EvalConfig(patience=2),
        eval_every_steps=3,
        checkpoint=CheckpointConfig(best_metric="accuracy", best_mode="max"),
    )
    assert train(config, tmp_path)["step"] == 9
    assert (
        "stopped early: the best accuracy is that of step 3" in capfd.readouterr().err
    )
    assert workdir_lib.load(tmp_path).step == 3
    assert workdir_lib.load(tmp_path, "latest").step == 9
    # The same command does not train on.
    assert train(config, tmp_path)["step"] == 9


def test_a_metric_of_predictions_may_be_the_best_one(make_labelled, tmp_path):
    best = CheckpointConfig(best_metric="f1_macro", best_mode="max")
    config = make_labelled(checkpoint=best, num_train_steps=4, eval_every_steps=2)
    train(config, tmp_path)
    assert workdir_lib.load(tmp_path, "best").step in (2, 4)
    wrong = dataclasses.replace(best, best_metric="f1_makro")
    config = dataclasses.replace(config, checkpoint=wrong)
    with pytest.raises(UserError, match="f1_makro.*did you mean 'f1_macro'"):
        train(config, tmp_path / "other")


def test_predictions_come_in_order_and_odd_texts_do_not_stop_them(
    trained, tmp_path, monkeypatch, capsys
):
    texts = ["x" * 500, "red", "", "  ", "中文 🙂", "a" * 20, "\x00", "green warm"]
    source = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate(texts)]
    source.write_text("\n".join(lines) + "\n")
    output = tmp_path / "out.jsonl"
    run(predict, f"--input={source}", f"--output={output}", workdir=trained)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [*enumerate(texts)]
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n\ngreen warm\n"))
    run(predict, workdir=trained)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in found] == ["red", "", "green warm"]
    for row, other in ((found[0], rows[1]), (found[2], rows[7])):
        for name, share in row["probabilities"].items():
            assert share == pytest.approx(other["probabilities"][name], abs=1e-5)


def test_mistakes_in_predicting_are_one_line(trained, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for flags, message in (
        (["--text=a", "--batch-size=0"], "--batch-size must be at least 1"),
        (["--text=a", "--field=x"], "--field=x is not NAME=VALUE"),
        (["--input=nothing.jsonl"], "there is no file nothing.jsonl"),
        ([], "there is no text to predict"),
        (["--text=a", "--output=/nowhere/a.jsonl"], "cannot write /nowhere/a.jsonl"),
        (["--text=a", "--output=a.csv"], "--output=a.csv must end in .jsonl"),
        (["--input=a.jsonl", "--output=./a.jsonl"], "--output is the --input"),
    ):
        with pytest.raises(UserError, match=message):
            run(predict, *flags, workdir=trained)


def test_predictions_stand_beside_what_was_given(trained, tmp_path):
    rows = [{"text": "red", "label": "red", "id": "\ud800"}, {"text": "\ud800"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "out.jsonl"
    flags = [f"--input={tmp_path / 'in.jsonl'}", f"--output={output}"]
    with pytest.raises(UserError, match="in.jsonl:2: 'text' has .*half of a character"):
        run(predict, *flags, workdir=trained)
    assert not output.exists()
    run(predict, *flags, "--bad-rows=skip", workdir=trained)
    (found,) = map(json.loads, output.read_text().splitlines())
    assert found["gold_label"] == "red" and found["id"] == "\ufffd"
    assert set(found) == {"text", "gold_label", "id", "label", "probabilities"}


def test_a_signal_ends_a_command_without_leftovers(trained, tmp_path):
    (tmp_path / "in.txt").write_text("red\n" * 500_000)
    command = [sys.executable, "-m", "lm.predict", f"--workdir={trained}"]
    files = [f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / 'out.jsonl'}"]
    process = subprocess.Popen([*command, *files], stderr=subprocess.PIPE, text=True)
    while not (left := [*tmp_path.glob(".out.jsonl.*.tmp")]):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate()
    assert process.returncode == 143 and stderr.endswith("error: terminated\n")
    assert not left[0].exists() and not (tmp_path / "out.jsonl").exists()


def test_another_source_has_a_report_of_its_own(trained, tmp_path, labelled):
    flags = ["--split=validation", "--keep-seen"]
    run(evaluate, *flags, workdir=trained)
    own = (trained / "report-validation.json").read_text()
    baseline = {"name": "linear", "scores": {"accuracy": 1.0}}
    (trained / "baseline-validation.json").write_text(json.dumps(baseline))
    other = tmp_path / "other.jsonl"
    rows = [{"text": "red", "label": "red"}, {"text": "a", "label": "hot"}]
    other.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--split=all", f"--source={other}"]
    with pytest.raises(UserError, match="other.jsonl:2.*'hot'"):
        run(evaluate, *flags, workdir=trained)
    run(evaluate, *flags, "--bad-rows=skip", workdir=trained)
    assert (trained / "report-validation.json").read_text() == own
    (path,) = trained.glob("report-all-*other-jsonl.json")
    report = json.loads(path.read_text())
    assert report["examples"] == 1 and "other.jsonl" in report["title"]
    assert not any("baseline" in row for row in report["scores"])


def test_a_task_that_predicts_nothing_says_what_does(make_config, tmp_path):
    train(make_config(num_train_steps=1, warmup_steps=0), tmp_path)
    with pytest.raises(UserError, match="continue its texts with lm.generate"):
        run(predict, "--text=a", workdir=tmp_path)


def test_adapters_are_trained_alone_and_merged_when_loaded(
    pretrained, make_labelled, tmp_path
):
    config = make_labelled(
        init_from=str(pretrained), lora=LoraConfig(rank=2), num_train_steps=60
    )
    result = train(config, tmp_path / "fine")
    before = workdir_lib.load(pretrained)
    after = workdir_lib.load(tmp_path / "fine")
    changed = {
        name
        for name, old in flat(before.params).items()
        if name in flat(after.params["backbone"])
        and np.any(old != flat(after.params["backbone"])[name])
    }
    assert {name.rsplit("/", 2)[-2] for name in changed} == {"query", "value"}
    # What is loaded scores as what was trained.
    output = run(evaluate, workdir=tmp_path / "fine")
    for name in ("loss", "accuracy"):
        key = f"eval/validation/{name}"
        assert output[key] == pytest.approx(result[key], rel=1e-4)


def flat(params):
    return dict(zip(jax.tree.leaves(tree.names(params)), jax.tree.leaves(params)))


def test_frozen_parameters_have_no_part_in_the_norm(make_labelled, tmp_path):
    optim = OptimConfig(learning_rate=1e-2, freeze=("^backbone/",))
    train(make_labelled(optim=optim, num_train_steps=4), tmp_path / "frozen")
    train(make_labelled(num_train_steps=4), tmp_path / "whole")
    norms = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("frozen", "whole")
    ]
    assert norms[0]["optim/grad_norm"] < norms[1]["optim/grad_norm"]


def test_texts_of_the_training_split_are_not_scored(
    trained, tmp_path, labelled, capsys
):
    with pytest.raises(UserError, match="every text of train is in train, which was"):
        run(evaluate, "--split=train", workdir=trained)
    copied = (labelled / "train.jsonl").read_text().splitlines()[:3]
    fresh = (labelled / "test.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join([*copied, *fresh]) + "\n")
    source = f"--source={tmp_path}/{{split}}.jsonl"
    run(evaluate, "--split=test", source, workdir=trained)
    assert "of 27 texts 3 are in train and left out" in capsys.readouterr().out
    (path,) = trained.glob("report-test-*.json")
    report = json.loads(path.read_text())
    assert report["examples"] == 24 and report["overlap"]["left_out"] == 3
    accuracy = next(row for row in report["scores"] if row["name"] == "accuracy")
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    page = path.with_suffix(".html").read_text()
    assert "Traceback" not in page and "accuracy" in page
    kept = run(evaluate, "--split=train", "--keep-seen", workdir=trained)
    assert "eval/train/accuracy" in kept


def test_scores_are_also_given_without_what_resembles_a_training_text(
    make_labelled, tmp_path, labelled
):
    config = make_labelled(num_train_steps=1, warmup_steps=0)
    long = "red " + " ".join(f"word{i}" for i in range(40))
    for split, text in (("train", long), ("test", long + " more")):
        lines = (labelled / f"{split}.jsonl").read_text()
        line = json.dumps({"text": text, "label": "red"})
        (tmp_path / f"{split}.jsonl").write_text(f"{lines}{line}\n")
    data = dataclasses.replace(
        config.data, sources=(f"{tmp_path}/{{split}}.jsonl",), eval_split="test"
    )
    train(dataclasses.replace(config, data=data), tmp_path / "run")
    run(evaluate, "--split=test", workdir=tmp_path / "run")
    report = json.loads((tmp_path / "run/report-test.json").read_text())
    assert report["examples"] == 25 and report["overlap"]["near"] == 1
    accuracy = next(row for row in report["scores"] if row["name"] == "accuracy")
    right = accuracy["value"] * 25
    without = report["overlap"]["scores_without"]["accuracy"] * 24
    assert round(right - without, 6) in (0, 1)


def test_thresholds_are_tuned_and_kept(make_labelled, tmp_path):
    task = classify.Config(length=32, pooling="mean", kind="several")
    config = make_labelled(task=task, num_train_steps=4)
    train(config, tmp_path)
    before = run(evaluate, "--keep-seen", workdir=tmp_path)
    after = run(evaluate, "--tune-thresholds", workdir=tmp_path)
    name = "eval/validation/f1_macro"
    assert after[name] > before[name]
    thresholds = workdir_lib.load_config(tmp_path).task.thresholds
    assert len(thresholds) == 3
    # The run goes on with them.
    train(dataclasses.replace(config, num_train_steps=5), tmp_path)
    assert workdir_lib.load_config(tmp_path).task.thresholds == thresholds


def test_a_task_without_thresholds_says_so(trained):
    with pytest.raises(UserError, match="--tune-thresholds is for tasks with task.kin"):
        run(evaluate, "--tune-thresholds", workdir=trained)
