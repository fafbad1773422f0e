"""Ranking: rows, losses over a whole batch, ranks among all texts."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import sharding
from lm.data.files import Row
from lm.data.packing import join
from lm.data.pipeline import DataConfig, one_pass
from lm.models import bert
from lm.tasks import rank
from lm.tasks.base import marked
from lm.tasks.rank import Config, Rank
from lm.text import tokenizers
from lm.train.config import Config as RunConfig
from lm.train.evaluation import Predictor
from lm.train.loop import train
from lm.train.optim import OptimConfig
from lm.train.state import init_params
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
MODEL = bert.Config(
    vocab_size=280,
    emb_dim=8,
    num_layers=1,
    num_heads=2,
    max_len=32,
    dropout_rate=0.1,
    init_stddev=0.3,
    embed_stddev=0.3,
)
QUERIES = ["cat", "sun", "cat", "rain", "tree", "sea", "moon", "dog"]
TEXTS = ["a cat", "hot", "purrs", "it is wet", "a tree", "hot", "night", "a dog barks"]
EXAMPLES = [
    Row({"text": text, "query": query}, f"file:{number}")
    for number, (query, text) in enumerate(zip(QUERIES, TEXTS), 1)
]


def make(**options):
    config = Config(**{"length": 24, "query_length": 8} | options)
    task = Rank(config, BYTES)
    model = task.build_model(MODEL)
    return task, model, jax.jit(init_params, static_argnums=0)(model, 0)


def loss_of(task, model, params, batch):
    return jax.jit(lambda params, batch: task.loss(model, params, batch, None))(
        params, batch
    )


def batch_of(task, examples, size=0, encode="encode"):
    documents = getattr(task, encode)(examples)
    return one_pass(task, documents, max(size, len(examples))).batch(0)


def test_a_row_is_a_text_and_its_query():
    task, _, _ = make()
    batch = batch_of(task, EXAMPLES, 9)
    shapes = {name: value.shape for name, value in batch.items()}
    assert shapes == {
        "inputs": (9, 24),
        "segment_ids": (9, 24),
        "query_inputs": (9, 8),
        "query_segment_ids": (9, 8),
        "ids": (9, 2),
        "example_mask": (9,),
    }
    for prefix, strings in (("", TEXTS), ("query_", QUERIES)):
        for row, string in enumerate(strings):
            ids = marked(BYTES, BYTES.encode(string)).tolist()
            real = batch[f"{prefix}segment_ids"][row] > 0
            assert batch[f"{prefix}inputs"][row][real].tolist() == ids
    queries, texts = batch["ids"][:8].T
    assert queries[0] == queries[2] and len(set(queries)) == 7
    assert texts[1] == texts[5] and len(set(texts)) == 7


def test_texts_that_are_equal_as_far_as_they_are_read_have_one_id():
    task, _, _ = make()
    examples = [{"text": "x" * n, "query": str(n)} for n in (30, 31, 9)]
    ids = batch_of(task, examples)["ids"][:, 1]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("kind", rank.KINDS)
def test_what_is_predicted_is_padded_to_what_it_needs(kind):
    task, model, params = make(kind=kind)
    batch = batch_of(task, [{"text": "", "query": ""}], encode="encode_inputs")
    assert batch["inputs"].shape == (1, 16) and batch["query_inputs"].shape == (1, 8)
    assert batch["ids"].shape == (1, 0)
    assert np.isfinite([*task.predict(model, params, batch).values()]).all()


def test_a_text_without_a_query_has_a_vector():
    task, model, params = make()
    alone = batch_of(task, [{"text": "a cat"}], encode="encode_inputs")
    assert alone["query_inputs"].shape == (1, 0)
    both = batch_of(task, EXAMPLES[:1], encode="encode_inputs")
    found, expected = (task.predict(model, params, batch) for batch in (alone, both))
    assert set(found) == {"text_vector"}
    np.testing.assert_allclose(found["text_vector"], expected["text_vector"], rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(found["text_vector"]), 1, rtol=1e-5)
    cross, _, _ = make(kind="cross")
    with pytest.raises(UserError, match="has no 'query'"):
        cross.encode_inputs([{"text": "a cat"}])


@pytest.mark.parametrize(
    "bad, message",
    [
        (Row({"text": "a"}, "file:9"), "file:9 has no 'query'"),
        (Row({"text": "a", "query": " "}, "file:9"), "has a blank 'query'"),
        (Row({"text": "a", "query": 3}, "file:9"), "is 3, not a text"),
    ],
)
def test_a_bad_example_stands_alone(bad, message):
    task, _, _ = make()
    before, error, after = task.encode([EXAMPLES[0], bad, EXAMPLES[1]])
    assert isinstance(error, UserError) and message in str(error)
    assert before["ids"].tolist() != after["ids"].tolist()


@given(st.text(max_size=40), st.text(max_size=40))
def test_predicting_takes_any_texts(text, query):
    for kind in rank.KINDS:
        task = Rank(Config(length=24, query_length=8, kind=kind), BYTES)
        batch = batch_of(task, [{"text": text, "query": query}], encode="encode_inputs")
        assert batch["segment_ids"].any() and batch["query_segment_ids"].any()


def may_choose(examples):
    """Says for each query which texts it is shown, as the task's docstring does."""
    return np.array(
        [
            [
                i == j or (a["text"] != b["text"] and a["query"] != b["query"])
                for j, b in enumerate(examples)
            ]
            for i, a in enumerate(examples)
        ]
    )


