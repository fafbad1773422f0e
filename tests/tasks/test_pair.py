"""Pairs of texts: rows, cutting, odd examples, and that both texts are read."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import metrics
from lm.data.files import Row
from lm.models import bert
from lm.tasks.pair import Config, Pair, cut_longest
from lm.text import tokenizers
from lm.train.optim import Numbers, OptimConfig, make_optimizer
from lm.train.state import init_params
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])


def make(examples, **options):
    config = Pair.resolve(Config(**options), examples, False)
    return Pair(config, BYTES)


def example(a, b, label="x", where="file.jsonl:7"):
    return Row({"text": a, "second": b, "label": label}, where)


PAIRS = [example("good", "day"), example("a", "b", "y")]


def make_pairs(**options):
    return make(PAIRS, text_b="second", **options)


def test_a_row_is_both_texts_and_their_types():
    task = make_pairs(length=16)
    (document, _) = task.encode(PAIRS)
    row = task.features([(None, document)], (16,), None)
    bos, eos, pad = BYTES.bos_id, BYTES.eos_id, max(BYTES.pad_id, 0)
    parts = [*BYTES.encode("good"), eos], [*BYTES.encode("day"), eos]
    expected = [*([bos] if bos >= 0 else []), *parts[0], *parts[1]]
    size = len(expected)
    assert row["inputs"].tolist() == expected + [pad] * (16 - size)
    second = [0] * (size - len(parts[1])) + [1] * len(parts[1])
    assert row["type_ids"].tolist() == second + [0] * (16 - size)
    blank = task.features([], (16,), None)
    assert {k: v.shape for k, v in blank.items()} == {
        k: v.shape for k, v in row.items()
    }


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 30))
def test_the_longer_text_is_cut_first(size_a, size_b, room):
    a, b = list(range(size_a)), list(range(size_b))
    found = [part.tolist() for part in cut_longest(np.array(a), np.array(b), room)]
    while len(a) + len(b) > room:  # `_truncate_seq_pair` of BERT's run_classifier.py
        (a if len(a) > len(b) else b).pop()
    assert found == [a, b]


@pytest.mark.parametrize(
    "bad, message",
    [
        (Row({"text": "a", "label": "x"}, "file:3"), "file:3 has no 'second'"),
        (example("a", None), "file.jsonl:7: 'second' is null"),
        (example("a", 3), "file.jsonl:7: 'second' is 3, not a text"),
        (example("a", "b", "z"), "the label 'z'"),
    ],
)
def test_a_bad_pair_stands_alone(bad, message):
    before, error, after = make_pairs(length=16).encode([PAIRS[0], bad, PAIRS[1]])
    assert isinstance(error, UserError) and message in str(error)
    assert (before["label"].tolist(), after["label"].tolist()) == ([0], [1])


def test_fields_in_use_are_not_suggested_as_the_second_text():
    near = {"text": "a", "texts": "b", "label": "x"}
    task = Pair(Config(labels=("x", "y")), BYTES)
    errors = task.encode([Row(near, "file:3"), Row({"text": "", "label": "x"}, "f:4")])
    lines = [str(error) for error in errors]
    assert "file:3 has no 'text_b'; did you mean 'texts'?" in lines[0]
    assert lines[1].startswith("f:4 has no 'text_b'; mend it")


def test_a_number_of_pairs_is_standardised():
    examples = [example("a", "b", 4), example("c", "d", 8)]
    task = make(examples, text_b="second", kind="number")
    assert task.config.moments == (6, 2)
    found = [d["label"].view(np.float32).tolist() for d in task.encode(examples)]
    assert found == [[-1], [1]]


def test_pairs_that_are_too_long_are_cut_or_refused():
    long = example("x" * 8, "y" * 9)
    (document,) = make_pairs(length=16).encode([long])
    marks = len(document["tokens"]) - 13
    assert marks == 2 + (BYTES.bos_id >= 0)
    (error,) = make_pairs(length=16, long_texts="refuse").encode([long])
    assert "has 17 tokens, more than the 13 of task.length" in str(error)


@given(st.text(max_size=40), st.text(max_size=40))
def test_predicting_takes_any_texts(a, b):
    task = make_pairs(length=16)
    (document,) = task.encode_inputs([example(a, b)])
    features = task.features([(None, document)], (16,), None)
    assert (features["segment_ids"] > 0).sum() == len(document["tokens"]) <= 16


def test_training_leaves_out_tokens_with_their_types():
    task = make_pairs(length=16, token_dropout_rate=0.5)
    rows = [task.features([(None, d)], (16,), None) for d in task.encode(PAIRS)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["example_mask"] = np.ones(2, np.float32)
    batch["inputs"] = np.arange(32).reshape(2, 16)

    class Model:
        def apply(self, params, batch, **_):
            self.seen = batch
            return np.zeros((2, 2), np.float32)

    model = Model()
    task.loss(model, {}, batch, None)
    assert model.seen is batch
    task.loss(model, {}, batch, jax.random.key(0))
    left = np.array(model.seen["segment_ids"], bool)
    assert 2 < left.sum() < batch["segment_ids"].sum() and left[:, 0].all()
    tokens = np.array(model.seen["inputs"])[left]
    assert len({*tokens}) == len(tokens)
    for name in ("segment_ids", "type_ids"):
        np.testing.assert_array_equal(
            np.array(model.seen[name])[left], batch[name].ravel()[tokens]
        )


def test_a_small_model_learns_what_depends_on_both_texts():
    rng = np.random.default_rng(0)
    words = ["red", "blue"]

    def draw():
        a, b = rng.choice(words, 2)
        tail = [" " + str(rng.integers(10)) for _ in range(2)]
        return {"text": a + tail[0], "text_b": b + tail[1], "label": str(a == b)}

    examples = [draw() for _ in range(256)]
    task = make(examples, length=20, pooling="first")
    model = task.build_model(
        bert.Config(
            vocab_size=280,
            emb_dim=32,
            num_layers=2,
            num_heads=4,
            max_len=20,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
            norm_position="pre",
        )
    )
    rows = [task.features([(None, d)], (20,), None) for d in task.encode(examples)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["example_mask"] = np.ones(len(rows), np.float32)
    params = jax.jit(lambda: init_params(model, 0))()
    optim = OptimConfig(learning_rate=1e-2)
    optimizer = make_optimizer(optim, Numbers.of(optim, 80, 10), params)

    @jax.jit
    def step(params, state, batch):
        grads, _ = jax.grad(lambda p: task.loss(model, p, batch, None), has_aux=True)(
            params
        )
        grads = jax.tree.map(lambda g: g / 32, grads)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    state = optimizer.init(params)
    for _ in range(80):
        chosen = rng.integers(0, 192, 32)
        params, state = step(params, state, {k: v[chosen] for k, v in batch.items()})
    held_out = {name: values[192:] for name, values in batch.items()}
    _, found = task.loss(model, params, held_out, None)
    assert metrics.compute(found)["accuracy"] > 0.9
