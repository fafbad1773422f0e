"""Files that are there whole or not at all, and their folders."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.types import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields where to write a file, which takes the place of `path` if all goes well.

    So a reader sees the old file or the new one; a process that is killed outright
    leaves a hidden file beside it.

    Raises:
        UserError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room, or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, unless it is there.

    Raises:
        UserError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {path}: {error.strerror}; choose another place"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a file as `replacing` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def new_folder(
    folder: Path, overwrite: bool, sign: str, flag: str, sources: Sequence[Path] = ()
) -> Iterator[Path]:
    """Yields a folder beside `folder`, which takes its place if all goes well.

    Args:
        folder: What it is to be.
        overwrite: Whether it may take the place of one that has `sign`.
        sign: What such folders have, and no others.
        flag: What names another folder.
        sources: What it is made from, which it must not take the place of.

    Raises:
        UserError: If there is something that is not to be replaced.
    """
    for source in sources:
        if source.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{folder} would take the place of {source}, from which it is made; "
                f"set another {flag}"
            )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder; set another {flag}")
    if folder.exists() and any(folder.iterdir()) and not (folder / sign).exists():
        raise UserError(f"{folder} has no {sign}; move it away, or set another {flag}")
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} exists; set --overwrite, or another {flag}")
    make_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        try:
            os.kill(int(left.suffixes[-2][1:]), 0)  # asks whether it runs
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (OSError, ValueError):
            continue
    make_folder(temporary)
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
