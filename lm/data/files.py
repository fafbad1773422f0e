"""Files, local or at `gs://`: finding and opening them; and what is in a row of one."""

import contextlib
import glob
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lm.cli import say, suggest
from lm.types import UserError

Fields = dict[str, Any]


class Row(Fields):
    """An example: its fields, and where they come from.

    To ask for a field that it lacks is a `UserError`.

    Attributes:
        where: `FILE:LINE` or `NAME SPLIT:NUMBER`, for messages.
    """

    def __init__(self, fields: Fields, where: str):
        """Takes both."""
        super().__init__(fields)
        self.where = where

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.where} has no {name!r}{suggest(name, list(self))}")


class BadRows:
    """What is done about bad rows: the first is raised, or they are counted.

    Attributes:
        count: How many there have been.
        first: What is wrong with the first.
    """

    def __init__(self, skip: bool = False):
        """Says whether they are skipped."""
        self.count, self.first = 0, ""
        self._skip = skip

    def add(self, error: UserError) -> None:
        """Raises the error, or counts it."""
        if not self._skip:
            raise error
        self.first = self.first or str(error)
        self.count += 1

    def say(self, name: str) -> None:
        """Prints a line about those of `name`, if there have been any."""
        if self.count:
            rows = "1 bad row" if self.count == 1 else f"{self.count:,} bad rows"
            say(f"skipped {rows} of {name}; the first: {self.first}")


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
