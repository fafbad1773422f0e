"""Files of texts, local or at `gs://`: finding, opening and reading them.

A reader yields the rows of an open file, each with the number of its (last) line; the
name it is given is for messages. All raise a `UserError` at what is broken.
"""

import contextlib
import csv
import glob
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lm.types import UserError

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]

# Rows of a table that are in memory at once.
READ_ROWS = 128


def read_text(file: Iterable[bytes], name: str, unit: str = "line") -> Rows:
    r"""Yields lines, paragraphs (up to a blank line) or the whole file as `text`.

    >>> file = [b"Good day,\n", b"sir.\n", b"\n", b"Good night."]
    >>> [row["text"] for _, row in read_text(file, "two.txt", "paragraph")]
    ['Good day,\nsir.', 'Good night.']
    """
    held, number = [], 0
    for number, line in enumerate(_lines(file, name), 1):
        held.append(line.rstrip("\r\n"))
        if unit == "line" or (unit == "paragraph" and line.isspace()):
            yield number, {"text": "\n".join(held).rstrip("\n")}
            held = []
    if held:
        yield number, {"text": "\n".join(held)}


def read_json(file: Iterable[bytes], name: str) -> Rows:
    """Yields the objects of JSON lines."""
    for number, line in enumerate(_lines(file, name), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{name}:{number} is broken JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(
                f"{name}:{number} is not a JSON object; write one object a line, such "
                'as {"text": "…"}'
            )
        yield number, row


def read_csv(
    file: Iterable[bytes], name: str, delimiter: str = ",", quote: str = '"'
) -> Rows:
    """Yields rows of strings under the names in the first one."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(
        _lines(file, name),
        delimiter=delimiter,
        quotechar=quote or None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        columns = next(reader, [])
        for row in filter(None, reader):
            if len(row) != len(columns):
                raise UserError(
                    f"{name}:{reader.line_num} has {len(row)} columns, the first row "
                    f"{len(columns)}; mend it, or set ?delimiter= or ?quote="
                )
            yield reader.line_num, dict(zip(columns, row))
    except csv.Error as error:
        raise UserError(
            f"{name}:{reader.line_num} is broken: {error}; mend it, or set ?quote="
        ) from error


def read_tsv(
    file: Iterable[bytes], name: str, delimiter: str = "\t", quote: str = ""
) -> Rows:
    """Yields rows as `read_csv` does."""
    return read_csv(file, name, delimiter, quote)


def read_parquet(file: BinaryIO, name: str) -> Rows:
    """Yields the rows of a Parquet file with their own numbers."""
    import pyarrow
    from pyarrow import parquet

    try:
        # Unless told not to, it holds all of a file's bytes that it has read.
        opened = parquet.ParquetFile(file, pre_buffer=False)
        batches = opened.iter_batches(READ_ROWS)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(rows, 1)
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} is broken Parquet: {reason}") from error


READERS: dict[str, Callable[..., Rows]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".txt": read_text,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}


def _lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """Yields lines with their ends; a byte order mark is dropped."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}:{number} is not UTF-8 at byte {error.start} of the line; "
                "convert the file, for example with iconv"
            ) from error


def is_remote(path: str) -> bool:
    """Returns whether a path is not of this machine's file system."""
    return "://" in path


def find(pattern: str) -> list[str]:
    """Returns the files that match, sorted; a file's own name matches it, too."""
    if is_remote(pattern):
        with _remote(pattern) as gfile:
            return sorted(gfile.glob(pattern))
    if Path(pattern).is_file():
        return [pattern]
    # Path.glob takes no absolute pattern.
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207
    return sorted(path for path in found if Path(path).is_file())


def stat(path: str) -> tuple[int, ...]:
    """Returns a file's size and its times of change.

    The time of the contents' last change can be set back, that of the inode cannot.
    """
    if is_remote(path):
        with _remote(path) as gfile:
            result = gfile.stat(path)
            return result.length, result.mtime_nsec
    result = Path(path).stat()
    return result.st_size, result.st_mtime_ns, result.st_ctime_ns


def fingerprint(paths: Iterable[str]) -> str:
    """Returns a checksum of the files' names, sizes and times; reads none of them."""
    stats = [[path, *stat(path)] for path in paths]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


@contextlib.contextmanager
def open_file(path: str) -> Iterator[Any]:
    """Opens a file of bytes; one that ends in `.gz` is decompressed."""
    try:
        with (
            io.BufferedReader(_Remote(path))
            if is_remote(path)
            else Path(path).open("rb")
        ) as file:
            yield gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


@contextlib.contextmanager
def _remote(path: str) -> Iterator[Any]:
    """Yields TensorFlow's file system and turns its errors into one line."""
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.OpError as error:
        reason = error.message.partition("\n")[0]
        raise UserError(f"{path} cannot be reached: {reason}") from error


class _Remote(io.RawIOBase):
    """A remote file that Python can buffer, decompress and seek in."""

    def __init__(self, path: str):
        self._path = path
        with _remote(path) as gfile:
            self._file = gfile.GFile(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        with _remote(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
