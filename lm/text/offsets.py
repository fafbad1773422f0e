"""Which characters of a text its tokens stand for."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.text.tokenizer import Tokenizer

# A word with the white space before it.
_WORD = re.compile(r"\s*(\S+)")


class Placed(NamedTuple):
    """A text's tokens, each with the characters [start, stop) that it stands for.

    The bounds never fall from one token to the next. White space before a word may
    belong to the word's first token; tokens may stand for the same characters.

    Attributes:
        ids: int32 [n].
        starts: int [n].
        stops: int [n].
    """

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def tokens(self, start: int, stop: int) -> tuple[int, int]:
        """Returns the tokens [first, last) that cover the characters [start, stop)."""
        first = np.searchsorted(self.stops, start, side="right")
        last = np.searchsorted(self.starts, stop, side="left")
        return int(first), int(max(first, last))


def place(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Placed]:
    """Encodes texts and finds the place of every token.

    A lossless tokenizer's places are exact. Others encode a text word by word, so that
    the words' places are; within a word the tokens' are as long as what they are
    written as adds up to the word, else each stands for all of it.

    >>> from lm.text.tokenizers import train
    >>> (found,) = place(train("bytes", []), ["né"])
    >>> found.starts.tolist(), found.stops.tolist()
    ([0, 1, 1], [1, 2, 2])
    """
    words = [_words(text, tokenizer.lossless) for text in texts]
    units = [
        text[begin:stop]
        for text, found in zip(texts, words)
        for begin, _, stop in found
    ]
    # Texts repeat their words, and often a text is there once for each question.
    unique = list(dict.fromkeys(units))
    ids = dict(zip(unique, tokenizer.encode_batch(unique)))
    encoded = iter([ids[unit] for unit in units])
    return [
        _joined([_placed(tokenizer, next(encoded), *word) for word in found])
        for found in words
    ]


def _words(text: str, is_one: bool) -> list[tuple[int, int, int]]:
    """Returns where words begin with their white space, begin without it, and end."""
    if is_one:
        return [(0, 0, len(text))] if text else []
    return [(m.start(), m.start(1), m.end()) for m in _WORD.finditer(text)]


def _placed(
    tokenizer: Tokenizer, ids: np.ndarray, begin: int, start: int, stop: int
) -> Placed:
    """Places the tokens of a word at [start, stop), whose white space is at `begin`."""
    counts = tokenizer.num_chars[ids]
    unknown = ids == tokenizer.unk_id
    missing, shares = stop - start - counts.sum(), unknown.sum()
    if shares and missing > 0 and missing % shares == 0:
        counts = np.where(unknown, missing // shares, counts)
    # A tokenizer may count a space before the word, even one that is not there.
    if not 0 <= counts.sum() - (stop - start) <= max(1, start - begin):
        return Placed(ids, np.full(len(ids), start), np.full(len(ids), stop))
    ends = stop - counts.sum() + counts.cumsum()
    # What has only the later bytes of a character stands for the character.
    starts = np.minimum(ends - counts, ends - 1)
    return Placed(ids, np.maximum(starts, begin), np.maximum(ends, begin))


def _joined(parts: Sequence[Placed]) -> Placed:
    """Joins the tokens of words."""
    empty = Placed(np.zeros(0, np.int32), np.zeros(0, int), np.zeros(0, int))
    return Placed(*(np.concatenate(column) for column in zip(empty, *parts)))
