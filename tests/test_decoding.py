"""Laws of decoding: what the cached loops write is what the full forward says."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lm import decoding, tree
from lm.decoding import Config, Vocabulary
from lm.models import MODELS, build_model
from lm.nn.base import replace_known
from lm.types import UserError

V, N = 23, 12
LENGTHS = (3, 8, 1, 6)

OPTIONS = {
    "learned": ("gpt", {"position_encoding": "learned", "num_kv_heads": 2}),
    "rotary": ("gpt", {"position_encoding": "rotary", "window": 4}),
    "relative": ("gpt", {"position_encoding": "relative"}),
    "t5": ("t5", {}),
    "gated_cnn": ("gated_cnn", {"width": 3, "dilations": (1, 3)}),
}
with_options = pytest.mark.parametrize("name", OPTIONS)


@functools.cache
def make(name="learned", vocab_size=V):
    kind, options = OPTIONS[name]
    sizes = {"emb_dim": 16, "num_layers": 2, "num_heads": 4, "max_len": 32}
    # With tied embeddings an untrained model repeats what it read.
    sizes |= {"vocab_size": vocab_size, "tie_embeddings": False}
    config = replace_known(MODELS[kind][0](), **(sizes | options))
    model = build_model(config)
    ids = jnp.zeros((1, 8), jnp.int32)
    batch = {"inputs": ids, "encoder_inputs": ids}
    abstract = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    rng = np.random.default_rng(0)

    def draw(leaf_name, leaf):
        if leaf_name.endswith("scale"):
            return jnp.ones(leaf.shape)
        # Wide, so that a token depends on what was read, and no two scores tie.
        return jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype)

    return model, tree.map_with_names(draw, nn.unbox(abstract))


def prompts(lengths=LENGTHS, vocab_size=V, width=8):
    """A batch; what a row holds does not depend on the rows beside it."""
    real = np.arange(width) < np.array(lengths)[:, None]
    rows = [np.random.default_rng(n).integers(0, vocab_size, width) for n in lengths]
    inputs = np.where(real, rows, 0).astype(np.int32)
    segment_ids = real.astype(np.int32)
    return {
        "inputs": inputs,
        "segment_ids": segment_ids,
        "encoder_inputs": (inputs + 1) % vocab_size,
        "encoder_segment_ids": segment_ids,
    }


def vocabulary(end=-1, banned=(), vocab_size=V):
    allowed = np.ones(vocab_size, bool)
    allowed[list(banned)] = False
    return Vocabulary(allowed, np.int32(end))


def write(model, params, batch, words, numbers=None, chunk=N, **options):
    """Returns tokens and log p [B, N]."""
    config = Config(max_new_tokens=N, **options)
    rows = len(batch["inputs"])
    numbers = np.arange(rows) if numbers is None else numbers
    keys = decoding.row_keys(7, np.asarray(numbers, np.uint32)[:, None])
    cache_len = batch["inputs"].shape[1] + N
    state = decoding.start(model, params, batch, keys, config, cache_len)
    found = []
    for _ in range(0, N, chunk):
        state, *new = decoding.advance(model, params, words, state, config, chunk)
        found.append(new)
    tokens, scores = (np.concatenate(parts, axis=1)[:, :N] for parts in zip(*found))
    return tokens, scores


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
    return model.apply({"params": params}, batch).logits.dense()


def full_log_probs(model, params, batch, tokens):
    """Returns what the full forward says about each new token, [B, N, V]."""
    lengths = batch["segment_ids"].sum(axis=1)
    rows, num_new = tokens.shape
    inputs = np.zeros((rows, lengths.max() + num_new), np.int32)
    for row, n in enumerate(lengths):
        inputs[row, :n] = batch["inputs"][row, :n]
        inputs[row, n : n + num_new] = np.maximum(tokens[row], 0)
    batch = batch | {"inputs": inputs, "segment_ids": np.ones_like(inputs)}
    logits = forward(model, params, batch)
    places = lengths[:, None] + np.arange(num_new) - 1
    logits = np.take_along_axis(np.asarray(logits), places[:, :, None], axis=1)
    return np.asarray(jax.nn.log_softmax(logits, axis=-1))


# --- Scores -------------------------------------------------------------------------

# Differences are exact, so nothing ties.
scores = hnp.arrays(np.float32, 9, elements=st.integers(-64, 64), unique=True).map(
    lambda row: row[None] / 8
)


keep_top_k = jax.jit(decoding.keep_top_k)
keep_top_p = jax.jit(decoding.keep_top_p)


def kept(row):
    return set(np.flatnonzero(np.isfinite(row[0])).tolist())


@given(scores, st.integers(1, 12))
def test_top_k_keeps_the_k_highest(row, k):
    expected = set(np.argsort(-row[0])[:k].tolist())
    assert kept(keep_top_k(row, k)) == expected


@given(scores, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_p(row, p):
    probs = np.asarray(jax.nn.softmax(row[0].astype(np.float64)))
    order = np.argsort(-probs)
    sums = np.cumsum(probs[order])
    if np.abs(sums - p).min() > 1e-5:
        expected = set(order[: np.searchsorted(sums, p) + 1].tolist())
        assert kept(keep_top_p(row, p)) == expected


@given(scores, st.floats(0.01, 0.99))
def test_min_p_keeps_a_share_of_the_highest(row, p):
    probs = np.exp(row[0] - row[0].max())
    if np.abs(probs - p).min() > 1e-5:
        assert kept(decoding.keep_min_p(row, p)) == set(np.flatnonzero(probs >= p))


@given(scores, st.sets(st.integers(0, 8)), st.floats(1.1, 3))
def test_seen_tokens_lose(row, seen, penalty):
    marks = np.isin(np.arange(9), list(seen))[None]
    new = np.asarray(decoding.penalize_repetition(row, marks, penalty))
    np.testing.assert_array_equal(new[~marks], row[~marks])
    old = row[marks]
    expected = [x / penalty if x > 0 else x * penalty for x in old]
    np.testing.assert_allclose(new[marks], expected, rtol=1e-6)
    assert (new[marks] <= old).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -2.0])
    count = 20_000
    rows = jnp.broadcast_to(jax.nn.log_softmax(logits)[None], (count, 6))
    keys = decoding.row_keys(0, np.arange(count, dtype=np.uint32)[:, None])
    tokens = decoding.draw(rows, keys, Config(temperature=temperature))
    found = np.bincount(tokens, minlength=6)
    expected = count * np.asarray(jax.nn.softmax(logits / temperature))
    # Chi-square with 5 degrees of freedom: above 25.7 once in 10,000 seeds.
    assert ((found - expected) ** 2 / expected).sum() < 25.7


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_the_narrowest_draw_is_greedy(options):
    rows = jax.nn.log_softmax(np.random.default_rng(0).normal(size=(50, V)))
    keys = decoding.row_keys(0, np.arange(50, dtype=np.uint32)[:, None])
    greedy = decoding.draw(rows, keys, Config(temperature=0))
    np.testing.assert_array_equal(greedy, rows.argmax(axis=-1))
    np.testing.assert_array_equal(decoding.draw(rows, keys, Config(**options)), greedy)
    assert (decoding.draw(rows, keys, Config()) != greedy).any()


def test_keys_differ_by_seed_and_number():
    numbers = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.uint32)
    rows = [jax.random.key_data(decoding.row_keys(seed, numbers)) for seed in (0, 1)]
    assert len({tuple(key) for key in np.concatenate(rows).tolist()}) == 8


# --- One continuation a row ---------------------------------------------------------


@with_options
def test_cached_loop_is_the_full_forward(name):
    model, params = make(name)
    tokens, scores = write(model, params, prompts(), vocabulary(), temperature=0)
    full = full_log_probs(model, params, prompts(), tokens)
    np.testing.assert_array_equal(tokens, full.argmax(axis=-1))
    np.testing.assert_allclose(scores, full.max(axis=-1), atol=1e-4)
    assert len(set(tokens.ravel().tolist())) > 5


@pytest.mark.parametrize("name", ["learned", "t5"])
def test_a_row_does_not_depend_on_its_batch(name):
    model, params = make(name)
    together, _ = write(model, params, prompts(), vocabulary())
    for row, length in enumerate(LENGTHS):
        # Padded further than in the batch.
        alone = prompts([length], width=11)
        tokens, _ = write(model, params, alone, vocabulary(), numbers=[row])
        np.testing.assert_array_equal(tokens[0], together[row])


@pytest.mark.parametrize("chunk", [1, 5])
def test_chunks_are_one_loop(chunk):
    model, params = make()
    whole = write(model, params, prompts(), vocabulary())
    parts = write(model, params, prompts(), vocabulary(), chunk=chunk)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_allclose(parts[1], whole[1], atol=1e-5)


def test_every_row_and_place_has_its_own_draw():
    model, params = make()
    # All tokens are alike likely.
    flat = jax.tree.map(jnp.zeros_like, params)
    tokens, _ = write(model, flat, prompts(), vocabulary())
    assert min(len(set(row.tolist())) for row in tokens) > N // 2
    assert min(len(set(column.tolist())) for column in tokens.T) > 1


def test_the_end_mark_ends_a_text():
    model, params = make()
    free, free_scores = write(model, params, prompts(), vocabulary())
    end = free[0, 4]
    tokens, scores = write(model, params, prompts(), vocabulary(end))
    for row in range(len(LENGTHS)):
        ends = np.flatnonzero(free[row] == end)
        stop = ends[0] + 1 if len(ends) else N
        np.testing.assert_array_equal(tokens[row, :stop], free[row, :stop])
        np.testing.assert_allclose(scores[row, :stop], free_scores[row, :stop], 1e-4)
        assert (tokens[row, stop:] == -1).all() and not scores[row, stop:].any()


def test_banned_tokens_never_come():
    model, params = make()
    banned = range(0, V, 2)
    tokens, scores = write(model, params, prompts(), vocabulary(banned=banned))
    assert (tokens % 2 == 1).all()
    full = full_log_probs(model, params, prompts(), tokens)[:, :, 1::2]
    among = full - np.log(np.exp(full).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(among, tokens[:, :, None] // 2, axis=2)[:, :, 0]
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_repetition_counts_what_was_read_and_written():
    model, params = make()
    batch = prompts()
    # So heavy a penalty lets nothing come twice.
    tokens, _ = write(
        model, params, batch, vocabulary(), temperature=0, repetition_penalty=1e6
    )
    for row, length in enumerate(LENGTHS):
        new = tokens[row].tolist()
        assert len({*new}) == N
        assert not {*new} & {*batch["inputs"][row, :length].tolist()}


def test_nothing_comes_of_a_row_without_tokens():
    model, params = make()
    tokens, _ = write(model, params, prompts([3, 0, 8, 6]), vocabulary())
    assert (tokens[[0, 2, 3]] >= 0).all() and (tokens[1] == -1).all()


# --- Beam search --------------------------------------------------------------------


def search(model, params, batch, words, num_new=N, **options):
    config = Config(max_new_tokens=num_new, **options)
    cache_len = batch["inputs"].shape[1] + num_new
    beams = decoding.beam_search(model, params, words, batch, config, cache_len)
    return jax.device_get(beams)


def test_one_beam_is_greedy():
    model, params = make()
    options = {"repetition_penalty": 1.5}
    free = write(model, params, prompts(), vocabulary(), temperature=0, **options)
    words = vocabulary(end=free[0][0, 4])
    greedy = write(model, params, prompts(), words, temperature=0, **options)
    beams = search(model, params, prompts(), words, beam_size=1, **options)
    np.testing.assert_array_equal(beams.tokens[:, 0], greedy[0])
    np.testing.assert_allclose(beams.log_probs[:, 0], greedy[1], atol=1e-4)


@pytest.mark.parametrize("name,power", [("relative", 0.0), ("t5", 2.0)])
def test_enough_beams_find_all_texts_in_order(name, power):
    words, num_new, end = 4, 3, 2
    model, params = make(name, words)
    batch = prompts([2, 4], words)
    every = list(itertools.product(range(words), repeat=num_new))
    beams = search(
        model,
        params,
        batch,
        vocabulary(end, vocab_size=words),
        num_new,
        beam_size=len(every),
        length_penalty=power,
    )
    for row in range(2):
        one = {k: np.repeat(v[row : row + 1], len(every), 0) for k, v in batch.items()}
        full = full_log_probs(model, params, one, np.array(every))
        expected = {}
        for text, log_probs in zip(every, full):
            length = text.index(end) + 1 if end in text else num_new
            total = sum(log_probs[i, text[i]] for i in range(length))
            expected[text[:length]] = total / ((5 + length) / 6) ** power
        ranked = sorted(expected, key=lambda text: -expected[text])
        count = len(ranked)
        assert np.isneginf(beams.score[row, count:]).all()
        found = [tuple(t[t >= 0].tolist()) for t in beams.tokens[row, :count]]
        assert found[0] == ranked[0] and set(found) == set(ranked)
        np.testing.assert_allclose(
            beams.score[row, :count], [expected[text] for text in ranked], atol=1e-4
        )
        totals = beams.log_probs[row, 0].sum() / ((5 + len(found[0])) / 6) ** power
        np.testing.assert_allclose(totals, beams.score[row, 0], atol=1e-4)


def reference_search(score, W, end, power):
    """The same search in plain Python; `score` maps a text to log p [V]."""
    live, ended = [((), 0.0)], []
    for _ in range(N):
        longer = [
            ((*text, token), total + log_prob)
            for text, total in live
            for token, log_prob in enumerate(score(text))
        ]
        longer = sorted(longer, key=lambda pair: -pair[1])[: W - len(ended)]
        ended += [pair for pair in longer if pair[0][-1] == end]
        live = [pair for pair in longer if pair[0][-1] != end]
    found = [
        (text, total / ((5 + len(text)) / 6) ** power) for text, total in ended + live
    ]
    return sorted(found, key=lambda pair: -pair[1])


def test_beam_search_is_the_plain_one():
    W, power, penalty = 3, 0.6, 1.3
    model, params = make()
    # An end mark that some texts have and others lack.
    options = {"beam_size": W, "repetition_penalty": penalty}
    free = search(model, params, prompts(), vocabulary(), **options)
    end = free.tokens[0, 0, 5]
    beams = search(model, params, prompts(), vocabulary(end), **options)
    ended = (beams.tokens == end).any(axis=2)
    assert ended.any() and not ended.all()
    for row, length in enumerate(LENGTHS):
        prompt = prompts()["inputs"][row, :length].tolist()

        def score(text, prompt=prompt):
            ids = [*prompt, *text]
            inputs = np.array([ids + [0] * (20 - len(ids))])
            logits = np.array(forward(model, params, {"inputs": inputs}))
            logits = logits[0, len(ids) - 1]
            seen = logits[ids]
            logits[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
            return logits - np.log(np.exp(logits).sum())

        expected = reference_search(score, W, end, power)
        found = [tuple(tokens[tokens >= 0].tolist()) for tokens in beams.tokens[row]]
        assert found == [text for text, _ in expected]
        np.testing.assert_allclose(
            beams.score[row], [total for _, total in expected], atol=1e-4
        )


# --- Options ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,message",
    [
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1"),
        ({"temperature": -1.0}, "--temperature must be 0"),
        ({"temperature": float("nan")}, "--temperature must be 0"),
        ({"top_k": -1}, "--top-k must be at least 1"),
        ({"top_p": 0.0}, "--top-p must be above 0"),
        ({"top_p": 1.5}, "--top-p must be above 0"),
        ({"min_p": 2.0}, "--min-p must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty must be above 0"),
        ({"beam_size": -2}, "--beam must be at least 1"),
        ({"length_penalty": -1.0}, "--length-penalty must be at least 0"),
        ({"beam_size": 4, "top_k": 3}, "leave out --temperature, --top-k"),
        ({"beam_size": 4, "temperature": 0.7}, "leave out --temperature, --top-k"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Config(**options)
