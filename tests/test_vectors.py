import gzip
import itertools

import numpy as np
import pytest
from scipy import stats

from lm import vectors as vectors_lib
from lm.types import UserError
from lm.vector_scores import read_analogies, read_pairs, score_analogies, score_pairs
from lm.vectors import EPSILON, Vectors

WORDS = ["the", "König", "naïve", "日本", "</s>", "New_York", "tiger", "cat"]


def random_vectors(words=WORDS, size=5, seed=0):
    rng = np.random.default_rng(seed)
    return Vectors(words, rng.normal(size=(len(words), size)).astype(np.float32))


def message(action):
    with pytest.raises(UserError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ["v.txt", "v.vec", "v.bin", "v.txt.gz", "v.bin.gz"])
def test_files_give_back_every_bit(name, tmp_path):
    vectors = random_vectors()
    vectors_lib.write(vectors, tmp_path / name)
    found = vectors_lib.read(tmp_path / name)
    assert found.words == vectors.words
    np.testing.assert_array_equal(found.table, vectors.table)
    assert found.table.dtype == np.float32
    assert [p.name for p in tmp_path.iterdir()] == [name]
    first = vectors_lib.read(tmp_path / name, max_words=3)
    assert first.words == WORDS[:3]
    np.testing.assert_array_equal(first.table, vectors.table[:3])


def test_files_are_in_the_formats_of_word2vec(tmp_path):
    vectors = Vectors(["a", "bé"], np.array([[1, -0.5], [0.1, 2**-29]], np.float32))
    text, binary = tmp_path / "v.txt", tmp_path / "v.bin"
    vectors_lib.write(vectors, text)
    vectors_lib.write(vectors, binary)
    assert text.read_text() == "2 2\na 1 -0.5\nbé 0.100000001 1.86264515e-09\n"
    rows = [row.astype("<f4").tobytes() for row in vectors.table]
    assert binary.read_bytes() == (
        b"2 2\na " + rows[0] + b"\nb\xc3\xa9 " + rows[1] + b"\n"
    )


def test_reads_what_others_write(tmp_path):
    rows = np.array([[1, 2], [3, 4]], "<f4")
    # gensim ends no line in its binary format; word2vec's text ends in spaces.
    binary = tmp_path / "v.bin"
    binary.write_bytes(b"2 2\na " + rows[0].tobytes() + b"b " + rows[1].tobytes())
    plain = tmp_path / "v.txt"
    plain.write_text("2 2\na 1 2 \nb 3 4 \n")
    glove = tmp_path / "glove.txt"
    glove.write_text("a 1 2\r\nb 3 4\r\n")
    for path in (binary, plain, glove):
        found = vectors_lib.read(path)
        assert found.words == ["a", "b"]
        np.testing.assert_array_equal(found.table, rows)
    glove.write_text("a 1 2 3\n. . . 4 5 6\n")
    assert vectors_lib.read(glove).words == ["a", ". . ."]
    # Of a word that comes twice, also one after the other, the first counts.
    plain.write_text("4 1\na 1\na 2\nb 3\na 4\n")
    found = vectors_lib.read(plain)
    assert (found.words, found.table.tolist()) == (["a", "b"], [[1], [3]])


def test_broken_files_are_named(tmp_path):
    path, binary = tmp_path / "v.txt", tmp_path / "v.bin"
    assert str(path) in message(lambda: vectors_lib.read(path))
    for text, fault in {
        "": "no vectors",
        "a 1 2\nb 1\n": f"{path}:2 is not",
        "2 2\na 1 x\n": f"{path}:2 is not",
        "word\n": f"{path}:1 is not",
        "3 2\na 1 2\n": "1 of 3 words",
        "1 2\na nan 1\n": "'a' is not finite",
    }.items():
        path.write_text(text)
        assert fault in message(lambda: vectors_lib.read(path))
    binary.write_bytes(b"2 2\na " + bytes(8) + b"\nb " + bytes(7))
    assert "1 of 2 words" in message(lambda: vectors_lib.read(binary))
    binary.write_text("a 1 2\n")
    assert "does not begin" in message(lambda: vectors_lib.read(binary))
    (tmp_path / "v.txt.gz").write_bytes(gzip.compress(b"2 2\na 1 2\n")[:-9])
    assert "cannot be read" in message(lambda: vectors_lib.read(tmp_path / "v.txt.gz"))
    spaced = Vectors(["new york"], np.ones((1, 2), np.float32))
    assert "'new york'" in message(lambda: vectors_lib.write(spaced, path))
    vectors = random_vectors()
    lost = tmp_path / "no" / "v.txt"
    assert str(lost) in message(lambda: vectors_lib.write(vectors, lost))


def test_nearest_words_are_those_of_the_greatest_cosines():
    vectors = random_vectors()
    query = vectors.table[3] * 2
    cosines = [
        float(row @ query / np.linalg.norm(row) / np.linalg.norm(query))
        for row in vectors.table
    ]
    order = sorted(range(len(WORDS)), key=lambda i: -cosines[i])
    found = vectors.nearest(query, 4)
    assert [word for word, _ in found] == [WORDS[i] for i in order[:4]]
    np.testing.assert_allclose(
        [c for _, c in found], [cosines[i] for i in order[:4]], rtol=1e-6
    )
    assert found[0][0] == WORDS[3]
    others = vectors.nearest(query, 100, without=[3, 3, 0])
    assert [w for w, _ in others] == [WORDS[i] for i in order if i not in (0, 3)]
    assert vectors.nearest(np.zeros(5), 2) == [("the", 0.0), ("König", 0.0)]


