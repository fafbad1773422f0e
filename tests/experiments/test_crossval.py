import dataclasses
import doctest
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import crossval, folds
from lm import cli
from lm.config import to_config_dict
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks import TASKS, classify
from lm.text import tokenizers
from lm.train import loop
from lm.train.config import Config
from lm.train.optim import OptimConfig
from lm.types import UserError

TASK = classify.Config(length=16, pooling="mean")
MODEL = bert.Config(vocab_size=280, emb_dim=8, num_layers=1, num_heads=1, max_len=16)


def rows_of(number, split=""):
    """Texts that are all different, of two labels and five authors."""
    for i in range(number):
        label = ("good", "bad")[i % 2]
        yield {"text": f"{split}{i} {label}", "label": label, "by": f"a{i % 5}"}


@pytest.fixture
def make_config(tmp_path):
    """Makes a config whose splits have rows of 18, 6 and 6; it trains in no time."""

    def make(task=TASK, make_rows=rows_of, **data):
        sizes = {"train": 18, "validation": 6, "test": 6}
        for split, size in sizes.items():
            rows = make_rows(size, split[:2])
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
        tokenizers.train("bytes", []).save(tmp_path / "bytes", overwrite=True)
        source = str(tmp_path / "{split}.jsonl")
        return Config(
            MODEL,
            task,
            DataConfig((source,), str(tmp_path / "bytes"), **data),
            OptimConfig(learning_rate=1e-2),
            seed=3,
            batch_size=8,
            num_train_steps=2,
            warmup_steps=0,
        )

    return make


def parse(*words):
    return crossval.parser.parse_args(["--config=any.py", "--workdir=runs", *words])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on a config."""

    def run(config, *words):
        monkeypatch.setattr(
            crossval.config_lib, "load", lambda path, overrides: to_config_dict(config)
        )
        return crossval.main(parse(f"--workdir={tmp_path}/runs", *words), [])

    return run


@pytest.fixture
def fake(monkeypatch):
    """Neither trains nor evaluates: a run's score is its number; keeps the configs."""
    configs = []

    def train(config, workdir):
        workdir.mkdir(parents=True)
        configs.append(config)
        return {"step": 1}

    def score(folder, part):
        found = {"step": 1, "examples": 1, "scores": {"accuracy": len(configs) / 16}}
        return found | {"predictions": [fake_prediction()]}

    def fake_prediction():
        return {"label": "bad", "probabilities": {"bad": 0.75, "good": 0.25}}

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(crossval, "_score", score)
    return configs


