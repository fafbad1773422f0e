"""Encoded documents on disk: ragged int32 columns, memory-mapped.

A store is a folder named after what it depends on. For each column it holds
`<column>.values`, all documents end to end, and `<column>.offsets`, where each of the
n documents begins [n + 1]; `store.json` says what it was made from and the size and
checksum of every file. A store is built once, under another name, and renamed when
complete: it is whole or it is not there.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.cli import Status, say
from lm.data.files import BadRows
from lm.types import UserError

FORMAT = 1
Documents = list[dict[str, np.ndarray]]

# Stores up to this size are read against their checksums once in every process;
# larger ones only if a file's time of change is not the one written down.
ALWAYS_CHECKED_BYTES = 1 << 28

# A chunk of examples that is encoded at once ends at either.
CHUNK_EXAMPLES = 1 << 11
CHUNK_CHARS = 1 << 22

_checked: set[tuple[str, int, int, int]] = set()


@dataclass(frozen=True)
class Store:
    """Encoded documents.

    Attributes:
        num_docs: n.
        checksum: Changes with the contents and with nothing else.
        values: All documents of each column, end to end, int32.
        offsets: Where each document begins in `values`, int64 [n + 1].
    """

    num_docs: int
    checksum: str
    values: Mapping[str, np.ndarray]
    offsets: Mapping[str, np.ndarray]

    def lengths(self) -> dict[str, np.ndarray]:
        """Returns each document's length in each column, int64 [n]."""
        return {name: np.diff(offsets) for name, offsets in self.offsets.items()}

    def document(self, doc: int) -> dict[str, np.ndarray]:
        """Returns the columns of a document; views, not copies."""
        return {
            name: self.values[name][offsets[doc] : offsets[doc + 1]]
            for name, offsets in self.offsets.items()
        }


def from_documents(documents: Sequence[Mapping[str, np.ndarray]]) -> Store:
    """Returns a store in memory; it is as one on disk, and none is dropped.

    All documents have the same columns. No documents make no columns.

    >>> store = from_documents([{"tokens": np.array([5, 6])}, {"tokens": np.array([])}])
    >>> store.lengths()["tokens"].tolist(), store.document(0)["tokens"].tolist()
    ([2, 0], [5, 6])
    """
    values, offsets, hashes = {}, {}, {}
    for column in sorted(documents[0]) if documents else ():
        arrays = [np.asarray(document[column]) for document in documents]
        values[column] = np.concatenate(arrays).astype(np.int32)
        ends = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        offsets[column] = ends
        for kind, array in (("values", values[column]), ("offsets", ends)):
            hashes[f"{column}.{kind}"] = hashlib.sha256(array.tobytes()).hexdigest()
    return Store(len(documents), _checksum(hashes), values, offsets)


