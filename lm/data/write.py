"""Writes TFDS data sets that `tfds.load` reads without a builder class.

A set appears under its name when it is complete: it is whole or it is not there (a
process that is killed outright leaves a hidden folder, `.VERSION.PID.tmp`). It is
written in one pass, in the order in which examples come, and memory does not grow with
their number.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.types import UserError

SHARD_EXAMPLES = 1 << 16

# Examples are handed on together, since each time the metadata is written again.
BUFFER_EXAMPLES = 1 << 10
BUFFER_CHARS = 1 << 22


class DatasetWriter:
    """Writes the examples of a set.

    Attributes:
        folder: Where the set is until it is complete. Other files that are put there
            belong to it.
    """

    def __init__(self, folder: Path, writer: Any):
        """Takes a `tfds.core.SequentialWriter`."""
        self.folder = folder
        self._writer = writer
        self._splits: set[str] = set()
        self._buffer: dict[str, list[Mapping[str, Any]]] = {}
        self._num_buffered = self._chars = 0

    def add(self, split: str, example: Mapping[str, Any]) -> None:
        """Appends an example to a split."""
        self._buffer.setdefault(split, []).append(example)
        self._num_buffered += 1
        self._chars += sum(len(v) for v in example.values() if isinstance(v, str))
        if self._num_buffered >= BUFFER_EXAMPLES or self._chars >= BUFFER_CHARS:
            self._flush()

    def close(self) -> None:
        """Brings everything to the folder, which then is a TFDS set."""
        self._flush()
        with _writes(self.folder.parent):
            self._writer.close_all()

    def _flush(self) -> None:
        with _writes(self.folder.parent):
            # TFDS cannot read a split without examples, so it appears with its first.
            new = [split for split in self._buffer if split not in self._splits]
            self._writer.initialize_splits(new)
            self._splits.update(new)
            self._writer.add_examples(self._buffer)
        self._buffer.clear()
        self._num_buffered = self._chars = 0


def version_key(version: str) -> list[int]:
    """Returns what orders versions as numbers; `tfds:NAME` is the greatest.

    >>> max("1.9.0", "1.10.0", key=version_key)
    '1.10.0'
    """
    return [int(number) for number in re.findall(r"\d+", version)]


def check_free(
    data_dir: Path,
    name: str,
    version: str,
    overwrite: bool,
    succeeds: bool = False,
) -> None:
    """Checks that a data set can be written under a name, and is found there.

    Args:
        data_dir: What `tfds.load` takes as `data_dir`.
        name: The set's.
        version: Three numbers.
        overwrite: Whether to replace a set of this name and version, and to hide those
            of lesser versions, as the greatest is what `tfds:NAME` means.
        succeeds: Whether to hide those, as they were what this is.

    Raises:
        UserError: If the name cannot be one, the set exists and is not to be replaced,
            what exists is no data set, or of two versions one would be hidden.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"{name!r} cannot name a data set; use a-z, 0-9 and _, a letter first"
        )
    if "://" in str(data_dir):
        raise UserError(f"a data set cannot be written to {data_dir}; give a folder")
    folder = data_dir / name / version
    others = (path.name for path in folder.parent.glob("[0-9]*"))
    last = max((n for n in others if n != version), key=version_key, default="")
    if version_key(last) > version_key(version):
        raise UserError(
            f"{folder.with_name(last)} exists, which would hide version {version}; set "
            "another name, or move it away"
        )
    if last and not (overwrite or succeeds):
        raise UserError(
            f"{folder.with_name(last)} exists, which this would hide; set another "
            "name, or --overwrite"
        )
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"{folder} exists; set --overwrite, or another name")
    if not (folder / "dataset_info.json").exists():
        raise UserError(
            f"{folder} is not a data set; move it away, or set another name"
        )


@contextlib.contextmanager
def write_dataset(
    data_dir: Path,
    name: str,
    features: Mapping[str, Any],
    *,
    version: str = "1.0.0",
    overwrite: bool = False,
    succeeds: bool = False,
    **info,
) -> Iterator[DatasetWriter]:
    """Writes a data set to `data_dir/name/version` if the block ends well.

    Args:
        data_dir: What `tfds.load` takes as `data_dir`.
        name: The set's.
        features: The features of `tfds.features.FeaturesDict`.
        version: Three numbers.
        overwrite: See `check_free`.
        succeeds: See `check_free`.
        **info: More of `tfds.core.DatasetInfo`: description, citation, license, …

    Raises:
        UserError: See `check_free`; or if the folder cannot be written or its disk is
            full.
    """
    check_free(data_dir, name, version, overwrite, succeeds)
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # JAX computes: TensorFlow must not claim a GPU's memory.
    tf.config.set_visible_devices([], "GPU")
    folder = data_dir / name / version
    temporary = folder.with_name(f".{version}.{os.getpid()}.tmp")
    try:
        with _writes(data_dir):
            temporary.mkdir(parents=True)
        identity = tfds.core.DatasetIdentity(
            name, tfds.core.Version(version), str(temporary), module_name=""
        )
        dataset_info = tfds.core.DatasetInfo(
            builder=identity,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            **info,
        )
        sequential = tfds.core.SequentialWriter(dataset_info, SHARD_EXAMPLES)
        writer = DatasetWriter(temporary, sequential)
        yield writer
        writer.close()
        with _writes(data_dir):
            _move(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            (data_dir / name).rmdir()  # only if nothing is in it


def _move(temporary: Path, folder: Path) -> None:
    """Puts a complete set in its place; an old one makes way."""
    old = temporary.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _writes(where: Path) -> Iterator[None]:
    """Turns what can go wrong while writing into one line."""
    import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        is_full = getattr(error, "errno", None) in full
        if is_full or isinstance(error, tf.errors.ResourceExhaustedError):
            raise UserError(f"no space left in {where}; free some") from error
        reason = getattr(error, "strerror", None) or getattr(error, "message", "")
        raise UserError(
            f"cannot write to {where}: {reason}; give a folder that can be written"
        ) from error
