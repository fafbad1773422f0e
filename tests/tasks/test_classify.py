"""Classes: labels, losses, predictions and odd inputs."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.files import Row
from lm.models import bert
from lm.tasks.classify import Classify, Config
from lm.text import tokenizers
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
        ([row({"text": "x", "label": None})], {}, "file.jsonl:7 has no 'label'"),
        ([row({"text": "x", "label": ["a"]})], {}, "is no label"),
        ([row({"text": "x", "label": ""})], {}, "is no label"),
    ],
)
def test_training_examples_that_cannot_be_learned_from(examples, options, message):
    with pytest.raises(UserError, match=message):
        make(examples, **options)


def test_bad_training_examples_may_be_skipped():
    config = Config(length=32)
    found = Classify.resolve(config, [*TEXTS, {"text": "x"}], True)
    assert found.counts == (1, 2)


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
        np.testing.assert_allclose(total, sum(squares), rtol=1e-4)
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