def log_softmax(logits, allowed):
    weights = np.exp(logits) * allowed
    return logits - np.log(weights.sum(axis=1, keepdims=True))


def test_the_loss_of_a_dual_encoder_is_symmetric_cross_entropy():
    task, model, params = make(temperature=0.5)
    batch = batch_of(task, EXAMPLES)
    vectors = task.predict(model, params, batch)
    logits = np.array(vectors["query_vector"] @ vectors["text_vector"].T) / 0.5
    allowed = may_choose(EXAMPLES)
    assert not allowed[0, 2] and not allowed[1, 5] and allowed.sum() == 64 - 4
    own = np.arange(8)
    forth = log_softmax(logits, allowed)[own, own]
    back = log_softmax(logits.T, allowed)[own, own]
    total, metrics = loss_of(task, model, params, batch)
    np.testing.assert_allclose(total, -(forth + back).sum() / 2, rtol=1e-5)
    best = np.where(allowed, logits, -np.inf).argmax(axis=1)
    assert metrics["accuracy"] == ((best == own).sum(), 8)


@pytest.mark.parametrize("kind", rank.KINDS)
def test_padded_rows_are_nobodys_choice(kind):
    task, model, params = make(kind=kind, num_negatives=15)
    # The fifteen others are all of the batch, however many of them are padding.
    losses = [
        loss_of(task, model, params, batch_of(task, EXAMPLES, size))[0]
        for size in (8, 16)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("kind", rank.KINDS)
def test_a_batch_over_eight_devices_is_one_batch(kind):
    task, model, params = make(kind=kind)
    batch = batch_of(task, EXAMPLES)

    def loss(params, batch):
        return task.loss(model, params, batch, jax.random.key(0))

    mesh = sharding.build_mesh(sharding.MeshConfig())
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    assert len(rows["inputs"].sharding.device_set) == 8
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    found = step(params, rows), step(params, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found
    )


def score_pairs(task, model, params):
    """Reads [CLS] query [SEP] text [SEP] of each query with each text, [8, 8]."""
    rows = []
    for query, text in itertools.product(QUERIES, TEXTS):
        query, text = BYTES.encode(query), BYTES.encode(text)
        ids = marked(BYTES, query, text)
        is_second = np.arange(len(ids)) >= len(marked(BYTES, query))
        rows.append(join([ids], 24)[:2] + join([is_second], 24)[:1])
    names = "inputs", "segment_ids", "type_ids"
    batch = {name: np.stack(column) for name, column in zip(names, zip(*rows))}
    return np.array(model.apply({"params": params}, batch)).reshape(8, 8)


def test_a_cross_encoder_chooses_among_the_texts_that_follow():
    task, model, params = make(kind="cross", num_negatives=3)
    shown = np.arange(8)[:, None], (np.arange(8)[:, None] + np.arange(4)) % 8
    logits = score_pairs(task, model, params)[shown]
    expected = -log_softmax(logits, may_choose(EXAMPLES)[shown])[:, 0].sum()
    total, _ = loss_of(task, model, params, batch_of(task, EXAMPLES))
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_a_pairs_score_does_not_depend_on_its_batch():
    task, model, params = make(kind="cross")
    mesh = sharding.build_mesh(sharding.MeshConfig(), jax.devices()[:1])
    predictions = Predictor(task, model, mesh, 3)(params, EXAMPLES)
    assert set(predictions[0]) == {"score"}
    found = [prediction["score"] for prediction in predictions]
    expected = np.diag(score_pairs(task, model, params))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_cross_encoder_is_scored_among_the_texts_of_a_batch():
    task, model, params = make(kind="cross")
    outputs = task.predict(model, params, batch_of(task, EXAMPLES, 9))
    logits = score_pairs(task, model, params)
    own = np.diag(logits)[:, None]
    ranks = ((logits >= own) & may_choose(EXAMPLES)).sum(axis=1)
    assert outputs["before"][:8].tolist() == (ranks - 1).tolist()
    assert task.decode({}, [{"score": own[0, 0], "before": np.int32(2)}])["rank"] == 3


def predictions_of(queries, texts):
    return [
        {"query_vector": q.tolist(), "text_vector": t.tolist()}
        for q, t in zip(queries, texts)
    ]


def test_ranks_are_among_all_different_texts(monkeypatch):
    monkeypatch.setattr(rank, "CHUNK", 3)
    task, _, _ = make()
    rng = np.random.default_rng(0)
    queries, texts = rng.normal(size=(2, 8, 4))
    texts[5] = texts[1]  # they are equal
    ranked = task.together(EXAMPLES, predictions_of(queries, texts))
    different = [0, 1, 2, 3, 4, 6, 7]
    for i, prediction in enumerate(ranked):
        order = sorted(different, key=lambda j: -queries[i] @ texts[j])
        own = 1 if i == 5 else i
        assert prediction["rank"] == 1 + order.index(own)
        assert prediction["nearest"] == TEXTS[order[0]]
    # Of some predictions ranks stay what they are among all.
    some = task.score(EXAMPLES[:2], ranked[:2])
    assert task.score(EXAMPLES[:2], task.together(EXAMPLES[:2], ranked[:2])) == some


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_model_that_tells_nothing_apart_is_not_right(value):
    task, _, _ = make()
    same = np.full((8, 4), value)
    ranked = task.together(EXAMPLES, predictions_of(same, same))
    assert {prediction["rank"] for prediction in ranked} == {7}


def test_the_report_shows_what_came_last_first():
    task, _, _ = make()
    ranked = [{"rank": n, "nearest": "z"} for n in (1, 3, 2)]
    worst = task.details(EXAMPLES[:3], ranked)["worst"]
    assert [row["text"] for row in worst] == ["sun", "cat", "cat"]
    assert worst[0]["gold"] == "hot" and worst[0]["predicted"] == "z"


def test_noise_is_of_training_alone():
    task, model, params = make(token_dropout_rate=0.5, cloze_rate=0.5)
    quiet, _, _ = make()
    batch = batch_of(task, EXAMPLES)
    losses = [loss_of(t, model, params, batch)[0] for t in (task, quiet)]
    assert losses[0] == losses[1]
    noisy = jax.jit(task._noise)(batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, noisy) == jax.tree.map(jnp.shape, batch)
    is_same = (noisy["query_inputs"] == batch["query_inputs"]).all(axis=1)
    assert not is_same.all()
    assert (noisy["segment_ids"].sum(axis=1) >= 1).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 8, "query_length": 9}, "too small for task.query_length 9"),
        ({"length": 9, "query_length": 8, "kind": "cross"}, "too small"),
        ({"kind": "cross", "cloze_rate": 0.1}, "task.cloze_rate is for task.kind=dual"),
        ({"kind": "cross", "pooling": "attention"}, "unknown task.pooling"),
        ({"kind": "duel"}, "did you mean 'dual'"),
        ({"temperature": 0.0}, "task.temperature must be at least"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        Config(**options)


@pytest.mark.parametrize("kind", rank.KINDS)
def test_a_run_learns_to_rank(kind, tmp_path):
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnop")
    for split, number in (("train", 200), ("validation", 40)):
        with (tmp_path / f"{split}.jsonl").open("w") as file:
            for _ in range(number):
                query = rng.choice(letters, 2, replace=False)
                text = "".join(rng.permutation([*query, *query, *"zzz"]))
                row = {"text": text, "query": "".join(query)}
                file.write(json.dumps(row) + "\n")
            file.write(json.dumps({"text": "no query"}) + "\n")
    BYTES.save(tmp_path / "bytes")
    model = dataclasses.replace(
        MODEL, emb_dim=32, dropout_rate=0.0, attention_dropout_rate=0.0
    )
    config = RunConfig(
        model=dataclasses.replace(model, norm_position="pre"),
        task=Config(
            length=24,
            query_length=8,
            kind=kind,
            num_negatives=3,
            pooling="attention" if kind == "dual" else "mean",
        ),
        data=DataConfig(
            sources=(str(tmp_path / "{split}.jsonl"),),
            tokenizer=str(tmp_path / "bytes"),
            data_dir=str(tmp_path),
            bad_rows="skip",
        ),
        optim=OptimConfig(learning_rate=1e-2),
        batch_size=32,
        num_train_steps=60,
        warmup_steps=5,
        checkpoint_every_steps=60,
    )
    found = train(config, tmp_path / "run")
    assert found["eval/validation/mrr"] > 0.8