def texts_of(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


@st.composite
def data(draw):
    """Labels of examples, one each, and their groups."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    number = draw(st.integers(2, 4))
    labels = [{f"l{i % 3}"} for i in range(draw(st.integers(24, 60)))]
    rng.shuffle(labels)
    groups = list(range(len(labels)))
    if draw(st.booleans()):
        groups = [rng.randrange(16) for _ in labels]
    return labels, np.unique(groups, return_inverse=True)[1], number


@settings(max_examples=40)
@given(data(), st.booleans(), st.integers(0, 2**31 - 1))
def test_the_laws_of_folds(data, stratified, seed):
    labels, groups, number = data
    found = folds.make_folds(labels, groups, number, seed, stratified)
    again = folds.make_folds(labels, groups, number, seed, stratified)
    assert len(found) == number
    tested = np.concatenate([fold.test for fold in found])
    assert sorted(tested) == list(range(len(labels)))
    for fold, same in zip(found, again):
        assert sorted(np.concatenate(fold)) == list(range(len(labels)))
        sides = [set(groups[part]) for part in fold]
        assert all(sides) and sum(map(len, sides)) == len(set().union(*sides))
        assert set().union(*(labels[i] for i in fold.train)) == {"l0", "l1", "l2"}
        assert all(map(np.array_equal, fold, same))


def test_another_seed_makes_other_folds():
    labels, groups = [{"a"}] * 40, np.arange(40)
    one, two = (folds.make_folds(labels, groups, 4, seed, True) for seed in (0, 1))
    assert not np.array_equal(one[0].test, two[0].test)


def test_labels_are_as_frequent_in_each_fold():
    labels = [{"rare" if i % 7 == 0 else "common"} for i in range(70)]
    for fold in folds.make_folds(labels, np.arange(70), 5, 0, True):
        assert sum("rare" in labels[i] for i in fold.test) == 2
        assert len(fold.test) == 14
        assert sum("rare" in labels[i] for i in fold.validation) == 1
    # Ten groups of seven, of which two have the rare label alone.
    labels = [{"rare" if i // 7 < 2 else "common"} for i in range(70)]
    for fold in folds.make_folds(labels, np.arange(70) // 7, 2, 0, True):
        assert sum("rare" in labels[i] for i in fold.test) == 7


def test_a_rare_label_stays_in_training_where_it_can():
    labels = [{"rare"}] * 2 + [{"common"}] * 38
    for seed in range(20):
        for fold in folds.make_folds(labels, np.arange(40), 2, seed, True):
            assert any(i < 2 for i in fold.train)
    with pytest.raises(UserError, match="without the label 'rare', .* are 2 examples"):
        folds.make_folds(labels, np.arange(40) // 2, 2, 0, False)


def test_examples_in_docstrings():
    assert doctest.testmod(folds).failed == doctest.testmod(crossval).failed == 0


def test_folds_are_runs_which_go_on_where_they_were_killed(
    make_config, run, tmp_path, monkeypatch, capfd
):
    config, root = make_config(), tmp_path / "runs"
    score = crossval._score

    def killed(folder, part):
        if part.name == "fold-2":
            raise KeyboardInterrupt
        return score(folder, part)

    monkeypatch.setattr(crossval, "_score", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config, "--folds=2")
    assert not (root / "crossval.json").exists()
    first = (root / "fold-1/run/scores.json").stat().st_mtime_ns
    monkeypatch.setattr(crossval, "_score", score)
    capfd.readouterr()
    result = run(config, "--folds=2")
    out, err = capfd.readouterr()
    assert err.count("resumed at step 2") == 1 and "fold-1 seed 3" not in err
    assert (root / "fold-1/run/scores.json").stat().st_mtime_ns == first
    assert out.count("fold-") == 2 and "95% interval" in out

    # What is written is what is told, and the mean that of the folds.
    read = json.loads((root / "crossval.json").read_text())
    assert read["scores"] == result["scores"]
    kept = [
        json.loads((root / f"fold-{k}/run/scores.json").read_text()) for k in (1, 2)
    ]
    headline = result["scores"][0]
    assert headline["name"] == "accuracy"
    values = [fold["scores"]["accuracy"] for fold in kept]
    assert headline["value"] == pytest.approx(np.mean(values))
    assert headline["low"] <= headline["value"] <= headline["high"]
    page = (root / "crossval.html").read_text()
    assert "fold-2 seed 3" in page and "accuracy" in page

    # Every example is scored once, and by a model that has not seen it.
    tested = []
    for k, fold in enumerate(kept, 1):
        parts = [
            texts_of(root / f"fold-{k}/data/{name}.jsonl")
            for name in folds.Fold._fields
        ]
        assert len(set().union(*parts)) == sum(map(len, parts)) == 24
        assert fold["examples"] == len(parts[2]) == 12
        tested += parts[2]
        metrics = (root / f"fold-{k}/run/metrics.jsonl").read_text()
        assert "eval/validation/accuracy" in metrics and "eval/test" not in metrics
    assert len(set(tested)) == 24 and not any(text.startswith("te") for text in tested)


def test_what_is_trained_on_is_not_scored(make_config, tmp_path, capsys):
    config = make_config()
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('\n{"text": "TR0  good", "label": "good"}')  # it is in train
    part = crossval._own_splits(parse("--seeds=2"), config)[2][0]
    assert "of 7 texts of test 1 are in train and left out" in capsys.readouterr().err
    result = crossval._run(part, tmp_path / "runs", 5)
    assert result["examples"] == 6 and "log_loss" in result["scores"]
    kept = json.loads((tmp_path / "runs/seed-5/scores.json").read_text())
    assert kept == result
    assert json.loads((tmp_path / "runs/seed-5/config.json").read_text())["seed"] == 5


def test_seeds_of_the_configs_own_splits(make_config, run, fake, tmp_path):
    config = make_config()
    result = run(config, "--seeds=3")
    assert [(c.seed, c.data) for c in fake] == [(n, config.data) for n in (3, 4, 5)]
    (score,) = result["scores"]
    assert score["value"] == pytest.approx(2 / 16)
    # t(0.975, 2) / sqrt(3) of a deviation of 1.
    assert (score["high"] - score["value"]) * 16 == pytest.approx(2.4841, abs=1e-3)
    assert "Mean of 3 runs" in (tmp_path / "runs/crossval.html").read_text()


def test_validation_is_scored_where_there_is_no_test(make_config, run, fake, tmp_path):
    config = make_config()
    (tmp_path / "test.jsonl").unlink()
    _, examples, (part,) = crossval._own_splits(parse("--seeds=2"), config)
    assert part.split == "validation" and len(examples) == 18 + 6
    with pytest.raises(UserError, match="tset.jsonl"):
        run(config, "--seeds=2", "--split=tset")


def test_seeds_of_a_fold_count_as_one(make_config, run, fake):
    result = run(make_config(), "--folds=2", "--seeds=2")
    assert [(c.seed, c.data.sources[0].split("/")[-3]) for c in fake] == [
        *((3, "fold-1"), (4, "fold-1"), (3, "fold-2"), (4, "fold-2"))
    ]
    # Runs 1 and 2 are of the first fold, 3 and 4 of the second.
    (score,) = result["scores"]
    assert score["value"] * 16 == 2.5
    assert (score["high"] - score["value"]) * 16 == pytest.approx(12.7062, abs=1e-3)


def test_more_seeds_train_only_what_is_new(make_config, run, fake):
    before = run(make_config(), "--folds=2")
    assert len(fake) == 2
    assert run(make_config(), "--folds=2")["runs"] == before["runs"]
    assert len(fake) == 2
    run(make_config(), "--folds=2", "--seeds=2")
    assert [config.seed for config in fake] == [3, 3, 4, 4]


def test_groups_stay_together_and_labels_are_known(make_config, run, fake, tmp_path):
    def rows(number, split):
        words = list(rows_of(number, split))
        return [*words[1:], words[1] | {"text": words[1]["text"].upper()}]

    run(make_config(make_rows=rows), "--folds=2", "--grouped-by=by")
    assert {config.task.labels for config in fake} == {("bad", "good")}
    authors = [
        {json.loads(line)["by"] for line in path.read_text().splitlines()}
        for path in sorted((tmp_path / "runs/fold-1/data").glob("*.jsonl"))
    ]
    assert sum(map(len, authors)) == 5
    assert json.loads((tmp_path / "runs/plan.json").read_text())["--folds"] == 2


def test_what_is_left_out_alone_is_scored_with_all_others(make_config, run, fake):
    result = run(make_config(), "--leave-one-out", "--splits=test")
    assert len(fake) == 6
    (row,) = result["runs"]
    # All six were predicted to be bad, and three are.
    assert row["examples"] == 6 and row["scores"]["accuracy"] == 0.5
    assert result["scores"][0] == {"name": "accuracy", "value": 0.5}
    for config in fake:
        folder = config.data.sources[0]
        assert "/data/{split}.jsonl" in folder


def tag_rows(number, split):
    for i in range(number):
        yield {"text": f"the {split}{i}", "words": ["the", f"{split}{i}"], "tags": "DN"}


@pytest.mark.parametrize(
    "task, row",
    [
        ({"name": "classify", "kind": "several"}, {"label": ["good", "bad"]}),
        ({"name": "classify", "kind": "number"}, {"label": 0.5}),
        ({"name": "pair"}, {"text_b": "b"}),
        ({"name": "relation"}, {"head": [0, 1], "tail": [2, 3]}),
        ({"name": "tag"}, {"words": ["a", "b"], "tags": ["D", "N"]}),
        ({"name": "rank", "query_length": 4}, {"query": "d"}),
        ({"name": "answer"}, {"question": "q", "answers": []}),
    ],
)
def test_every_task_that_predicts(make_config, run, fake, task, row):
    def rows(number, split):
        return (example | row for example in rows_of(number, split))

    name = task.pop("name")
    if name == "answer":
        task |= {"max_question_tokens": 4, "stride": 2, "max_answer_tokens": 2}
        task |= {"unanswerable": True}
    config = make_config(TASKS[name][0](length=16, **task), rows)
    run(config, "--folds=2")
    assert len(fake) == 2


def test_bad_rows_are_named_where_they_are_or_left_out(
    make_config, run, fake, tmp_path
):
    def rows(number, split):
        yield from rows_of(number, split)
        yield {"text": "no label"}

    with pytest.raises(UserError, match=r"train.jsonl:19 has no 'label'"):
        run(make_config(make_rows=rows), "--folds=2")
    run(make_config(make_rows=rows, bad_rows="skip"), "--folds=2")
    assert len(texts_of(tmp_path / "runs/fold-1/data/test.jsonl")) == 12


def test_another_command_in_the_same_workdir_is_refused(
    make_config, run, fake, tmp_path
):
    config = make_config()
    run(config, "--folds=2")
    for words, changed, message in (
        (["--folds=3"], config, "--folds is 2 there and 3 here; choose another"),
        (["--folds=2", "--grouped-by=by"], config, "--grouped-by is None there"),
        (
            ["--folds=2"],
            dataclasses.replace(config, num_train_steps=3),
            "num_train_steps is 2 there and 3 here",
        ),
    ):
        with pytest.raises(UserError, match=message):
            run(changed, *words)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('\n{"text": "one more", "label": "bad"}')
    with pytest.raises(UserError, match="texts or their folds have changed"):
        run(config, "--folds=2")
    assert len(fake) == 2


def test_so_are_other_texts_of_the_configs_own_splits(make_config, run, fake, tmp_path):
    config = make_config()
    run(config, "--seeds=2")
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('\n{"text": "one more", "label": "bad"}')
    with pytest.raises(UserError, match="texts or their folds have changed"):
        run(config, "--seeds=2")


def test_a_fold_that_fails_is_named(make_config, run, fake, monkeypatch):
    train = loop.train

    def fail(config, workdir):
        if "fold-2" in str(workdir):
            raise UserError("the loss was not finite")
        return train(config, workdir)

    monkeypatch.setattr(loop, "train", fail)
    with pytest.raises(UserError, match="^fold-2 seed 3: the loss was not finite$"):
        run(make_config(), "--folds=3")
    assert len(fake) == 1


def test_a_signal_ends_it(make_config, run, fake, monkeypatch, capsys):
    monkeypatch.setattr(
        loop, "train", lambda config, workdir: {"step": 1, "signal": 15}
    )
    with pytest.raises(cli.Ended) as ended:
        run(make_config(), "--folds=2")
    assert ended.value.status == 143 and ended.value.result["step"] == 1
    assert "stopped in fold-1 seed 3; the same command" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--folds=1"], "--folds must be at least 2"),
        (["--folds=0"], "--folds must be at least 2"),
        (["--folds=25"], r"--folds=25 is more than there are examples \(24\)"),
        (["--folds=13"], "'bad' has 12 examples, fewer than --folds=13"),
        (["--folds=6", "--grouped-by=by"], "--folds=6 is more than .* groups .*5"),
        (["--folds=2", "--grouped-by=buy"], "jsonl:1 has no 'buy'; did you mean 'by'"),
        (["--folds=2", "--splits=tain"], "tain.jsonl"),
        (["--folds=2", "--split=test"], "--split does not go here; leave it out"),
        (
            ["--grouped-by=by", "--seeds=2"],
            "--grouped-by does not go here; set --folds",
        ),
        (["--seeds=0"], "--seeds must be at least 1"),
        ([], "set --folds, --leave-one-out or --seeds"),
        (["--folds=2", "--workdir="], "--workdir is empty"),
        (["--folds=2", "--workdir=any.jsonl/x"], "cannot write"),
    ],
)
def test_mistakes_are_one_line(make_config, run, fake, tmp_path, words, message):
    (tmp_path / "any.jsonl").write_text("{}")
    words = [word.replace("any.jsonl", f"{tmp_path}/any.jsonl") for word in words]
    with pytest.raises(UserError, match=message) as caught:
        run(make_config(), *words)
    assert "\n" not in str(caught.value) and not fake
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_folded_is_one_line(make_config, run, fake, monkeypatch):
    config = make_config()
    monkeypatch.setattr(crossval, "MOST", 10)
    with pytest.raises(UserError, match="would make 24 folds, more than 10"):
        run(config, "--leave-one-out")
    with pytest.raises(UserError, match="ranked among those of its split"):
        task = TASKS["rank"][0](length=16, query="text", query_length=4)
        run(make_config(task), "--leave-one-out")
    weights = dataclasses.replace(config.data, weights=(1.0,))
    with pytest.raises(UserError, match="all sources together"):
        run(dataclasses.replace(config, data=weights), "--folds=2")
    for name, longest in (("causal_lm", {}), ("text_to_text", {"targets_length": 8})):
        task = TASKS[name][0](length=16, **longest)
        with pytest.raises(UserError, match=f"task {name} predicts nothing"):
            run(make_config(task), "--folds=2")
