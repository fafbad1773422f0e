"""GloVe: the formulas beside NumPy, from text to vectors; and what does not fit."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as hf
from pyarrow import parquet
from tokenizers import models, pre_tokenizers

from lm import cli
from lm.data import cooccurrence
from lm.data.cooccurrence import CELL
from lm.data.files import Row
from lm.data.pipeline import DataConfig
from lm.models import build_model, glove, gpt
from lm.tasks.glove import Config, GloVe
from lm.text import tokenizers
from lm.train import config as run_config
from lm.train import loop
from lm.train.optim import OptimConfig
from lm.train.word_vectors import open_vectors
from lm.types import UserError
from tools import count_cooccurrences

D, STEPS, RATE = 6, 25, 0.05
WORDS = [f"w{n}" for n in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts, a tokenizer of their words, and the counts of these."""
    folder = tmp_path_factory.mktemp("glove")
    rng = np.random.default_rng(0)
    common = rng.zipf(1.5, (60, 20)) % len(WORDS)
    lines = [{"text": " ".join(WORDS[n] for n in row)} for row in common]
    lines.append({"text": "w0 odd w1"})
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    vocab = {word: id for id, word in enumerate(["<unk>", *WORDS])}
    tokenizer = hf.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>"])
    (folder / "words").mkdir()
    tokenizer.save(str(folder / "words" / "tokenizer.json"))
    count(folder, "counts")
    return folder


def count(folder, name, *flags):
    words = [
        f"--source={folder}/texts.jsonl",
        "--split=all",
        f"--tokenizer={folder}/words",
        f"--output={folder}/{name}",
        "--window=4",
        *flags,
    ]
    return count_cooccurrences.main(cli.parse(count_cooccurrences.parser, words)[0])


def cells_of(folder, name="counts"):
    blocks = parquet.read_table(folder / name / "cells.parquet")["cells"]
    return np.concatenate([np.frombuffer(b, CELL) for b in blocks.to_pylist()])


