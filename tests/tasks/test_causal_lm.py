"""The next token: of the same document, once, and with its bytes counted."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import metrics as metrics_lib
from lm.nn.losses import Logits
from lm.tasks.causal_lm import CausalLM, Config
from lm.text import tokenizers
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=10)
LENGTH = st.integers(2, 40)
PACKING = st.sampled_from(["concat", "fit", "bucket"])


def documents(texts):
    marked = ([BYTES.bos_id, *BYTES.encode(t).tolist(), BYTES.eos_id] for t in texts)
    return [document for document in marked if len(document) > 2]


def next_tokens(texts):
    """Every token of a document and the one after it."""
    return Counter(pair for document in documents(texts) for pair in pairwise(document))


def scored(row):
    chosen = row["loss_mask"] > 0
    return Counter(zip(row["inputs"][chosen].tolist(), row["targets"][chosen].tolist()))


def segments(row):
    """The places of each piece; they are side by side, and padding is after them."""
    ids = row["segment_ids"]
    places = [np.flatnonzero(ids == number) for number in range(1, ids.max() + 1)]
    assert np.concatenate([np.zeros(0, int), *places]).tolist() == list(
        range(np.count_nonzero(ids))
    )
    return places


def check_sound(row):
    """Targets are inputs shifted by one inside each piece; padding is nothing."""
    for places in segments(row):
        assert row["positions"][places].tolist() == list(range(len(places)))
        inputs, targets = row["inputs"][places], row["targets"][places]
        assert inputs[1:].tolist() == targets[:-1].tolist()
    for name in ("inputs", "targets", "positions", "loss_mask"):
        assert not row[name][row["segment_ids"] == 0].any()
    for name, text in (("num_bytes", BYTES.num_bytes), ("num_chars", BYTES.num_chars)):
        assert row[name] == text[row["targets"][row["loss_mask"] > 0]].sum()
    dtypes = {name: array.dtype.name for name, array in row.items()}
    assert dtypes.pop("loss_mask") == "float32"
    assert set(dtypes.values()) == {"int32"}


@given(TEXTS, LENGTH, PACKING, st.integers(-1, 3), st.integers(0, 2))
def test_every_token_is_predicted_once_an_epoch(
    make_rows, texts, length, packing, seed, epoch
):
    task = CausalLM(Config(length=length, packing=packing), BYTES)
    rows = make_rows(task, texts, seed=seed, epoch=epoch)
    for row in rows:
        check_sound(row)
        assert (row["loss_mask"] == (row["segment_ids"] > 0)).all()
    assert sum(map(scored, rows), Counter()) == next_tokens(texts)
    assert sum(row["num_bytes"] for row in rows) == len("".join(texts).encode())
    assert sum(row["num_chars"] for row in rows) == len("".join(texts))


@given(TEXTS, LENGTH, st.data())
def test_evaluation_scores_every_token_once_and_with_context(
    make_rows, texts, length, data
):
    stride = data.draw(st.integers(0, length))
    task = CausalLM(Config(length=length, stride=stride), BYTES)
    rows = make_rows(task, texts, train=False)
    context = length - stride if stride else 0
    for row in rows:
        check_sound(row)
        for places in segments(row):
            given_only = int((row["loss_mask"][places] == 0).sum())
            # Only a document's first window begins with its first token.
            is_first = row["inputs"][places[0]] == BYTES.bos_id
            assert given_only == (0 if is_first else context)
            assert not row["loss_mask"][places[:given_only]].any()
    assert sum(map(scored, rows), Counter()) == next_tokens(texts)
    assert sum(row["num_bytes"] for row in rows) == len("".join(texts).encode())


@given(TEXTS, LENGTH, PACKING, st.integers(0, 3))
def test_a_prefix_is_seen_and_not_scored(make_rows, texts, length, packing, seed):
    task = CausalLM(Config(length=length, packing=packing, prefix_lm=True), BYTES)
    for row in make_rows(task, texts, seed=seed):
        mask = row.pop("prefix_mask")
        assert mask.dtype == bool
        check_sound(row)
        for places in segments(row):
            size = int(mask[places].sum())
            assert mask[places[:size]].all()
            assert size < len(places)
            # What the last token of the prefix predicts is not in the prefix.
            unseen = [0] * (size - 1) + [1] * (len(places) - max(size - 1, 0))
            assert row["loss_mask"][places].tolist() == unseen
        assert not mask[row["segment_ids"] == 0].any()


def test_prefixes_are_of_all_lengths(make_rows):
    task = CausalLM(Config(length=11, packing="fit", prefix_lm=True), BYTES)
    rows = make_rows(task, ["ten tokens"] * 500)
    sizes = np.bincount([row["prefix_mask"].sum() for row in rows])
    assert len(sizes) == 11
    assert (sizes > 20).all()


def test_buckets_are_powers_of_two(make_rows):
    task = CausalLM(Config(length=50, packing="bucket"), BYTES)
    texts = ["a" * size for size in (1, 15, 16, 31, 32, 80)]
    rows = make_rows(task, texts)
    assert [len(row["inputs"]) for row in rows] == [16, 16, 32, 32, 50, 50, 32]


def test_no_pieces_make_a_row_of_padding():
    task = CausalLM(Config(length=4), BYTES)
    row = task.features([], (4,), np.random.default_rng(0))
    assert {name: array.tolist() for name, array in row.items()} == {
        **dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), [0] * 4),
        **{"loss_mask": [0.0] * 4, "num_bytes": 0, "num_chars": 0},
    }


def test_bits_are_counted_by_byte_and_by_character(make_rows):
    """A model that knows nothing takes log V for every token, end marks included."""
    task = CausalLM(Config(length=64), BYTES)
    rows = make_rows(task, ["né", "naïf"])
    batch = {name: np.stack([row[name] for row in rows * 2]) for name in rows[0]}
    batch["example_mask"] = np.array([1, 0], np.float32)
    logits = Logits(np.zeros((2, 64, 1), np.float32), np.zeros((261, 1), np.float32))
    output = SimpleNamespace(logits=logits)
    model = SimpleNamespace(apply=lambda *_, **__: (output, {}))
    objective, metrics = task.loss(model, {}, batch, None)
    found = metrics_lib.compute(metrics)
    assert float(objective) == pytest.approx(10 * np.log(261))
    assert found["loss"] == pytest.approx(np.log(261))
    assert found["perplexity"] == pytest.approx(261)
    assert found["bits_per_byte"] == pytest.approx(10 / 8 * np.log2(261))
    assert found["bits_per_char"] == pytest.approx(10 / 6 * np.log2(261))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "fir"}, "unknown task.packing 'fir'; did you mean 'fit'"),
        ({"length": 1}, "task.length must be at least 2"),
        ({"length": 8, "stride": 9}, "task.stride must be from 0 to task.length 8"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Config(**options)
