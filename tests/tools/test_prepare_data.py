import json
import pickle
import random
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from lm.data.sources import open_source
from lm.types import UserError
from tools import prepare_data
from tools.prepare_data import main, parser
from tools.prepare_report import SAMPLES, Report, render

RIVER = (
    "The river rises in the hills above the town, and on its way to the sea it turns "
    "the wheels of nine old mills. In spring, when snow melts, it floods the meadows."
)
GERMAN = "Der Fluss entspringt in den Bergen über der Stadt und fließt ins Meer."


def unrelated(count):
    words = [a + b for a in ("ba", "ko", "ri") for b in ("ma", "sen", "dro", "x")]
    return [" ".join(random.Random(i).choices(words, k=30)) for i in range(count)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepare(tmp_path, texts, *flags):
    """Prepares texts, or rows; returns the report and the splits."""
    rows = [{"text": text} if isinstance(text, str) else text for text in texts]
    source = write(tmp_path / "raw.jsonl", rows)
    return prepare_source(tmp_path, source, *flags)


def prepare_source(tmp_path, source, *flags):
    required = [f"--source={source}", "--name=tiny", f"--data-dir={tmp_path}/data"]
    result = main(parser.parse_args([*required, "--workers=1", *flags]))
    found = open_source("tfds:tiny", f"{tmp_path}/data")
    splits = [split for split, row in result["splits"].items() if row["documents"]]
    return result, {split: list(found.examples(split)) for split in splits}


def texts(splits):
    return sorted(row["text"] for rows in splits.values() for row in rows)


def test_texts_are_cleaned_and_the_report_says_what_was_dropped(tmp_path):
    raw = [
        "We had a cafe\u0301\x00 au\u00a0lait\u2028 on the terrace of the hotel.",
        "sch\u00c3\u00b6n und gut",
        RIVER + " ",
        RIVER,
        RIVER.replace("nine", "ten"),
        GERMAN,
        "12345 67890",
        "short",
    ]
    flags = "--language=en", "--min-chars=10"
    result, splits = prepare(tmp_path, raw, *flags)
    assert texts(splits) == [
        RIVER,
        "We had a caf\u00e9 au lait\non the terrace of the hotel.",
    ]
    counts = {reason: row["documents"] for reason, row in result["dropped"].items()}
    assert counts == {
        "other language": 2,
        "exact duplicate": 1,
        "near duplicate": 1,
        "unclear language": 1,
        "too short": 1,
    }
    assert result["dropped"]["other language"]["samples"] == ["schön und gut", GERMAN]


def test_numbers_add_up(tmp_path):
    raw = unrelated(40) + unrelated(5) + ["", "a", "b c"] + [GERMAN]
    result, splits = prepare(tmp_path, raw, "--min-chars=2")
    folder = tmp_path / "data/tiny/1.0.0"
    assert {
        "folder": str(folder),
        **json.loads((folder / "report.json").read_text()),
    } == (json.loads(json.dumps(result)))
    for unit in ("documents", "characters"):
        read, kept = result[unit]["read"], result[unit]["kept"]
        assert read == kept + sum(row[unit] for row in result["dropped"].values())
        assert kept == sum(row[unit] for row in result["splits"].values())
    kept = texts(splits)
    assert result["documents"]["kept"] == len(kept) == 42
    assert result["characters"]["kept"] == sum(map(len, kept))
    # The source leaves out what is blank.
    assert result["documents"]["read"] == len(raw) - 1
    assert sum(row["read"] for row in result["lengths"]) == len(raw) - 1
    assert sum(row["kept"] for row in result["lengths"]) == 42
    assert all(row["from"] <= row["to"] for row in result["lengths"])
    assert sum(result["languages"].values()) == len(raw) - 2


def test_the_text_alone_says_the_split(tmp_path):
    raw = unrelated(60)
    _, one = prepare(tmp_path, raw)
    _, other = prepare(tmp_path, [*unrelated(80)[::-1], *raw], "--overwrite")
    assert set(one) == {"train", "validation", "test"}
    for split, rows in one.items():
        known = {row["text"] for row in other[split]}
        assert {row["text"] for row in rows} <= known


def test_splits_are_as_large_as_asked_for(tmp_path):
    result, splits = prepare(tmp_path, unrelated(400), "--splits=a:0.75,b:0.25")
    assert set(splits) == {"a", "b"}
    assert 70 <= result["splits"]["b"]["documents"] <= 130


def test_documents_keep_their_order_and_their_fields(tmp_path):
    rows = [
        {
            "text": text,
            "label": i,
            "score": i if i else 0.5,
            "title": f"t\ud800{i}",
            "x": 1,
        }
        for i, text in enumerate(unrelated(20))
    ]
    flags = "--keep=label", "--keep=score", "--keep=title", "--splits=train:1"
    _, splits = prepare(tmp_path, rows, *flags)
    assert splits["train"] == [
        {"label": i, "score": i or 0.5, "title": f"t?{i}", "text": row["text"]}
        for i, row in enumerate(rows)
    ]


def test_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_data, "CHUNK_DOCS", 3)
    raw = unrelated(40) + unrelated(20)
    one, splits = prepare(tmp_path, raw, "--workers=1")
    two, same_splits = prepare(tmp_path, raw, "--workers=2", "--overwrite")
    assert splits == same_splits
    for key in ("documents", "dropped", "languages", "lengths"):
        assert one[key] == two[key]


