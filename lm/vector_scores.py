"""How good word vectors are: similarities as people see them, and analogies.

The test sets are those of `tools.fetch_data word_tests`, or files like them. A word is
looked up as it is, then in small letters. What has a word without a vector is left out
and counted: scores of two vocabularies are only alike where they cover the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.types import UserError
from lm.vectors import Vectors

Pairs = Sequence[tuple[str, str, float]]
Analogies = Mapping[str, Sequence[Sequence[str]]]


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Reads pairs of words and how similar they are, as WordSim-353 or SimLex-999.

    A line has two words, perhaps more that is no number, and a number, parted by tabs
    or commas. Lines that begin with `#` are left out, and names of columns on top.

    Finkelstein et al. (2002), https://doi.org/10.1145/503104.503110; Hill et al.
    (2015), https://aclanthology.org/J15-4004.

    Raises:
        UserError: If there is no such file, or a line is none of these.
    """
    pairs: list[tuple[str, str, float]] = []
    for line_number, line in _lines(path):
        if line.startswith("#"):
            continue
        first, second, *others = [*re.split("[\t,]", line), "", ""]
        numbers = [n for n in map(_number, others) if n is not None]
        if numbers and first.strip() and second.strip():
            pairs.append((first.strip(), second.strip(), numbers[0]))
        elif pairs or line_number > 1:
            raise UserError(
                f"{path}:{line_number} is not two words and a number with tabs or "
                "commas between; mend it"
            )
    if not pairs:
        raise UserError(f"{path} has no pairs of words; name another file")
    return pairs


def read_analogies(path: Path) -> dict[str, list[list[str]]]:
    """Reads questions of four words, "a is to b as c is to d", by their sections.

    A section begins with a line such as `: family`. Mikolov et al. (2013),
    https://arxiv.org/abs/1301.3781, section 4.1.

    Raises:
        UserError: If there is no such file, or a line is neither.
    """
    sections: dict[str, list[list[str]]] = {}
    questions: list[list[str]] | None = None
    for line_number, line in _lines(path):
        words = line.split()
        if words[0] == ":" and len(words) == 2:
            questions = sections.setdefault(words[1], [])
        elif len(words) == 4 and questions is not None:
            questions.append(words)
        else:
            raise UserError(
                f"{path}:{line_number} is neither ': SECTION' nor four words; mend it"
            )
    sections = {name: some for name, some in sections.items() if some}
    if not sections:
        raise UserError(f"{path} has no analogies; name another file")
    return sections


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines that are not blank, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; check the path") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def score_pairs(vectors: Vectors, pairs: Pairs) -> dict[str, Any]:
    """Compares cosines with how similar people find the words.

    Returns:
        `spearman`, the correlation of their ranks, which is None where it is not
        defined; `found`, pairs of two words with vectors; `pairs`, all.

    >>> vectors = Vectors(["a", "b", "c"], np.array([[4, 0], [3, 1], [-1, 2]], "f4"))
    >>> scores = score_pairs(vectors, [("a", "b", 9), ("b", "c", 1), ("a", "d", 5)])
    >>> round(scores["spearman"], 6), scores["found"], scores["pairs"]
    (1.0, 2, 3)
    """
    from scipy import stats

    rows = np.array([[vectors.find(a), vectors.find(b)] for a, b, _ in pairs])
    is_found = np.all(rows >= 0, axis=1)
    gold = np.array([similarity for _, _, similarity in pairs])[is_found]
    cosines = vectors.cosines(rows[is_found])
    spearman = None
    if len(set(gold.tolist())) > 1 and len(set(cosines.tolist())) > 1:
        correlation: Any = stats.spearmanr(gold, cosines)[0]
        spearman = float(correlation)
    return {"spearman": spearman, "found": int(is_found.sum()), "pairs": len(pairs)}


def score_analogies(vectors: Vectors, sections: Analogies) -> dict[str, dict[str, Any]]:
    """Answers analogies; see `Vectors.solve`.

    Returns:
        For each section, for the `semantic` and the `syntactic` ones, whose names begin
        with "gram", and for `all`: the shares of right answers by `3cosadd` and
        `3cosmul`, which are None where no question can be answered; `found`, questions
        of four words with vectors; `questions`, all.
    """
    questions = [words for some in sections.values() for words in some]
    rows = np.array([[vectors.find(word) for word in words] for words in questions])
    is_found: Any = np.all(rows >= 0, axis=1)
    known = rows[is_found]
    right = np.zeros((len(rows), 2), bool)
    answers = np.stack(vectors.solve(known[:, :3]), axis=1)
    right[is_found] = answers == known[:, 3:]
    of = np.repeat(list(sections), [len(some) for some in sections.values()])
    is_syntactic = np.char.startswith(of, "gram")
    parts = {
        **{name: of == name for name in sections},
        "semantic": ~is_syntactic,
        "syntactic": is_syntactic,
        "all": np.ones(len(of), bool),
    }
    return {name: _share(right[part], is_found[part]) for name, part in parts.items()}


def _share(right: np.ndarray, is_found: np.ndarray) -> dict[str, Any]:
    """Returns the scores of some questions, [q, 2] and [q]."""
    found = int(is_found.sum())
    added, multiplied = (
        int(number) / found if found else None for number in right.sum(axis=0)
    )
    return {
        "3cosadd": added,
        "3cosmul": multiplied,
        "found": found,
        "questions": len(is_found),
    }
