"""Character n-grams of words, as numbers of buckets that they are hashed into.

Bojanowski et al. (2017), https://arxiv.org/abs/1607.04606, section 3.2.
"""

import functools
from typing import NamedTuple

import numpy as np

from lm.text.tokenizer import Tokenizer


def ngrams(word: str, least: int, most: int) -> list[str]:
    """Returns the n-grams of a word between < and >, but for that whole.

    Args:
        word: The word.
        least: The fewest characters of one.
        most: The most.

    >>> ngrams("her", 3, 4)
    ['<he', 'her', 'er>', '<her', 'her>']
    """
    text = f"<{word}>"
    return [
        text[start : start + size]
        for size in range(least, min(most, len(text) - 1) + 1)
        for start in range(len(text) - size + 1)
    ]


def bucket(ngram: str, number: int) -> int:
    """Returns an n-gram's bucket of this number: FNV-1a of its bytes, as fastText has.

    https://github.com/facebookresearch/fastText, `src/dictionary.cc`, where bytes from
    128 on are taken as negative.

    >>> bucket("<he", 1000)
    580
    """
    value = 2166136261
    for byte in ngram.encode():
        signed = byte if byte < 128 else byte | 0xFFFFFF00
        value = ((value ^ signed) * 16777619) & 0xFFFFFFFF
    return value % number


class Ngrams(NamedTuple):
    """The n-grams of all words, L in all.

    Attributes:
        words: The word that each is of, in order, int32 [L].
        buckets: Its bucket, int32 [L].
        numbers: How many each word has, float32 [V].
    """

    words: np.ndarray
    buckets: np.ndarray
    numbers: np.ndarray


@functools.lru_cache(maxsize=2)
def all_ngrams(tokenizer: Tokenizer, number: int, least: int, most: int) -> Ngrams:
    """Returns the n-grams of a tokenizer's words; marks have none.

    Args:
        tokenizer: Of words.
        number: Of buckets.
        least: As of `ngrams`.
        most: As of `ngrams`.
    """
    found = [
        (id, bucket(ngram, number))
        for id, piece in enumerate(tokenizer.pieces)
        if piece
        for ngram in ngrams(piece.decode(), least, most)
    ]
    words, buckets = np.array(found, np.int32).reshape(-1, 2).T
    numbers = np.bincount(words, minlength=tokenizer.vocab_size).astype(np.float32)
    return Ngrams(words, buckets, numbers)
