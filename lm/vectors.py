"""Word vectors: nearest words, analogies, similarities, and the files they are in.

word2vec's formats have a line with the numbers of words n and of dimensions D, then n
words, each with its vector: as text, a line each, or (`.bin`) a space and D float32s in
little endian, and a line's end. GloVe's text is without the first line. A name that
ends in `.gz` is of a compressed file. https://code.google.com/archive/p/word2vec

Names of subwords tell whether they begin a word: ▁the and ing (SentencePiece), the and
##ing (WordPiece). Where few names have such a sign, they are all words.

Axes: n words, D dimensions, Q questions.
"""

import functools
import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lm.atomic import replacing
from lm.cli import Status
from lm.data.files import open_file
from lm.types import UserError

# Added to a denominator by Levy & Goldberg.
EPSILON = 1e-3

# Similarities that are in memory at once, and words between two messages.
_MOST, _SHOWN = 1 << 24, 10_000

_LITTLE = np.dtype("<f4")

# What names of subwords begin with, and the share of them from which on it is a sign.
_BEGINS, _GOES_ON, _SHARE = "\u2581", "##", 0.05


@dataclass(frozen=True, eq=False)
class Vectors:
    """Words and their vectors.

    Attributes:
        words: n different ones, the most frequent first where that is known.
        table: Their vectors, float32 [n, D].
    """

    words: list[str]
    table: np.ndarray

    @functools.cached_property
    def index(self) -> dict[tuple[str, bool], int]:
        """The row of each text that begins a word (True), or goes on with one."""
        least = _SHARE * len(self.words)
        signs = (_BEGINS, _GOES_ON)
        used = (s for s in signs if sum(w.startswith(s) for w in self.words) > least)
        sign = next(used, "")
        return {parse_name(word, sign): row for row, word in enumerate(self.words)}

    @functools.cached_property
    def unit(self) -> np.ndarray:
        """The vectors at length 1, float32 [n, D]; one of zeros stays."""
        lengths = np.linalg.norm(self.table, axis=1, keepdims=True)
        return self.table / np.where(lengths > 0, lengths, 1)

    def find(self, text: str, begins: bool = True) -> int:
        """Returns the row of a text, or of it in small letters; -1 if neither is there.

        Args:
            text: A word, or a part of one.
            begins: Whether it is the word's beginning.

        >>> vectors = Vectors(["tiger", "US"], np.eye(2, dtype=np.float32))
        >>> [vectors.find(word) for word in ("Tiger", "US", "us")]
        [0, 1, -1]
        >>> vectors = Vectors(["ing", "##ing"], np.eye(2, dtype=np.float32))
        >>> [vectors.find("ing", begins) for begins in (True, False)]
        [0, 1]
        """
        row = self.index.get((text, begins), -1)
        return self.index.get((text.lower(), begins), -1) if row < 0 else row

    def cosines(self, pairs: np.ndarray) -> np.ndarray:
        """Returns the cosine of each two rows: [Q] of int [Q, 2]."""
        return np.einsum("qd,qd->q", self.unit[pairs[:, 0]], self.unit[pairs[:, 1]])

    def nearest(
        self, vector: np.ndarray, number: int, without: Sequence[int] = ()
    ) -> list[tuple[str, float]]:
        """Returns the words whose vectors have the greatest cosines, and these.

        Args:
            vector: [D].
            number: How many, at most.
            without: Rows to leave out.

        >>> vectors = Vectors(["a", "b"], np.array([[2, 0], [3, 4]], np.float32))
        >>> vectors.nearest(np.array([1, 0]), 2)
        [('a', 1.0), ('b', 0.6000000238418579)]
        """
        cosines = self.unit @ vector.astype(np.float32)
        cosines /= np.linalg.norm(vector) or 1
        cosines[list(without)] = -np.inf
        number = min(number, len(cosines) - len(set(without)))
        best = np.argsort(-cosines, kind="stable")[:number].tolist()
        return [(self.words[row], float(cosines[row])) for row in best]

    def solve(self, questions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solves "a is to b as c is to …".

        Levy & Goldberg (2014), https://aclanthology.org/W14-1618, have both: 3CosAdd,
        argmax cos(x, b) - cos(x, a) + cos(x, c), and 3CosMul, argmax cos(x, b)
        cos(x, c) / (cos(x, a) + ε), with cosines moved from [-1, 1] to [0, 1]. x is
        none of the three.

        Args:
            questions: Rows of a, b and c, int [Q, 3].

        Returns:
            The rows that 3CosAdd finds and those that 3CosMul does, int [Q] each.
        """
        size = max(1, _MOST // (3 * len(self.words)))
        added, multiplied = [], []
        for start in range(0, len(questions), size):
            part = questions[start : start + size]
            a, b, c = (self.unit[part[:, i]] @ self.unit.T for i in range(3))
            sums = b - a + c
            for cosines in (a, b, c):
                cosines += 1
                cosines /= 2
            products = b * c / (a + EPSILON)
            for scores, found in ((sums, added), (products, multiplied)):
                np.put_along_axis(scores, part, -np.inf, axis=1)
                found.append(scores.argmax(axis=1))
        none = [np.zeros(0, np.int64)]
        return np.concatenate(added or none), np.concatenate(multiplied or none)


def row_of(vectors: Vectors, word: str, source: str) -> int:
    """Returns the row of a word that --word names; raises a UserError without one."""
    row = vectors.find(word)
    if row < 0:
        raise UserError(f"{source} has no vector of {word!r}; choose another --word")
    return row


def parse_name(name: str, sign: str) -> tuple[str, bool]:
    """Splits a name into the text that it stands for and whether that begins a word.

    Args:
        name: Of a word or a subword.
        sign: ▁ or ##, as such names have it, or "" if all are words. Chinese
            characters and kana always begin words, as in `Tokenizer.starts_word`.

    >>> parse_name("▁the", "▁"), parse_name("##ing", "##"), parse_name("ing", "▁")
    (('the', True), ('ing', False), ('ing', False))
    """
    if sign == _GOES_ON:
        return name.removeprefix(sign), not name.startswith(sign)
    text = name.removeprefix(_BEGINS) if sign else name
    return text, text != name or not sign or "\u3000" <= text[:1] <= "\u9fff"


def read(path: Path, max_words: int = 0) -> Vectors:
    """Reads a file of vectors; of a word that comes twice, the first.

    Args:
        path: Of word2vec's binary format if it ends in `.bin` or `.bin.gz`; else text.
        max_words: Read no more; 0 means all.

    Raises:
        UserError: If there is no such file, or it is broken.
    """
    if not path.is_file():
        raise UserError(f"no file of vectors at {path}; check the path")
    is_binary = _suffix(path) == ".bin"
    rows: dict[str, int] = {}
    numbers = bytearray()
    with open_file(str(path)) as file, Status(f"reading {path}") as status:
        found = (_read_binary if is_binary else _read_text)(file, str(path), max_words)
        for word, row in found:
            if word not in rows:
                rows[word] = len(rows)
                numbers += row.tobytes()
            if len(rows) % _SHOWN == 0:
                status.update(f"read {len(rows):,} vectors")
    if not rows:
        raise UserError(f"{path} has no vectors; choose another file")
    words = list(rows)
    table = np.frombuffer(numbers, np.float32).reshape(len(words), -1)
    wrong = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(wrong):
        raise UserError(
            f"{path}: the vector of {words[wrong[0]]!r} is not finite; train it again"
        )
    return Vectors(words, table)


def write(vectors: Vectors, path: Path) -> None:
    """Writes a file that `read` and gensim read, in the format of its name.

    Raises:
        UserError: If it cannot be written, or a word is empty or has a space in it.
    """
    for word in vectors.words:
        if word.split() != [word]:
            raise UserError(
                f"{word!r} cannot be in a file of vectors, which ends words at spaces; "
                "leave it out"
            )
    lines = (_binary if _suffix(path) == ".bin" else _text)(vectors)
    with replacing(path) as temporary, temporary.open("wb") as raw:
        if path.suffix == ".gz":
            # Without its name and time, so that equal vectors make equal files.
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                file.writelines(lines)
        else:
            raw.writelines(lines)


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _header(vectors: Vectors) -> bytes:
    return "{} {}\n".format(*vectors.table.shape).encode()


def _text(vectors: Vectors) -> Iterator[bytes]:
    yield _header(vectors)
    for word, row in zip(vectors.words, vectors.table):
        # Nine digits are enough to read the same float32 again.
        numbers = " ".join([f"{value:.9g}" for value in row.tolist()])
        yield f"{word} {numbers}\n".encode()


def _binary(vectors: Vectors) -> Iterator[bytes]:
    yield _header(vectors)
    for word, row in zip(vectors.words, vectors.table):
        yield word.encode() + b" " + row.astype(_LITTLE).tobytes() + b"\n"


def _shape(line: bytes) -> tuple[int, int] | None:
    """Returns the numbers of a first line, if it is one.

    >>> _shape(b"3 100\\n"), _shape(b"the 0.5\\n")
    ((3, 100), None)
    """
    fields = line.split()
    if len(fields) == 2 and all(map(bytes.isdigit, fields)):
        return int(fields[0]), int(fields[1])
    return None


def _read_text(
    file: BinaryIO, name: str, max_words: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the words of word2vec's or GloVe's text."""
    first = file.readline()
    shape = _shape(first)
    size = shape[1] if shape else max(len(first.split()) - 1, 0)
    lines: Iterable[bytes] = file if shape else _chain(first, file)
    count = 0
    for number, line in enumerate(lines, 2 if shape else 1):
        if max_words and count == max_words:
            return
        # A few words of GloVe's largest file have spaces in them.
        word, *values = line.decode("utf-8", "replace").strip(" \r\n").rsplit(" ", size)
        try:
            row = np.array(list(map(float, values)), np.float32)
        except ValueError:
            row = np.zeros(0)
        if len(row) != size or not size:
            raise UserError(
                f"{name}:{number} is not a word and {size or 'its'} numbers; name a "
                "file of vectors"
            )
        yield word, row
        count += 1
    if shape and count < shape[0]:
        raise UserError(_cut_short(name, count, shape[0]))


def _chain(first: bytes, file: BinaryIO) -> Iterator[bytes]:
    if first:
        yield first
    yield from file


def _read_binary(
    file: BinaryIO, name: str, max_words: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the words of word2vec's binary format."""
    shape = _shape(file.readline(100))
    if not shape:
        raise UserError(
            f"{name} does not begin with the numbers of words and of dimensions; text "
            "must not end in .bin"
        )
    total, size = shape
    if not size:
        raise UserError(f"{name} has vectors of no numbers; name another file")
    for count in range(min(total, max_words or total)):
        word = b""
        while (char := file.read(1)) not in (b" ", b""):
            word += char
        row = np.frombuffer(file.read(_LITTLE.itemsize * size), np.uint8)
        if len(row) != _LITTLE.itemsize * size:
            raise UserError(_cut_short(name, count, total))
        yield (
            word.lstrip(b"\n").decode("utf-8", "replace"),
            row.view(_LITTLE).astype(np.float32),
        )


def _cut_short(name: str, count: int, total: int) -> str:
    return f"{name} is cut short: it has {count:,} of {total:,} words; bring it again"
