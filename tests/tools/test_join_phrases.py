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