@pytest.mark.parametrize("workers", [1, 2])
def test_few_documents_are_read_ahead(workers):
    drawn = 0

    def rows():
        nonlocal drawn
        for _ in range(10_000):
            drawn += 1
            yield {"text": "x" * prepare_data.CHUNK_CHARS}

    results = prepare_data._results(prepare_data._chunks(rows()), work, workers)
    next(results)
    assert drawn <= 1 + 2 * workers
    results.close()


def work(chunk):
    return [("", None) for _ in chunk]


def test_the_report_holds_a_few_samples_whatever_is_read():
    report = Report("tiny", {}, ["train"])
    sizes = []
    for _ in range(2):
        for number in range(1000):
            report.add_read("x" * 1000, "en")
            report.add_dropped("too short", f"{number} " * 500)
            report.add_kept("train", "y" * 1000)
        sizes.append(len(pickle.dumps(report)))
    assert sizes[1] - sizes[0] < 1100
    samples = report.finish(lambda *_: "")["dropped"]["too short"]["samples"]
    assert len(samples) == SAMPLES and max(map(len, samples)) <= 200


def test_near_duplicates_are_shown_with_what_was_kept(tmp_path):
    longer = RIVER + " " + " ".join(unrelated(1))
    raw = [*unrelated(30), longer, longer.replace("nine", "ten")]
    result, splits = prepare(tmp_path, raw)
    (pair,) = result["near_duplicates"]
    split, _, place = pair["kept_as"].rstrip("]").partition("[")
    assert splits[split][int(place)]["text"] == longer
    assert (
        "wheels of nine old" in pair["kept"] and "wheels of ten old" in pair["dropped"]
    )
    assert 0.8 < pair["similarity"] < 1
    page = (tmp_path / "data/tiny/1.0.0/report.html").read_text()
    assert "of <mark>nine</mark> old" in page and "of <mark>ten</mark> old" in page


