"""Finds documents that are the same, or nearly, in one pass.

The first of equal documents is kept, so what is dropped depends on their order and on
nothing else. Texts are not kept: a document leaves a hash of 16 bytes, and a sketch
where near duplicates are looked for.

Two documents are nearly the same if the Jaccard similarity |A ∩ B| / |A ∪ B| of their
sets of shingles, runs of 3 words, reaches a threshold (Broder 1997,
https://doi.org/10.1109/SEQUEN.1997.666900). The share of equal values in two sketches
estimates it (Dahlgaard et al. 2017, https://arxiv.org/abs/1704.04370). Pairs to compare
are found by cutting the sketches into bands: a pair is a candidate if all values of
some band are equal (Leskovec, Rajaraman and Ullman 2014, Mining of Massive Datasets,
section 3.4, http://www.mmds.org).
"""

import hashlib
from typing import NamedTuple

from rensa import RMinHash, RMinHashDeduplicator  # pyright: ignore

from lm.text.cleaning import words
from lm.types import UserError

# Words of a shingle: few enough that one changed word in a short text leaves most of
# its shingles alone, many enough that other texts on the subject share few.
SHINGLE_WORDS = 3

# Values of a sketch. The estimate of a similarity s errs by sqrt(s (1 - s) / 128)
# on average: 0.035 at 0.8.
SKETCH_SIZE = 128
SEED = 0

# A pair whose similarity is the threshold is a candidate at least this often.
LEAST_RECALL = 0.9


class Fingerprint(NamedTuple):
    """What is remembered of a text.

    Attributes:
        digest: A hash of it, 16 bytes.
        sketch: The MinHash of its shingles; None if it has no words, or where only
            exact duplicates are looked for.
    """

    digest: bytes
    sketch: RMinHash | None


class Duplicate(NamedTuple):
    """A document that is to be dropped.

    Attributes:
        is_exact: Whether an equal text has been seen, or a similar one.
        kept: For a near duplicate, the number of the first similar document among those
            that were kept; otherwise None.
    """

    is_exact: bool
    kept: int | None


class Deduplicator:
    """Remembers documents and says which are duplicates of an earlier one.

    A document takes 0.1 kB, and at a threshold of 0.8 another 2.1 kB for its sketch and
    16 bands (measured with rensa 0.5 at 100,000 documents); lower thresholds have more
    bands and take more.

    >>> seen = Deduplicator(threshold=0.5)
    >>> texts = ["a b c d e f", "a b c d e f", "A b c d, e g", "u v w x y z"]
    >>> for text in texts:
    ...     print(seen.add(fingerprint(text)))
    None
    Duplicate(is_exact=True, kept=None)
    Duplicate(is_exact=False, kept=0)
    None
    """

    def __init__(self, threshold: float):
        """Starts with no documents.

        Args:
            threshold: The similarity from which on documents are near duplicates, from
                0.1 to 1; 0 looks for exact duplicates alone.

        Raises:
            UserError: If the threshold is another number.
        """
        if threshold and not 0.1 <= threshold <= 1:
            raise UserError(
                f"near duplicates of similarity {threshold} cannot be looked for; give "
                "a number from 0.1 to 1, or 0 for exact duplicates alone"
            )
        self._num_kept = 0
        self._digests: set[bytes] = set()
        self._sketches = None
        if threshold:
            self._sketches = RMinHashDeduplicator(
                threshold, SKETCH_SIZE, True, num_bands(threshold), SEED
            )

    def add(self, fingerprint: Fingerprint) -> Duplicate | None:
        """Remembers a document; returns None if it is to be kept."""
        if fingerprint.digest in self._digests:
            return Duplicate(is_exact=True, kept=None)
        self._digests.add(fingerprint.digest)
        if self._sketches is not None and fingerprint.sketch is not None:
            if similar := self._sketches.get_duplicates(fingerprint.sketch):
                return Duplicate(is_exact=False, kept=min(map(int, similar)))
            self._sketches.add(str(self._num_kept), fingerprint.sketch)
        self._num_kept += 1
        return None


def fingerprint(text: str, near: bool = True) -> Fingerprint:
    """Returns what `Deduplicator` remembers of a text.

    Args:
        text: A text that UTF-8 can encode.
        near: Whether near duplicates are looked for.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    grams = shingles(text) if near else []
    if not grams:
        return Fingerprint(digest, None)
    sketch = RMinHash(SKETCH_SIZE, SEED)
    sketch.update(grams)
    return Fingerprint(digest, sketch)


def shingles(text: str) -> list[str]:
    """Returns all runs of `SHINGLE_WORDS` words, without case and punctuation.

    A text of fewer words has one, all of it. In scripts without spaces a character is a
    word.

    >>> shingles("To be, or not to be?")
    ['to be or', 'be or not', 'or not to', 'not to be']
    >>> shingles("床前明月光")
    ['床 前 明', '前 明 月', '明 月 光']
    """
    units = words(text.lower())
    if len(units) < SHINGLE_WORDS:
        return [" ".join(units)] if units else []
    return [" ".join(run) for run in zip(*(units[i:] for i in range(SHINGLE_WORDS)))]


def candidate_probability(similarity: float, bands: int) -> float:
    """Returns how likely a pair of documents is compared.

    1 - (1 - s^r)^b for b bands of r values each (Leskovec et al. 2014, section 3.4.2).

    >>> [round(candidate_probability(s, bands=16), 2) for s in (0.5, 0.8, 0.9)]
    [0.06, 0.95, 1.0]
    """
    return 1 - (1 - similarity ** (SKETCH_SIZE // bands)) ** bands


def num_bands(threshold: float) -> int:
    """Returns the fewest bands that find `LEAST_RECALL` of the pairs at a threshold.

    It is a power of two, so that it divides `SKETCH_SIZE`.

    >>> [num_bands(threshold) for threshold in (0.5, 0.8, 0.95)]
    [64, 16, 8]
    """
    bands = 1
    while candidate_probability(threshold, bands) < LEAST_RECALL:
        bands *= 2
    return bands
