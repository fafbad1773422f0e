import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm import cli
from lm.text import tokenizers
from lm.types import UserError
from tools import train_tokenizer

VERSES = [
    "In the beginning God created the heaven and the earth.",
    "And the earth was without form, and void;",
    "and darkness was upon the face of the deep.",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "verses.jsonl"
    rows = [{"text": f"{verse} {i}"} for i in range(60) for verse in VERSES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(source, output, *flags):
    argv = [f"--source={source}", f"--output={output}", *flags]
    args, _ = cli.parse(train_tokenizer.parser, argv)
    return train_tokenizer.main(args)


def test_the_command_trains_saves_and_reports(source, tmp_path):
    def call(output):
        done = subprocess.run(
            [sys.executable, "-m", "tools.train_tokenizer", "--json"]
            + [f"--source={source}", "--vocab-size=360", "--sentinels=3"]
            + [f"--output={output}", "--split=all"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        return done.returncode, done.stdout, done.stderr

    code, stdout, stderr = call(tmp_path / "t")
    assert code == 0, stderr
    result = json.loads(stdout)
    assert (result["kind"], result["vocab_size"]) == ("unigram", 360)
    assert result["lossless"] and result["unknown_share"] == 0
    assert result["sample_texts"] == 240 and len(result["examples"]) == 5
    assert 1 < result["chars_per_token"] < result["bytes_per_token"] < 10
    assert 0 < result["tokens_used"] < 360
    assert "read 240 texts" in stderr and "wrote" in stderr
    tokenizer = tokenizers.load(tmp_path / "t")
    assert tokenizer.fingerprint == result["fingerprint"]
    assert len(tokenizer.sentinel_ids) == 3
    code, stdout, stderr = call(tmp_path / "t")
    assert (code, stdout) == (1, "")
    assert stderr.count("\n") == 1 and "--overwrite" in stderr


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_every_kind(kind, source, tmp_path, capsys):
    size = {"chars": 0, "bytes": 0, "words": 0, "wordpiece": 100}.get(kind, 330)
    flags = (f"--kind={kind}", f"--vocab-size={size}", "--character-coverage=1")
    first = run(source, tmp_path / "a", *flags)
    report = capsys.readouterr().out
    assert report.startswith(f"{kind}, {first['vocab_size']} tokens")
    assert report.count("  | ") == 5
    again = run(source, tmp_path / "a", "--overwrite", *flags)
    assert again["fingerprint"] == first["fingerprint"]
    assert tokenizers.load(tmp_path / "a").kind == kind


def test_figures_are_of_the_texts():
    tokenizer = tokenizers.train("wordpiece", ["a b c"], 8)
    result = train_tokenizer.measure(tokenizer, ["a b ☃", "é c"])
    assert result["tokens_used"] == 4 and result["unknown_share"] == 2 / 5
    assert result["chars_per_token"] == 8 / 5
    assert result["bytes_per_token"] == 11 / 5
    assert result["examples"] == [["a", "b", "[UNK]"], ["[UNK]", "c"]]


def test_texts_can_be_limited_and_split(source, tmp_path):
    flags = ("--kind=chars", "--split=all")
    few = run(source, tmp_path / "few", *flags, "--max-texts=3")
    assert few["sample_texts"] == 3
    train = run(source, tmp_path / "train", "--kind=chars")
    assert 3 < train["sample_texts"] < 240
    two = run(source, tmp_path / "two", *flags, f"--source={source}")
    assert two["sample_texts"] == 480


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--vocab-size=30000"], "too high for unigram of this text; set it to"),
        (["--vocab-size=3"], "is too low"),
        ([], "unigram needs a vocab_size"),
        (["--kind=unigrams"], "did you mean 'unigram'"),
        (["--kind=chars", "--max-texts=-1"], "--max-texts is -1"),
    ],
)
def test_a_mistake_is_a_line_and_writes_nothing(flags, message, source, tmp_path):
    with pytest.raises(UserError, match=message):
        run(source, tmp_path / "out", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["verses.jsonl"]


def test_a_folder_that_cannot_be_written_is_a_line(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*; choose another --output"):
        run(source, tmp_path / "file" / "out", "--kind=bytes")