class Balanced(HTMLParser):
    """Notes what is open, and what a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.outside, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)


def test_the_page_is_whole_and_runs_nothing_that_it_shows(tmp_path):
    evil = '<script src="http://example.org">alert("&amp;")</script>\u202e$name '
    raw = [evil + RIVER, evil + RIVER + " more", evil, *unrelated(3)]
    result, _ = prepare(tmp_path, raw, "--min-chars=90")
    page = render(result)
    parsed = Balanced()
    parsed.feed(page)
    assert not parsed.open and not parsed.outside
    assert "script" not in parsed.tags and {"svg", "rect", "details"} <= parsed.tags
    assert "&lt;script src=" in page and "\\u202e$name" in page


def test_html_files_are_pages_in_their_own_encoding(tmp_path):
    chinese = "今天天气很好，我们去公园散步吧。"
    pages = {
        "a.html": f"<meta charset=gbk><nav>Menu</nav><p>{chinese}".encode("gbk"),
        "b.html": f"<p>{GERMAN}</p>".encode("latin-1"),
        "c.html": b"",
    }
    for name, data in pages.items():
        (tmp_path / name).write_bytes(data)
    source = f"{tmp_path}/*.html"
    with pytest.raises(UserError, match="set --html"):
        prepare_source(tmp_path, source)
    result, splits = prepare_source(tmp_path, source, "--html", "--keep=path")
    assert texts(splits) == [GERMAN, chinese]
    assert result["dropped"]["empty"]["documents"] == 1


def test_classic_cleaning(tmp_path):
    flags = "--lower-case", "--remove-stop-words", "--remove-punctuation"
    _, splits = prepare(tmp_path, [RIVER], *flags)
    assert texts(splits)[0].startswith("river rises hills town way sea turns wheels")


def test_odd_documents(tmp_path):
    raw = ["a", "\x00", "。", "x" * 5_000_000, "b\x00c", "\ud83d"]
    result, splits = prepare(tmp_path, raw, "--max-docs=5")
    assert texts(splits) == ["a", "bc", "x" * 5_000_000, "。"]
    assert result["dropped"]["empty"]["samples"] == ["\x00"]


def test_only_duplicates(tmp_path):
    result, splits = prepare(tmp_path, [RIVER] * 9)
    assert texts(splits) == [RIVER]
    assert result["dropped"]["exact duplicate"]["documents"] == 8


def test_nothing_is_left(tmp_path):
    raw = ["short", "brief", GERMAN]
    with pytest.raises(
        UserError, match="3, 2 were dropped as 'too short'; lower --min"
    ):
        prepare(tmp_path, raw, "--min-chars=20", "--language=en")
    assert not (tmp_path / "data/tiny").exists()


def test_a_broken_source_leaves_nothing(tmp_path):
    path = tmp_path / "raw.jsonl"
    path.write_text(json.dumps({"text": RIVER}) + "\n{broken\n")
    with pytest.raises(UserError, match="raw.jsonl:2"):
        prepare_source(tmp_path, str(path))
    assert not (tmp_path / "data/tiny").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--keep=lable"], "no field 'lable'; did you mean 'label'"),
        (["--keep=tags"], "'tags' is .*, not text or a number"),
        (["--keep=label"], "'label' of document 2 is None, not int"),
        (["--splits=train:0.9"], "add up to another sum"),
        (["--splits=train"], "'train' is not NAME:SHARE"),
        (["--splits=all:1"], "'all:1' is not"),
        (["--name=My Corpus"], "cannot name a data set"),
        (["--near-duplicates=80"], "from 0.1 to 1"),
        (["--language=english"], "unknown language"),
        (["--workers=0"], "--workers must be at least 1"),
        (["--source=missing.jsonl"], "missing.jsonl"),
    ],
)
def test_mistakes(tmp_path, flags, message):
    rows = [
        {"text": RIVER, "label": 1, "tags": ["a"]},
        {"text": GERMAN, "label": None, "tags": []},
    ]
    with pytest.raises(UserError, match=message) as caught:
        prepare(tmp_path, rows, *flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data/tiny").exists()


def test_another_data_set_is_not_hidden(tmp_path):
    (tmp_path / "data/tiny/0.0.7").mkdir(parents=True)
    with pytest.raises(UserError, match="0.0.7 exists, which this would hide"):
        prepare(tmp_path, unrelated(9))


def test_a_fresh_process_reads_the_set_with_tfds_alone(tmp_path):
    source = write(tmp_path / "raw.jsonl", [{"text": text} for text in unrelated(9)])
    flags = [f"--source={source}", "--name=tiny", f"--data-dir={tmp_path}", "--json"]
    command = [sys.executable, "-m", "tools.prepare_data", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["documents"] == {"read": 9, "kept": 9}
    assert "kept" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ") and again.stderr.count("\n") == 1
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "dataset = tfds.load('tiny', split='all', data_dir=sys.argv[1])\n"
        "print(sum(1 for _ in dataset))"
    )
    read = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(read, capture_output=True, text=True).stdout == "9\n"
