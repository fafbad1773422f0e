"""PyTorch's zip files, read without PyTorch.

What a file's pickle names is looked up among stand-ins of ours, so no code of a file's
ever runs.
"""

import functools
import io
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lm.types import UserError
from tools.huggingface.tensors import SAVE_AGAIN, Tensor, dtype_of, reading

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


class _Storage(NamedTuple):
    """Bytes of a file that tensors are views of."""

    dtype: str
    start: int
    size: int


class _View(NamedTuple):
    """A tensor as a pickle describes it; offset and strides count elements."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDictUnpickler(pickle.Unpickler):
    """Unpickles a state dict, its tensors as `_View`s, and nothing else.

    What a pickle gets by name are strings, OrderedDict, and methods that return their
    arguments: there is nothing to call that reaches further.
    """

    def __init__(self, path: Path, file: BinaryIO, archive: zipfile.ZipFile):
        self._path, self._file, self._archive = path, file, archive
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if not names:
            raise UserError(f"{path} is a zip file, but not of PyTorch; {SAVE_AGAIN}")
        self._folder = names[0].removesuffix("data.pkl")
        order = self._folder + "byteorder"  # torch writes it since 2.1
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UserError(f"{path} is of a big-endian machine; {SAVE_AGAIN}")
        # Read to its end, where its checksum is compared.
        pickled = io.BytesIO(archive.read(self._member("data.pkl")))
        super().__init__(pickled, encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self._view
            case "torch._utils", "_rebuild_tensor_v3":
                return self._typed_view
            case (
                "torch._utils",
                "_rebuild_parameter" | "_rebuild_parameter_with_state",
            ):
                return self._parameter
            case "torch.storage", "UntypedStorage" | "TypedStorage" | "_TypedStorage":
                return "uint8"
            case "torch", _ if name in _STORAGES:
                return _STORAGES[name]
            case "torch", _ if re.fullmatch(r"(u?int|b?float|complex)\d\w*", name):
                return name
        raise UserError(
            f"{self._path} asks for {f'{module}.{name}'!r}, which no state dict needs "
            "and which is not run; get the model as safetensors"
        )

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, dtype, key, _, _ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"{kind!r} instead of a storage")
        member = self._member(f"data/{key}")
        return _Storage(dtype, self._start(member), member.file_size)

    def _member(self, name: str) -> zipfile.ZipInfo:
        try:
            member = self._archive.getinfo(self._folder + name)
        except KeyError as error:
            raise zipfile.BadZipFile(f"it lacks {name}") from error
        if member.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{self._path} is compressed; {SAVE_AGAIN}")
        return member

    def _start(self, member: zipfile.ZipInfo) -> int:
        """Returns where in the file a member's bytes start, after its own header."""
        self._file.seek(member.header_offset)
        header = self._file.read(30)
        if not header.startswith(b"PK\3\4") or len(header) < 30:
            raise zipfile.BadZipFile(f"no header of {member.filename}")
        return member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))

    def _view(self, storage, offset, shape, strides, requires_grad, hooks):
        return _View(storage, storage.dtype, offset, shape, strides)

    def _typed_view(self, storage, offset, shape, strides, requires_grad, hooks, dtype):
        return _View(storage, dtype, offset, shape, strides)

    def _parameter(self, data, *_):
        return data


def open_zip(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file of `torch.save`."""
    with reading(file), file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
        try:
            views = dict(_StateDictUnpickler(file, opened, archive).load())
            return {name: _tensor(file, name, view) for name, view in views.items()}
        except (UserError, OSError, zipfile.BadZipFile):
            raise
        except Exception as error:  # a stranger's bytes may raise anything
            raise UserError(
                f"{file} has no state dict that can be read ({type(error).__name__}); "
                f"{SAVE_AGAIN}"
            ) from error


def _tensor(file: Path, name: Any, view: Any) -> Tensor:
    """Returns the tensor of a view.

    Raises:
        UserError: If it is none, or goes beyond its storage.
    """
    if not isinstance(view, _View) or not isinstance(name, str):
        raise UserError(
            f"{file}: {name!r} is no tensor but {type(view).__name__}; save the "
            "model's state_dict() alone"
        )
    dtype = dtype_of(file, name, view.dtype)
    numbers = (view.offset, *view.shape, *view.strides)
    span = _span(view.shape, view.strides)
    if (
        not all(type(number) is int and number >= 0 for number in numbers)
        or len(view.shape) != len(view.strides)
        or (view.offset + span) * dtype.itemsize > view.storage.size
    ):
        raise UserError(
            f"{file} is damaged: {name} of shape {view.shape} goes beyond its "
            "storage; download it again"
        )
    start = view.storage.start + view.offset * dtype.itemsize
    read = functools.partial(
        _read_strided, file, name, start, view.shape, view.strides, dtype
    )
    return Tensor(file, tuple(view.shape), dtype, read)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Returns how many elements lie from the first to the last of a view.

    >>> _span((2, 3), (1, 2)), _span((2, 3), (100, 1)), _span((0, 3), (3, 1))
    (6, 103, 0)
    """
    if not math.prod(shape):
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides))


def _read_strided(
    file: Path,
    name: str,
    start: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype,
) -> np.ndarray:
    """Reads a view of a storage, and for a moment twice if it is not contiguous."""
    span = _span(shape, strides)
    with reading(file):
        flat = np.fromfile(file, dtype, span, offset=start)
    if flat.size < span:
        raise UserError(f"{file} ends before {name} does; download it again")
    steps = [stride * dtype.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(flat, shape, steps)
    return np.asarray(view, order="C")
