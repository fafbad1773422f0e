"""Masked tokens: how many, which, by what, and that the rest stays."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.pipeline import DataConfig, build_pipeline
from lm.tasks.masked_lm import Config, MaskedLM
from lm.text import tokenizers
from lm.types import UserError

BYTES = tokenizers.train("bytes", [])
TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=10)


def restored(row):
    """Returns the tokens as they were before masking."""
    tokens = row["inputs"].copy()
    chosen = row["loss_mask"] > 0
    tokens[row["masked_positions"][chosen]] = row["targets"][chosen]
    return tokens


@given(TEXTS, st.integers(3, 40), st.floats(0.05, 0.95), st.booleans())
def test_only_the_masked_places_change(make_rows, texts, length, rate, train):
    task = MaskedLM(Config(length=length, mask_rate=rate), BYTES)
    rows = make_rows(task, texts, train=train, seed=-1)
    room = max(1, round(rate * length))
    tokens = []
    for row in rows:
        before = restored(row)
        used = row["segment_ids"] > 0
        tokens += before[used].tolist()
        assert not row["inputs"][~used].any()
        chosen = row["loss_mask"] > 0
        assert chosen.shape == row["targets"].shape == (room,)
        # All that may be masked is: text, never the marks around it.
        maskable = (~BYTES.is_special[before]).sum()
        assert chosen.sum() == (max(1, round(rate * maskable)) if maskable else 0)
        assert not BYTES.is_special[row["targets"][chosen]].any()
        places = row["masked_positions"][chosen]
        assert (np.diff(places) > 0).all()
        for name in ("masked_positions", "targets", "loss_mask"):
            assert not row[name][chosen.sum() :].any()
        assert {name: array.dtype.name for name, array in row.items()} == {
            **dict.fromkeys(("inputs", "segment_ids", "positions"), "int32"),
            **dict.fromkeys(("masked_positions", "targets"), "int32"),
            "loss_mask": "float32",
        }
    marked = ([BYTES.bos_id, *BYTES.encode(t).tolist(), BYTES.eos_id] for t in texts)
    documents = [document for document in marked if len(document) > 2]
    # Where they are not shuffled, rows are the documents end to end.
    assert tokens == [token for document in documents for token in document]


@pytest.mark.parametrize("packing", ["fit", "bucket"])
def test_every_token_is_in_one_row_whatever_the_packing(make_rows, packing):
    texts = ["a" * size for size in range(1, 40)]
    task = MaskedLM(Config(length=20, packing=packing), BYTES)
    rows = make_rows(task, texts)
    counts = sum(np.bincount(restored(row), minlength=261) for row in rows)
    assert counts[BYTES.encode("a")[0]] == sum(map(len, texts))
    assert counts[BYTES.bos_id] == counts[BYTES.eos_id] == len(texts)


@pytest.mark.parametrize(
    ("fates", "hidden", "kept"),
    [
        ({}, 0.8, 0.1),
        ({"mask_fraction": 0.5, "random_fraction": 0.3}, 0.5, 0.2),
    ],
)
def test_shares_of_the_masked(make_rows, fates, hidden, kept):
    task = MaskedLM(Config(length=128, **fates), BYTES)
    rows = make_rows(task, ["the beginning and the end " * 500] * 20)
    chosen = [row["loss_mask"] > 0 for row in rows]
    seen = np.concatenate(
        [row["inputs"][row["masked_positions"][c]] for row, c in zip(rows, chosen)]
    )
    targets = np.concatenate([row["targets"][c] for row, c in zip(rows, chosen)])
    num_tokens = sum((row["segment_ids"] > 0).sum() for row in rows)
    assert len(seen) / num_tokens == pytest.approx(0.15, abs=0.002)
    # Of 39,000 draws; the bounds are four standard deviations or more.
    assert (seen == BYTES.mask_id).mean() == pytest.approx(hidden, abs=0.011)
    # One random token in 256 is the one that was there.
    kept += (1 - hidden - kept) / 256
    assert (seen == targets).mean() == pytest.approx(kept, abs=0.01)
    random = seen[(seen != BYTES.mask_id) & (seen != targets)]
    assert not BYTES.is_special[random].any()
    assert len(set(random.tolist())) > 250


def test_whole_words_are_masked_together(make_rows):
    texts = [f"{a * 3} {b * 2} {c} {a * 4}" for a in "abc" for b in "def" for c in "gh"]
    letters = tokenizers.train("chars", texts)
    task = MaskedLM(Config(length=64, whole_words=True, mask_rate=0.3), letters)
    words = masked = 0
    for row in make_rows(task, texts):
        tokens = restored(row)
        is_masked = np.zeros(64, bool)
        is_masked[row["masked_positions"][row["loss_mask"] > 0]] = True
        is_text = ~letters.is_special[tokens]
        begins = letters.starts_word[tokens] | (np.diff(is_text, prepend=False) > 0)
        word_of = np.cumsum(begins)
        for word in set(word_of[is_text]):
            of_word = is_masked[is_text & (word_of == word)]
            assert of_word.all() or not of_word.any()
            words, masked = words + 1, masked + of_word[0]
    assert 0.1 < masked / words < 0.4


def test_a_word_longer_than_the_room_is_scored_as_far_as_it_goes(make_rows):
    letters = tokenizers.train("chars", ["a"])
    fates = {"mask_fraction": 1.0, "random_fraction": 0.0}
    task = MaskedLM(Config(length=20, whole_words=True, **fates), letters)
    (row,) = make_rows(task, ["a" * 17])
    assert (row["inputs"] == letters.mask_id).sum() == 17
    assert row["masked_positions"].tolist() == [1, 2, 3]
    assert row["loss_mask"].tolist() == [1, 1, 1]


def test_no_pieces_make_a_row_of_padding():
    task = MaskedLM(Config(length=20), BYTES)
    row = task.features([], (20,), np.random.default_rng(0))
    assert not any(array.any() for array in row.values())
    assert len(row["inputs"]) == 20
    assert len(row["targets"]) == 3


@pytest.mark.parametrize("train", [True, False])
def test_noise_is_new_in_every_epoch_and_the_same_in_every_evaluation(tmp_path, train):
    (tmp_path / "all.jsonl").write_text(json.dumps({"text": "a rose is a rose"}))
    config = DataConfig((str(tmp_path / "{split}.jsonl"),), "", data_dir=str(tmp_path))
    task = MaskedLM(Config(length=32), BYTES)
    options = {"split": "all", "batch_size": 1, "train": train, "seed": 0}
    one, other = (build_pipeline(task, BYTES, config, **options) for _ in range(2))
    first = one.batch(0)
    for name, array in other.batch(0).items():
        assert (first[name] == array).all()
    if train:
        assert one.num_batches == 1
        places = {tuple(one.batch(n)["masked_positions"][0]) for n in range(8)}
        assert len(places) > 4


def test_mistakes_are_named():
    maskless = tokenizers.train("bytes", [])
    maskless.mask_id = -1
    with pytest.raises(UserError, match="no mask token; train one with tools"):
        MaskedLM(Config(), maskless)
    for options, message in (
        ({"packing": "bukket"}, "unknown task.packing 'bukket'; did you mean 'bucket'"),
        ({"length": 2}, "task.length must be at least 3"),
        ({"mask_rate": 0.0}, "task.mask_rate must be between 0 and 1"),
        ({"mask_fraction": 0.95}, "at least 0 and together at most 1"),
        ({"mask_fraction": -0.1}, "at least 0 and together at most 1"),
    ):
        with pytest.raises(UserError, match=message):
            Config(**options)
