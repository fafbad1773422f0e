"""Pairs of texts: rows of both architectures, and what is learned is predicted."""

import functools
import itertools
from collections import Counter

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.completion import Writer
from lm.data.files import Row
from lm.data.pipeline import Corpus
from lm.data.store import from_documents
from lm.models import bert, gpt, t5
from lm.tasks.text_to_text import ARCHITECTURES, Config, TextToText
from lm.text import tokenizers
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
SIZES = {"vocab_size": 264, "emb_dim": 32, "num_layers": 1, "num_heads": 2}
MODELS = {
    "encoder_decoder": t5.Config(**SIZES, max_len=64, dropout_rate=0.0),
    "prefix_lm": gpt.Config(**SIZES, max_len=64, dropout_rate=0.0),
}
PAIRS = [
    {"text": text, "target": target}
    for text, target in (("ab", "BA"), ("c", ""), ("hello", "olleh"), ("é x", "y"))
]


def make(architecture, length=24, targets_length=16, **options):
    config = Config("text_to_text", architecture, length, targets_length, **options)
    return TextToText(config, BYTES)


def rows_of(task, pairs, seed=-1):
    corpus = Corpus([from_documents(task.encode(pairs))])
    rows = task.rows(corpus.lengths(), seed >= 0, seed)
    return [
        task.features(
            [(p, corpus.cut(p, task.overlap)) for p in rows.pieces(0, number)],
            rows.capacity(number),
            None,
        )
        for number in range(rows.num_rows)
    ]


def batch_of(rows):
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"example_mask": np.ones(len(rows), np.float32)}


def read(row):
    """Yields the source and the target of each pair in a row, marks included."""
    for number in range(1, row["segment_ids"].max() + 1):
        places = row["segment_ids"] == number
        scored = places & (row["loss_mask"] > 0)
        targets = row["targets"][scored]
        if "prefix_mask" in row:
            source = row["inputs"][places & row["prefix_mask"]]
            begin = [source[-1]]
        else:
            source = row["encoder_inputs"][row["encoder_segment_ids"] == number]
            begin = [BYTES.pad_id]
        # The decoder reads each target's token one place later.
        np.testing.assert_array_equal(
            row["inputs"][scored], [*begin, *targets[:-1].tolist()]
        )
        yield source.tolist(), targets.tolist()


TEXTS = st.text(max_size=14)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), st.integers(-1, 3))
def test_a_row_has_whole_pairs_and_scores_the_targets(architecture, pairs, seed):
    task = make(architecture, length=40, targets_length=40, prefix="to: ")
    rows = rows_of(task, [{"text": a, "target": b} for a, b in pairs], seed)
    assert {len(row["inputs"]) for row in rows} == {task.prefix_lm * 40 + 40}
    begin = [BYTES.bos_id] if task.prefix_lm else []

    def cut(text, end):
        return [*begin, *BYTES.encode(text)][: 40 - end] + [BYTES.eos_id] * end

    expected = Counter()
    for source, target in pairs:
        ids = [*BYTES.encode(target).tolist(), BYTES.eos_id][:40]
        expected[tuple(cut("to: " + source, 1)), tuple(ids)] += 1
    found = Counter((tuple(a), tuple(b)) for row in rows for a, b in read(row))
    assert found == expected


@functools.cache
def init(architecture):
    task = make(architecture)
    model = task.build_model(MODELS[architecture])
    batch = batch_of(rows_of(task, PAIRS))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch)["params"])
    return model, params


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pairs_lose_the_same_in_any_company(architecture):
    task, (model, params) = make(architecture), init(architecture)
    packed = rows_of(task, PAIRS)
    alone = [row for pair in PAIRS for row in rows_of(task, [pair])]
    assert len(packed) < len(alone)
    loss = jax.jit(lambda batch: task.loss(model, params, batch, None))
    (total, metrics), (expected, _) = loss(batch_of(packed)), loss(batch_of(alone))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    number = sum(len(BYTES.encode(pair["target"])) + 1 for pair in PAIRS)
    assert metrics["loss"].weight == number


