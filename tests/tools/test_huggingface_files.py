"""Checkpoints are read lazily, written in shards, and refused in one line.

`fixtures/huggingface/state_dict.bin` is of torch 2.13, made by

    flat = torch.arange(24, dtype=torch.float32)
    state = OrderedDict(
        whole=flat.view(4, 6),
        tail=flat[18:].view(2, 3),
        transposed=flat.view(4, 6).t(),
        columns=flat.view(4, 6)[:, 1:3],
        half=torch.nn.Parameter(torch.arange(4).to(torch.bfloat16) / 4),
        position_ids=torch.arange(5).expand(1, -1),
        mask=torch.tensor([True, False]),
        scale=torch.tensor(3.0, dtype=torch.float16),
        empty=torch.zeros(0, 3),
    )
    state._metadata = OrderedDict(version=1)
    torch.save(state, "state_dict.bin")
"""

import json
import os
import pickle
import resource
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lm.types import UserError
from tools.huggingface.files import open_checkpoint, write_checkpoint

FIXTURE = Path(__file__).parent / "fixtures/huggingface/state_dict.bin"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"


def expected() -> dict[str, np.ndarray]:
    """What the fixture holds."""
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {
        "whole": grid,
        "tail": grid[3].reshape(2, 3),
        "transposed": grid.T,
        "columns": grid[:, 1:3],
        "half": np.array([0, 0.25, 0.5, 0.75], BFLOAT16),
        "position_ids": np.arange(5)[None],
        "mask": np.array([True, False]),
        "scale": np.array(3, np.float16),
        "empty": np.zeros((0, 3), np.float32),
    }


def check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Asserts that a checkpoint has these tensors, bit for bit, and no other."""
    tensors = open_checkpoint(path)
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        read = tensors[name].read()
        assert tensors[name].shape == read.shape == array.shape, name
        assert tensors[name].dtype == read.dtype == array.dtype, name
        assert read.flags.c_contiguous and read.flags.writeable, name
        assert read.tobytes() == array.tobytes(), name


def refusal(path: Path, *parts: str) -> str:
    """Returns the one line that opening or reading fails with; it has all the parts."""
    with pytest.raises(UserError) as raised:
        for tensor in open_checkpoint(path).values():
            tensor.read()
    message = str(raised.value)
    assert "\n" not in message and "; " in message
    for part in (path.name, *parts):
        assert part in message
    return message


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def torch_zip(file: Path, pickled: bytes, **members: bytes) -> Path:
    """Writes a file as `torch.save` does, with any pickle and storages."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in members.items():
            archive.writestr(f"archive/data/{key.removeprefix('_')}", data)
    return file


def state_dict(
    storage: str = "FloatStorage",
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
) -> bytes:
    """Returns the pickle of {"w": a view of storage 0}, in opcodes of protocol 0."""
    sizes, steps = ("".join(f"I{n}\n" for n in ns) for ns in (shape, strides))
    return (
        f"(dVw\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\n{storage}\n"
        f"V0\nVcpu\nI6\ntQI{offset}\n({sizes}t({steps}tI00\n(dtRs."
    ).encode()


def test_state_dict_of_torch():
    check(FIXTURE, expected())


def test_only_file_of_a_folder(tmp_path):
    shutil.copy(FIXTURE, tmp_path / "model_v2.bin")
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x02N.")
    (tmp_path / "config.json").write_text("{}")
    check(tmp_path, expected())
    save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    check(tmp_path, {"a": np.ones(2)})
    save_file({"a": np.ones(2)}, tmp_path / "another.safetensors")
    refusal(tmp_path, "another.safetensors", "no index", "name one")


def test_folder_order(tmp_path):
    """Each file goes before those that were there already."""
    shutil.copy(FIXTURE, tmp_path / "shard.bin")
    check(tmp_path, expected())
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"half": "shard.bin"}})
    )
    check(tmp_path, {"half": expected()["half"]})
    torch_zip(tmp_path / "pytorch_model.bin", state_dict(), _0=bytes(24))
    check(tmp_path, {"w": np.zeros((2, 3), np.float32)})
    for value, name in enumerate(("shard", "model")):
        save_file({"a": np.array([value])}, tmp_path / f"{name}.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "shard.safetensors"}})
        )
        check(tmp_path, {"a": np.array([value])})


