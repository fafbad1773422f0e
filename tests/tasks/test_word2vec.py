"""Word2Vec: its loss word by word, what chance decides, and what it learns."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import evaluate, predict, sharding
from lm.data.huffman import huffman_paths
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.models import word2vec as model_lib
from lm.tasks.word2vec import Config, Word2Vec
from lm.text import tokenizers
from lm.text.ngrams import bucket, ngrams
from lm.train import workdir as workdir_lib
from lm.train.config import Config as RunConfig
from lm.train.evaluation import put
from lm.train.loop import train
from lm.train.state import placed_params
from lm.types import UserError
from tools.export import graph

TEXTS = [
    "the cat and the dog sat on the mat",
    "a king is a man and a queen is a woman and the cat is a cat",
    "the dog and the bird and the mat of the king and of the queen",
] * 4  # 20 words, marks included
WORDS = tokenizers.train("words", TEXTS)
V, D = WORDS.vocab_size, 8
assert WORDS.counts is not None
COUNTS = np.where(WORDS.is_special, 0, WORDS.counts)


def make(**options):
    task = Word2Vec(Config(**options), WORDS)
    model = task.build_model(model_lib.Config(vocab_size=V, emb_dim=D))
    return task, model


def draw_params(seed=0):
    rng = np.random.default_rng(seed)
    table, contexts = rng.normal(0, 0.5, (2, V, D)).astype(np.float32)
    return {
        "embedder": {"token": {"embedding": jnp.asarray(table)}},
        "context": {"embedding": jnp.asarray(contexts)},
    }


def stack(rows):
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "example_mask": np.ones(len(rows), np.float32)}


def log_sigmoid(x):
    return -np.log1p(np.exp(-np.float64(x)))


def reference(task, params, batch):
    """Returns loss and number of predictions, one prediction after the other."""
    config = task.config
    v = np.asarray(params["embedder"]["token"]["embedding"], np.float64)
    u = np.asarray(params["context"]["embedding"], np.float64)
    paths = huffman_paths(COUNTS)
    total, number = 0.0, 0

    def predict(state, word, noise):
        if config.output == "hierarchical_softmax":
            return -sum(
                log_sigmoid(sign * state @ u[node])
                for node, sign in zip(paths.nodes[word], paths.signs[word])
                if sign
            )
        share = config.negatives / config.shared_negatives
        others = sum(log_sigmoid(-state @ u[other]) for other in noise)
        return -log_sigmoid(state @ u[word]) - share * others

    for row in range(len(batch["inputs"])):
        ids, segments = batch["inputs"][row], batch["segment_ids"][row]
        noise = batch["negatives"][row] if "negatives" in batch else ()
        for t, reach in enumerate(batch["windows"][row]):
            near = [
                i
                for i in range(max(t - reach, 0), min(t + reach + 1, len(ids)))
                if i != t and segments[i] == segments[t] > 0
            ]
            if config.kind == "skip_gram":
                total += sum(predict(v[ids[t]], ids[i], noise) for i in near)
                number += len(near)
            elif near:
                total += predict(v[ids[near]].mean(axis=0), ids[t], noise)
                number += 1
    return total, number


@pytest.mark.parametrize("output", ["negative_sampling", "hierarchical_softmax"])
@pytest.mark.parametrize("kind", ["skip_gram", "cbow"])
# Rows shorter and longer than a block, a window wider than one.
@pytest.mark.parametrize("length, window", [(9, 3), (70, 5), (64, 40)])
def test_the_loss_is_that_of_the_papers(make_rows, kind, output, length, window):
    task, model = make(
        kind=kind, output=output, length=length, window=window, shared_negatives=4
    )
    batch = stack(make_rows(task, TEXTS))
    params = draw_params()
    total, metrics = jax.jit(task.loss, static_argnums=0)(model, params, batch, None)
    expected, number = reference(task, params, batch)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert metrics["loss"].weight == number


@pytest.mark.parametrize("output", ["negative_sampling", "hierarchical_softmax"])
@pytest.mark.parametrize("kind", ["skip_gram", "cbow"])
def test_gradients_are_slopes(make_rows, kind, output):
    task, model = make(kind=kind, output=output, length=40, window=3)
    batch = stack(make_rows(task, TEXTS)[:1])
    params = draw_params()
    grads = jax.jit(jax.grad(lambda p: task.loss(model, p, batch, None)[0]))(params)
    grads = jax.tree.map(np.float64, grads)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))

    def at(step):
        moved = jax.tree.map(
            lambda p, g: np.float64(p) + step * g / norm, params, grads
        )
        return reference(task, moved, batch)[0]

    np.testing.assert_allclose(norm, (at(1e-4) - at(-1e-4)) / 2e-4, rtol=1e-5)


def test_ngrams_are_parts_of_their_words(make_rows):
    task = Word2Vec(Config(length=40, window=3), WORDS)
    config = model_lib.Config(vocab_size=V, emb_dim=D, ngram_buckets=50, max_ngram=4)
    model = task.build_model(config)
    table = np.random.default_rng(2).normal(0, 0.5, (50, D)).astype(np.float32)
    params = draw_params() | {"ngram": {"embedding": jnp.asarray(table)}}
    own = np.asarray(params["embedder"]["token"]["embedding"])
    expected = own.copy()
    for id in range(5, V):
        parts = [table[bucket(n, 50)] for n in ngrams(WORDS.token(id), 3, 4)]
        expected[id] = np.mean([own[id], *parts], axis=0)
    found = model.apply({"params": params}, config.ngrams(WORDS), method="word_vectors")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    batch = stack(make_rows(task, TEXTS))
    composed = draw_params() | {"embedder": {"token": {"embedding": expected}}}
    total, _ = jax.jit(task.loss, static_argnums=0)(model, params, batch, None)
    np.testing.assert_allclose(total, reference(task, composed, batch)[0], rtol=1e-5)
    grads = jax.jit(jax.grad(lambda p: task.loss(model, p, batch, None)[0]))(params)
    assert np.abs(grads["ngram"]["embedding"]).max() > 0


def test_eight_devices_are_one(make_rows):
    task, model = make(length=40, window=3)
    batch = stack(make_rows(task, TEXTS * 8)[:4])
    params = draw_params()
    grad = jax.jit(jax.value_and_grad(lambda p, b: task.loss(model, p, b, None)[0]))
    loss, grads = grad(params, batch)
    config = sharding.MeshConfig(data=2, fsdp=2, tensor=2)
    mesh = sharding.build_mesh(config, None)
    layout = jax.tree.map(
        lambda leaf: leaf.sharding, placed_params(model, mesh, config)
    )
    with sharding.use(mesh, config):
        placed = jax.device_put(params, layout)
        table = placed["context"]["embedding"]
        assert table.addressable_shards[0].data.shape[0] == V // 2 == 10
        many, many_grads = grad(placed, put(mesh, batch))
    np.testing.assert_allclose(loss, many, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        grads,
        many_grads,
    )


def test_rows_fill_up_and_weigh_nothing(make_rows):
    task, model = make(length=64)
    batch = stack(make_rows(task, TEXTS))
    params = draw_params()
    empty = task.features([], (64,), np.random.default_rng(0))
    assert not empty["windows"].any() and not empty["segment_ids"].any()
    more = stack(
        [
            *(
                {k: v[i] for k, v in batch.items() if k != "example_mask"}
                for i in range(len(batch["inputs"]))
            ),
            empty,
        ]
    )
    loss = jax.jit(task.loss, static_argnums=0)
    (total, metrics), (total_more, metrics_more) = (
        loss(model, params, b, None) for b in (batch, more)
    )
    np.testing.assert_allclose(total, total_more, rtol=1e-6)
    assert metrics["loss"].weight == metrics_more["loss"].weight


def test_frequent_words_are_left_out_and_unknown_ones_always(make_rows):
    task, _ = make(length=50, subsample=0.02)
    share = COUNTS / COUNTS.sum()
    the, king = (int(WORDS.encode(word)[0]) for word in ("the", "mat"))
    for word in (the, king):
        f = share[word] / 0.02
        expected = min((np.sqrt(f) + 1) / f, 1)
        assert task.kept_share[word] == pytest.approx(expected)
    rows = [
        row
        for seed in range(40)
        for row in make_rows(task, [*TEXTS * 8, "zzz the zzz"], seed=seed)
    ]
    ids = np.concatenate([row["inputs"][row["segment_ids"] > 0] for row in rows])
    assert WORDS.unk_id not in ids
    found = np.bincount(ids, minlength=V)
    # All words together, the cut of the fullest rows included.
    expected = 8 * 40 * (COUNTS * task.kept_share)
    assert abs(found.sum() / expected.sum() - 1) < 0.05
    np.testing.assert_allclose(
        found[the] / found.sum(), expected[the] / expected.sum(), atol=0.03
    )
    fill = np.mean([(row["segment_ids"] > 0).mean() for row in rows])
    assert fill > 0.85


def test_without_subsampling_every_word_is_there_in_order(make_rows):
    task, _ = make(length=11, subsample=0.0)
    rows = make_rows(task, TEXTS, train=False)
    found = np.concatenate([row["inputs"][row["segment_ids"] > 0] for row in rows])
    np.testing.assert_array_equal(found, np.concatenate(WORDS.encode_batch(TEXTS)))
    windows = np.concatenate([row["windows"][row["segment_ids"] > 0] for row in rows])
    assert set(windows.tolist()) == set(range(1, 6))


def test_noise_is_drawn_by_a_power_of_the_counts():
    task, _ = make(shared_negatives=20_000)
    row = task.features([], (512,), np.random.default_rng(0))
    expected = COUNTS**0.75 / (COUNTS**0.75).sum()
    found = np.bincount(row["negatives"], minlength=V) / 20_000
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert not found[COUNTS == 0].any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "glove"}, "task.kind"),
        ({"output": "softmax"}, "task.output"),
        ({"window": 0}, "task.window"),
        ({"window": 512}, "task.window must be at least 1 and less than 512"),
        ({"subsample": -1.0}, "task.subsample"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Config(**options)


def test_other_tokenizers_and_models_are_refused():
    with pytest.raises(UserError, match="--kind=words"):
        Word2Vec(Config(), tokenizers.train("bytes", []))
    with pytest.raises(UserError, match="two words"):
        Word2Vec(Config(), tokenizers.train("words", ["hello hello"]))
    task, _ = make()

    with pytest.raises(UserError, match="model.name"):
        task.build_model(bert.Config())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir; of its test split nothing is left."""
    tmp_path = tmp_path_factory.mktemp("trained")
    WORDS.save(tmp_path / "words")
    for split, texts in (
        ("train", 20 * TEXTS),
        ("validation", TEXTS),
        ("test", ["the a"]),
    ):
        lines = (json.dumps({"text": text}) for text in texts)
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    config = RunConfig(
        model=model_lib.Config(vocab_size=V, emb_dim=D),
        task=Config(length=8, subsample=1e-4),
        data=DataConfig(
            sources=(str(tmp_path / "{split}.jsonl"),),
            tokenizer=str(tmp_path / "words"),
            data_dir=str(tmp_path),
            eval_split="test",
        ),
        batch_size=8,
        num_train_steps=1,
        warmup_steps=0,
    )
    train(config, tmp_path / "run")
    return tmp_path / "run"


def test_a_split_of_which_nothing_is_left_has_no_loss(trained, capsys):
    config = workdir_lib.load_config(trained)
    result = train(dataclasses.replace(config, num_train_steps=2), trained)
    assert result["step"] == 2 and np.isnan(result["eval/test/loss"])
    assert "of test nothing is predicted" in capsys.readouterr().err
    args = evaluate.parser.parse_args([f"--workdir={trained}"])
    with pytest.raises(UserError, match="of test nothing is predicted"):
        evaluate.main(args)
    args.split = "validation"
    assert evaluate.main(args)["eval/validation/loss"] > 0


def test_what_only_has_vectors_says_which_tools_use_them(trained):
    args = predict.parser.parse_args([f"--workdir={trained}", "--text=the cat"])
    with pytest.raises(UserError, match=r"with tools.export_vectors, or score them"):
        predict.main(args)
    with pytest.raises(UserError, match=r"be exported; .* with tools.export_vectors"):
        graph.build(workdir_lib.load(trained))
