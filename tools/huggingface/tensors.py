"""Tensors in files, and what is said where one cannot be read."""

import contextlib
import dataclasses
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from lm.types import UserError

SAVE_AGAIN = "save it again with save_pretrained of a recent transformers"

DTYPES = {
    name: np.dtype(name)
    for name in (
        *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
        *("uint64", "uint32", "uint16", "uint8", "bool"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file, whose values are read when they are asked for.

    Attributes:
        file: Where it is.
        shape: Its shape.
        dtype: As stored: a float, `bfloat16`, an integer or a bool.
        read: Reads it into a C-contiguous array of `shape` and `dtype`, and keeps
            nothing. Raises `UserError` if the file is no longer what it was.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror or error}; name a checkpoint's file "
            "or folder"
        ) from error
    except (SafetensorError, zipfile.BadZipFile) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise UserError(
            f"{file} is damaged, or not what its name says ({reason}); download it "
            "again"
        ) from error


def dtype_of(file: Path, tensor: str, name: str) -> np.dtype:
    if name not in DTYPES:
        raise UserError(
            f"{file}: {tensor} is {name}, which is not read; save the model in float32 "
            "or bfloat16"
        )
    return DTYPES[name]
