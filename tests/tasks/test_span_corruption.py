"""Corrupted spans: two sides that make the text again, and fit."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.corrupt import max_tokens
from lm.tasks.span_corruption import Config, SpanCorruption
from lm.text import tokenizers
from lm.types import UserError

BYTES = tokenizers.train("bytes", [], num_sentinels=100)
TEXTS = st.lists(st.text(max_size=40), min_size=1, max_size=10)


@st.composite
def configs(draw):
    return Config(
        length=draw(st.integers(8, 60)),
        targets_length=draw(st.integers(8, 60)),
        noise_density=draw(st.floats(0.05, 0.9)),
        mean_span_length=draw(st.floats(1, 8)),
    )


def fill_in(inputs, targets):
    """Puts what the targets hold back where the inputs have sentinels."""
    spans = {}
    for token in targets:
        if token in BYTES.sentinel_ids:
            span = spans[token] = []
        else:
            span.append(token)
    return [token for given in inputs for token in spans.get(given, [given])]


@given(TEXTS, configs(), st.booleans(), st.integers(-1, 3))
def test_both_sides_make_every_text_again(make_rows, texts, config, train, seed):
    task = SpanCorruption(config, BYTES)
    found = Counter()
    for row in make_rows(task, texts, train=train, seed=seed):
        assert len(row["encoder_inputs"]) == config.length
        assert len(row["targets"]) == config.targets_length
        ids, encoder_ids = row["segment_ids"], row["encoder_segment_ids"]
        # A piece has the same number on both sides.
        assert set(ids) - {0} == set(encoder_ids) - {0} == {*range(1, ids.max() + 1)}
        for number in range(1, ids.max() + 1):
            inputs = row["encoder_inputs"][encoder_ids == number].tolist()
            targets = row["targets"][ids == number].tolist()
            assert inputs.pop() == targets.pop() == BYTES.eos_id
            assert targets[0] == BYTES.sentinel_ids[0]
            found[tuple(fill_in(inputs, targets))] += 1
    size = max_tokens(
        config.length,
        config.targets_length,
        noise_density=config.noise_density,
        mean_span_length=config.mean_span_length,
    )
    tokens = [BYTES.encode(text).tolist() for text in texts]
    assert found == Counter(
        tuple(ids[start : start + size])
        for ids in tokens
        for start in range(0, len(ids), size)
    )


@given(TEXTS, configs())
def test_the_decoder_reads_the_targets_before(make_rows, texts, config):
    for row in make_rows(SpanCorruption(config, BYTES), texts):
        ids = row["segment_ids"]
        for number in range(1, ids.max() + 1):
            places = ids == number
            targets = row["targets"][places].tolist()
            assert row["inputs"][places].tolist() == [BYTES.pad_id, *targets[:-1]]
            assert row["positions"][places].tolist() == list(range(len(targets)))
            encoder_places = row["encoder_segment_ids"] == number
            positions = row["encoder_positions"][encoder_places]
            assert positions.tolist() == list(range(len(positions)))
        assert (row["loss_mask"] == (ids > 0)).all()
        assert not row["targets"][ids == 0].any()
        assert not row["encoder_inputs"][row["encoder_segment_ids"] == 0].any()
        dtypes = {name: array.dtype.name for name, array in row.items()}
        assert dtypes.pop("loss_mask") == "float32"
        assert set(dtypes.values()) == {"int32"}


def test_evaluation_keeps_the_layout_and_training_draws_it(make_rows):
    task = SpanCorruption(Config(length=32, targets_length=16), BYTES)
    texts = [letter * 12 for letter in "abcdefgh"]

    def layout(**options):
        return [
            tuple(set(row["encoder_inputs"]) - {BYTES.pad_id, *BYTES.sentinel_ids})
            for row in make_rows(task, texts, **options)
        ]

    assert layout(seed=0) != layout(seed=1)
    assert layout(seed=0, train=False) == layout(seed=1, train=False)


def test_no_pieces_make_a_row_of_padding():
    task = SpanCorruption(Config(length=32, targets_length=16), BYTES)
    row = task.features([], (32, 16), np.random.default_rng(0))
    assert not any(array.any() for array in row.values())
    assert {len(array) for array in row.values()} == {32, 16}


def test_mistakes_are_named():
    few = tokenizers.train("bytes", [], num_sentinels=3)
    with pytest.raises(UserError, match="28 corrupted spans but .* has 3 sentinels"):
        SpanCorruption(Config(), few)
    with pytest.raises(UserError, match="no text fits into 2 input and 2 target"):
        SpanCorruption(Config(length=2, targets_length=2), BYTES)
    with pytest.raises(UserError, match="task.noise_density must be between 0 and 1"):
        Config(noise_density=1.0)
    with pytest.raises(UserError, match="task.mean_span_length must be at least 1"):
        Config(mean_span_length=0.5)