def message(action):
    with pytest.raises(UserError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    return line


def reference(params, cells, steps, rate, x_max=100.0, alpha=0.75):
    """GloVe as its paper has it: eq. 8 and 9, and AdaGrad on the mean of all cells.

    Returns the loss before each step.
    """
    names = ("embedder", "context")
    w, c = (np.float64(params[n]["token"]["embedding"]) for n in names)
    b, d = (np.float64(params[name]) for name in ("bias", "context_bias"))
    sums = [np.zeros_like(x) for x in (w, c, b, d)]
    losses = []
    for _ in range(steps):
        grads = [np.zeros_like(x) for x in (w, c, b, d)]
        loss = 0.0
        for i, j, x in cells.tolist():
            f = min(1.0, (x / x_max) ** alpha)
            error = w[i] @ c[j] + b[i] + d[j] - np.log(x)
            loss += f * error**2 / len(cells)
            slope = 2 * f * error / len(cells)
            for grad, row, part in zip(
                grads, (i, j, i, j), (slope * c[j], slope * w[i], slope, slope)
            ):
                grad[row] += part
        losses.append(loss)
        for x, grad, total in zip((w, c, b, d), grads, sums):
            total += grad**2
            x -= rate * grad / (np.sqrt(total) + 1e-8)
    return losses, w + c


@pytest.mark.parametrize("x_max", [100.0, 4.0])
def test_training_is_that_of_numpy(folder, tmp_path, x_max):
    cells = cells_of(folder)
    config = run_config.Config(
        model=glove.Config(vocab_size=13, emb_dim=D, embed_stddev=0.3),
        # All cells are in one batch of eight rows.
        task=Config(length=-(-len(cells) // 8), max_count=x_max),
        data=DataConfig(
            sources=(f"{folder}/counts/cells.parquet?text=",),
            tokenizer=f"{folder}/words",
            data_dir=str(folder),
            train_split="all",
            eval_split="all",
        ),
        optim=OptimConfig(
            name="adagrad",
            learning_rate=RATE,
            schedule="constant",
            weight_decay=0.0,
            grad_clip_norm=0.0,
        ),
        batch_size=8,
        num_train_steps=STEPS,
        warmup_steps=0,
        log_every_steps=1,
    )
    run = loop.build(config, tokenizers.load(folder / "words"))
    expected, table = reference(run.init().params, cells, STEPS + 1, RATE, x_max)
    results = loop.train(config, tmp_path / "run")
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["train/loss"] for line in log if "train/loss" in line]
    np.testing.assert_allclose(found, expected[:-1], atol=1e-4, rtol=1e-4)
    assert results["eval/all/loss"] == pytest.approx(expected[-1], rel=1e-4)
    assert expected[-1] < 0.7 * expected[0]
    vectors = open_vectors(str(tmp_path / "run"))
    assert vectors.words == WORDS
    # The reference is one step ahead.
    _, table = reference(run.init().params, cells, STEPS, RATE, x_max)
    np.testing.assert_allclose(vectors.table, table[1:], atol=1e-4)


def test_rows_hold_every_cell_once(folder):
    cells = cells_of(folder)
    tokenizer = tokenizers.load(folder / "words")
    task = GloVe(Config(length=7), tokenizer)
    half = len(cells) // 2
    examples = [
        {"cells": part.tobytes(), "tokenizer": tokenizer.fingerprint}
        for part in (cells[:half], cells[half:])
    ]
    documents = task.encode(examples)
    lengths = {"tokens": np.array([len(d["tokens"]) for d in documents])}
    for train in (True, False):
        rows = task.rows(lengths, train, seed=3)
        found = []
        for row in range(rows.num_rows):
            pieces = [
                (p, {"tokens": documents[p.doc]["tokens"][p.start : p.stop]})
                for p in rows.pieces(0, row)
            ]
            features = task.features(pieces, rows.capacity(row), None)
            assert {v.shape for v in features.values()} == {(7,)}
            real = features["loss_mask"] > 0
            columns = (features[n][real] for n in ("inputs", "targets", "counts"))
            found += list(zip(*(column.tolist() for column in columns)))
        assert sorted(found) == sorted(cells.tolist())


def test_padding_weighs_nothing_and_every_parameter_is_trained(folder):
    config = glove.Config(vocab_size=5, emb_dim=3)
    model = build_model(config)
    batch = {
        "inputs": jnp.array([[1, 2]]),
        "targets": jnp.array([[2, 3]]),
        "counts": jnp.array([[2.0, 5.0]]),
        "loss_mask": jnp.array([[1.0, 0.0]]),
        "example_mask": jnp.ones(1),
    }
    boxed = model.init(jax.random.key(0), {"inputs": batch["inputs"]})["params"]
    params = nn.unbox(boxed)
    axes = nn.get_partition_spec(boxed)
    assert axes["embedder"]["token"]["embedding"][0] == "vocab"
    assert axes["context"]["token"]["embedding"][0] == "vocab"
    task = GloVe(Config(), tokenizers.load(folder / "words"))

    def loss(params, batch):
        return task.loss(model, params, batch, None)[0]

    grads = jax.grad(loss)(params, batch)
    for leaf in jax.tree.leaves(grads):
        assert jnp.abs(leaf).sum() > 0
    other = batch | {"inputs": jnp.array([[1, 4]]), "counts": jnp.array([[2.0, 9.0]])}
    assert loss(params, other) == loss(params, batch)
    _, metrics = task.loss(model, params, batch, None)
    assert metrics["loss"].weight == 1
    factor = (2 / 100) ** 0.75
    assert metrics["error"].weight == pytest.approx(factor)
    summed = model.apply({"params": params}, method="word_vectors")
    table = params["embedder"]["token"]["embedding"]
    other = params["context"]["token"]["embedding"]
    np.testing.assert_array_equal(summed, table + other)
    output = model.apply({"params": params}, batch)
    np.testing.assert_array_equal(output.hidden, summed[batch["inputs"]])
    # Over all j the scores of a word are its logits but for one number, its own bias.
    everyone = jnp.arange(5)[None]
    scores = model.apply(
        {"params": params}, jnp.full((1, 5), 2), everyone, method="scores"
    )
    logits = output.logits.states[0, 1] @ output.logits.kernel.T + output.logits.bias
    np.testing.assert_allclose(scores[0], logits + params["bias"][2], atol=1e-7)


def test_counts_are_the_same_whatever_the_memory(folder, monkeypatch):
    monkeypatch.setattr(cooccurrence, "_COPIES", 1 << 14)  # as if it were 64 pairs
    result = count(folder, "small", "--memory-mb=1")
    assert result["words"] == 60 * 20 + 2 and result["texts"] == 61
    whole, small = (
        {(i, j): x for i, j, x in cells_of(folder, name).tolist()}
        for name in ("counts", "small")
    )
    assert len(whole) == result["cells"] == len(cells_of(folder))
    assert whole == pytest.approx(small)
    # "odd" is no word of the tokenizer's, so its neighbours are next to each other.
    assert whole[1, 2] >= 1
    names = sorted(path.name for path in (folder / "small").iterdir())
    assert names == ["about.json", "cells.parquet"]


def test_frequent_words_and_far_ones_count_as_told(folder):
    flags = ["--subsample=0.01", "--distance-power=0"]
    result = count(folder, "told", *flags)
    about = json.loads((folder / "told" / "about.json").read_text())
    assert (about["subsample"], about["distance_power"]) == (0.01, 0)
    count(folder, "flat", flags[1])
    flat, told = (
        {(i, j): x for i, j, x in cells_of(folder, name).tolist()}
        for name in ("flat", "told")
    )
    assert all(x == round(x) for x in flat.values())
    assert flat.keys() == told.keys() and len(told) == result["cells"]
    shares = np.array([told[cell] / flat[cell] for cell in flat])
    assert 0 < shares.min() < shares.max() <= 1


def test_what_no_text_has_room_for_costs_nothing(folder):
    most = ["--window=99999999999", "--memory-mb=99999999999999999999"]
    result = count(folder, "most", *most)
    assert result["different_words"] < result["vocab_size"]
    assert result["words"] == 60 * 20 + 2


def test_what_does_not_fit_is_one_line_with_the_cure(folder, tmp_path):
    tokenizer = tokenizers.load(folder / "words")
    task = GloVe(Config(), tokenizer)
    (error,) = task.encode([Row({"text": "a text"}, "a.jsonl:1")])
    assert "a.jsonl:1 has no counts; set data.sources" in str(error)
    (error,) = task.encode([Row({"cells": b"", "tokenizer": "other"}, "c:1")])
    assert "c:1 was counted with another tokenizer" in str(error)
    assert "set --overwrite" in message(lambda: count(folder, "counts"))
    assert "--window" in message(lambda: count(folder, "x", "--window=0"))
    for flag in ("--distance-power=5", "--subsample=1e-10", "--subsample=inf"):
        told = message(functools.partial(count, folder, "x", flag))
        assert f"{flag.partition('=')[0]} must be" in told
    assert "has no about.json" in message(lambda: count(folder, "words"))
    assert not (folder / "x").exists()
    empty = tmp_path / "texts.jsonl"
    empty.write_text('{"text": "only strangers"}\n')
    words = tmp_path / "words"
    words.symlink_to(folder / "words")
    assert "no word that the tokenizer knows" in message(
        lambda: count(tmp_path, "none")
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["texts.jsonl", "words"]
    with pytest.raises(UserError, match="task.max_count"):
        Config(max_count=0.0)
    with pytest.raises(UserError, match="not for a gpt model"):
        task.build_model(gpt.Config())