def test_shards_of_torch(tmp_path):
    weight_map = {}
    for number, names in enumerate((["whole", "half"], ["transposed", "mask"])):
        shutil.copy(FIXTURE, tmp_path / f"pytorch_model-{number}.bin")
        weight_map |= dict.fromkeys(names, f"pytorch_model-{number}.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    arrays = {name: expected()[name] for name in weight_map}
    check(tmp_path, arrays)
    check(index, arrays)


def test_single_file_round_trip(tmp_path):
    """Types of weights and of buffers; arrays however they lie in memory."""
    arrays = expected() | {"bytes": np.arange(3, dtype=np.uint8), "é.0": np.array(7)}
    write_checkpoint(tmp_path / "new", arrays.items())
    assert names_in(tmp_path / "new") == ["model.safetensors"]
    check(tmp_path / "new", arrays)
    check(tmp_path / "new/model.safetensors", arrays)
    with safe_open(tmp_path / "new/model.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    limit=st.integers(1, 40),
)
def test_shards_round_trip(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("shards")
    arrays = {f"layer.{i}": np.full(n, i, BFLOAT16) for i, n in enumerate(sizes)}
    write_checkpoint(folder, arrays.items(), max_shard_bytes=limit)
    check(folder, arrays)
    shards = sorted(folder.glob("*.safetensors"))
    if len(shards) == 1:
        assert names_in(folder) == ["model.safetensors"]
        return
    count = len(shards)
    assert [shard.name for shard in shards] == [
        f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)
    ]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2 * sum(sizes)}
    assert len(names_in(folder)) == count + 1
    in_shards = [load_file(shard) for shard in shards]
    assert index["weight_map"] == {
        name: shard.name for shard, held in zip(shards, in_shards) for name in held
    }
    held = [[a.nbytes for a in shard.values()] for shard in in_shards]
    assert all(sum(sizes) <= limit or len(sizes) == 1 for sizes in held)
    # No shard takes up less than it can: the next one's first would not have fitted.
    firsts = [arrays[min(shard, key=list(arrays).index)].nbytes for shard in in_shards]
    assert all(sum(a) + first > limit for a, first in zip(held, firsts[1:]))


def traced_peak(function) -> int:
    tracemalloc.start()
    function()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_reading_is_lazy(tmp_path):
    """Opening and reading take the memory of the tensor read, not of the file."""
    size = 300_000_000
    shapes = {"big": [size // 4], "small": [5]}
    offsets = {"big": [0, size], "small": [size, size + 20]}
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": shapes[name], "data_offsets": offsets[name]}
            for name in shapes
        }
    ).encode()
    sparse = tmp_path / "model.safetensors"
    with sparse.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size + 20)
    assert traced_peak(lambda: open_checkpoint(sparse)["small"].read()) < 1_000_000
    peak = traced_peak(lambda: open_checkpoint(sparse)["big"].read())
    assert size <= peak < size + 1_000_000


