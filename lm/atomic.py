"""Files that are there whole or not at all, and their folders."""

import contextlib
import json
import os
from collections.abc import Iterator
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
