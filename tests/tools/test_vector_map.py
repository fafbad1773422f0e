"""Maps of vectors: where words go, what they are called, pages and pictures."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from lm import vectors as vectors_lib
from lm.vectors import Vectors
from tests.tools.test_vector_tools import message, run
from tests.web_page import Parsed
from tools import plot_vectors, vector_map
from tools.vector_map import CHAR, HEIGHT, WIDTH

WORDS = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60)]


@pytest.fixture(scope="module")
def vectors():
    """Three bundles of words, and two that no page may read as it is."""
    rng = np.random.default_rng(0)
    middles = 4 * np.eye(3, 6)[np.arange(60) % 3]
    table = middles + rng.normal(size=(60, 6))
    words = [*WORDS[:58], "<b>'&", "日本"]
    return Vectors(words, table.astype(np.float32))


@pytest.mark.parametrize(
    "method,heads", [("pca", []), ("pca", [0, 1, 2]), ("tsne", [])]
)
def test_words_are_on_the_drawing_beside_their_like(vectors, method, heads):
    rows = list(range(60))
    made = vector_map.make_map(vectors, rows, heads, method, seed=0)
    assert made.words == vectors.words
    assert (made.places > 0).all() and (made.places < [WIDTH, HEIGHT]).all()
    distances = np.linalg.norm(made.places[:, None] - made.places[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    is_like = distances.argmin(axis=1) % 3 == np.arange(60) % 3
    assert is_like.mean() > 0.9
    if heads:
        assert made.names == vectors.words[:3]
        assert (made.groups == np.arange(60) % 3).mean() > 0.9
    else:
        assert len(made.names) == made.groups.max() + 1
    for row, near in zip(rows, made.near):
        assert near == vectors.nearest(vectors.table[row], 8, [row])


def test_principal_components_keep_their_scale(vectors):
    made = vector_map.make_map(vectors, list(range(60)), [], "pca", seed=0)
    centred = vectors.unit - vectors.unit.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred.astype(float), full_matrices=False)
    flat = centred @ axes[:2].T

    def distances(places):
        return np.linalg.norm(places[:, None] - places[None], axis=-1)

    scale = distances(made.places).max() / distances(flat).max()
    np.testing.assert_allclose(
        distances(made.places), scale * distances(flat), atol=1e-2
    )
    share = (singular[:2] ** 2).sum() / (singular**2).sum()
    assert f"{share:.0%}" in made.about


def test_names_that_are_shown_do_not_meet():
    rng = np.random.default_rng(0)
    places = rng.uniform(0, 300, (80, 2))
    words = [WORDS[i % 60] for i in range(80)]
    shown = vector_map.labelled(places, words)
    assert shown[0] and 5 < sum(shown) < 80
    kept = places[shown]
    apart = np.abs(kept[:, None] - kept[None])
    meets = (apart[..., 0] < CHAR * 6) & (apart[..., 1] < 15)
    assert meets.sum() == len(kept)  # each with itself alone
    # What is not shown meets one that is and came before it.
    for i in np.flatnonzero(~np.array(shown)):
        before = [j for j in range(i) if shown[j]]
        apart = np.abs(places[before] - places[i])
        assert ((apart[:, 0] < CHAR * 9) & (apart[:, 1] < 15)).any()
    assert vector_map.width("日本") == 2 * vector_map.width("ab")


def test_the_page_has_all_and_loads_nothing(vectors):
    made = vector_map.make_map(vectors, list(range(60)), [], "pca", seed=0)
    text = vector_map.page(made, "runs/<x>", 6, "python -m tools.plot_vectors")
    parsed = Parsed(text)
    assert not parsed.outside and "<b>'&" in parsed.texts
    assert parsed.tags.count("circle") == parsed.tags.count("option") == 60
    assert parsed.tags.count("script") == 1
    for word, near in zip(made.words, made.near):
        assert any(
            said.startswith(f"{word}\n{near[0][0]} {near[0][1]:.2f}\n")
            for said in parsed.texts
        )


def test_files_are_pages_or_pictures(vectors, tmp_path, capsys):
    path = tmp_path / "v.txt"
    vectors_lib.write(vectors, path)
    output = tmp_path / "maps" / "map.svg"
    flags = f"--vectors={path}", f"--output={output}", "--method=pca"
    result = run(plot_vectors, *flags, "--num-words=20")
    assert result["words"] == WORDS[:20]
    assert f"20 words to {output}" in capsys.readouterr().out
    root = ET.parse(output).getroot()
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert names == WORDS[:20]

    result = run(plot_vectors, *flags, "--word=Wordaa", "--word=日本", "--nearest=5")
    near = [vectors.nearest(vectors.table[row], 5, [row]) for row in (0, 59)]
    expected = ["wordaa", "日本", *(word for some in near for word, _ in some)]
    assert result["words"] == list(dict.fromkeys(expected))
    page = tmp_path / "map.html"
    run(plot_vectors, flags[0], f"--output={page}", "--method=pca")
    assert "<!doctype html>" in page.read_text()

    for wrong, said in {
        "--word=none": "no vector of 'none'",
        "--method=umap": "unknown --method 'umap'",
        "--num-words=2": "--num-words must be at least 3",
        f"--output={tmp_path}/map.png": "must end in .html or .svg",
    }.items():
        assert said in message(plot_vectors, *flags, wrong)