def _checksum(hashes: Mapping[str, str]) -> str:
    """Returns the checksum of a store whose files have these."""
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def open_store(
    cache: Path,
    name: str,
    key: Mapping[str, Any],
    documents: Callable[[], Iterable[Documents]],
) -> Store:
    """Opens a store, and builds it first if it is missing or damaged.

    Of several processes one builds and the others wait for it; a process that dies
    leaves nothing that they would take for a store.

    Args:
        cache: The folder of all stores; made if missing.
        name: What the store is called in messages, for example `kjv train`.
        key: All that the contents depend on, as JSON values.
        documents: Makes the documents, a chunk at a time. All have the same columns.

    Raises:
        UserError: If there are no documents, or the folder cannot be written or is on a
            full disk.

    >>> import tempfile
    >>> def documents():
    ...     yield [{"tokens": np.array([5, 6, 7])}, {"tokens": np.array([8])}]
    >>> store = open_store(Path(tempfile.mkdtemp()), "two", {"version": 1}, documents)
    >>> store.lengths()["tokens"].tolist(), store.document(1)["tokens"].tolist()
    ([3, 1], [8])
    """
    digest = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode())
    slug = "".join(c if c.isalnum() else "-" for c in name)[-60:].strip("-")
    folder = cache / f"{slug}-{digest.hexdigest()[:16]}"
    store, trouble = _read(folder)
    if store is not None:
        return store
    with _writes(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache, folder.name, name) as is_alone:
        store, trouble = _read(folder)
        if store is not None:
            return store
        if trouble:
            say(f"the cache {folder} is damaged ({trouble}); it is built again")
        if is_alone:
            for left in cache.glob(f".{folder.name}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
        _build(folder, name, key, documents)
    store, trouble = _read(folder)
    if store is None:
        raise UserError(f"the cache {folder} cannot be read: {trouble or 'it is gone'}")
    return store


def encode_chunks(
    examples: Iterable[Mapping[str, Any]],
    encode: Callable[
        [Sequence[Mapping[str, Any]]], Sequence[dict[str, np.ndarray] | UserError]
    ],
    bad_rows: BadRows | None = None,
) -> Iterator[Documents]:
    """Encodes a stream of examples chunk by chunk, and drops empty results.

    A chunk is so large that a tokenizer can work on it in parallel, and so small that
    memory does not grow with the stream. A `UserError` in place of a result is raised,
    or counted if `bad_rows` says so.
    """
    bad_rows = bad_rows or BadRows()
    for chunk in _chunks(examples):
        documents = []
        for document in encode(chunk):
            if isinstance(document, UserError):
                bad_rows.add(document)
            elif document:
                documents.append(document)
        yield documents


def _chunks(examples: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    chunk, chars = [], 0
    for example in examples:
        chunk.append(example)
        chars += sum(len(v) for v in example.values() if isinstance(v, str | bytes))
        if len(chunk) >= CHUNK_EXAMPLES or chars >= CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _read(folder: Path) -> tuple[Store | None, str]:
    """Returns a sound store, or None and what is wrong ("" if there is none)."""
    try:
        meta = json.loads((folder / "store.json").read_text())
        files = meta["files"]
        total = sum(entry["bytes"] for entry in files.values())
        for name, entry in files.items():
            trouble = _check(folder / name, entry, total <= ALWAYS_CHECKED_BYTES)
            if trouble:
                return None, trouble
        values = {c: _map(folder / f"{c}.values", np.int32) for c in meta["columns"]}
        offsets = {c: _map(folder / f"{c}.offsets", np.int64) for c in meta["columns"]}
        num_docs = len(offsets[meta["columns"][0]]) - 1
        checksum = _checksum({name: entry["sha256"] for name, entry in files.items()})
    except FileNotFoundError as error:
        return None, f"no {Path(error.filename).name}" if folder.exists() else ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return None, f"store.json: {error}"
    return Store(num_docs, checksum, values, offsets), ""


def _check(path: Path, entry: Mapping[str, Any], always: bool) -> str:
    """Returns what is wrong with a file, or ""."""
    stat = path.stat()
    if stat.st_size != entry["bytes"]:
        return f"{path.name} has {stat.st_size:,} of {entry['bytes']:,} bytes"
    seen = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if seen in _checked:
        return ""
    if always or stat.st_mtime_ns != entry["mtime_ns"]:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{path.name} has another checksum"
    _checked.add(seen)
    return ""


def _map(path: Path, dtype: type[np.generic]) -> np.ndarray:
    if not path.stat().st_size:
        return np.zeros(0, dtype)
    # As a plain array: slices of np.memmap cost a microsecond more each.
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def _build(
    folder: Path,
    name: str,
    key: Mapping[str, Any],
    documents: Callable[[], Iterable[Documents]],
) -> None:
    """Writes a store beside `folder` and renames it."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{time.time_ns()}.tmp")
    try:
        with _writes(folder.parent):
            temporary.mkdir()
        began, line = time.monotonic(), f"encoding {name}"
        with contextlib.closing(_Writer(temporary)) as writer, Status(line) as status:
            for chunk in documents():
                with _writes(folder.parent):
                    writer.add(chunk)
                line = (
                    f"encoded {name}: {writer.num_docs:,} documents, "
                    f"{writer.num_values:,} tokens"
                )
                status.update(line)
            if not writer.num_docs:
                raise UserError(
                    f"{name} has no text; give more, put {{split}} into the path, or "
                    "choose another split"
                )
            with _writes(folder.parent):
                writer.finish(key)
        with _writes(folder.parent):
            _move(temporary, folder)
        say(f"{line} in {time.monotonic() - began:.1f} s")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, folder: Path) -> None:
    """Puts a complete store in its place; a damaged one makes way."""
    if folder.exists():
        # Where there are no locks, another process may have built it meanwhile.
        if _read(folder)[0] is not None:
            return
        damaged = temporary.with_name(f"{temporary.name}.tmp")
        folder.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    temporary.rename(folder)
    _sync(folder.parent)


class _Writer:
    """Writes the files of a store."""

    def __init__(self, folder: Path):
        self.num_docs = 0
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._hashes: dict[str, Any] = {}
        self._ends: dict[str, int] = {}

    @property
    def num_values(self) -> int:
        """Values of the longest column so far: tokens, for what has any."""
        return max(self._ends.values(), default=0)

    def add(self, chunk: Documents) -> None:
        """Appends documents."""
        if not chunk:
            return
        if not self._ends:
            for column in sorted(chunk[0]):
                self._ends[column] = 0
                self._write(f"{column}.offsets", np.zeros(1, np.int64))
                self._write(f"{column}.values", np.zeros(0, np.int32))
        for column, end in self._ends.items():
            arrays = [np.asarray(document[column]) for document in chunk]
            ends = end + np.cumsum([len(array) for array in arrays], dtype=np.int64)
            self._write(f"{column}.offsets", ends)
            self._write(f"{column}.values", np.concatenate(arrays).astype(np.int32))
            self._ends[column] = int(ends[-1])
        self.num_docs += len(chunk)

    def _write(self, name: str, array: np.ndarray) -> None:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
            self._hashes[name] = hashlib.sha256()
        data = array.tobytes()
        self._files[name].write(data)
        self._hashes[name].update(data)

    def finish(self, key: Mapping[str, Any]) -> None:
        """Brings all to the disk, `store.json` last."""
        entries = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            stat = os.fstat(file.fileno())
            entries[name] = {
                "bytes": stat.st_size,
                "mtime_ns": stat.st_mtime_ns,
                "sha256": self._hashes[name].hexdigest(),
            }
        meta = {
            "format": FORMAT,
            "key": dict(key),
            "columns": list(self._ends),
            "files": entries,
        }
        with (self._folder / "store.json").open("w") as file:
            json.dump(meta, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        _sync(self._folder)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            # What a full disk refused before, it refuses again here.
            with contextlib.suppress(OSError):
                file.close()


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(cache: Path, key: str, name: str) -> Iterator[bool]:
    """Lets one process at a time build a store; yields whether that is sure.

    The kernel frees the lock of a process that dies. A file system that has no locks
    costs double work at worst: stores appear whole.
    """
    with contextlib.ExitStack() as stack:
        with _writes(cache):
            file = stack.enter_context((cache / f".{key}.lock").open("w"))
        is_alone = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that encodes {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            is_alone = False
        yield is_alone


@contextlib.contextmanager
def _writes(cache: Path) -> Iterator[None]:
    """Turns what can go wrong while writing into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no space left for encoded text in {cache}; free some, or set "
                "data.cache_dir to a folder on another disk"
            ) from error
        raise UserError(
            f"cannot write encoded text to {cache}: {error.strerror}; set "
            "data.cache_dir to a folder that can be written"
        ) from error
