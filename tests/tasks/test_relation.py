"""Relations: marks, cutting, odd spans, and that the marks decide."""

import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.files import Row
from lm.data.pipeline import DataConfig
from lm.models import bert
from lm.tasks.relation import Config, Relation
from lm.text import tokenizers
from lm.train.config import Config as RunConfig
from lm.train.loop import train
from lm.train.optim import OptimConfig
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
AT, HASH = (BYTES.encode(mark)[0] for mark in "@#")
PROSE = ["ann beat bob and cat lost to dan", "eve saw fay"]


def row(text="ann beat bob", head=(0, 3), tail=(9, 12), **fields):
    fields = {"text": text, "head": head, "tail": tail, "label": "a", **fields}
    return Row(fields, "file.jsonl:7")


def make(tokenizer=BYTES, **options):
    return Relation(
        Config(**{"length": 32, "labels": ("a", "b"), **options}), tokenizer
    )


def read(document, tokenizer=BYTES):
    """Returns the text with its marks, and the spans with theirs."""
    tokens = document["tokens"]
    (a, b), (c, d) = document["spans"].reshape(2, 2)
    return [tokenizer.decode(part) for part in (tokens, tokens[a:b], tokens[c:d])]


@pytest.mark.parametrize(
    "head, tail, expected",
    [
        ((0, 3), (9, 12), ["@ann@ beat #bob#", "@ann@", "#bob#"]),
        ((9, 12), (0, 3), ["#ann# beat @bob@", "@bob@", "#ann#"]),
        ([0, 8], [4, 8], ["@ann #beat@#", "@ann #beat@", "#beat@#"]),
        ((0, 3), (3, 8), ["@ann@# beat#", "@ann@", "# beat#"]),
        ((3, 8), (0, 3), ["#ann#@ beat@", "@ beat@", "#ann#"]),
        ("[0, 3]", "[4, 8]", ["@ann@ #beat#", "@ann@", "#beat#"]),
    ],
)
def test_spans_stand_between_marks(head, tail, expected):
    text = "ann beat bob" if "bob" in expected[0] else "ann beat"
    (document,) = make().encode_inputs([row(text, head, tail)])
    assert read(document) == expected


@pytest.mark.parametrize("kind, size", [("unigram", 277), ("wordpiece", 45)])
def test_the_text_between_the_marks_is_encoded_as_ever(kind, size):
    tokenizer = tokenizers.train(kind, PROSE, size)
    (document,) = make(tokenizer).encode_inputs([row()])
    spans = document["spans"]
    marks = [spans[0], spans[1] - 1, spans[2], spans[3] - 1]
    rest = np.delete(document["tokens"], marks)[1:-1]
    np.testing.assert_array_equal(rest, tokenizer.encode("ann beat bob"))


@given(st.data())
def test_spans_of_long_texts_are_kept(data):
    text = data.draw(st.text("ab ", min_size=1, max_size=80).filter(str.strip))
    edges = st.lists(st.integers(0, len(text)), min_size=2, max_size=2, unique=True)
    head, tail = (sorted(data.draw(edges)) for _ in range(2))
    (document,) = make(length=16).encode_inputs([row(text, head, tail)])
    tokens, (a, b, c, d) = document["tokens"], document["spans"].tolist()
    assert len(tokens) == min(16, len(text) + 6)
    assert 0 < a < b < len(tokens) and 0 < c < d < len(tokens)
    if max(head[1], tail[1]) - min(head[0], tail[0]) <= 10:
        assert tokens[[a, b - 1]].tolist() == [AT, AT]
        assert tokens[[c, d - 1]].tolist() == [HASH, HASH]


def test_long_texts_may_be_refused():
    task = make(long_texts="refuse")
    fine, long = task.encode([row("x" * 26), row("x" * 27)])
    assert len(fine["tokens"]) == 32
    assert "file.jsonl:7 has 31 tokens with the marks" in str(long)
    assert len(task.encode_inputs([row("x" * 27)])[0]["tokens"]) == 32