def test_analogies_are_solved_by_the_formulas(monkeypatch):
    vectors = random_vectors([f"w{n}" for n in range(30)])
    questions = np.array(list(itertools.permutations(range(6), 3)))

    def cos(x, y):
        x, y = vectors.table[x].astype(float), vectors.table[y].astype(float)
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    def moved(x, y):
        return (cos(x, y) + 1) / 2

    for size in (1 << 24, 1):  # all at once, and one at a time
        monkeypatch.setattr(vectors_lib, "_MOST", size)
        added, multiplied = vectors.solve(questions)
        for (a, b, c), add, mul in zip(questions.tolist(), added, multiplied):
            others = [x for x in range(30) if x not in (a, b, c)]
            sums = [cos(x, b) - cos(x, a) + cos(x, c) for x in others]
            products = [
                moved(x, b) * moved(x, c) / (moved(x, a) + EPSILON) for x in others
            ]
            assert add == others[int(np.argmax(sums))]
            assert mul == others[int(np.argmax(products))]
    assert (added != multiplied).any()
    assert [len(x) for x in vectors.solve(np.zeros((0, 3), int))] == [0, 0]


def test_similarity_is_the_correlation_of_ranks(tmp_path):
    path = tmp_path / "pairs.tsv"
    rng = np.random.default_rng(1)
    pairs = list(itertools.combinations(WORDS, 2))
    gold = rng.integers(0, 6, len(pairs)).tolist()  # with ties
    lines = [f"{a}\t{b}\t{score}" for (a, b), score in zip(pairs, gold)]
    path.write_text("# of people\n# a\tb\tc\n" + "\n".join([*lines, "the\tno\t3"]))
    vectors = random_vectors()
    read = read_pairs(path)
    assert read[-1] == ("the", "no", 3.0)
    found = score_pairs(vectors, read)
    rows = vectors.unit.astype(float)
    index = {word: row for row, word in enumerate(WORDS)}
    cosines = [rows[index[a]] @ rows[index[b]] for a, b in pairs]
    ranks = stats.rankdata(gold), stats.rankdata(cosines)
    expected = np.corrcoef(*ranks)[0, 1]
    assert found["spearman"] == pytest.approx(expected, abs=1e-6)
    assert (found["found"], found["pairs"]) == (28, 29)
    nothing = score_pairs(vectors, [("x", "y", 1.0), ("the", "cat", 2.0)])
    assert nothing == {"spearman": None, "found": 1, "pairs": 2}


def test_pairs_may_have_names_of_columns_and_other_columns(tmp_path):
    path = tmp_path / "simlex.txt"
    path.write_text("word1\tword2\tPOS\tSimLex999\nold\tnew\tA\t1.58\t2.7\n")
    assert read_pairs(path) == [("old", "new", 1.58)]
    path.write_text("Word 1,Word 2,Human (mean)\nlove,sex,6.77\n")
    assert read_pairs(path) == [("love", "sex", 6.77)]
    path.write_text("love,sex,6.77\ntiger,cat\n")
    assert f"{path}:2" in message(lambda: read_pairs(path))
    path.write_text("# nothing\n")
    assert "no pairs" in message(lambda: read_pairs(path))
    assert "cannot be read" in message(lambda: read_pairs(tmp_path / "none"))


def test_analogies_are_scored_by_section(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(
        ": family\nMan Woman King Queen\nman woman king girl\nman woman king nobody\n"
        ": gram1\nking queen man woman\n: none\n: unknown\na b c d\n"
    )
    sections = read_analogies(path)
    assert {name: len(some) for name, some in sections.items()} == {
        "family": 3,
        "gram1": 1,
        "unknown": 1,
    }
    table = np.array(
        [[1, 0, 1], [1, 1, 1], [3, 0, 0.5], [3, 1, 0.5], [0, 3, 3]], np.float32
    )
    vectors = Vectors(["man", "woman", "king", "queen", "girl"], table)
    scores = score_analogies(vectors, sections)
    assert scores["family"] == {
        "3cosadd": 0.5,
        "3cosmul": 0.5,
        "found": 2,
        "questions": 3,
    }
    assert scores["gram1"]["3cosadd"] == 1
    assert scores["unknown"] == {
        "3cosadd": None,
        "3cosmul": None,
        "found": 0,
        "questions": 1,
    }
    assert scores["all"]["3cosadd"] == pytest.approx(2 / 3)
    assert (scores["all"]["found"], scores["all"]["questions"]) == (3, 5)
    for text in ("man woman king queen\n", ": a\nman woman\n", ": a b\n"):
        path.write_text(text)
        assert f"{path}:" in message(lambda: read_analogies(path))
    path.write_text(": a\n")
    assert "no analogies" in message(lambda: read_analogies(path))
