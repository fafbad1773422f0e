import json

import pytest

from lm.data.sources import open_source
from lm.types import UserError
from tools import join_phrases


def run(*arguments):
    return join_phrases.main(join_phrases.parser.parse_args(list(arguments)))


def test_every_split_is_joined(tmp_path):
    source = tmp_path / "{split}.jsonl"
    for split, number in (("train", 40), ("validation", 2), ("test", 3)):
        lines = [
            json.dumps({"text": f"New York: {i}; {split}, new  york."})
            for i in range(number)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    flags = (f"--source={source}", "--name=joined", f"--data-dir={tmp_path}")
    flags = (*flags, "--threshold=2", "--passes=1")
    result = run(*flags)
    assert result["texts"] == {"train": 40, "validation": 2, "test": 3}
    found = open_source("tfds:joined", str(tmp_path)).examples("test")
    assert [row["text"] for row in found] == [
        f"New_York: {i}; test, new_york." for i in range(3)
    ]
    with pytest.raises(UserError, match="--overwrite"):
        run(*flags)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="--passes"):
        run("--source=x.txt", "--name=x", f"--data-dir={tmp_path}", "--passes=0")


def test_another_data_set_is_not_hidden(tmp_path):
    (tmp_path / "two.jsonl").write_text('{"text": "hello world"}\n' * 40)
    (tmp_path / "joined" / "0.0.7").mkdir(parents=True)
    with pytest.raises(UserError, match="this would hide; set another name"):
        run(f"--source={tmp_path}/two.jsonl", "--name=joined", f"--data-dir={tmp_path}")


def test_nothing_is_left_where_there_is_no_text(tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n' * 40)
    flags = f"--source={tmp_path}/empty.jsonl?text=text", f"--data-dir={tmp_path}"
    for _ in range(2):
        with pytest.raises(UserError, match="no text"):
            run(*flags, "--name=joined")
    assert not (tmp_path / "joined").exists()
