"""Noise for denoising objectives: masked tokens and corrupted spans."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.types import UserError


class Masked(NamedTuple):
    """One text for masked language modelling; all [n].

    Attributes:
        inputs: The tokens, some of them replaced, int32.
        targets: The tokens as they were, int32.
        loss_mask: 1 where a token is to be predicted, float32.
    """

    inputs: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray


def mask_tokens(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    mask_id: int,
    maskable: np.ndarray,
    starts_word: np.ndarray | None = None,
    rate: float = 0.15,
    mask_fraction: float = 0.8,
    random_fraction: float = 0.1,
) -> Masked:
    """Chooses tokens to predict and hides most of them.

    As in BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1):
    `round(rate * n)` of n tokens are chosen, at least one; 80% of these become
    `[MASK]`, 10% a random token, and 10% stay.

    Args:
        tokens: Ids [n].
        rng: Where chance comes from.
        mask_id: The id of `[MASK]`.
        maskable: Whether an id may be chosen, and drawn as a random token [V]; False
            for marks such as `[CLS]`. If no token may be chosen, none is.
        starts_word: Whether an id begins a new word [V]. With it whole words are
            chosen, never a part of one, and as many as the number of tokens allows; if
            every word has more tokens than that, one word is. A mark ends a word.
        rate: Share of the maskable tokens to choose.
        mask_fraction: Share of the chosen that become `mask_id`.
        random_fraction: Share of the chosen that become a random token.

    >>> tokens = np.array([1, 5, 6, 7, 2])
    >>> maskable = np.arange(10) > 4
    >>> masked = mask_tokens(
    ...     tokens, np.random.default_rng(0), mask_id=3, maskable=maskable, rate=0.3
    ... )
    >>> masked.inputs.tolist(), masked.targets.tolist(), masked.loss_mask.tolist()
    ([1, 5, 6, 3, 2], [1, 5, 6, 7, 2], [0.0, 0.0, 0.0, 1.0, 0.0])
    """
    # A copy: the caller may write the inputs over the tokens.
    targets = np.array(tokens, np.int32)
    inputs = targets.copy()
    loss_mask = np.zeros(len(targets), np.float32)
    places = np.flatnonzero(maskable[targets])
    if not len(places):
        return Masked(inputs, targets, loss_mask)
    number = max(1, round(rate * len(places)))
    if starts_word is None:
        chosen = rng.permutation(places)[:number]
    else:
        chosen = _choose_words(targets, places, starts_word, number, rng)
    loss_mask[chosen] = 1
    fate = rng.random(len(chosen))
    inputs[chosen[fate < mask_fraction]] = mask_id
    swapped = chosen[(fate >= mask_fraction) & (fate < mask_fraction + random_fraction)]
    inputs[swapped] = rng.choice(np.flatnonzero(maskable), len(swapped))
    return Masked(inputs, targets, loss_mask)


def _choose_words(
    tokens: np.ndarray,
    places: np.ndarray,
    starts_word: np.ndarray,
    number: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns the places of whole words, `number` of them if words can make that up.

    Words are tried in random order and taken while they fit, as in
    https://github.com/google-research/bert, `create_pretraining_data.py`.
    """
    after_gap = np.diff(places, prepend=-2) > 1
    word_of = np.cumsum(starts_word[tokens[places]] | after_gap) - 1
    sizes = np.bincount(word_of)
    order = rng.permutation(len(sizes))
    taken = np.zeros(len(sizes), bool)
    left = number
    for word, size in zip(order.tolist(), sizes[order].tolist()):
        if size <= left:
            taken[word] = True
            left -= size
            if not left:
                break
    if left == number:
        taken[sizes.argmin()] = True
    return places[taken[word_of]]


def span_lengths(
    num_tokens: np.ndarray,
    *,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
    has_eos: bool = True,
) -> np.ndarray:
    """Returns how long `span_corruption` makes a text's two sides.

    Args:
        num_tokens: Tokens of each text [...], at least 1.
        noise_density: As in `span_corruption`.
        mean_span_length: Likewise.
        has_eos: Whether both sides end with an end mark.

    Returns:
        Lengths of the inputs and of the targets [..., 2]; neither falls as texts grow.

    >>> span_lengths(np.array([1, 20, 568])).tolist()
    [[2, 3], [19, 5], [512, 114]]
    """
    noise, spans = _num_noise(num_tokens, noise_density, mean_span_length)
    extra = spans + int(has_eos)
    return np.stack([num_tokens - noise + extra, noise + extra], axis=-1)