def test_a_decoder_sees_the_source_in_both_directions_and_no_target_ahead():
    task, (model, params) = make("prefix_lm"), init("prefix_lm")
    (row,) = rows_of(task, PAIRS[2:3])
    source, target = next(read(row))
    S, T = len(source), len(source) + len(target) - 1
    table = params["embedder"]["token"]["embedding"]

    def states(shift):
        """Returns the states [T, D] if the embedding of each place is shifted."""
        rows = np.arange(200, 200 + T)  # every place has a token of its own
        moved = {"inputs": row["inputs"].copy()}
        moved["inputs"][:T] = rows
        shifted = table.at[rows].set(table[row["inputs"][:T]] + shift)
        inner = params | {"embedder": {"token": {"embedding": shifted}}}
        batch = {name: value[None] for name, value in (row | moved).items()}
        return model.apply({"params": inner}, batch, method="hidden")[0, :T]

    jacobian = jax.jit(jax.jacobian(states))(np.zeros((T, 32), np.float32))
    sees = np.abs(jacobian).sum(axis=(1, 3)) > 0
    expected = np.tril(np.ones((T, T), bool))
    expected[:S, :S] = True
    np.testing.assert_array_equal(sees, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_predicted_from_is_what_was_learned_from(architecture):
    task = make(architecture, prefix="to: ")
    for pair in [*PAIRS, {"text": "x" * 99, "target": ""}, {"text": " ", "target": ""}]:
        (row,) = rows_of(task, [pair])
        ((source, _),) = read(row)
        assert task.prompt(pair).tolist() == source
        assert len(source) <= 24 and source[-1] == BYTES.eos_id


@pytest.mark.parametrize(
    "example, message",
    [
        ({"text": "a"}, "fr.tsv:7 has no 'target'"),
        ({"text": "a", "target": 3}, "fr.tsv:7: 'target' is 3, not a text"),
        (
            {"text": "a" * 24, "target": "b"},
            "fr.tsv:7 has 25 tokens, more than task.length 24",
        ),
        (
            {"text": "a", "target": "b" * 16},
            "fr.tsv:7 has 17 tokens, more than task.targets_length 16",
        ),
    ],
)
def test_bad_examples_are_named(example, message):
    task = make("encoder_decoder", long_texts="refuse")
    fine, error = task.encode([PAIRS[0], Row(example, "fr.tsv:7")])
    assert len(fine["source"]) == len(fine["target"]) == 3
    assert message in str(error)


def test_mistakes_are_named():
    models = {**MODELS, "encoder": bert.Config(**SIZES)}
    for architecture in ARCHITECTURES:
        for kind, config in models.items():
            if kind != architecture:
                with pytest.raises(UserError, match=f"is not for a {config.name} mod"):
                    make(architecture).build_model(config)
    with pytest.raises(UserError, match="rows of 80 tokens, more than model.max_len"):
        make("prefix_lm", length=64).build_model(MODELS["prefix_lm"])
    with pytest.raises(UserError, match="task.kind 'sumary'; did you mean 'summary'"):
        make("prefix_lm", kind="sumary")


def learned(architecture, task, pairs, num_steps):
    """Returns a model and its parameters after some training on the pairs."""
    model, params = init(architecture)
    batch = batch_of(rows_of(task, pairs))
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(params, state):
        loss = functools.partial(task.loss, model, batch=batch, rng=None)
        grads, metrics = jax.grad(loss, has_aux=True)(params)
        grads = jax.tree.map(lambda g: g / metrics["loss"].weight, grads)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(num_steps):
        params, state = step(params, state)
    return model, params


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_short_strings_are_learned_and_predicted(architecture):
    """The target is the source backwards."""
    task = make(architecture)
    words = [w for n in (1, 2, 3) for w in itertools.permutations("abc", n)]
    pairs = [{"text": "".join(w), "target": "".join(w[::-1])} for w in words]
    model, params = learned(architecture, task, pairs, num_steps=150)
    found = Writer(task, model, BYTES, batch_size=8)(params, pairs)
    if architecture == "encoder_decoder":  # one layer without it cannot
        assert [p["prediction"] for p in found] == [p["target"] for p in pairs]
        assert {p["finish_reason"] for p in found} == {"eos"}
    # The rows of training give a prediction the probability that it was written with.
    again = [
        {"text": e["text"], "target": p["prediction"]} for e, p in zip(pairs, found)
    ]
    loss = jax.jit(lambda batch: task.loss(model, params, batch, None))
    total, metrics = loss(batch_of(rows_of(task, again)))
    assert metrics["accuracy"].total == metrics["accuracy"].weight
    log_prob = sum(p["log_prob"] for p in found)
    np.testing.assert_allclose(total, -log_prob, rtol=1e-2, atol=1e-2)


def test_the_worst_translations_are_told():
    task = make("encoder_decoder", prefix="to: ")
    pairs = [pair for pair in PAIRS if pair["target"]]
    made = [{"prediction": text} for text in ("BA", "olleh", "no")]
    worst = task.details(pairs, made)["worst"]
    assert worst[0] == {"text": "é x", "gold": "y", "predicted": "no"}
    assert {row["text"] for row in worst[1:]} == {"ab", "hello"}
    assert task.score(pairs, made)["chrf"] > task.score(pairs, made[::-1])["chrf"]
