"""A map of word vectors: where words go on a plane, and how that is drawn.

Axes: n words, D dimensions.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm import scorecard
from lm.page import COLORS, escaped, key
from lm.vectors import Vectors

METHODS = ("tsne", "pca")
WIDTH, HEIGHT, MARGIN = 960, 680, 24
CHAR, LINE, ASIDE = 6.4, 15, 7  # of a label: a character, a line, how far from its dot
NEIGHBOURS = 8  # of a word that are told

# Colours of a picture, which no page gives any.
_COLORS = ("#2c66ad", "#c25a14", "#1d7a4a", "#7a4fb0", "#117a85", "#5b6776")


@dataclass(frozen=True, eq=False)
class Map:
    """Words on a plane.

    Attributes:
        words: n of them, the most important first.
        places: Of each, in units of the drawing [n, 2].
        groups: The colour of each, int [n].
        names: What each colour stands for.
        near: The nearest words of each among all, and their cosines.
        about: What is said of how the places were found.
    """

    words: Sequence[str]
    places: np.ndarray
    groups: np.ndarray
    names: Sequence[str]
    near: Sequence[Sequence[tuple[str, float]]]
    about: str


def make_map(
    vectors: Vectors, rows: Sequence[int], heads: Sequence[int], method: str, seed: int
) -> Map:
    """Lays words out on a plane by their vectors at length 1.

    Args:
        vectors: All there are.
        rows: Words to show; at least 3.
        heads: Those of them that a colour each is for, which the words nearest to it
            have too. If there are none, the colours are clusters of k-means.
        method: `pca`, the plane of the greatest variance, or `tsne`: van der Maaten &
            Hinton (2008), https://jmlr.org/papers/v9/vandermaaten08a.html.
        seed: Of t-SNE and of k-means.
    """
    unit = vectors.unit[list(rows)]
    flat, about = _flat(unit, method, seed)
    if heads:
        groups = (unit @ vectors.unit[list(heads)].T).argmax(axis=1)
        names = [vectors.words[head] for head in heads]
    else:
        groups, names = _clusters(unit, [vectors.words[row] for row in rows], seed)
    near = [vectors.nearest(vectors.table[row], NEIGHBOURS, [row]) for row in rows]
    words = [vectors.words[row] for row in rows]
    return Map(words, _fitted(flat), groups, names, near, about)


def _flat(unit: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, str]:
    """Returns places [n, 2] and what is said of them."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method == "pca":
        pca = PCA(2, random_state=seed)
        places = pca.fit_transform(unit)
        share = float(pca.explained_variance_ratio_.sum())
        return places, f"PCA; the plane has {share:.0%} of the variance"
    perplexity = min(30.0, (len(unit) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    places = tsne.fit_transform(unit)
    return places, f"t-SNE, perplexity {perplexity:.0f}; what is far tells nothing"


def _clusters(
    unit: np.ndarray, words: list[str], seed: int
) -> tuple[np.ndarray, list[str]]:
    """Returns the cluster of each vector, and of each cluster what is in its middle."""
    from sklearn.cluster import KMeans

    means: Any = KMeans(min(COLORS, len(unit)), random_state=seed)
    groups = means.fit_predict(unit)
    names = []
    for number, centre in enumerate(means.cluster_centers_):
        members = np.flatnonzero(groups == number)
        order = members[np.argsort(-(unit[members] @ centre), kind="stable")]
        names.append(", ".join([words[i] for i in order[:3].tolist()]))
    return groups, names


def _fitted(places: np.ndarray) -> np.ndarray:
    """Moves places into the drawing; both axes keep one scale."""
    low, high = places.min(axis=0), places.max(axis=0)
    # A label needs room to the right of its dot.
    room = np.array([WIDTH - 5 * MARGIN, HEIGHT - 2 * MARGIN])
    scale = (room / np.maximum(high - low, 1e-9)).min()
    middle = (low + high) / 2
    return (places - middle) * scale + [WIDTH / 2 - 1.5 * MARGIN, HEIGHT / 2]


def labelled(places: np.ndarray, words: Sequence[str]) -> list[bool]:
    """Returns which words have room for their names; the first of them come first.

    >>> labelled(np.array([[0, 0], [3, 4], [0, 40]]), ["one", "two", "three"])
    [True, False, True]
    """
    taken, shown = np.zeros((0, 4)), []
    for (x, y), word in zip(places.tolist(), words):
        box = np.array([x - 4, y - LINE / 2, x + ASIDE + width(word), y + LINE / 2])
        over = (box[:2] < taken[:, 2:]) & (taken[:, :2] < box[2:])
        shown.append(not over.all(axis=1).any())
        if shown[-1]:
            taken = np.concatenate([taken, box[None]])
    return shown


def width(text: str) -> float:
    """Returns about how wide a label is."""
    return CHAR * sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def svg(made: Map, attributes: str = "", style: str = "") -> str:
    """Returns the drawing; `data-near` are the numbers of a word's neighbours on it."""
    number = {word: i for i, word in enumerate(made.words)}
    parts = []
    shown = labelled(made.places, made.words)
    for i, word in enumerate(made.words):
        x, y = made.places[i]
        near = ",".join(str(number[w]) for w, _ in made.near[i] if w in number)
        told = "\n".join(f"{w} {cosine:.2f}" for w, cosine in made.near[i])
        hides = "" if shown[i] else " hides"
        parts.append(
            f'<g class="word s{made.groups[i] % COLORS}{hides}" data-near="{near}" '
            f'transform="translate({x:.1f},{y:.1f})">'
            f"<title>{escaped(word)}\n{escaped(told)}</title>"
            f'<circle r="3"/><text x="{ASIDE}" y="4">{escaped(word)}</text></g>'
        )
    label = f"map of {len(made.words)} words"
    return (
        f'<svg {attributes} viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}">{style}{"".join(parts)}</svg>'
    )


def picture(made: Map) -> str:
    """Returns the drawing alone, as an .svg file."""
    colors = "".join(
        f".s{i} circle{{fill:{color}}}.s{i} text{{fill:{color}}}"
        for i, color in enumerate(_COLORS)
    )
    style = (
        "<style>svg{background:#fff;font:12px system-ui,sans-serif}"
        f".hides text{{display:none}}{colors}</style>"
    )
    return svg(made, 'xmlns="http://www.w3.org/2000/svg"', style)


def page(made: Map, source: str, size: int, command: str) -> str:
    """Returns a web page in the look of the reports, which needs nothing from outside.

    Args:
        made: The map.
        source: What the vectors are of.
        size: D.
        command: That made the map.
    """
    style, script = (
        Path(__file__).with_suffix(end).read_text(encoding="utf-8")
        for end in (".css", ".js")
    )
    facts = {
        "vectors": escaped(source),
        "dimensions": f"{size:,}",
        "words shown": f"{len(made.words):,}",
        "map": escaped(made.about),
    }
    keys = " ".join(key(escaped(name), i) for i, name in enumerate(made.names))
    drawing = (
        "<p class=find><input type=search list=words placeholder='Find a word' "
        "aria-label='Find a word'><button type=button>Whole map</button>"
        "<span class=soft>Turn the wheel to come nearer, drag to move.</span></p>"
        "<datalist id=words>"
        + "".join(f"<option value='{escaped(word)}'></option>" for word in made.words)
        + f"</datalist>{svg(made, 'class=map')}"
        "<p class='about soft'>The nearest words of all, not of the map alone, are "
        f"shown where the mouse is.</p><p>{keys}</p>"
    )
    title = f"{Path(source).name}: map of {len(made.words):,} words"
    sections = {"Map": drawing, "How it was made": f"<pre>{escaped(command)}</pre>"}
    return scorecard.page(title, facts, sections, style=style, script=script)
