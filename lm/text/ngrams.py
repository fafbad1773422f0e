"""Character n-grams of words, as numbers of buckets that they are hashed into.

Bojanowski et al. (2017), https://arxiv.org/abs/1607.04606, section 3.2.
"""

import functools

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


@functools.lru_cache(maxsize=2)
def ngram_table(tokenizer: Tokenizer, number: int, least: int, most: int) -> np.ndarray:
    """Returns the buckets of each word's n-grams, int32 [V, G], -1 in spare places.

    Marks have none. G is that of the word that has the most.

    Args:
        tokenizer: Of words.
        number: Of buckets.
        least: As of `ngrams`.
        most: As of `ngrams`.
    """
    found = [
        []
        if is_special
        else [bucket(n, number) for n in ngrams(piece.decode(), least, most)]
        for piece, is_special in zip(tokenizer.pieces, tokenizer.is_special)
    ]
    table = np.full((len(found), max(map(len, found))), -1, np.int32)
    for row, buckets in zip(table, found):
        row[: len(buckets)] = buckets
    return table
