"""Noise: how much, where, and that nothing is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.corrupt import mask_tokens, max_tokens, span_corruption, span_lengths
from lm.types import UserError

MASK, V = 4, 50
MASKABLE = np.arange(V) > MASK
STARTS = np.arange(V) % 3 == 0
TOKENS = st.lists(st.integers(0, V - 1), max_size=60).map(
    lambda ids: np.array(ids, np.int32)
)
SEEDS = st.integers(0, 2**32)
DENSITY = st.floats(0.05, 0.9)
MEAN = st.floats(1, 8)


@given(TOKENS, SEEDS, st.booleans(), st.floats(0.05, 0.9))
def test_masking_laws(tokens, seed, whole_words, rate):
    rng = np.random.default_rng(seed)
    starts = STARTS if whole_words else None
    before = tokens.copy()
    inputs, targets, loss_mask = mask_tokens(
        tokens, rng, mask_id=MASK, maskable=MASKABLE, starts_word=starts, rate=rate
    )
    assert (tokens == before).all()
    assert (targets == tokens).all()
    chosen = loss_mask > 0
    assert (inputs[~chosen] == tokens[~chosen]).all()
    assert MASKABLE[tokens[chosen]].all()
    changed = inputs != tokens
    assert ((inputs[changed] == MASK) | MASKABLE[inputs[changed]]).all()
    assert (inputs.dtype, targets.dtype, loss_mask.dtype) == (
        np.int32,
        np.int32,
        np.float32,
    )
    number = MASKABLE[tokens].sum()
    wanted = max(1, round(rate * number)) if number else 0
    assert chosen.sum() == wanted if not whole_words else chosen.any() == (number > 0)


@given(TOKENS, SEEDS)
def test_words_are_masked_whole(tokens, seed):
    rng = np.random.default_rng(seed)
    loss_mask = mask_tokens(
        tokens, rng, mask_id=MASK, maskable=MASKABLE, starts_word=STARTS, rate=0.3
    ).loss_mask
    word, words = 0, []
    for i, token in enumerate(tokens):
        word += STARTS[token] or not MASKABLE[token] or not MASKABLE[tokens[i - 1]]
        words.append(word)
    for place in np.flatnonzero(MASKABLE[tokens]):
        whole = [
            i for i, w in enumerate(words) if w == words[place] and MASKABLE[tokens[i]]
        ]
        assert len(set(loss_mask[whole])) == 1
    longest = max(np.bincount(words)) if words else 0
    assert loss_mask.sum() <= max(round(0.3 * MASKABLE[tokens].sum()), longest)


def test_masking_shares():
    tokens = np.random.default_rng(0).integers(MASK + 1, V, 100_000)
    inputs, _, loss_mask = mask_tokens(
        tokens, np.random.default_rng(1), mask_id=MASK, maskable=MASKABLE
    )
    chosen = loss_mask > 0
    assert chosen.sum() == 15_000
    assert (inputs == MASK)[chosen].mean() == pytest.approx(0.8, abs=0.01)
    random = (inputs != tokens) & (inputs != MASK)
    # One random token in 45 is the one that was there.
    assert random[chosen].mean() == pytest.approx(0.1 * 44 / 45, abs=0.01)
    assert set(inputs[random]) == set(range(MASK + 1, V))
    # Places are chosen evenly.
    halves = loss_mask.reshape(2, -1).sum(axis=1)
    assert halves[0] / halves[1] == pytest.approx(1, abs=0.05)


def test_whole_words_reach_the_rate():
    tokens = np.random.default_rng(0).integers(MASK + 1, V, 1000)
    masked = mask_tokens(
        tokens,
        np.random.default_rng(1),
        mask_id=MASK,
        maskable=MASKABLE,
        starts_word=STARTS,
    )
    assert masked.loss_mask.sum() == 150


def fill_in(encoder_inputs, targets, sentinels):
    """Puts what the targets hold back where the inputs have sentinels."""
    spans, span = {}, []
    for token in targets:
        if token in sentinels:
            span = spans[token] = []
        else:
            span.append(token)
    return [
        token
        for given in encoder_inputs
        for token in (spans[given] if given in sentinels else [given])
    ]


@given(st.integers(1, 300), SEEDS, DENSITY, MEAN, st.booleans())
def test_span_corruption_loses_nothing(n, seed, density, mean, has_eos):
    tokens = np.random.default_rng(seed).integers(1000, 2000, n)
    sentinels = list(range(500, 200, -1))
    options = {"noise_density": density, "mean_span_length": mean}
    inputs, targets = span_corruption(
        tokens,
        np.random.default_rng(seed),
        sentinel_ids=sentinels,
        eos_id=1 if has_eos else -1,
        **options,
    )
    lengths = span_lengths(np.array(n), has_eos=has_eos, **options)
    assert [len(inputs), len(targets)] == lengths.tolist()
    assert inputs.dtype == targets.dtype == np.int32
    if has_eos:
        assert inputs[-1] == targets[-1] == 1
        inputs, targets = inputs[:-1], targets[:-1]
    assert fill_in(inputs, targets, set(sentinels)) == tokens.tolist()
    used = [token for token in inputs if token in sentinels]
    assert used == sentinels[: len(used)]
    assert used == [token for token in targets if token in sentinels]
    # No two sentinels meet in the inputs: spans are apart and none is empty.
    assert n == 1 or not any(
        a in sentinels and b in sentinels for a, b in zip(inputs, inputs[1:])
    )
    assert not any(
        a in sentinels and b in sentinels for a, b in zip(targets, targets[1:])
    )


def test_span_corruption_is_t5s():
    """512 tokens of input from 568 of text, as `random_spans_helper` has it."""
    assert max_tokens(512, 512) == 568
    assert span_lengths(np.array(568)).tolist() == [512, 114]
    inputs, _ = span_corruption(
        np.arange(1000, 1568),
        np.random.default_rng(0),
        sentinel_ids=range(100),
        eos_id=1,
    )
    assert (inputs < 100).sum() - 1 == 28


def test_spans_fall_everywhere():
    counts = np.zeros(40)
    for seed in range(2000):
        _, targets = span_corruption(
            np.arange(100, 140), np.random.default_rng(seed), sentinel_ids=(0, 1)
        )
        counts[targets[targets >= 100] - 100] += 1
    assert counts[-1] == 2000
    assert counts[0] == 0
    assert counts.sum() == 2000 * 6
    assert (counts[1:] > 0).all()


@given(DENSITY, MEAN, st.integers(3, 200), st.integers(3, 200))
def test_max_tokens_is_the_most_that_fits(density, mean, inputs, targets):
    options = {"noise_density": density, "mean_span_length": mean}
    lengths = span_lengths(np.arange(1, 500), **options)
    assert (np.diff(lengths, axis=0) >= 0).all()
    most = max_tokens(inputs, targets, **options)
    fits = (lengths <= [inputs, targets]).all(axis=1)
    assert most == np.flatnonzero(fits)[-1] + 1
    assert not fits[most:].any()


def test_mistakes_are_named():
    with pytest.raises(UserError, match="has 2 corrupted spans but.* 1 sentinels"):
        span_corruption(np.arange(40), np.random.default_rng(0), sentinel_ids=(9,))
    with pytest.raises(UserError, match="no text fits into 1 input"):
        max_tokens(1, 5)
