"""A store is whole or not there: whatever is damaged, killed or at work beside it."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm.data import store as store_lib
from lm.data.files import BadRows
from lm.data.store import encode_chunks, from_documents, open_store
from lm.types import UserError

KEY = {"version": 1}
TEXTS = [[5, 6, 7], [8], [], [9, 10]]


def documents(texts=TEXTS):
    yield [{"tokens": np.array(t, int), "label": np.ones(1, int)} for t in texts[:3]]
    yield [{"tokens": np.array(t, int), "label": np.ones(1, int)} for t in texts[3:]]


def never():
    raise AssertionError("built again")


def texts_of(store):
    docs = [store.document(doc) for doc in range(store.num_docs)]
    assert all(doc["label"].tolist() == [1] for doc in docs)
    return [doc["tokens"].tolist() for doc in docs]


def folder_of(cache):
    (folder,) = (path.parent for path in cache.glob("*/store.json"))
    return folder


def test_a_store_is_built_once_and_holds_what_was_given(tmp_path, capfd):
    built = open_store(tmp_path / "new" / "cache", "kjv train", KEY, documents)
    line = "encoded kjv train: 4 documents, 6 tokens in "
    assert capfd.readouterr().err.startswith(line)
    store = open_store(tmp_path / "new" / "cache", "kjv train", KEY, never)
    assert not capfd.readouterr().err
    assert store.checksum == built.checksum
    assert texts_of(store) == TEXTS
    assert {k: v.tolist() for k, v in store.lengths().items()} == {
        "tokens": [3, 1, 0, 2],
        "label": [1, 1, 1, 1],
    }
    assert {values.dtype for values in store.values.values()} == {np.dtype(np.int32)}


def test_another_key_is_another_store_and_the_checksum_is_of_the_contents(tmp_path):
    one = open_store(tmp_path, "texts", KEY, documents)
    same = open_store(tmp_path, "texts", {"version": 2}, documents)
    other = open_store(tmp_path, "texts", {"version": 3}, lambda: documents([[1], [2]]))
    assert len(list(tmp_path.glob("*/store.json"))) == 3
    assert one.checksum == same.checksum != other.checksum


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    cache = tmp_path_factory.mktemp("sound")
    open_store(cache, "texts", KEY, documents)
    return cache


FILES = ["store.json", "tokens.values", "tokens.offsets", "label.values"]
FLIP = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7))


@settings(max_examples=50)
@given(st.sampled_from(FILES), FLIP | st.sampled_from(["cut", "gone"]))
@example("store.json", "cut")
@example("tokens.values", "gone")
def test_no_damage_changes_what_is_read(sound, name, damage):
    with tempfile.TemporaryDirectory() as cache:
        shutil.copytree(sound, cache, dirs_exist_ok=True)
        file = folder_of(Path(cache)) / name
        stat = file.stat()
        data = bytearray(file.read_bytes())
        if damage == "gone":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(data[:-1])
        else:
            where, bit = damage
            data[int(where * len(data))] ^= 1 << bit
            file.write_bytes(data)
            # As if the disk and not a program had done it.
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        built = open_store(Path(cache), "texts", KEY, documents)
        assert texts_of(built) == TEXTS
        again = open_store(Path(cache), "texts", KEY, never)
        assert texts_of(again) == TEXTS


@pytest.mark.parametrize("always_checked", [0, 1 << 28])
@pytest.mark.parametrize(
    ("name", "data", "trouble"),
    [
        ("tokens.values", b"\0" * 24, "tokens.values has another checksum"),
        ("tokens.offsets", b"", "tokens.offsets has 0 of 40 bytes"),
        ("label.values", None, "no label.values"),
        ("store.json", b"{}", "store.json: 'files'"),
    ],
)
def test_damage_is_said_in_a_line(
    tmp_path, capfd, monkeypatch, always_checked, name, data, trouble
):
    monkeypatch.setattr(store_lib, "ALWAYS_CHECKED_BYTES", always_checked)
    open_store(tmp_path, "texts", KEY, documents)
    file = folder_of(tmp_path) / name
    file.unlink() if data is None else file.write_bytes(data)
    capfd.readouterr()
    open_store(tmp_path, "texts", KEY, documents)
    said, built = capfd.readouterr().err.splitlines()
    assert said == f"the cache {file.parent} is damaged ({trouble}); it is built again"
    assert built.startswith("encoded texts: ")


# Builds a store but stops in the middle until a file `go` appears.
BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from lm.data.store import open_store

cache = Path(sys.argv[1])

def documents():
    yield [{"tokens": np.array([1, 2])}]
    (cache / "began").touch()
    while not (cache / "go").exists():
        time.sleep(0.01)
    yield [{"tokens": np.array([3])}]

open_store(cache, "texts", {"version": 1}, documents)
"""


