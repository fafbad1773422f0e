import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lm.data import files
from lm.data.sources import SPLITS, open_source, split_of
from lm.types import UserError

TEXTS = [f"text {number}, {number % 7}" for number in range(400)]


def read(spec, split="all", data_dir="", bad_rows="stop"):
    return list(open_source(str(spec), str(data_dir), bad_rows).examples(split))


def texts(spec, split="all"):
    return [example["text"] for example in read(spec, split)]


def message(action):
    with pytest.raises(UserError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    return line


def write_as(path, rows):
    """Writes rows of `text` and `id` in the format that the path's suffix says."""
    buffer = io.StringIO(newline="")
    if ".json" in path.name:
        buffer.writelines(json.dumps(row) + "\n" for row in rows)
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
        return
    elif ".txt" in path.name:
        buffer.writelines(row["text"] + "\n" for row in rows)
    else:
        delimiter = "\t" if ".tsv" in path.name else ","
        writer = csv.DictWriter(buffer, ["text", "id"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


FORMATS = ["jsonl", "json", "txt", "csv", "tsv"]


@pytest.mark.parametrize(
    "suffix", [*FORMATS, *(f"{suffix}.gz" for suffix in FORMATS), "parquet"]
)
def test_every_format_gives_back_rows(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    rows = [{"text": text, "id": n} for n, text in enumerate(["é, 1", "", " ", "二"])]
    write_as(path, rows)
    examples = read(path)
    assert [example["text"] for example in examples] == ["é, 1", "二"]
    if "txt" not in suffix:
        assert [int(example["id"]) for example in examples] == [0, 3]


@given(st.lists(st.fixed_dictionaries({"text": st.text(), "id": st.text()})))
def test_csv_reads_what_csv_writes(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    write_as(path, rows)
    assert read(path) == [
        {"id": row["id"], "text": row["text"]} for row in rows if row["text"].strip()
    ]


def test_sentences_are_read_from_columns(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(
        "-DOCSTART- -X- O\r\n\r\nEU\tNNP\tB-ORG\r\nse lls\tVBZ\tO\r\n\r\n"
        "北 NR B-LOC\n　 PU O".encode()
    )
    first, second = read(f"{path}?format=conll")
    assert first == {
        "text": "EU se lls",
        "words": ["EU", "se lls"],
        "tags": ["B-ORG", "O"],
    }
    assert second["words"] == ["北", "　"]
    second = read(f"{path}?format=conll&words=1&tags=2")[1]
    assert second["words"] == ["NR", "PU"] and second["tags"] == ["B-LOC", "O"]
    path.write_text("0;New York;LOC\n1;;O\n")
    (only,) = read(f"{path}?format=conll&words=1&delimiter=%3B")
    assert only["words"] == ["New York", ""] and only["tags"] == ["LOC", "O"]
    # Counted from both ends, the columns must not be one.
    (tmp_path / "b.bio").write_text("a X\n")
    line = message(lambda: read(f"{tmp_path}/b.bio?words=1"))
    assert "b.bio:1 has 2 columns, fewer than 3" in line


def test_questions_are_read_from_squad(tmp_path):
    answer = {"text": "blue", "answer_start": 7}
    questions = [
        {"id": "1", "question": "What?", "answers": [answer, answer]},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
        {"id": "3", "question": "Who?"},
    ]
    paragraph = {"context": "Sky is blue.", "qas": questions}
    data = {"data": [{"title": "Sky", "paragraphs": [paragraph]}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data, indent=1))
    assert "set ?format=squad" in message(lambda: read(path))
    spec = f"{path}?format=squad"
    assert f"{path}:3 is no question" in message(lambda: read(spec))
    first, second = read(spec, bad_rows="skip")
    assert first == {
        "text": "Sky is blue.",
        "question": "What?",
        "answers": [{"text": "blue", "start": 7}] * 2,
        "id": "1",
        "title": "Sky",
    }
    assert second["answers"] == [] and second.where == f"{path}:2"


def test_parallel_files_are_read_side_by_side(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.en").write_text(f"{name} 1\n\n{name} 2\n")
        (tmp_path / f"{name}.fr").write_text(f"un {name}\nrien\n\n")
    spec = f"{tmp_path}/{{split}}.en?format=txt&target={tmp_path}/{{split}}.fr"
    assert read(spec, "dev") == [
        {"text": "dev 1", "target": "un dev"},
        {"text": "dev 2", "target": ""},
    ]
    assert [row["text"] for row in read(spec)] == [
        f"{name} {number}" for name in ("dev", "train") for number in (1, 2)
    ]
    source = open_source(spec, "")
    before = source.fingerprint("dev"), source.fingerprint("train")
    (tmp_path / "dev.fr").write_bytes(b"un\n\xff\n")
    assert source.fingerprint("dev") != before[0]
    assert source.fingerprint("train") == before[1]
    line = message(lambda: read(spec, "dev", bad_rows="skip"))
    assert f"{tmp_path}/dev.en has more lines than {tmp_path}/dev.fr; each" in line
    assert "dev.fr:2 is not UTF-8" in message(lambda: read(spec, "dev"))
    (tmp_path / "dev.fr").unlink()
    line = message(lambda: read(spec))
    assert "*.en 2 files" in line and "*.fr 1" in line
    documents = f"{tmp_path}/train.en?format=txt&unit=file&target={tmp_path}/train.fr"
    (row,) = read(documents)
    assert row == {"text": "train 1\n\ntrain 2", "target": "un train\nrien\n"}


def test_rows_without_a_text_are_read_as_they_are(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"messages": [{"role": "user", "content": str(n)}]} for n in range(100)]
    rows += [{"text": 7, "words": ["a"]}, {"text": " "}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = message(lambda: read(path))
    assert "no column 'text'; choose from: messages; put ?text=COLUMN after" in said
    assert "or ?text= if its rows have no text, as those of words and tags" in said
    assert "or ?text= if" in message(lambda: read(f"{path}?text=messages"))
    spec = f"{path}?text="
    assert read(spec) == rows
    parts = [read(spec, split) for split in SPLITS]
    assert all(parts) and sorted(map(str, sum(parts, []))) == sorted(map(str, rows))
    assert "a.jsonl:1 has no 'label'" in message(lambda: read(spec)[0]["label"])


def test_splits_are_disjoint_whole_and_near_their_shares(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(TEXTS))
    parts = {split: texts(path, split) for split in SPLITS}
    assert sorted(sum(parts.values(), [])) == sorted(TEXTS)
    assert 340 < len(parts["train"]) < 380
    assert parts["validation"] and parts["test"]
    assert texts(path, "all") == TEXTS


def test_equal_texts_are_in_one_split_whatever_file_they_are_in(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    rows = [{"text": text, "id": 0} for text in reversed(TEXTS)]
    write_as(tmp_path / "b.parquet", rows)
    for split in SPLITS:
        assert sorted(texts(tmp_path / "a.txt", split)) == sorted(
            texts(tmp_path / "b.parquet", split)
        )


@given(st.text(), st.integers(0, 50), st.integers(0, 50))
def test_a_larger_share_keeps_its_texts(text, validation, test):
    if split_of(text, validation, test) == "validation":
        assert split_of(text, validation + 10, test) == "validation"
    assert split_of(text, 0, 0) == "train"


def test_units_of_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n two \r\n\r\n \r\nthree")
    assert texts(path) == ["one", " two ", "three"]
    assert texts(f"{path}?unit=paragraph") == ["one\n two ", "three"]
    assert texts(f"{path}?unit=file") == ["one\n two \n\n \nthree"]


def test_columns_can_be_named_and_delimiters_set(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id;review\n1;'a;b'\n")
    spec = f"{path}?text=review&delimiter=%3B&quote='"
    assert read(spec) == [{"id": "1", "text": "a;b"}]


def test_columns_without_a_name_may_be_many(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,,\na,,\n")
    assert [row["text"] for row in read(path)] == ["a"]


def test_tsv_has_no_quotes_unless_they_are_set(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"Hm" he said\t1\n"Hm\t0\n')
    assert texts(path) == ['"Hm" he said', '"Hm']
    path.write_text('text\tlabel\n"a\tb"\t1\n')
    assert texts(f'{path}?quote="') == ["a\tb"]


def test_csv_fields_may_run_over_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"one\ntwo",1\n\n"",0\nthree\n')
    # The blank line is no row, and the broken one is counted in lines of the file.
    assert f"{path}:6 has 1 columns, the first row 2" in message(lambda: read(path))


def test_globs_are_read_in_order_of_their_names(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"part-{name}.txt").write_text(name)
    assert texts(tmp_path / "part-?.txt") == ["a", "b", "c"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "d.txt").write_text("d")
    assert texts(tmp_path / "**/*.txt") == ["d", "a", "b", "c"]
    (tmp_path / "odd[1].txt").write_text("odd")
    assert texts(tmp_path / "odd[1].txt") == ["odd"]


def test_a_path_with_split_in_it_names_the_splits(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.txt").write_text(f"{name} 1\n{name} 2")
    spec = tmp_path / "{split}.txt"
    assert texts(spec, "dev") == ["dev 1", "dev 2"]
    assert texts(spec) == ["dev 1", "dev 2", "train 1", "train 2"]
    assert "there is no file" in message(lambda: read(spec, "test"))


def test_examples_can_be_read_again(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    source = open_source(str(tmp_path / "a.txt"), "")
    assert list(source.examples("all")) == list(source.examples("all"))


@pytest.mark.parametrize("suffix", ["jsonl", "txt.gz", "csv", "parquet"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    rows = [{"text": f"{n} " * 500, "id": n} for n in range(4000)]
    write_as(path, rows)
    size = sum(len(row["text"]) for row in rows)
    del rows
    tracemalloc.start()
    count = sum(1 for _ in open_source(str(path), "").examples("all"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4000 and peak < size / 4


def test_fingerprint_changes_with_the_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = open_source(str(tmp_path / "*.txt"), "")
    first = source.fingerprint("train")
    assert source.fingerprint("train") == first
    before = path.stat()
    path.write_text("two")
    # Same size, and its time put back, as `cp -p` or `touch -r` do.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = source.fingerprint("train")
    (tmp_path / "b.txt").write_text("three")
    third = source.fingerprint("train")
    assert len({first, second, third}) == 3


def test_fingerprint_of_a_named_split_is_of_its_files(tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.txt").write_text("one")
    source = open_source(str(tmp_path / "{split}.txt"), "")
    before = source.fingerprint("dev")
    (tmp_path / "train.txt").write_text("one, two")
    assert source.fingerprint("dev") == before


BROKEN = {
    "utf8.txt": (b"fine\nbad \xff\n", "utf8.txt:2 is not UTF-8 at byte 4"),
    "line.jsonl": (b'{"text": "a"}\n\n{"text"\n', "line.jsonl:3 is broken JSON"),
    "list.json": (b'[{"text": "a"}]', "list.json:1 is not a JSON object"),
    "half.jsonl": (b'{"text": "a\\ud800"}', "half of a character, at character 1"),
    "number.jsonl": (b'{"text": 7}', "number.jsonl:1: 'text' is 7, not a text"),
    "column.jsonl": (b'{"txt": "a"}', "no column 'text'; did you mean 'txt'?"),
    "column.csv": (b"id,body\n1,a", "no column 'text'; choose from: id, body"),
    "row.csv": (b"text,id\na,1\nb\n", "row.csv:3 has 1 columns, the first row 2"),
    "quote.csv": (b'text,id\n"a"b,1\n', "quote.csv:2 is broken: ',' expected"),
    "open.csv": (b'text,id\na,1\n\n"b,2\nc,3\n', "open.csv:4 is broken: unexpected"),
    "twice.csv": (b"text,id,text\na,1,b\n", "twice.csv has two columns 'text'; rename"),
    "twice.tsv": (b"text\tid\tid\na\t1\t2\n", "twice.tsv has two columns 'id'; rename"),
    "squad.json": (b'{"version": "1.1", "data": []}', "set ?format=squad"),
    "none.squad": (b'{"data": [{"paragraph": []}]}', "none.squad is not SQuAD's JSON"),
    "half.squad": (b'{"data": [', "half.squad is not SQuAD's JSON: JSONDecodeError"),
    "empty.txt": (b"", "empty.txt is empty"),
    "none.parquet": (b"no parquet here", "none.parquet is broken Parquet"),
    "none.txt.gz": (b"no gzip here", "none.txt.gz cannot be read: Not a gzipped"),
    "cut.txt.gz": (gzip.compress(b"abc" * 99)[:-9], "cut.txt.gz cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, name):
    data, expected = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    assert expected in message(lambda: read(tmp_path / name))


# A good row, bad ones, a good row; the first of the bad is named.
BAD_ROWS = {
    "a.jsonl": (
        b'{"text": "a"}\n{"text"\n[]\n\xff\n{"txt": ""}\n{"text": 7}\n{"text": "b"}',
        5,
        "a.jsonl:2 is broken JSON",
    ),
    "a.txt": (b"a\n\xff\nb", 1, "a.txt:2 is not UTF-8"),
    "a.txt?unit=paragraph": (b"a\n\nc\n\xff\nc\n\nb", 1, "a.txt:4 is not UTF-8"),
    "a.csv": (
        b'text,id\na,1\n"c\n\xff",2\nc\n"c"c,3\n\nb,4\n"c\n',
        4,
        "a.csv:4 is not UTF-8",
    ),
    "a.conll": (b"a X\n\nb\nb X\n\n\xff X\n\nb X\n", 2, "a.conll:3 has 1 columns"),
    "b.csv": (b"text,id\na,1\nc,2,3\nb,4", 1, "b.csv:3 has 3 columns"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_can_be_skipped_and_are_counted(tmp_path, name, capfd):
    data, count, first = BAD_ROWS[name]
    (tmp_path / name.partition("?")[0]).write_bytes(data)
    spec = f"{tmp_path}/{name}"
    assert first in message(lambda: read(spec))
    source = open_source(spec, "", "skip")
    assert [example["text"] for example in source.examples("all")] == ["a", "b"]
    assert source.bad_rows.count == count and first in source.bad_rows.first
    source.bad_rows.say("it")
    rows = "1 bad row" if count == 1 else f"{count} bad rows"
    line = f"skipped {rows} of it; the first: {source.bad_rows.first}\n"
    assert capfd.readouterr().err == line


def test_a_broken_first_row_of_a_table_is_no_row_to_skip(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,\xff\na,1\n")
    line = message(lambda: read(tmp_path / "a.csv", bad_rows="skip"))
    assert "a.csv:1 is not UTF-8" in line


@pytest.mark.parametrize(
    "name, data, lines",
    [
        ("a.txt", "a\n\nb", [1, 3]),
        ("a.txt?unit=paragraph", "a\na\n\nb\nb", [2, 5]),
        ("a.conll", "a X\nb X\n\n\nc X\n\n", [2, 5]),
        ("a.jsonl", '\n{"text": "a"}\n{"text": "b"}', [2, 3]),
        ("a.csv", 'text\n"a\na"\nb', [3, 4]),
    ],
)
def test_examples_know_where_they_are_from(tmp_path, name, data, lines):
    path = tmp_path / name.partition("?")[0]
    path.write_text(data)
    found = [example.where for example in read(tmp_path / name)]
    assert found == [f"{path}:{line}" for line in lines]


def test_blank_texts_can_be_kept_so_that_no_row_is_lost(tmp_path):
    rows = [{"text": "a"}, {"text": " "}, {"text": None}, {"text": ""}]
    write_as(tmp_path / "a.jsonl", rows)
    source = open_source(f"{tmp_path}/a.jsonl", "")
    assert [row["text"] for row in source.examples("all")] == ["a"]
    kept = source.examples("all", keep_blank=True)
    assert [row["text"] for row in kept] == ["a", " ", "", ""]


def test_a_field_that_an_example_lacks_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (example,) = read(tmp_path / "a.txt")
    assert example.get("label") is None and "label" not in example
    line = f"{tmp_path}/a.txt:1 has no 'txt'; did you mean 'text'?"
    assert message(lambda: example["txt"]) == line


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("a.pdf", "a.pdf is no known kind of text; choose from: jsonl, json, txt"),
        ("a.jsnl", "did you mean 'jsonl'?"),
        ("a.dat?format=text", "did you mean 'txt'?"),
        ("a.conll?words=x", "words must be a column's number, not 'x'"),
        ("a.csv?target=b.csv", "unknown key 'target'"),
        ("{split}.en?format=txt&target=train.fr", "put {split} into both paths"),
        ("a", "a is no known kind of text"),
        ("a.parquet.gz", "no known kind of text"),
        (".", ". is a folder; name its files, as in ./*.jsonl"),
        ("no/such.txt", "there is no file no/such.txt; check the path"),
        ("no/*.txt", "there is no file no/*.txt"),
        ("a.txt?unit=lines", "unknown unit 'lines'; did you mean 'line'?"),
        ("a.csv?txt=b", "unknown key 'txt'; did you mean 'text'?"),
        ("a.jsonl?unit=line", "unknown key 'unit'"),
        ("a.csv?delimiter=ab", "delimiter must be one character, not 'ab'"),
        ("a.csv?delimiter=", "delimiter must be one character, not ''"),
        ("tfds:", "write tfds:NAME"),
        ("tfds:imdb_reviews", "run: tfds build imdb_reviews --data_dir=none"),
        ("tfds:imdb_review", "did you mean 'imdb_reviews'?"),
        ("tfds:kjv", "run: python -m tools.fetch_data kjv --data-dir=none"),
        ("tfds:kjv?unit=line", "unknown key 'unit'"),
    ],
)
def test_mistakes_are_one_line_with_the_cure(spec, expected):
    assert expected in message(lambda: open_source(spec, "none").fingerprint("train"))


def test_mistakes_in_names_get_suggestions(tmp_path):
    (tmp_path / "reviews.txt").write_text("one")
    spec = tmp_path / "review.txt"
    assert "did you mean 'reviews.txt'?" in message(lambda: read(spec))
    assert f"as in {tmp_path}/*.txt" in message(lambda: read(tmp_path))
    spec = tmp_path / "reviews.txt"
    assert "no split 'tain'; did you mean 'train'?" in message(
        lambda: read(spec, "tain")
    )


def test_local_files_are_read_without_tensorflow(tmp_path):
    write_as(tmp_path / "a.parquet", [{"text": "one", "id": 1}])
    code = (
        "import sys; from lm.data.sources import open_source; "
        f"print(list(open_source('{tmp_path}/a.parquet', '').examples('all'))); "
        "assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[{'id': 1, 'text': 'one'}]\n", done.stderr


# `ram://` goes the way of `gs://`, through TensorFlow's file system.
@pytest.mark.parametrize("suffix", ["jsonl", "txt.gz", "csv", "parquet"])
def test_remote_files_are_read_as_local_ones(tmp_path, suffix):
    import tensorflow as tf

    rows = [{"text": text, "id": n} for n, text in enumerate(TEXTS)]
    for name, part in (("a", rows[:300]), ("b", rows[300:])):
        path = tmp_path / f"{name}.{suffix}"
        write_as(path, part)
        tf.io.gfile.makedirs(f"ram://{suffix}")
        tf.io.gfile.copy(str(path), f"ram://{suffix}/{path.name}", overwrite=True)
    local, remote = f"{tmp_path}/*.{suffix}", f"ram://{suffix}/*.{suffix}"
    assert read(remote, "validation") == read(local, "validation")
    source = open_source(remote, "")
    before = source.fingerprint("train")
    write_as(tmp_path / f"c.{suffix}", rows[:9])
    last = f"ram://{suffix}/c.{suffix}"
    tf.io.gfile.copy(str(tmp_path / f"c.{suffix}"), last, overwrite=True)
    assert source.fingerprint("train") != before


def test_remote_files_seek_like_local_ones(tmp_path):
    import tensorflow as tf

    with tf.io.gfile.GFile("ram://seek.bin", "wb") as file:
        file.write(bytes(range(100)))
    with files.open_file("ram://seek.bin") as file:
        assert file.seek(-10, io.SEEK_END) == 90
        assert file.read() == bytes(range(90, 100))
        file.seek(5)
        assert file.read(2) == b"\5\6" and file.tell() == 7


@pytest.mark.parametrize("spec", ["ftp://host/a.txt", "ram://none/a.txt"])
def test_unreachable_files_are_one_line(spec):
    assert spec in message(lambda: read(spec))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two data sets: `toy` has flat features and two splits, `deep` has nested ones."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    def write(dataset, version, features, splits):
        class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name = dataset
            VERSION = tfds.core.Version(version)

            def _info(self):
                described = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=described)

            def _split_generators(self, dl_manager):
                return {split: enumerate(rows) for split, rows in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

        tfds.disable_progress_bar()
        Builder(data_dir=folder).download_and_prepare()

    rows = [{"review": text, "label": n % 2} for n, text in enumerate(TEXTS)]
    label = tfds.features.ClassLabel(names=["bad", "good"])
    features = {"review": tfds.features.Text(), "label": label}
    splits = {"train": rows[:300], "test": [*rows[300:], {"review": " ", "label": 0}]}
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        write("toy", version, features, splits)
    nested = {
        "text": tfds.features.Text(),
        "label": label,
        "labels": tfds.features.Sequence(label),
        "deep": tfds.features.Sequence(
            {"label": label, "at": np.int64, "meta": {"word": tfds.features.Text()}}
        ),
        "tags": tfds.features.Sequence(tfds.features.Text()),
        "meta": {"scores": tfds.features.Tensor(shape=(2,), dtype=np.float32)},
    }
    deep = [
        {"label": number, "at": 3 + number, "meta": {"word": word}}
        for number, word in enumerate("ab")
    ]
    labels = {"label": -1, "labels": [1, 0], "deep": deep}
    row = {**labels, "text": "naïve", "tags": ["a", "é"], "meta": {"scores": [1, 2]}}
    write("deep", "1.0.0", nested, {"train": [row]})
    return folder


def test_tfds_gives_python_values(data_dir):
    examples = read("tfds:toy?text=review", "train", data_dir)
    assert sorted(example["text"] for example in examples) == sorted(TEXTS[:300])
    names = ["bad", "good"]
    assert all(e["label"] == names[TEXTS.index(e["text"]) % 2] for e in examples)
    assert examples == read("tfds:toy?text=review", "train", data_dir)


def test_tfds_examples_know_where_they_are_from(data_dir):
    examples = read("tfds:toy?text=review", "train[1:3]", data_dir)
    assert [example.where for example in examples] == [
        f"tfds:toy?text=review train[1:3]:{number}" for number in (1, 2)
    ]


def test_tfds_skips_blank_texts(data_dir):
    assert len(read("tfds:toy?text=review", "test", data_dir)) == 100


def test_tfds_reads_nested_features(data_dir):
    (example,) = read("tfds:deep", "train", data_dir)
    assert example["text"] == "naïve" and example["tags"] == ["a", "é"]
    np.testing.assert_array_equal(example["meta"]["scores"], [1, 2])
    assert example["labels"] == ["good", "bad"]
    assert example["deep"] == [
        {"label": "bad", "at": 3, "meta": {"word": "a"}},
        {"label": "good", "at": 4, "meta": {"word": "b"}},
    ]
    # What TFDS has where a label is secret.
    assert example["label"] is None


def test_tfds_splits_can_be_sliced(data_dir):
    spec = "tfds:toy?text=review"
    whole = read(spec, "train", data_dir)
    assert read(spec, "train[:10%]", data_dir) == whole[:30]
    assert len(read(spec, "train[:10]+test[:5]", data_dir)) == 15


def test_tfds_takes_the_newest_version(data_dir):
    assert open_source("tfds:toy", str(data_dir)).folder == f"{data_dir}/toy/1.10.0"
    older = open_source("tfds:toy:1.9.0", f"{data_dir}/")
    assert older.folder == f"{data_dir}/toy/1.9.0"


def test_tfds_fingerprint_changes_with_the_data(data_dir):
    source = open_source("tfds:toy:1.0.0", str(data_dir))
    before = source.fingerprint("train")
    assert source.fingerprint("train") == before
    assert open_source("tfds:toy", str(data_dir)).fingerprint("train") != before
    os.utime(next((data_dir / "toy" / "1.0.0").glob("*train*")))
    assert source.fingerprint("train") != before


def test_tfds_mistakes_are_one_line_with_the_cure(data_dir):
    def trouble(spec, split="train"):
        return message(lambda: read(spec, split, data_dir))

    assert "it has train, test and slices" in trouble("tfds:toy?text=review", "dev")
    assert "has no split 'train[:x]'" in trouble("tfds:toy?text=review", "train[:x]")
    assert "no column 'text'; choose from: label, review" in trouble("tfds:toy")
    assert "'meta' is {'scores': " in trouble("tfds:deep?text=meta")
    assert "has no version 2.0.0; it has 1.10.0" in trouble("tfds:toy:2.0.0")
    assert "did you mean 'toy'?" in trouble("tfds:tay")


def test_tfds_configs_are_listed(data_dir, tmp_path):
    (tmp_path / "wiki").symlink_to(data_dir)
    line = message(lambda: open_source("tfds:wiki", str(tmp_path)))
    assert "choose from: tfds:wiki/deep, tfds:wiki/toy" in line
    assert open_source("tfds:wiki/toy", str(tmp_path)).folder.endswith("toy/1.10.0")


def test_a_damaged_tfds_file_is_one_line(data_dir):
    path = next((data_dir / "deep" / "1.0.0").glob("*train*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert "delete it and fetch it again" in message(
        lambda: read("tfds:deep", "train", data_dir)
    )
    path.write_bytes(whole)
