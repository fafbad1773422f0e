"""Checkpoints on disk: tensors that are read one at a time, and written in shards.

Reads safetensors and PyTorch's zip files, whole or in shards.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lm.atomic import make_folder, write_text
from lm.types import UserError
from tools.huggingface.pickles import open_zip
from tools.huggingface.tensors import SAVE_AGAIN, Tensor, dtype_of, reading

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

_LETTERS = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}


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
                # As other files there: the library lets nobody else read it.
                part.chmod(folder.stat().st_mode & 0o666)
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


def _find(folder: Path) -> Path:
    """Returns the file to open in a folder.

    Raises:
        UserError: If there is none, or no telling which.
    """
    for name in _NAMES:
        if (folder / name).exists():
            return folder / name
    with reading(folder):
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
    with reading(file), file.open("rb") as opened:
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
        raise UserError(f"{file} is in PyTorch's format before 1.6; {SAVE_AGAIN}")
    return open_zip(file)


def _open_safetensors(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file; opening checks that it is whole."""
    tensors = {}
    with reading(file), safe_open(file, "np", backend="pread") as opened:
        for name in opened.keys():  # noqa: SIM118 (no mapping)
            about = opened.get_slice(name)
            code = str(about.get_dtype())  # such as F32, BF16, BOOL, F8_E4M3
            letters = code.rstrip("0123456789")
            dtype = _LETTERS.get(letters, letters) + code[len(letters) :]
            tensors[name] = Tensor(
                file,
                tuple(about.get_shape()),
                dtype_of(file, name, dtype),
                functools.partial(_read_safetensors, file, name),
            )
    return tensors


def _read_safetensors(file: Path, name: str) -> np.ndarray:
    # pread: pages of a memory map would count beside the array, twice the memory.
    with reading(file), safe_open(file, "np", backend="pread") as opened:
        return opened.get_tensor(name)
