"""Classes: labels, losses, predictions and odd inputs."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.files import Row
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks.classify import Classify, Config
from lm.text import tokenizers
from lm.train import begin, workdir
from lm.train.config import Config as RunConfig
from lm.train.loop import train
from lm.train.optim import OptimConfig
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
MODEL = bert.Config(vocab_size=280, emb_dim=8, num_layers=1, num_heads=2, max_len=32)
TEXTS = [
    {"text": "good day", "label": "b"},
    {"text": "bad", "label": "a"},
    {"text": "a longer text of some words", "label": "b"},
]


def row(example, where="file.jsonl:7"):
    return Row(example, where)


def make(examples=TEXTS, **options):
    config = Config(length=32, **options)
    return Classify(Classify.resolve(config, examples, False), BYTES)


def batch_of(task, examples, inputs_only=False):
    documents = (task.encode_inputs if inputs_only else task.encode)(examples)
    rows = [task.features([(None, d)], (32,), None) for d in documents]
    rows.append(task.features([], (32,), None))
    batch = {name: np.stack([r[name] for r in rows]) for name in rows[0]}
    return batch | {"example_mask": np.array([1.0] * len(examples) + [0.0], np.float32)}


def init(task):
    model = task.build_model(MODEL)
    batch = batch_of(task, [{"text": "x"}], inputs_only=True)
    params = nn.unbox(model.init(jax.random.key(0), batch)["params"])
    return model, jax.tree.map(lambda x: x + 0.1, params)


def test_labels_are_found_sorted_and_counted():
    config = make().config
    assert config.labels == ("a", "b") and config.counts == (1, 2)
    given_labels = make(labels=("b", "a")).config
    assert given_labels.labels == ("b", "a") and given_labels.counts == (2, 1)


@pytest.mark.parametrize(
    "examples, options, message",
    [
        (TEXTS[:1], {}, "have 1 label .b., too few"),
        (TEXTS, {"labels": ("a", "b", "c")}, "no training example has the label 'c'"),
        (TEXTS, {"labels": ("a", "c")}, "'b', which is none of task.labels"),
        ([row({"text": "x"})], {}, "file.jsonl:7 has no 'label'"),
        ([row({"text": "x", "lable": "a"})], {}, "did you mean 'lable'"),
        ([row({"text": "x", "label": None})], {}, "file.jsonl:7: 'label' is null"),
        ([row({"text": "x", "label": ["a"]})], {}, "no label; .* task.kind=several"),
        ([row({"text": "x", "label": 0.5})], {}, "no label; .* task.kind=number"),
        ([row({"text": "x", "label": ""})], {}, "is no label; mend it$"),
        ([], {}, "there are no training examples; check data.sources"),
        ([], {"labels": ("a", "b")}, "there are no training examples"),
        ([], {"kind": "number"}, "there are no training examples"),
        (
            [*TEXTS, {"text": "x", "label": "b "}],
            {},
            "the labels 'b' and 'b ', which differ only by blanks",
        ),
    ],
)
def test_training_examples_that_cannot_be_learned_from(examples, options, message):
    with pytest.raises(UserError, match=message):
        make(examples, **options)


def test_bad_training_examples_may_be_skipped():
    config = Config(length=32)
    found = Classify.resolve(config, [*TEXTS, {"text": "x"}], True)
    assert found.counts == (1, 2)
    with pytest.raises(UserError, match="the example has no 'label'"):
        Classify.resolve(config, [{"text": "x"}], True)


def test_labels_may_differ_by_case_or_be_given_though_they_differ_by_blanks():
    examples = [{"text": "x", "label": label} for label in ("b", "B", "b ")]
    assert make(examples[:2]).config.labels == ("B", "b")
    assert make(examples, labels=("b", "b ", "B")).config.counts == (1, 1, 1)


def test_numbers_and_truth_values_are_the_labels_that_json_writes():
    values = [True, "true", False, 1, "1"]
    config = make([{"text": "x", "label": value} for value in values]).config
    assert config.labels == ("1", "false", "true") and config.counts == (2, 1, 2)


def test_several_labels_may_be_json_in_a_cell():
    cells = ['["b", "a"]', " []", "", " ", "a", '["a"]', ["b"]]
    examples = [row({"text": "x", "label": cell}) for cell in cells]
    task = make(examples, kind="several")
    assert task.config.labels == ("a", "b") and task.config.counts == (3, 2)
    found = [document["label"].tolist() for document in task.encode(examples)]
    assert found == [[1, 0], [], [], [], [0], [0], [1]]


@pytest.mark.parametrize(
    "cell, message",
    [
        ("['a', 'b']", "no list in JSON such as"),
        ('["a"', "no list in JSON such as"),
        ('["a", null]', "'label' is None, which is no label; mend it; several"),
        ('["a", ""]', "'label' is '', which is no label; mend it; several"),
        (None, "'label' is null"),
    ],
)
def test_a_cell_of_no_labels_is_named(cell, message):
    with pytest.raises(UserError, match=f"file.jsonl:7: .*{message}") as caught:
        make([row({"text": "x", "label": cell})], kind="several")
    assert "task.kind" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"thresholds": (0.5, 0.5)}, "task.thresholds is for task.kind=several"),
        ({"kind": "several", "thresholds": (1.5, 0.5)}, "must be from 0 to 1"),
        ({"kind": "several", "thresholds": (np.nan, 0.5)}, "must be from 0 to 1"),
        ({"kind": "several", "thresholds": (-0.1, 0.5)}, "must be from 0 to 1"),
        ({"moments": (0.0, 1.0)}, "task.moments is for task.kind=number"),
        ({"kind": "number", "moments": (0.0, 0.0)}, "deviation above 0"),
        ({"kind": "number", "moments": (np.nan, 1.0)}, "deviation above 0"),
        ({"kind": "number", "moments": (1.0,)}, "deviation above 0"),
    ],
)
def test_options_of_another_kind_or_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        Config(**options)


def numbers(*values):
    return [row({"text": "x", "label": value}) for value in values]


def test_a_number_is_standardised_and_comes_back_in_its_units():
    examples = numbers(1_700_000_001, "1700000005.0")
    task = make(examples, kind="number")
    assert task.config.moments == (1_700_000_003.0, 2.0)
    documents = task.encode(examples)
    found = [float(document["label"].view(np.float32)[0]) for document in documents]
    assert found == [-1, 1]
    predictions = [task.decode(e, [{"value": v}]) for e, v in zip(examples, found)]
    assert [p["value"] for p in predictions] == [1_700_000_001, 1_700_000_005]
    assert task.score(examples, predictions)["mae"] == 0
    before = Classify(dataclasses.replace(task.config, moments=()), BYTES)
    assert before.decode({}, [{"value": 0.5}]) == {"value": 0.5}
    assert before.encoding != task.encoding


def test_moments_may_be_given_and_are_kept():
    task = make(numbers(1, 2), kind="number", moments=(5.0, 3.0))
    assert task.config.moments == (5, 3)


@pytest.mark.parametrize("value", [0, 0.1, 1e9 / 7, -3e38])
def test_a_number_that_does_not_vary_is_learned_in_its_own_unit(value):
    mean, deviation = make(numbers(*[value] * 7), kind="number").config.moments
    assert mean == pytest.approx(value) and deviation == 1


@pytest.mark.parametrize(
    "value",
    ["", "many", [1], {}, np.nan, "inf", 1e39, pytest.param(10**400, id="huge")],
)
def test_what_is_no_number_is_named_or_skipped(value):
    examples = numbers(2, value, 4)
    with pytest.raises(UserError, match="file.jsonl:7: 'label' is .*, not a number"):
        make(examples, kind="number")
    config = Classify.resolve(Config(kind="number"), examples, True)
    assert config.moments == (3, 1)
    _, error, _ = Classify(config, BYTES).encode(examples)
    assert isinstance(error, UserError)


def test_numbers_far_from_zero_are_learned(tmp_path):
    rng = np.random.default_rng(0)
    for split, size in (("train", 128), ("validation", 32)):
        lines = []
        for _ in range(size):
            words = rng.choice(["good", "bad"], 6)
            label = 100 + int((words == "good").sum())
            lines.append(json.dumps({"text": " ".join(words), "label": label}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    tokenizers.train("wordpiece", ["good bad"] * 9, 16).save(tmp_path / "tokenizer")
    config = RunConfig(
        model=dataclasses.replace(MODEL, vocab_size=16, norm_position="pre"),
        task=Config(length=16, kind="number", pooling="mean"),
        data=DataConfig(
            sources=(str(tmp_path / "{split}.jsonl"),),
            tokenizer=str(tmp_path / "tokenizer"),
            data_dir=str(tmp_path),
        ),
        optim=OptimConfig(learning_rate=1e-2),
        batch_size=32,
        num_train_steps=60,
        warmup_steps=5,
    )
    result = train(config, tmp_path / "run")
    assert result["eval/validation/r2"] > 0.8 and result["eval/validation/mae"] < 0.6
    kept = workdir.load_config(tmp_path / "run").task
    assert 102 < kept.moments[0] < 104 and 1 < kept.moments[1] < 1.5
    # The same command goes on with them, another kind does not take them over.
    before = dataclasses.replace(config, task=kept)
    assert begin.inherit(config, before) == before
    other = dataclasses.replace(config, task=Config(length=16, kind="several"))
    assert begin.inherit(other, before) == other


def test_a_label_that_training_never_saw_is_named():
    task = make()
    examples = [TEXTS[0], row({"text": "x", "label": "c"})]
    fine, bad = task.encode(examples)
    assert fine["label"].tolist() == [1]
    assert isinstance(bad, UserError)
    assert "file.jsonl:7 has the label 'c'" in str(bad)


def test_long_texts_are_cut_or_refused():
    (document,) = make().encode([{"text": "x" * 99, "label": "a"}])
    assert len(document["tokens"]) == 32
    assert document["tokens"][-1] == BYTES.eos_id
    (error,) = make(long_texts="refuse").encode([row({"text": "x" * 99, "label": "a"})])
    assert "file.jsonl:7 has 99 tokens, more than the 30" in str(error)


@pytest.mark.parametrize("kind", ["one", "several", "number"])
def test_loss_is_a_sum_over_real_rows(kind):
    values = {"one": ["b", "a", "b"], "several": [["a", "b"], [], ["b"]]}
    labels = values.get(kind, [0.5, -2.0, 3])
    examples = [e | {"label": label} for e, label in zip(TEXTS, labels)]
    task = make(examples, kind=kind)
    model, params = init(task)
    total, metrics = task.loss(model, params, batch_of(task, examples), None)
    assert metrics["loss"].weight == 3
    alone = [
        task.loss(model, params, batch_of(task, [example]), None)[0]
        for example in examples
    ]
    np.testing.assert_allclose(total, sum(alone), rtol=1e-5)
    predictions = predict(task, model, params, examples)
    if kind == "number":
        squares = [(p["value"] - x) ** 2 for p, x in zip(predictions, labels)]
        np.testing.assert_allclose(total, sum(squares) / np.var(labels), rtol=1e-4)
    if kind == "one":
        nats = [-np.log(p["probabilities"][x]) for p, x in zip(predictions, labels)]
        np.testing.assert_allclose(total, sum(nats), rtol=1e-4)
    if kind == "several":
        nats = [
            -np.mean([np.log(q if n in x else 1 - q) for n, q in p.items()])
            for p, x in zip((p["probabilities"] for p in predictions), labels)
        ]
        np.testing.assert_allclose(total, sum(nats), rtol=1e-4)


def predict(task, model, params, examples):
    batch = batch_of(task, examples, inputs_only=True)
    outputs = jax.device_get(task.predict(model, params, batch))
    return [
        task.decode(example, [{name: value[i] for name, value in outputs.items()}])
        for i, example in enumerate(examples)
    ]


def test_balanced_classes_weigh_the_same():
    task = make(class_weights="balanced")
    model, params = init(task)
    _, metrics = task.loss(model, params, batch_of(task, TEXTS), None)
    np.testing.assert_allclose(metrics["loss"].weight, 3 / 2 / 1 + 2 * 3 / 2 / 2)
    assert metrics["accuracy"].weight == 3


def test_smoothing_mixes_in_the_uniform_distribution():
    plain, smooth = make(), make(label_smoothing=0.4)
    model, params = init(plain)
    batch = batch_of(plain, TEXTS)
    logits = model.apply({"params": params}, batch)[:3]
    nats = -jax.nn.log_softmax(logits)
    label = jnp.array([1, 0, 1])
    expected = 0.6 * nats[jnp.arange(3), label] + 0.4 * nats.mean(axis=1)
    loss, _ = smooth.loss(model, params, batch, None)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


def test_thresholds_decide_on_several_labels():
    examples = [{"text": "x", "label": ["a", "b"]}]
    task = make(examples, kind="several")
    output = {"probabilities": np.array([0.3, 0.6])}
    assert task.decode({}, [output])["labels"] == ["b"]
    config = dataclasses.replace(task.config, thresholds=(0.2, 0.7))
    assert Classify(config, BYTES).decode({}, [output])["labels"] == ["a"]


def test_tuned_thresholds_count_what_is_right():
    labels = [["a"], ["a", "b"], ["b"], []]
    examples = [{"text": "x", "label": label} for label in labels]
    task = make(examples, kind="several")
    found = [(0.3, 0.1), (0.2, 0.9), (0.1, 0.8), (0.1, 0.7)]
    predictions = [{"probabilities": dict(zip("ab", row))} for row in found]
    config = task.tuned(examples, predictions)
    assert config.thresholds == pytest.approx((0.15, 0.75))
    assert Classify(config, BYTES).score(examples, predictions)["f1_macro"] == 1
    with pytest.raises(UserError, match="has 1 numbers, but there are 2 labels"):
        make(examples, kind="several", thresholds=(0.5,))


@given(st.text(max_size=80))
def test_predicting_takes_any_text(text):
    task = make()
    (document,) = task.encode_inputs([{"text": text}])
    features = task.features([(None, document)], (32,), None)
    assert (features["segment_ids"] > 0).sum() == len(document["tokens"]) <= 32


def test_what_decides_the_columns_is_in_the_encoding():
    names = {
        make(labels=("b", "a")).encoding,
        make().encoding,
        make(kind="several", examples=TEXTS).encoding,
    }
    assert len(names) == 3
