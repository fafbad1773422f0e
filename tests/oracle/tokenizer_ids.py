"""Writes the ids that transformers' tokenizers make of lines.

The tests of `lm.text` hold our ids beside these. The script runs where transformers
are (the extra `bench`), never beside JAX:

    python tests/oracle/tokenizer_ids.py LINES.json FOLDER ...

LINES.json is a list of texts; a FOLDER has a tokenizer as a checkpoint has it, and a
`config.json` that says its `model_type`. Beside them come `ids.npz` and `about.json`.
The first has the ids without marks, all lines after one another, and the sizes of the
lines:

- `auto`, `auto_sizes`: of the class that AutoTokenizer chooses, told not to read marks
  from text (`split_special_tokens`);
- `alone`, `alone_sizes`: where there is a `tokenizer.json`, of what that alone says.

The second has `class`, the ids of `marks` by name, `size` of the vocabulary, `whole`,
the ids of the first line with the marks that a model gets to read, and `chats`: where
there is a chat template, what it makes of the first lines, three to a conversation.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import transformers as hf

CHATS = 500
MARKS = ("pad", "bos", "cls", "eos", "sep", "mask")


def main(arguments: Sequence[str]) -> None:
    """Writes both files into each folder."""
    lines = json.loads(Path(arguments[0]).read_text())
    for folder in map(Path, arguments[1:]):
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        about = {
            "class": type(tokenizer).__name__,
            "marks": {
                name: getattr(tokenizer, f"{name}_token_id", None) for name in MARKS
            },
            "size": len(tokenizer),
            "whole": tokenizer(lines[0])["input_ids"],
            "chats": _chats(tokenizer, lines) if tokenizer.chat_template else [],
        }
        arrays = _flat("auto", tokenizer, lines)
        if (folder / "tokenizer.json").exists():
            plain = hf.PreTrainedTokenizerFast(
                tokenizer_file=str(folder / "tokenizer.json")
            )
            arrays |= _flat("alone", plain, lines)
        np.savez(folder / "ids.npz", **arrays)
        (folder / "about.json").write_text(json.dumps(about))


def _chats(tokenizer, lines: Sequence[str]) -> list[dict]:
    """Returns the turns of conversations, and the ids of each as a prompt."""
    found = []
    for start in range(0, 3 * CHATS, 3):
        said = zip(("user", "assistant", "user"), lines[start : start + 3])
        turns = [{"role": role, "content": text} for role, text in said]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=False
        )
        found.append({"messages": turns, "ids": ids})
    return found


def _flat(name: str, tokenizer, lines: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the ids of all lines, and how many each has."""
    options = {"add_special_tokens": False, "split_special_tokens": True}
    ids = tokenizer(lines, **options)["input_ids"]
    return {
        name: np.concatenate([np.array(line, np.int32) for line in ids]),
        f"{name}_sizes": np.array([len(line) for line in ids]),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
