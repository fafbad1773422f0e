"""How scores become a continuation, on the device.

Nothing here knows text: see `lm.completion`. A model that decodes has the methods
`prefill` and `step` (see `lm.models.gpt`) and a cache whose leaves have the rows on
their second axis.

What a token is scored by, log p, is the model's softmax over the tokens that may
come, after the penalty for repetition. Greedy decoding and beam search maximise it;
sampling then applies temperature, top-k, top-p and min-p, in this order (that of
`transformers`). A row's result depends on nothing but the row.

Axes: B batch, R rows (B, or B · W), W beams, T time, V vocab, N new tokens.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.types import Array, Batch, Params, PyTree, UserError


@dataclass(frozen=True)
class Config:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: N, the most tokens of a continuation, its end mark included.
        temperature: What log p is divided by; 0 takes the likeliest token.
        top_k: If positive, only the k likeliest tokens may come.
        top_p: If below 1, only the likeliest tokens of together at least this
            probability.
        min_p: If positive, only tokens of at least this share of the likeliest
            one's probability.
        repetition_penalty: Above 1, tokens that were read or written are less
            likely to come again.
        beam_size: W; 0 means no beam search.
        length_penalty: The power of the length that beam search divides by.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    beam_size: int = 0
    length_penalty: float = 0.6

    def __post_init__(self):
        # Written so that a NaN is refused too.
        for valid, message in (
            (self.max_new_tokens >= 1, "--max-new-tokens must be at least 1"),
            (
                self.temperature == 0 or 1e-6 <= self.temperature < math.inf,
                "--temperature must be 0, for the likeliest token, or at least 1e-6",
            ),
            (self.top_k >= 0, "--top-k must be at least 1, or 0 for all tokens"),
            (0 < self.top_p <= 1, "--top-p must be above 0 and at most 1"),
            (0 <= self.min_p <= 1, "--min-p must be from 0 to 1"),
            (
                0 < self.repetition_penalty < math.inf,
                "--repetition-penalty must be above 0; 1 is none",
            ),
            (self.beam_size >= 0, "--beam must be at least 1, or 0 for no beams"),
            (
                0 <= self.length_penalty < math.inf,
                "--length-penalty must be at least 0",
            ),
            (
                not self.beam_size or not self._draws,
                "--beam draws nothing at random; leave out --temperature, --top-k, "
                "--top-p and --min-p",
            ),
        ):
            if not valid:
                raise UserError(message)

    @property
    def _draws(self) -> bool:
        """Whether an option of sampling was set."""
        truncates = self.top_k > 0 or self.top_p < 1 or self.min_p > 0
        return truncates or self.temperature not in (0, 1)


@flax.struct.dataclass
class Vocabulary:
    """What may be written.

    Attributes:
        allowed: [V] bool.
        end: Scalar int, the token that ends a text; -1 if there is none.
    """

    allowed: Array
    end: Array


# --- Scores -------------------------------------------------------------------------


def penalize_repetition(logits: Array, seen: Array, penalty: float) -> Array:
    """Makes seen tokens less likely.

    Keskar et al. (2019), https://arxiv.org/abs/1909.05858, section 4.1: their scores
    are divided by the penalty. A negative score is multiplied instead (as in
    `transformers`), since division would raise it.

    Args:
        logits: [R, V].
        seen: [R, V] bool.
        penalty: 1 changes nothing.
    """
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, penalized, logits)


def keep_top_k(logits: Array, k: int) -> Array:
    """Removes all [R, V] but the k highest, and those that tie with the last.

    Fan et al. (2018), https://arxiv.org/abs/1805.04833.
    """
    return _keep_highest(logits, jnp.ones_like(logits), k)


def keep_top_p(logits: Array, p: float) -> Array:
    """Removes all [R, V] but the nucleus, and those that tie with its last.

    The nucleus is the fewest of the likeliest tokens whose probabilities sum to at
    least p: Holtzman et al. (2020), https://arxiv.org/abs/1904.09751, section 3.1.
    """
    return _keep_highest(logits, jax.nn.softmax(logits, axis=-1), p)


def _keep_highest(logits: Array, weights: Array, least: float) -> Array:
    """Removes all but the highest, as few as weigh `least` together.

    How far below the highest the last one lies is found by bisecting the bits of that
    gap: floats that are not negative are ordered as their bits. A sort takes longer.
    """
    gap = logits.max(axis=-1, keepdims=True) - logits

    def within(bits: Array) -> Array:
        return gap <= jax.lax.bitcast_convert_type(bits, jnp.float32)

    def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        weight = jnp.where(within(middle), weights, 0).sum(axis=-1, keepdims=True)
        enough = weight >= least
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    none = jnp.full_like(gap[:, :1], -1, jnp.int32)
    every = jnp.full_like(none, 0x7F800000)  # the bits of infinity
    _, last = jax.lax.fori_loop(0, 31, halve, (none, every))
    return jnp.where(within(last), logits, -jnp.inf)


def keep_min_p(logits: Array, p: float) -> Array:
    """Removes all [R, V] whose probability is below p times the highest one.

    Nguyen et al. (2024), https://arxiv.org/abs/2407.01082.
    """
    least = logits.max(axis=-1, keepdims=True) + math.log(p)
    return jnp.where(logits < least, -jnp.inf, logits)


def length_penalty(length: Array | int, power: float) -> Array | float:
    """Returns what a hypothesis's log probability is divided by.

    Wu et al. (2016), https://arxiv.org/abs/1609.08144, equation 14.
    """
    return ((5 + length) / 6) ** power


def draw(log_probs: Array, keys: Array, config: Config) -> Array:
    """Returns a token [B] of each row's log p [B, V], drawn by the row's key [B]."""
    if config.temperature == 0:
        return log_probs.argmax(axis=-1).astype(jnp.int32)
    logits = log_probs / config.temperature
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p:
        logits = keep_min_p(logits, config.min_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def row_keys(seed: Array, numbers: Array) -> Array:
    """Returns a key [B] of each row, made of the seed and its numbers [B, n]."""

    def fold(row: Array) -> Array:
        key = jax.random.key(seed)
        for number in row:
            key = jax.random.fold_in(key, number)
        return key

    return jax.vmap(fold)(numbers)


# --- What the model has read --------------------------------------------------------


@flax.struct.dataclass
class Context:
    """Rows of tokens that the model has read.

    Attributes:
        cache: The model's, [L, R, …].
        logits: [R, V] of each row's next token.
        length: [R] int, tokens of each row.
        seen: [R, V] bool, the tokens of each row; None where nothing asks for it.
    """

    cache: PyTree
    logits: Array
    length: Array
    seen: Array | None

    def log_probs(self, vocabulary: Vocabulary, config: Config) -> Array:
        """Returns log p [R, V] of the next token; -inf where it may not come."""
        logits = jnp.where(vocabulary.allowed[None], self.logits, -jnp.inf)
        if self.seen is not None:
            logits = penalize_repetition(logits, self.seen, config.repetition_penalty)
        return jax.nn.log_softmax(logits, axis=-1)

    def take(self, rows: Array) -> "Context":
        """Returns the rows of these numbers."""
        return Context(
            jax.tree.map(lambda leaf: leaf[:, rows], self.cache),
            self.logits[rows],
            self.length[rows],
            None if self.seen is None else self.seen[rows],
        )


def prefill(
    model: nn.Module, params: Params, batch: Batch, config: Config, cache_len: int
) -> Context:
    """Reads the prompts, of which `inputs` [B, T] are what is continued."""
    logits, cache = _call(model, params, "prefill", batch, cache_len)
    real = batch["segment_ids"] > 0
    seen = None
    if config.repetition_penalty != 1:
        rows = jnp.arange(real.shape[0])[:, None]
        seen = jnp.zeros(logits.shape, bool).at[rows, batch["inputs"]].max(real)
    return Context(cache, logits, real.sum(axis=1), seen)


def read(model: nn.Module, params: Params, context: Context, tokens: Array) -> Context:
    """Reads one more token [R] of each row."""
    logits, cache = _call(model, params, "step", tokens, context.length, context.cache)
    seen = context.seen
    if seen is not None:
        seen = seen.at[jnp.arange(tokens.shape[0]), tokens].set(True)
    return Context(cache, logits, context.length + 1, seen)


def _call(model: nn.Module, params: Params, method: str, *args) -> Any:
    return model.apply({"params": params}, *args, method=method)


# --- One continuation a row ---------------------------------------------------------


@flax.struct.dataclass
class State:
    """Rows that grow.

    Attributes:
        context: What the model has read.
        keys: [B], each row's own.
        left: [B] int, tokens that may still come; 0 where the text has ended.
    """

    context: Context
    keys: Array
    left: Array


@functools.partial(jax.jit, static_argnames=("model", "config", "cache_len"))
def start(
    model: nn.Module,
    params: Params,
    batch: Batch,
    keys: Array,
    config: Config,
    cache_len: int,
) -> State:
    """Reads the prompts.

    Args:
        model: The model.
        params: Its parameters.
        batch: What the model's `prefill` takes; a row without any token in `inputs`
            only fills up the batch, and nothing comes of it.
        keys: [B], what each row's draws depend on besides their places.
        config: How tokens are chosen.
        cache_len: At least the tokens of the longest prompt and N together.
    """
    context = prefill(model, params, batch, config, cache_len)
    return State(context, keys, jnp.where(context.length > 0, config.max_new_tokens, 0))


@functools.partial(
    jax.jit,
    static_argnames=("model", "config", "num_steps"),
    donate_argnames=("state",),
)
def advance(
    model: nn.Module,
    params: Params,
    vocabulary: Vocabulary,
    state: State,
    config: Config,
    num_steps: int,
) -> tuple[State, Array, Array]:
    """Writes up to `num_steps` tokens of each row, fewer once all texts have ended.

    Returns the new state (the old one's memory is used for it), the tokens
    [B, num_steps], -1 behind a text's end, and their log p, 0 there.
    """
    shape = (num_steps, state.left.shape[0])

    def step(carry):
        i, state, tokens, scores = carry
        context, grows = state.context, state.left > 0
        log_probs = context.log_probs(vocabulary, config)
        keys = jax.vmap(jax.random.fold_in)(state.keys, context.length)
        token = draw(log_probs, keys, config)
        score = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]
        tokens = tokens.at[i].set(jnp.where(grows, token, -1))
        scores = scores.at[i].set(jnp.where(grows, score, 0))
        left = jnp.where(grows & (token != vocabulary.end), state.left - 1, 0)
        context = read(model, params, context, token)
        return i + 1, State(context, state.keys, left), tokens, scores

    _, state, tokens, scores = jax.lax.while_loop(
        lambda carry: (carry[0] < num_steps) & (carry[1].left > 0).any(),
        step,
        (0, state, jnp.full(shape, -1, jnp.int32), jnp.zeros(shape)),
    )
    return state, tokens.T, scores.T


# --- Beam search --------------------------------------------------------------------


@flax.struct.dataclass
class Beams:
    """Hypotheses of each prompt.

    Attributes:
        tokens: [B, W, N], -1 behind the end.
        log_probs: [B, W, N] of the tokens, 0 behind the end.
        score: [B, W] what they are ranked by; -inf where there is no hypothesis.
    """

    tokens: Array
    log_probs: Array
    score: Array

    def take(self, places: Array) -> "Beams":
        """Returns the hypotheses of these places [B, n] of each prompt."""
        return Beams(
            jnp.take_along_axis(self.tokens, places[:, :, None], axis=1),
            jnp.take_along_axis(self.log_probs, places[:, :, None], axis=1),
            jnp.take_along_axis(self.score, places, axis=1),
        )


def best(a: Beams, b: Beams) -> Beams:
    """Returns the W best of two sets, best first."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), a, b)
    return both.take(jax.lax.top_k(both.score, a.score.shape[1])[1])


@functools.partial(jax.jit, static_argnames=("model", "config", "cache_len"))
def beam_search(
    model: nn.Module,
    params: Params,
    vocabulary: Vocabulary,
    batch: Batch,
    config: Config,
    cache_len: int,
) -> Beams:
    """Returns W continuations of each prompt, best first.

    In each step the likeliest of all continuations by one token stay. One that ends
    leaves the beam for good and takes its place along, so that the search is over
    once W have ended (Sutskever et al. 2014, https://arxiv.org/abs/1409.3215, section
    3.2; Kasai et al. 2022, https://arxiv.org/abs/2204.05424, call it "first come,
    first served"). Those that have N tokens end as well. They are ranked by
    log p / `length_penalty`. With one beam that is greedy decoding; with as many as
    there are texts, the best text is found.

    Args: as of `start` and `advance`.
    """
    W, N, power = config.beam_size, config.max_new_tokens, config.length_penalty
    context = prefill(model, params, batch, config, cache_len)
    B, V = context.logits.shape
    first_rows = W * jnp.arange(B)[:, None]
    empty = Beams(
        jnp.full((B, W, N), -1), jnp.zeros((B, W, N)), jnp.full((B, W), -jnp.inf)
    )
    begin = jnp.where(context.length > 0, 0.0, -jnp.inf)
    live = replace(empty, score=empty.score.at[:, 0].set(begin))
    context = context.take(jnp.repeat(jnp.arange(B), W))

    def step(carry):
        i, live, ended, context = carry
        log_probs = context.log_probs(vocabulary, config).reshape(B, W, V)
        total = (live.score[:, :, None] + log_probs).reshape(B, W * V)
        score, place = jax.lax.top_k(total, W)
        parent, token = place // V, place % V
        log_prob = jnp.take_along_axis(log_probs.reshape(B, W * V), place, axis=1)
        live = live.take(parent)
        live = Beams(
            live.tokens.at[:, :, i].set(token),
            live.log_probs.at[:, :, i].set(log_prob),
            score,
        )
        taken = (ended.score > -jnp.inf).sum(axis=1)
        stays = jnp.arange(W)[None] < W - taken[:, None]
        ends = token == vocabulary.end
        normalised = score / length_penalty(i + 1, power)
        ended = best(
            ended, replace(live, score=jnp.where(stays & ends, normalised, -jnp.inf))
        )
        live = replace(live, score=jnp.where(stays & ~ends, score, -jnp.inf))
        context = context.take((first_rows + parent).reshape(-1))
        context = read(model, params, context, token.reshape(-1))
        return i + 1, live, ended, context

    _, live, ended, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < N) & (carry[1].score > -jnp.inf).any(),
        step,
        (0, live, empty, context),
    )
    return best(ended, replace(live, score=live.score / length_penalty(N, power)))