@pytest.fixture
def builder(tmp_path):
    """A process in the middle of building a store."""
    process = subprocess.Popen([sys.executable, "-c", BUILDER, tmp_path])
    while not (tmp_path / "began").exists():
        assert process.poll() is None
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def open_beside(cache, documents, capfd):
    """Opens the store in a thread, and returns once it waits for the other process."""
    opened = []

    def work():
        opened.append(open_store(cache, "texts", KEY, documents))

    thread = threading.Thread(target=work)
    thread.start()
    said = ""
    while "waiting for another process that encodes texts\n" not in said:
        assert thread.is_alive()
        time.sleep(0.01)
        said += capfd.readouterr().err
    return thread, opened


def test_of_two_processes_one_builds(tmp_path, builder, capfd):
    thread, opened = open_beside(tmp_path, never, capfd)
    (tmp_path / "go").touch()
    thread.join(10)
    assert opened[0].values["tokens"].tolist() == [1, 2, 3]


def test_a_killed_build_leaves_nothing_and_the_next_takes_over(
    tmp_path, builder, capfd
):
    thread, opened = open_beside(tmp_path, documents, capfd)
    assert not list(tmp_path.glob("*/store.json"))
    builder.kill()
    thread.join(10)
    assert texts_of(opened[0]) == TEXTS
    assert {path.name for path in tmp_path.glob("*")} == {
        "began",
        folder_of(tmp_path).name,
        f".{folder_of(tmp_path).name}.lock",
    }


def test_where_there_are_no_locks_the_first_to_finish_wins(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(store_lib.fcntl, "flock", no_locks)

    def overtaken():
        yield from documents()
        open_store(tmp_path, "texts", KEY, lambda: documents([[1], [2]]))

    assert texts_of(open_store(tmp_path, "texts", KEY, overtaken)) == [[1], [2]]
    assert not list(tmp_path.glob(".*.tmp"))


def nothing():
    yield []


def broken():
    yield from documents()
    raise RuntimeError("broken source")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (nothing, UserError, "kjv test has no text; give more"),
        (broken, RuntimeError, "broken source"),
    ],
)
def test_a_build_that_fails_leaves_nothing(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        open_store(tmp_path, "kjv test", KEY, make)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename"])
def test_a_full_disk_is_named(tmp_path, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_lib.os if call == "fsync" else Path, call, full)
        with pytest.raises(UserError, match="no space left.*set data.cache_dir") as e:
            open_store(tmp_path, "texts", KEY, documents)
    assert len(str(e.value).splitlines()) == 1
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert texts_of(open_store(tmp_path, "texts", KEY, documents)) == TEXTS


def test_a_disk_that_fills_up_is_named(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(UserError, match="no space left.*set data.cache_dir"):
            open_store(tmp_path, "texts", KEY, lambda: documents([range(1 << 16)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write.*Not a directory; set data.c"):
        open_store(tmp_path / "file" / "cache", "texts", KEY, documents)


def test_examples_are_encoded_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(store_lib, "CHUNK_EXAMPLES", 3)
    monkeypatch.setattr(store_lib, "CHUNK_CHARS", 10)
    texts = ["a", "b", "c", "d", "", "long enough", "e"]
    asked = []

    def encode(examples):
        asked.append([example["text"] for example in examples])
        return [{"n": np.array([1])} if e["text"] else {} for e in examples]

    chunks = list(encode_chunks(({"text": text} for text in texts), encode))
    assert asked == [["a", "b", "c"], ["d", "", "long enough"], ["e"]]
    assert [len(chunk) for chunk in chunks] == [3, 2, 1]


def test_what_cannot_be_encoded_is_raised_or_counted():
    def encode(examples):
        return [{"n": np.array([1])} if e["ok"] else UserError("bad") for e in examples]

    examples = [{"ok": True}, {"ok": False}, {"ok": True}]
    with pytest.raises(UserError, match="bad"):
        list(encode_chunks(examples, encode))
    bad_rows = BadRows(skip=True)
    (chunk,) = encode_chunks(examples, encode, bad_rows)
    assert len(chunk) == 2 and (bad_rows.count, bad_rows.first) == (1, "bad")


def test_a_store_in_memory_is_as_one_on_disk(tmp_path):
    stored = open_store(tmp_path, "texts", KEY, documents)
    store = from_documents(sum(documents(), []))
    assert store.checksum == stored.checksum and store.num_docs == stored.num_docs
    assert texts_of(store) == TEXTS
    for name, values in stored.values.items():
        assert store.values[name].dtype == values.dtype
        assert store.offsets[name].dtype == stored.offsets[name].dtype
    assert from_documents([]).num_docs == 0