@pytest.mark.parametrize(
    "head",
    [
        (3, 3),
        (-1, 2),
        (0, 13),
        (2, 1),
        (0,),
        (0, 1, 2),
        "ann",
        ("0", "3"),
        5,
        0.5,
        "1",
        "[1]",
    ],
)
def test_what_is_no_span_is_named(head):
    fine, bad = make().encode([row(), row(head=head)])
    assert fine["label"].tolist() == [0]
    assert isinstance(bad, UserError)
    assert "file.jsonl:7: 'head' is" in str(bad) and "12 characters" in str(bad)


def test_a_span_that_is_broken_json_is_named():
    (error,) = make().encode([row(head="[0, 3")])
    assert "file.jsonl:7: 'head' is '[0, 3', no list in JSON" in str(error)


def test_a_missing_span_or_label_is_named():
    documents = make().encode([row(tail=None), row(label="c")])
    assert "file.jsonl:7: 'tail' is null" in str(documents[0])
    assert "file.jsonl:7 has the label 'c'" in str(documents[1])


@pytest.fixture(scope="module")
def games(tmp_path_factory):
    """Whether the first of two spans won; the same texts are there both ways round."""
    folder = tmp_path_factory.mktemp("games")
    rng = np.random.default_rng(0)
    names = ["ann", "bob", "cat", "dan", "eve", "fay", "guy", "hal"]
    rows = []
    for one, other in itertools.permutations(names, 2):
        for verb, one_won in (("beat", True), ("lost to", False)):
            text = f"{one} {verb} {other}"
            spans = [[0, 3], [len(text) - 3, len(text)]]
            for turn in (1, -1):
                head, tail = spans[::turn]
                label = "won" if one_won == (turn == 1) else "lost"
                rows.append({"text": text, "head": head, "tail": tail, "label": label})
    rng.shuffle(rows)
    for split, part in (("train", rows[:160]), ("validation", rows[160:])):
        lines = [json.dumps(line) for line in part]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    texts = [line["text"] for line in rows]
    tokenizers.train("wordpiece", texts, 50).save(folder / "tokenizer")
    return folder


@pytest.mark.parametrize("pooling", ["first", "max"])
def test_a_tiny_model_learns_who_won(games, tmp_path, pooling):
    config = RunConfig(
        model=bert.Config(
            vocab_size=50,
            emb_dim=32,
            num_layers=2,
            num_heads=2,
            max_len=16,
            norm_position="pre",
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
            position_encoding="rotary",
        ),
        task=Config(length=16, pooling=pooling),
        data=DataConfig(
            sources=(str(games / "{split}.jsonl"),),
            tokenizer=str(games / "tokenizer"),
            data_dir=str(games),
        ),
        optim=OptimConfig(learning_rate=1e-2),
        batch_size=16,
        num_train_steps=60,
        warmup_steps=10,
    )
    result = train(config, tmp_path)
    assert result["eval/validation/accuracy"] > 0.9


def test_a_row_of_padding_weighs_nothing():
    task = make()
    model = task.build_model(
        bert.Config(vocab_size=280, emb_dim=8, num_layers=1, num_heads=2)
    )
    rows = [
        task.features([(None, document)], (32,), np.random.default_rng())
        for document in task.encode([row(), row(label="b")])
    ]
    rows.append(task.features([], (32,), np.random.default_rng()))
    batch = {name: np.stack([r[name] for r in rows]) for name in rows[0]}
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    loss = jax.jit(lambda batch: task.loss(model, params, batch, None))
    two, metrics = loss(batch | {"example_mask": np.array([1, 1, 0], np.float32)})
    one, _ = loss(batch | {"example_mask": np.array([1, 0, 0], np.float32)})
    other, _ = loss(batch | {"example_mask": np.array([0, 1, 0], np.float32)})
    np.testing.assert_allclose(two, one + other, rtol=1e-5)
    assert metrics["loss"].weight == 2