def max_tokens(
    inputs_length: int,
    targets_length: int,
    *,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
    has_eos: bool = True,
) -> int:
    """Returns the most tokens of a text whose two sides, corrupted, still fit.

    Raises:
        UserError: If not even one token fits.

    >>> max_tokens(512, 114)
    568
    """
    # Either side holds a sentinel at least, so a text is never as long as both.
    sizes = np.arange(1, inputs_length + targets_length + 1)
    lengths = span_lengths(
        sizes,
        noise_density=noise_density,
        mean_span_length=mean_span_length,
        has_eos=has_eos,
    )
    fits = (lengths <= [inputs_length, targets_length]).all(axis=1)
    if not fits.any():
        raise UserError(
            f"no text fits into {inputs_length} input and {targets_length} target "
            "tokens once its spans are corrupted; lengthen them"
        )
    return int(sizes[fits][-1])


class Corrupted(NamedTuple):
    """One text for an encoder-decoder.

    Attributes:
        encoder_inputs: The text with a sentinel in place of each corrupted span, int32.
        targets: Each sentinel followed by what it stands for, int32.
    """

    encoder_inputs: np.ndarray
    targets: np.ndarray


def span_corruption(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    sentinel_ids: Sequence[int],
    eos_id: int = -1,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> Corrupted:
    """Replaces random spans by sentinels: T5's objective.

    Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4; numbers and
    lengths as in `random_spans_noise_mask` of
    https://github.com/google-research/text-to-text-transfer-transformer: the text
    begins with tokens that stay, and ends with a span that does not. A text of one
    token is a span whole.

    Args:
        tokens: Ids [n], at least one.
        rng: Where chance comes from. The lengths of both sides do not depend on it;
            `span_lengths` tells them.
        sentinel_ids: Sentinels in order of use.
        eos_id: Put at the end of both sides unless negative.
        noise_density: Share of the tokens to corrupt.
        mean_span_length: Tokens of a corrupted span, on average.

    Raises:
        UserError: If there are more spans than sentinels.

    >>> sides = span_corruption(np.arange(10, 20), np.random.default_rng(0),
    ...                       sentinel_ids=(1, 2), eos_id=0, noise_density=0.4,
    ...                       mean_span_length=2)
    >>> sides.encoder_inputs.tolist()
    [10, 11, 12, 1, 16, 17, 18, 2, 0]
    >>> sides.targets.tolist()
    [1, 13, 14, 15, 2, 19, 0]
    """
    tokens = np.asarray(tokens, np.int32)
    noise, spans = (
        int(count)
        for count in _num_noise(np.array(len(tokens)), noise_density, mean_span_length)
    )
    if spans > len(sentinel_ids):
        raise UserError(
            f"a text of {len(tokens)} tokens has {spans} corrupted spans but the "
            f"tokenizer has {len(sentinel_ids)} sentinels; train one with more"
        )
    kept_ends = np.cumsum(_segment(len(tokens) - noise, spans, rng))
    noise_ends = np.cumsum(_segment(noise, spans, rng))
    sentinels = np.array(sentinel_ids[:spans], np.int32)
    # Span i of the noise lies between the kept spans i and i + 1.
    starts = kept_ends + np.concatenate([[0], noise_ends[:-1]])
    is_noise = np.zeros(len(tokens) + 1, np.int8)
    is_noise[starts] += 1
    is_noise[kept_ends + noise_ends] -= 1
    is_noise = np.cumsum(is_noise[:-1]).astype(bool)
    encoder_inputs = np.insert(tokens[~is_noise], kept_ends, sentinels)
    targets = np.insert(
        tokens[is_noise], noise_ends - np.diff(noise_ends, prepend=0), sentinels
    )
    if eos_id >= 0:
        encoder_inputs = np.append(encoder_inputs, np.int32(eos_id))
        targets = np.append(targets, np.int32(eos_id))
    return Corrupted(encoder_inputs, targets)


def _num_noise(
    num_tokens: np.ndarray, noise_density: float, mean_span_length: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many tokens are corrupted, and in how many spans."""
    noise = np.rint(num_tokens * noise_density).astype(np.int64)
    noise = np.maximum(np.minimum(noise, num_tokens - 1), 1)
    spans = np.rint(noise / mean_span_length).astype(np.int64)
    return noise, np.maximum(np.minimum(spans, num_tokens - noise), 1)


def _segment(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Draws `parts` lengths of at least 1 that add up to `total`, all alike likely.

    (A total of 0 has one part, of length 0.)
    """
    inner = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1 if parts > 1 else []
    return np.diff(np.concatenate([[0], inner, [total]])).astype(np.int64)
