import dataclasses
import doctest
import json
import re
import shutil

import numpy as np
import pytest

from experiments import compare, paired
from lm import evaluate
from lm.data.pipeline import DataConfig
from lm.models import bert, gpt
from lm.tasks import causal_lm, classify, text_to_text
from lm.text import tokenizers
from lm.train import loop, workdir
from lm.train.config import Config
from lm.train.optim import OptimConfig
from lm.types import UserError

BERT = bert.Config(vocab_size=280, emb_dim=8, num_layers=1, num_heads=1, max_len=16)
GPT = gpt.Config(vocab_size=280, emb_dim=8, num_layers=1, num_heads=1, max_len=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classifiers that differ, two GPTs, and copies of them."""
    root = tmp_path_factory.mktemp("compare")
    for folder, least in (("one", 0), ("two", 5)):
        (root / folder).mkdir()
        for split, size in {"train": 16, "validation": 8, "test": 24}.items():
            rows = (
                {"text": f"{split} {i} {'ab'[i % 2] * 5}", "label": "ab"[i % 2]}
                for i in range(least, least + size)
            )
            lines = "\n".join(map(json.dumps, rows))
            (root / folder / f"{split}.jsonl").write_text(lines)
    # A text that was trained on, in the test split.
    with (root / "one" / "test.jsonl").open("a") as file:
        file.write('\n{"text": "train 0 aaaaa", "label": "a"}')
    tokenizers.train("bytes", []).save(root / "bytes")

    def data(folder):
        return DataConfig((f"{root}/{folder}/{{split}}.jsonl",), str(root / "bytes"))

    config = Config(
        BERT,
        classify.Config(length=16, pooling="mean"),
        data("one"),
        OptimConfig(learning_rate=3e-2),
        batch_size=8,
        num_train_steps=12,
        warmup_steps=0,
        log_every_steps=4,
    )
    slow = dataclasses.replace(config.optim, learning_rate=1e-4)
    slow = dataclasses.replace(config, optim=slow)
    causal = dataclasses.replace(config, model=GPT, task=causal_lm.Config(length=8))
    task = text_to_text.Config(
        architecture="prefix_lm", length=12, targets_length=4, target="label"
    )
    writing = dataclasses.replace(config, model=GPT, task=task)
    for name, of in {"a": config, "b": slow, "gpt": causal, "t2t": writing}.items():
        loop.train(of, root / name)
    # Trained for the others: copies whose config tells of something else.
    resolved = workdir.load_config(root / "a")
    for name, source, of in (
        ("seeds/1", "b", dataclasses.replace(resolved, seed=1)),
        ("other", "a", dataclasses.replace(resolved, data=data("two"))),
        ("same_gpt", "gpt", causal),
        ("same_t2t", "t2t", writing),
    ):
        shutil.copytree(root / source, root / name)
        workdir.save_config(root / name, of)
    shutil.copytree(root / "b", root / "empty")
    shutil.rmtree(root / "empty" / "checkpoints")
    return root


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(paired, "SAMPLES", (40, 40))


@pytest.fixture
def run(root, monkeypatch):
    """Runs the command in the folder of the workdirs."""
    monkeypatch.chdir(root)
    return lambda *words: compare.main(compare.parser.parse_args(words))


def scored(name):
    """Returns the step and the metrics that `lm.evaluate` finds."""
    args = evaluate.parser.parse_args([f"--workdir={name}", "--split=test"])
    values = evaluate.main(args)
    return {key.removeprefix("eval/test/"): value for key, value in values.items()}


def test_what_differs_and_what_it_did(run, capsys, monkeypatch):
    result = run("a", "b", "--baseline=b", "--output=page.html")
    out = capsys.readouterr().out
    for text in ("optim.learning_rate", "accuracy", "f1_macro", "page: page.html"):
        assert text in out
    assert result["columns"] == ["b", "a"]
    assert result["config"] == {"optim.learning_rate": [0.0001, 0.03]}
    assert result["versions"] == {} and result["notes"] == []
    assert result["facts"]["steps"] == [12, 12]
    assert result["facts"]["parameters"][0] == result["facts"]["parameters"][1] > 0
    assert min(result["facts"]["training seconds"]) > 0
    # The one that was trained on is left out.
    assert result["examples"] == 24
    monkeypatch.setattr(evaluate, "RESAMPLES", (2, 2))
    for column, name in enumerate("ba"):
        values = scored(name)
        for metric, row in result["scores"].items():
            assert row[column]["value"] == pytest.approx(values[metric]), metric
    for slow, fast in result["scores"].values():
        other = fast["difference"]
        assert other["value"] == pytest.approx(fast["value"] - slow["value"])
        assert other["low"] <= other["high"] and 0 < other["p"] <= 1
        assert "difference" not in slow


@pytest.mark.parametrize(
    "kind, number, least", [("documents", 25, 25), ("rows", 50, 26)]
)
def test_what_is_drawn_of_a_language_model_adds_up_to_its_metrics(
    run, kind, number, least, monkeypatch, capsys
):
    monkeypatch.setattr(paired, "LEAST_DOCUMENTS", least)
    result = run("gpt", "same_gpt")
    assert (result["drawn"], result["examples"]) == (kind, number)
    assert f"{number} {kind}" in capsys.readouterr().out
    few = [f"test has fewer than {least} documents, too few to be drawn"]
    notes = [note.partition(";")[0] for note in result["notes"]]
    assert notes == (few if kind == "rows" else [])
    values = scored("gpt")
    assert {"loss", "perplexity", "bits_per_byte"} <= result["scores"].keys()
    for metric, (one, other) in result["scores"].items():
        assert one["value"] == pytest.approx(values[metric], rel=1e-5)
        assert one["low"] < one["high"]
        assert other["difference"]["low"] == other["difference"]["high"] == 0


def test_what_a_model_writes_is_scored(run, monkeypatch):
    result = run("t2t", "same_t2t")
    assert (result["drawn"], result["examples"], result["notes"]) == (
        *("examples", 24),
        [],
    )
    monkeypatch.setattr(evaluate, "RESAMPLES", (2, 2))
    values = scored("t2t")
    assert len(result["scores"]) > 1
    for metric, (one, other) in result["scores"].items():
        assert one["value"] == pytest.approx(values[metric]), metric
        assert other["difference"]["value"] == 0


def test_seeds_are_folded(run):
    apart = run("a", "seeds/1")
    assert apart["config"] == {"seed": [0, 1]}
    together = run("b", "a", "seeds/1", "--fold-seeds")
    assert together["columns"] == ["b", "a (2 seeds)"]
    assert together["config"]["seed"] == [0, [0, 1]]
    for metric, row in apart["scores"].items():
        values = [score["value"] for score in row]
        folded = together["scores"][metric][1]
        assert folded["value"] == pytest.approx(np.mean(values))
        # Student's t of two values, with one degree of freedom.
        half = 12.7062 * abs(values[0] - values[1]) / 2
        assert folded["high"] - folded["value"] == pytest.approx(half, abs=1e-4)


def test_what_cannot_be_paired_is_named_and_shown(run, root, capsys):
    result = run("a", "other", "gpt")
    assert result["notes"] == [
        "gpt is not scored: its task is causal_lm, that of a is classify",
        "other cannot be paired with a on test: example 1 is another",
    ]
    error = capsys.readouterr().err
    assert all(note in error for note in result["notes"])
    _, other, of_gpt = result["scores"]["accuracy"]
    assert "difference" not in other and other["low"] <= other["high"]
    assert of_gpt is None
    assert result["config"]["model.name"] == ["bert", "bert", "gpt"]
    page = (root / "compare.html").read_text()
    assert result["page"] == "compare.html"
    for text in ("model.name", "accuracy", "train/loss", *result["notes"]):
        assert text in page
    loss = next(part for part in page.split("<figure>") if "train/loss by" in part)
    # A curve and a name for each run.
    assert len(re.findall('<polyline class="s[0-9]', loss)) == 3
    assert all(f">{name} <b>" in loss for name in ("a", "other", "gpt"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["a"], "only a is given; name two workdirs or more"),
        (["a", "./a"], "a is the same folder as a; name it once"),
        (["a", "one"], "no one/config.json; is one a workdir of lm.train?"),
        (["a", "nowhere"], "no nowhere/config.json"),
        (["a", "empty"], "no checkpoint in empty/checkpoints"),
        (["a", "b", "--split=tets"], "tets"),
        (["gpt", "same_gpt", "--split=tets"], "tets"),
        (["a", "b", "--baseline=c"], "--baseline=c is none of the workdirs"),
        (["a", "b", "--output=no/x.html"], "no folder no for --output; make it"),
        (["a", "b", "--output=one"], "--output=one is a folder"),
        (["a", "b", "--output=README.md"], "README.md is no page; let it end in .html"),
    ],
)
def test_mistakes_are_one_line(run, words, message):
    with pytest.raises(UserError) as caught:
        run(*words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_split_that_was_trained_on_is_one_line(root):
    names = paired.outputs_of(root / "a", "validation").examples
    assert len(names) == 8
    with pytest.raises(UserError, match="every text of validation was trained on"):
        paired.outputs_of(root / "a", "validation", names)
    left = paired.outputs_of(root / "a", "validation", names[1:])
    assert left.examples == names[:1] and left.step == 12


def test_models_that_are_equal_do_not_differ():
    right = np.arange(40) % 3 > 0

    def score(chosen):
        return {"accuracy": float(right[chosen].mean())}

    found = paired.compare({"a": score, "b": score}, "a", 40)
    difference = found["b"]["accuracy"]["difference"]
    assert (difference["value"], difference["low"], difference["high"]) == (0, 0, 0)
    assert difference["p"] == 1


def test_pairing_sees_what_independent_intervals_do_not(monkeypatch):
    monkeypatch.setattr(paired, "SAMPLES", (400, 400))
    rng = np.random.default_rng(0)
    # A few more are right, of the same hard and easy examples.
    base = rng.random(400) < 0.6
    better = base | (rng.random(400) < 0.1)
    found = paired.compare(
        {
            "base": lambda i: {"accuracy": float(base[i].mean())},
            "better": lambda i: {"accuracy": float(better[i].mean())},
        },
        "base",
        400,
    )
    a, b = found["base"]["accuracy"], found["better"]["accuracy"]
    assert a["high"] > b["low"]
    assert b["difference"]["low"] > 0 and b["difference"]["p"] < 0.01


def test_p_values_of_equal_models_are_uniform():
    rng = np.random.default_rng(1)
    small = 0
    for _ in range(100):
        one, two = rng.random((2, 60)) < 0.7
        differences = [
            one[i].mean() - two[i].mean() for i in rng.integers(60, size=(200, 60))
        ]
        small += paired.p_value(differences) < 0.1
    # Of 100 about ten; more than 22 come once in 5,000 times.
    assert small <= 22


def test_no_examples_are_one_line():
    with pytest.raises(UserError, match="no example"):
        paired.compare({"a": lambda i: {}}, "a", 0)


def test_examples_in_docstrings(monkeypatch):
    monkeypatch.setattr(paired, "SAMPLES", (400, 400))
    for module in (compare, paired):
        assert doctest.testmod(module).failed == 0
