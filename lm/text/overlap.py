"""Finds texts of an evaluation split that are in the training split, too.

A model may know by heart what it was trained on, and its score on such texts says
nothing of others (Elangovan et al. 2021, https://arxiv.org/abs/2102.01818).

The held-out texts are remembered and the training texts pass by once: nothing is kept
of one that resembles none of them.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rensa import RMinHashLSH  # pyright: ignore

from lm import cli
from lm.text.dedup import SKETCH_SIZE, fingerprint, num_bands, shingles
from lm.types import UserError

# Texts of fewer different shingles are near duplicates of none: a set phrase that two
# short texts have in common makes up most of both.
LEAST_SHINGLES = 8


class Overlap(NamedTuple):
    """A held-out text that is in the training texts.

    Attributes:
        index: Its number among the held-out texts.
        kind: `exact` if the texts are equal but for case, white space and how Unicode
            writes a character; otherwise `near`.
        similarity: The Jaccard similarity of their shingles; 1 if the texts are equal.
        train_index: The number of the first training text that is equal, or of the
            first that is near if none is.
        train_text: That text.
    """

    index: int
    kind: str
    similarity: float
    train_index: int
    train_text: str


def find_overlap(
    train: Iterable[str], held_out: Sequence[str], threshold: float = 0.8
) -> list[Overlap]:
    """Returns the held-out texts that are in the training texts, in their order.

    All that are equal to one are found. Of those that are near none is reported whose
    similarity is below the threshold; a pair at the threshold is found with a
    probability of `dedup.LEAST_RECALL` or more, and a pair above it more often. How far
    it is stands on standard error.

    Args:
        train: Texts that UTF-8 can encode; each is read once.
        held_out: Likewise. One of fewer than `LEAST_SHINGLES` different shingles is
            found only if it is equal.
        threshold: The similarity from which on texts are near, from 0.5 to 1.

    Raises:
        UserError: If the threshold is another number.

    >>> train = ["One.", "the mill by the river grinds corn for all three villages"]
    >>> test = ["Two.", "ONE.", "The mill by the river; grinds corn for all villages?"]
    >>> for overlap in find_overlap(train, test, threshold=0.7):
    ...     print(overlap[:4])
    (1, 'exact', 1.0, 0)
    (2, 'near', 0.7, 1)
    """
    if not 0.5 <= threshold <= 1:
        raise UserError(
            f"held-out texts of similarity {threshold} cannot be looked for; give a "
            "number from 0.5 to 1"
        )
    # Equal texts are looked for as one, the first of them.
    groups: dict[bytes, list[int]] = {}
    sketches = RMinHashLSH(threshold, SKETCH_SIZE, num_bands(threshold))
    for index, original in enumerate(held_out):
        text = _canonical(original)
        mark = fingerprint(text)
        group = groups.setdefault(mark.digest, [])
        group.append(index)
        if group == [index] and len(set(shingles(text))) >= LEAST_SHINGLES:
            sketches.insert(index, mark.sketch)
    digests = {digest: group[0] for digest, group in groups.items()}
    found: dict[int, Overlap] = {}
    with cli.Status("looking for held-out texts among the training texts") as status:
        for number, original in enumerate(train):
            text = _canonical(original)
            mark = fingerprint(text)
            first = digests.pop(mark.digest, None)
            if first is not None:
                found[first] = Overlap(first, "exact", 1.0, number, original)
            similar = sketches.query(mark.sketch) if mark.sketch else []
            for index in map(int, similar):
                similarity = _jaccard(text, _canonical(held_out[index]))
                if similarity >= threshold:
                    sketches.remove(index)
                    near = Overlap(index, "near", similarity, number, original)
                    found.setdefault(index, near)
            status.update(
                f"looked for held-out texts among {number + 1:,} training texts"
            )
    return sorted(
        found[group[0]]._replace(index=index)
        for group in groups.values()
        if group[0] in found
        for index in group
    )


def _canonical(text: str) -> str:
    """Returns what equal texts have in common.

    >>> _canonical("  Ｆull\u00a0WIDTH,\\n Cafe\u0301") == "full width, café"
    True
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _jaccard(a: str, b: str) -> float:
    grams, others = set(shingles(a)), set(shingles(b))
    return len(grams & others) / len(grams | others)
