"""Checkpoints on disk: tensors that are read one at a time, and written in shards.

Reads safetensors and PyTorch's zip files, whole or in shards, and needs no PyTorch.
What a file's pickle names is looked up among stand-ins of ours, so no code of a file's
ever runs.
"""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lm.atomic import make_folder, write_text
from lm.types import UserError

_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
# What trainers leave beside a model.
_NO_MODELS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
# Of TensorFlow, Flax, Rust, llama.cpp, ONNX; named where there is nothing better.
_FOREIGN = (".h5", ".msgpack", ".ot", ".gguf", ".onnx", ".ckpt", ".index")
_SAVE_AGAIN = "save it again with save_pretrained of a recent transformers"

_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
        *("uint64", "uint32", "uint16", "uint8", "bool"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_LETTERS = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}
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


# What stands beside weights and belongs to a tokenizer, a chat or sentence vectors.
_COMPANIONS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "added_tokens.json", "chat_template.jinja"),
    *("generation_config.json", "modules.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "1_Pooling", "2_Normalize"),
)


def copy_companions(source: Path, target: Path) -> None:
    """Copies to a folder what stands beside the weights in another, but no config."""
    for name in _COMPANIONS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).is_file():
            shutil.copy(source / name, target / name)


def open_checkpoint(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint by name; none of their values is read.

    Args:
        path: A file of safetensors, of PyTorch since 1.6, or an index of such; or a
            folder that has one by the name that `save_pretrained` gives it (safetensors
            first), or else a single one by another name.

    Raises:
        UserError: If there is none, a part is missing or damaged, its pickle names
            what no state dict needs, or a tensor has a type that `Tensor` has not.
    """
    file = _find(path) if path.is_dir() else path
    return _open_index(file) if file.suffix == ".json" else _open_file(file)


def write_checkpoint(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes `model.safetensors`, or shards and an index if that would be too large.

    Memory holds a shard, and the tensor that no longer fits into it, as long as
    `tensors` makes them one by one. A shard is larger than `max_shard_bytes` only if it
    is a single tensor. Names and index are those of transformers' `save_pretrained`.

    Args:
        folder: Made unless it is there.
        tensors: Names, each once, and arrays of the types that `open_checkpoint` reads.
        max_shard_bytes: Of the tensors in one file.

    Raises:
        UserError: If it cannot be written, or a checkpoint is there already.
    """
    make_folder(folder)
    if there := sorted(folder.glob("model*.safetensors*")):
        raise UserError(f"{there[0]} exists; move it away, or choose another folder")
    parts: list[Path] = []
    shard_of: dict[str, int] = {}
    total_size = 0
    try:
        for shard in _shards(tensors, max_shard_bytes):
            parts.append(folder / f".model-{len(parts) + 1:05}.{os.getpid()}.tmp")
            with _writing(parts[-1]):
                save_file(shard, parts[-1], metadata={"format": "pt"})
            shard_of |= dict.fromkeys(shard, len(parts) - 1)
            total_size += sum(array.nbytes for array in shard.values())
        files = [
            folder / f"model-{number:05}-of-{len(parts):05}.safetensors"
            for number in range(1, len(parts) + 1)
        ]
        if len(parts) == 1:
            files = [folder / "model.safetensors"]
        for part, file in zip(parts, files):
            with _writing(file):
                part.rename(file)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": total_size},
            "weight_map": {name: files[n].name for name, n in shard_of.items()},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        write_text(folder / "model.safetensors.index.json", text)


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields one dictionary again and again, each time with the next shard's tensors.

    One and the same, for whoever iterates would hold on to the last while the next
    fills up.
    """
    shard, size = {}, 0
    for name, array in tensors:
        if shard and size + array.nbytes > max_bytes:
            yield shard
            shard.clear()
            size = 0
        # The library writes the buffer as it lies there, whatever the strides.
        shard[name] = np.asarray(array, order="C")
        size += array.nbytes
    yield shard


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {file}: {error}; make room, or choose another folder"
        ) from error


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
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


def _find(folder: Path) -> Path:
    """Returns the file to open in a folder.

    Raises:
        UserError: If there is none, or no telling which.
    """
    for name in _NAMES:
        if (folder / name).exists():
            return folder / name
    with _reading(folder):
        files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    for suffix in (".safetensors", ".bin"):
        found = [p for p in files if p.suffix == suffix and p.name not in _NO_MODELS]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{folder} has {len(found)} files *{suffix}, such as "
                f"{found[0].name}, and no index; name one, or get the *.index.json too"
            )
    foreign = ", ".join(p.name for p in files if p.suffix in _FOREIGN)
    raise UserError(
        f"{folder} has {foreign or 'no checkpoint'}, but model.safetensors or "
        "pytorch_model.bin is wanted; save the model with transformers in PyTorch"
    )


def _head(file: Path) -> bytes:
    """Returns the first bytes of a file.

    Raises:
        UserError: If it cannot be read, or Git LFS left its pointer there.
    """
    with _reading(file), file.open("rb") as opened:
        head = opened.read(512)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(
            f"{file} is a Git LFS pointer, not the file itself; fetch it with "
            "`git lfs pull`"
        )
    return head


def _open_index(index: Path) -> dict[str, Tensor]:
    """Returns the tensors that an index names.

    Raises:
        UserError: If it is no index, or a shard of its or a tensor is missing.
    """
    _head(index)
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
        # A name that leads out of the folder is no shard's.
        if not all(name and name == Path(name).name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} has no weight_map to files beside it; download it again"
        ) from error
    shards = {}
    for name in names:
        file = index.with_name(name)
        if not file.exists():
            raise UserError(
                f"{index} names {name}, which is not there; download it too"
            )
        shards[name] = _open_file(file)
    for tensor, name in weight_map.items():
        if tensor not in shards[name]:
            raise UserError(
                f"{index.with_name(name)} lacks {tensor}, which {index.name} says it "
                "has; download both again"
            )
    return {tensor: shards[name][tensor] for tensor, name in weight_map.items()}


def _open_file(file: Path) -> dict[str, Tensor]:
    head = _head(file)
    if file.suffix not in _SUFFIXES:
        raise UserError(
            f"{file} cannot be read; name a file of {' or '.join(_SUFFIXES)}, an index "
            "of such or their folder"
        )
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    # A bare pickle, and before that a tar file.
    if head.startswith(b"\x80") or head[257:262] == b"ustar":
        raise UserError(f"{file} is in PyTorch's format before 1.6; {_SAVE_AGAIN}")
    return _open_zip(file)


def _dtype(file: Path, tensor: str, name: str) -> np.dtype:
    if name not in _DTYPES:
        raise UserError(
            f"{file}: {tensor} is {name}, which is not read; save the model in float32 "
            "or bfloat16"
        )
    return _DTYPES[name]


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file; opening checks that it is whole."""
    tensors = {}
    with _reading(file), safe_open(file, "np", backend="pread") as opened:
        for name in opened.keys():  # noqa: SIM118 (no mapping)
            about = opened.get_slice(name)
            code = str(about.get_dtype())  # such as F32, BF16, BOOL, F8_E4M3
            letters = code.rstrip("0123456789")
            dtype = _LETTERS.get(letters, letters) + code[len(letters) :]
            tensors[name] = Tensor(
                file,
                tuple(about.get_shape()),
                _dtype(file, name, dtype),
                functools.partial(_read_safetensors, file, name),
            )
    return tensors


def _read_safetensors(file: Path, name: str) -> np.ndarray:
    # pread: pages of a memory map would count beside the array, twice the memory.
    with _reading(file), safe_open(file, "np", backend="pread") as opened:
        return opened.get_tensor(name)


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
            raise UserError(f"{path} is a zip file, but not of PyTorch; {_SAVE_AGAIN}")
        self._folder = names[0].removesuffix("data.pkl")
        order = self._folder + "byteorder"  # torch writes it since 2.1
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UserError(f"{path} is of a big-endian machine; {_SAVE_AGAIN}")
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
            raise UserError(f"{self._path} is compressed; {_SAVE_AGAIN}")
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


def _open_zip(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file of `torch.save`."""
    with _reading(file), file.open("rb") as opened, zipfile.ZipFile(opened) as archive:
        try:
            views = dict(_StateDictUnpickler(file, opened, archive).load())
            return {name: _tensor(file, name, view) for name, view in views.items()}
        except (UserError, OSError, zipfile.BadZipFile):
            raise
        except Exception as error:  # a stranger's bytes may raise anything
            raise UserError(
                f"{file} has no state dict that can be read ({type(error).__name__}); "
                f"{_SAVE_AGAIN}"
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
    dtype = _dtype(file, name, view.dtype)
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
    with _reading(file):
        flat = np.fromfile(file, dtype, span, offset=start)
    if flat.size < span:
        raise UserError(f"{file} ends before {name} does; download it again")
    steps = [stride * dtype.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(flat, shape, steps)
    return np.asarray(view, order="C")