def test_reading_a_view_of_a_storage_is_lazy(tmp_path):
    size = 40_000_000
    file = tmp_path / "pytorch_model.bin"
    pickled = state_dict(offset=9_000_000, shape=(5, 10), strides=(1, 5))
    torch_zip(file, pickled, _0=np.arange(size // 4, dtype=np.float32).tobytes())
    check(file, {"w": np.arange(9e6, 9e6 + 50, dtype=np.float32).reshape(10, 5).T})
    assert traced_peak(lambda: open_checkpoint(file)["w"].read()) < 1_000_000
    torch_zip(file, state_dict(shape=(size // 4,), strides=(1,)), _0=bytes(size))
    peak = traced_peak(lambda: open_checkpoint(file)["w"].read())
    assert size <= peak < size + 1_000_000


def test_writing_holds_a_shard_and_a_tensor(tmp_path):
    size, count = 2_000_000, 12
    tensors = ((f"t{n}", np.full(size, n, np.uint8)) for n in range(count))
    peak = traced_peak(lambda: write_checkpoint(tmp_path, tensors, 3 * size))
    assert 4 * size <= peak < 4 * size + 1_000_000
    check(tmp_path, {f"t{n}": np.full(size, n, np.uint8) for n in range(count)})


def test_failed_write_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    arrays = {"a": np.zeros(10), "b": np.zeros(10_000)}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(UserError, match=r"cannot write .*File too large.*; make"):
            write_checkpoint(tmp_path, arrays.items(), 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not names_in(tmp_path)


def test_write_replaces_nothing(tmp_path):
    write_checkpoint(tmp_path, {"a": np.ones(2)}.items())
    with pytest.raises(UserError, match=r"model.safetensors exists; move it away"):
        write_checkpoint(tmp_path, {"a": np.zeros(2)}.items(), 1)
    check(tmp_path, {"a": np.ones(2)})


def test_malicious_pickle_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    pickled = pickle.dumps({"w": Payload()})
    pickle.loads(pickled)
    assert (tmp_path / "ran").exists()  # so it does its work where it is let
    (tmp_path / "ran").unlink()
    refusal(torch_zip(tmp_path / "model.bin", pickled), "'posix.system'", "safetensors")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("builtins eval", "os system", "torch load", "torch.hub load"),
        *("torch._utils _rebuild_qtensor", "collections namedtuple"),
        *("torch FloatStorage.__init__", "functools partial", "torch float32\u2028x"),
    ],
)
def test_pickle_gets_what_state_dicts_need_alone(tmp_path, name):
    module, attribute = name.split(" ")
    as_text = [
        b"\x8c" + bytes([len(s.encode())]) + s.encode() for s in (module, attribute)
    ]
    pickled = b"\x80\x04" + b"".join(as_text) + b"\x93."
    refusal(torch_zip(tmp_path / "model.bin", pickled), "which is not run")


@settings(max_examples=200)
@given(st.data())
def test_damaged_pickle_is_refused_or_read(tmp_path_factory, data):
    """Whatever byte is changed, there is a checkpoint or one line of refusal."""
    pickled = bytearray(state_dict())
    place = data.draw(st.integers(0, len(pickled) - 1))
    pickled[place] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("damaged") / "model.bin"
    end = data.draw(st.sampled_from((len(pickled), place + 1)))
    torch_zip(file, bytes(pickled[:end]), _0=bytes(24))
    try:
        tensors = open_checkpoint(file)
    except UserError:
        return
    for tensor in tensors.values():
        assert tensor.read().shape == tensor.shape


@pytest.mark.parametrize(
    "view",
    [
        {"offset": 1},
        {"offset": -1},
        {"shape": (3, 3)},
        {"shape": (2, -3)},
        {"strides": (4, 1)},
        {"strides": (-3, 1)},
        {"strides": (3,)},
        {"storage": "DoubleStorage"},
    ],
)
def test_view_beyond_its_storage(tmp_path, view):
    data = np.arange(6, dtype=np.float32)
    file = torch_zip(tmp_path / "model.bin", state_dict(), _0=data.tobytes())
    check(file, {"w": data.reshape(2, 3)})
    torch_zip(file, state_dict(**view), _0=data.tobytes())
    refusal(file, "w of shape", "beyond its storage", "download")


def test_storage_that_is_not_there(tmp_path):
    refusal(torch_zip(tmp_path / "model.bin", state_dict()), "lacks data/0", "download")


def test_type_that_is_not_read(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"fine": np.ones(2), "w": np.ones(2, ml_dtypes.float8_e4m3fn)}, file)
    refusal(file, "w is F8_E4M3", "bfloat16")
    pickled = state_dict("ComplexFloatStorage")
    refusal(torch_zip(tmp_path / "c.bin", pickled, _0=bytes(48)), "w is complex64")
    pickled = (
        state_dict("ByteStorage")
        .replace(b"tensor_v2", b"tensor_v3")
        .replace(b"(dtR", b"(dctorch\n%s\ntR")
    )
    refusal(
        torch_zip(tmp_path / "8.bin", pickled % b"float8_e4m3fn", _0=bytes(6)),
        "w is float8_e4m3fn",
    )
    torch_zip(tmp_path / "16.bin", pickled % b"uint16", _0=bytes(range(12)))
    array = np.frombuffer(bytes(range(12)), np.uint16).reshape(2, 3)
    check(tmp_path / "16.bin", {"w": array})


def test_what_is_no_tensor(tmp_path):
    pickled = pickle.dumps({"epoch": 3})
    refusal(torch_zip(tmp_path / "a.bin", pickled), "'epoch' is no tensor but int")
    refusal(torch_zip(tmp_path / "b.bin", pickle.dumps(3)), "no state dict")


@pytest.mark.parametrize("keep", [0, 5, 50, -1])
def test_truncated_safetensors(tmp_path, keep):
    file = tmp_path / "model.safetensors"
    save_file({"a": np.ones(20), "b": np.ones(20)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    refusal(file, "damaged", "download it again")
    refusal(tmp_path, "model.safetensors")


@pytest.mark.parametrize("keep", [0, 100, 2000, -1])
def test_truncated_zip(tmp_path, keep):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(FIXTURE.read_bytes()[:keep])
    refusal(file, "damaged", "download it again")


def test_corrupt_zip(tmp_path):
    """Its pickle has a checksum; a header that is gone is missed."""
    whole = FIXTURE.read_bytes()
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(whole.replace(b"transposed", b"transponed"))
    refusal(file, "CRC", "download it again")
    storage = whole.index(b"state_dict/data/1") - 30
    file.write_bytes(whole[:storage] + b"XX" + whole[storage + 2 :])
    refusal(file, "data/1", "download it again")


def test_file_cut_after_it_was_opened(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    shutil.copy(FIXTURE, file)
    whole = open_checkpoint(file)["whole"]
    os.truncate(file, 1000)
    with pytest.raises(UserError, match=r"pytorch_model.bin ends before whole does; "):
        whole.read()
    file.unlink()
    with pytest.raises(UserError, match=r"cannot read .*pytorch_model.bin: No such"):
        whole.read()


def test_what_is_no_checkpoint(tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_text("<html><body>404: not found</body></html>")
        refusal(tmp_path / name, "not what its name says")
    with zipfile.ZipFile(tmp_path / "any.bin", "w") as archive:
        archive.writestr("a/text", "text")
    refusal(tmp_path / "any.bin", "not of PyTorch", "save it again")
    with zipfile.ZipFile(tmp_path / "z.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", state_dict())
    refusal(tmp_path / "z.bin", "compressed", "save it again")
    big = torch_zip(tmp_path / "big.bin", state_dict(), _0=bytes(24))
    with zipfile.ZipFile(big, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    refusal(big, "big-endian", "save it again")
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF")
    refusal(tmp_path / "tf_model.h5", ".safetensors", "name a file")
    refusal(tmp_path / "none", "No such file", "name a checkpoint")


def test_format_before_torch_1_6(tmp_path):
    """A bare pickle starts with torch's magic number, a tar file has `ustar`."""
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + bytes(600))
    refusal(file, "before 1.6", "save it again")
    shutil.make_archive(str(tmp_path / "old"), "tar", FIXTURE.parent)
    (tmp_path / "old.tar").rename(file)
    refusal(file, "before 1.6", "save it again")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_git_lfs_pointer(tmp_path, name):
    (tmp_path / name).write_text(LFS)
    assert name in refusal(tmp_path, "Git LFS pointer", "git lfs pull")
    (tmp_path / name).rename(tmp_path / f"shard-{name}")
    index = tmp_path / f"{name}.index.json"
    index.write_text(json.dumps({"weight_map": {"w": f"shard-{name}"}}))
    refusal(tmp_path, f"shard-{name}", "git lfs pull")
    index.write_text(LFS)
    refusal(index, "git lfs pull")


def test_folder_without_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refusal(tmp_path, "has no checkpoint", "pytorch_model.bin", "save the model")
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF")
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x81")
    refusal(tmp_path, "flax_model.msgpack, tf_model.h5", "model.safetensors")


def test_index_that_does_not_hold(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    save_file({"a": np.ones(2)}, tmp_path / "one.safetensors")

    def refused(weight_map: object, *parts: str) -> None:
        index.write_text(json.dumps({"weight_map": weight_map}))
        refusal(index, *parts)

    refused({"a": "one.safetensors", "b": "two.safetensors"}, "names two.safetensors")
    refused({"a": "one.safetensors", "b": "one.safetensors"}, "lacks b", "download")
    refused({"a": f"../{tmp_path.name}/one.safetensors"}, "no weight_map to files")
    for weights in ({"a": 3}, {"a": ""}, ["a"], None):
        refused(weights, "no weight_map")
    index.write_text("{")
    refusal(index, "no weight_map", "download it again")
