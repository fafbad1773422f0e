import errno

import pytest
import tensorflow_datasets as tfds

from lm.data import write
from lm.data.sources import open_source
from lm.data.write import write_dataset
from lm.types import UserError

TEXT = {"text": tfds.features.Text()}


def put(data_dir, texts, **options):
    with write_dataset(
        data_dir, "tiny", TEXT, description="Tiny.", **options
    ) as dataset:
        for text in texts:
            dataset.add("train", {"text": text})


def read(data_dir, split="train"):
    dataset = tfds.load("tiny", split=split, data_dir=data_dir, download=False)
    return [example["text"].decode() for example in tfds.as_numpy(dataset)]


@pytest.mark.parametrize("shard, buffer", [(2, 1), (3, 2), (1 << 16, 1 << 10)])
def test_examples_come_back_in_order(tmp_path, monkeypatch, shard, buffer):
    monkeypatch.setattr(write, "SHARD_EXAMPLES", shard)
    monkeypatch.setattr(write, "BUFFER_EXAMPLES", buffer)
    texts = [f"text {i} é" for i in range(50)]
    put(tmp_path, texts)
    assert read(tmp_path) == texts
    assert read(tmp_path, "train[7:9]") == texts[7:9]


def test_long_examples_are_not_held_back(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "BUFFER_CHARS", 10)
    with write_dataset(tmp_path, "tiny", TEXT) as dataset:
        dataset.add("train", {"text": "short"})
        assert not list(dataset.folder.glob("*.tfrecord*"))
        dataset.add("train", {"text": "longer"})
        assert list(dataset.folder.glob("*.tfrecord*"))


def test_files_of_the_folder_belong_to_the_set(tmp_path):
    with write_dataset(tmp_path, "tiny", TEXT, version="2.0.0") as dataset:
        dataset.add("test", {"text": "a"})
        dataset.close()
        (dataset.folder / "report.json").write_text("{}")
    assert (tmp_path / "tiny/2.0.0/report.json").read_text() == "{}"
    assert read(tmp_path, "test") == ["a"]
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["2.0.0"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), write_dataset(tmp_path, "tiny", TEXT) as d:
        d.add("train", {"text": "a"})
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_set_is_replaced_only_on_request_and_only_by_a_whole_one(tmp_path):
    put(tmp_path, ["old"])
    with pytest.raises(UserError, match="exists; set --overwrite"):
        put(tmp_path, ["new"])
    with pytest.raises(ZeroDivisionError):
        put(tmp_path, (str(1 // number) for number in (1, 0)), overwrite=True)
    assert read(tmp_path) == ["old"]
    put(tmp_path, ["new"], overwrite=True)
    assert read(tmp_path) == ["new"]
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["1.0.0"]


def test_what_is_no_data_set_is_not_replaced(tmp_path):
    (tmp_path / "tiny/1.0.0").mkdir(parents=True)
    (tmp_path / "tiny/1.0.0/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a data set"):
        put(tmp_path, ["a"], overwrite=True)
    assert (tmp_path / "tiny/1.0.0/thesis.tex").exists()


def test_of_two_versions_none_is_hidden_unasked(tmp_path):
    put(tmp_path, ["old"], version="0.9.0")
    with pytest.raises(UserError, match="0.9.0 exists, which this would hide; set"):
        put(tmp_path, ["new"], version="0.10.0")
    put(tmp_path, ["new"], version="0.10.0", succeeds=True)
    for options in ({}, {"succeeds": True}, {"overwrite": True}):
        with pytest.raises(UserError, match="0.10.0 exists, which would hide version"):
            put(tmp_path, ["late"], version="0.9.1", **options)
    assert read(tmp_path) == ["new"]
    put(tmp_path, ["newest"], overwrite=True)
    assert read(tmp_path) == ["newest"]
    found = open_source("tfds:tiny", str(tmp_path)).examples("train")
    assert [row["text"] for row in found] == ["newest"]


@pytest.mark.parametrize("name", ["", "Tiny", "../tiny", "tiny/en", "1st", "a-b"])
def test_names(tmp_path, name):
    with pytest.raises(UserError, match="cannot name a data set"):
        write.check_free(tmp_path, name, "1.0.0", overwrite=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file: Not a directory"):
        put(tmp_path / "file", ["a"])


def test_a_full_disk(tmp_path, monkeypatch):
    def add_examples(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tfds.core.SequentialWriter, "add_examples", add_examples)
    with pytest.raises(UserError, match="no space left in"):
        put(tmp_path, ["a"])
    assert not list(tmp_path.iterdir())
