"""Exporting and scoring vectors, of files; `test_word_vectors.py` has workdirs."""

import numpy as np
import pytest

from lm import cli
from lm import vectors as vectors_lib
from lm.types import UserError
from lm.vectors import Vectors
from tools import evaluate_vectors, export_vectors

WORDS = ["man", "woman", "king", "queen", "tiger", "cat"]


@pytest.fixture
def path(tmp_path):
    table = [[1, 0, 1], [1, 1, 1], [3, 0, 0.5], [3, 1, 0.5], [0, -1, 3], [0, -1, 2]]
    vectors_lib.write(Vectors(WORDS, np.array(table, np.float32)), tmp_path / "v.txt")
    return tmp_path / "v.txt"


@pytest.fixture
def tests(tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()
    for name in evaluate_vectors.PAIRS.values():
        text = (
            "# by people\ntiger\tcat\t9\nking\tqueen\t8\nking\tcat\t1\nking\todd\t1\n"
        )
        (folder / name).write_text(text)
    (folder / evaluate_vectors.ANALOGIES).write_text(
        ": family\nman woman king queen\n: gram1\nman woman king odd\n"
    )
    return folder


def run(command, *flags):
    return command.main(cli.parse(command.parser, flags)[0])


def message(*arguments):
    with pytest.raises(UserError) as caught:
        run(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_file_is_written_in_another_format(path, tmp_path, capsys):
    output = tmp_path / "new" / "v.bin"
    flags = f"--vectors={path}", f"--output={output}", "--max-words=4"
    result = run(export_vectors, *flags)
    assert result == {"output": str(output), "words": 4, "size": 3}
    assert "4 vectors of 3 numbers" in capsys.readouterr().out
    found, given = vectors_lib.read(output), vectors_lib.read(path)
    assert found.words == WORDS[:4]
    np.testing.assert_array_equal(found.table, given.table[:4])
    assert "set --overwrite" in message(export_vectors, *flags)
    run(export_vectors, *flags[:2], "--overwrite")
    assert vectors_lib.read(output).words == WORDS
    assert "another --output" in message(
        export_vectors, flags[0], f"--output={tmp_path}", "--overwrite"
    )
    assert "no file of vectors" in message(
        export_vectors, "--vectors=none.txt", f"--output={tmp_path}/x"
    )
    assert "no " in message(
        export_vectors, f"--vectors={tmp_path}", f"--output={tmp_path}/x"
    )


def test_words_with_spaces_are_left_out(tmp_path, capsys):
    glove = tmp_path / "glove.txt"
    glove.write_text("a 1 2\n. . . 3 4\nb 5 6\n")
    run(export_vectors, f"--vectors={glove}", f"--output={tmp_path}/v.bin")
    found = vectors_lib.read(tmp_path / "v.bin")
    assert (found.words, found.table.tolist()) == (["a", "b"], [[1, 2], [5, 6]])
    assert "left out 1 words with spaces" in capsys.readouterr().err


def test_all_test_sets_are_scored_and_coverage_is_told(path, tests, capsys):
    result = run(evaluate_vectors, f"--vectors={path}", f"--tests={tests}")
    assert result["similarity"] == {
        name: {"spearman": pytest.approx(1), "found": 3, "pairs": 4}
        for name in evaluate_vectors.PAIRS
    }
    assert result["analogies"]["semantic"]["3cosadd"] == 1
    assert result["analogies"]["syntactic"] == {
        "3cosadd": None,
        "3cosmul": None,
        "found": 0,
        "questions": 1,
    }
    said = capsys.readouterr().out
    for part in ("6 vectors of 3 numbers", "3 of 4", "1 of 2", "1.000", "family"):
        assert part in said


def test_ones_own_test_sets_are_scored_alone(path, tests):
    pairs = tests / "wordsim353.tsv"
    result = run(evaluate_vectors, f"--vectors={path}", f"--pairs={pairs}")
    assert list(result["similarity"]) == [str(pairs)] and "analogies" not in result
    few = run(
        evaluate_vectors, f"--vectors={path}", f"--pairs={pairs}", "--max-words=4"
    )
    assert few["similarity"][str(pairs)]["found"] == 1
    questions = tests / "questions-words.txt"
    result = run(evaluate_vectors, f"--vectors={path}", f"--analogies={questions}")
    assert result["similarity"] == {}
    assert result["analogies"]["all"]["found"] == 1


def test_neighbours_are_shown(path, capsys):
    result = run(
        evaluate_vectors,
        f"--vectors={path}",
        "--word=Tiger",
        "--word=king",
        "--nearest=2",
    )
    assert [word for word, _ in result["nearest"]["Tiger"]] == ["cat", "man"]
    assert result["nearest"]["king"][0][0] == "queen"
    assert "cat" in capsys.readouterr().out
    flags = f"--vectors={path}", "--word=odd"
    assert "no vector of 'odd'" in message(evaluate_vectors, *flags)


def test_test_sets_that_are_missing_have_a_cure(path, tmp_path):
    said = message(evaluate_vectors, f"--vectors={path}", f"--tests={tmp_path}")
    assert "python -m tools.fetch_data word_tests" in said


def test_vectors_of_no_test_word_are_refused(tests, tmp_path):
    vectors_lib.write(Vectors(["zz"], np.ones((1, 3), np.float32)), tmp_path / "z.txt")
    flags = f"--vectors={tmp_path / 'z.txt'}", f"--tests={tests}"
    assert "has no word of these tests" in message(evaluate_vectors, *flags)
