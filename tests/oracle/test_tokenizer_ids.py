"""Our ids of 10,000 lines are those of transformers; run by `make test-oracle`.

Vocabularies and lines come from packages once, into LM_ORACLE_CACHE (data/oracle).
LM_ORACLE_PYTHON is the Python that has transformers.
"""

import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lm.tasks.base import marked
from lm.tasks.chat import Chat
from lm.text import tokenizers
from tests.oracle import vocabularies
from tools.huggingface import chat

CACHE = Path(os.environ.get("LM_ORACLE_CACHE", "data/oracle"))
PEER = os.environ.get("LM_ORACLE_PYTHON", ".venv-bench/bin/python")
NAMES = (
    *("minilm", "minilm_cased", "minilm_vocabulary", "bert_chinese", "bert_cased"),
    *("bert_accents", "bert_joined", "gpt2", "gpt2_prefix", "llama2", "llama3"),
    *("qwen3", "gemma3", "mistral", "mistral_v3", "llama_trained", "t5_trained"),
)
# Those with a `tokenizer.json`.
FILES = ("minilm", "minilm_cased", "llama2", "llama3", "qwen3", "gemma3")
# Where transformers part with SentencePiece, by whose rules the models were trained
# and with which we stay. transformers 5 takes a text's first space for the one that
# Llama's tokenizer puts before every text, but where `legacy` says that it is from
# before 2023; T5's normalises by graphemes, not characters, and breaks ties otherwise.
LEADING_SPACE = re.compile("[ \u2581]")
T5_RULES = re.compile("[\u0085\u0300-\u036f\u180e\ufdd0-\ufdef]")
APART = {
    "llama2": LEADING_SPACE.match,
    "mistral_v3": LEADING_SPACE.match,
    "llama_trained": LEADING_SPACE.match,
    "t5_trained": T5_RULES.search,
    # A mark by the rules of its class alone; to its file and to us it is a word.
    "gemma3": re.compile("<mask>").search,
}
# Names of marks that T5's vocabulary has among its pieces, which its tokenizer in
# transformers reads from text whatever it is told.
T5_MARKS = re.compile(r"<extra_id_\d+>|</s>|<pad>|<unk>")
# What transformers put around a text where it is not what our marks say.
BARE = {"gpt2", "gpt2_prefix", "llama3"}


@pytest.fixture(scope="session")
def lines():
    CACHE.mkdir(parents=True, exist_ok=True)
    vocabularies.main(CACHE)
    folders = [CACHE / "tokenizers" / name for name in NAMES]
    script = Path(__file__).with_name("tokenizer_ids.py")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [PEER, script, CACHE / "lines.json", *folders], check=True, env=environment
    )
    found = json.loads((CACHE / "lines.json").read_text())
    assert len(found) == 10_000
    return found


def theirs(folder, name):
    with np.load(folder / "ids.npz") as arrays:
        ends = np.cumsum(arrays[f"{name}_sizes"])
        return np.split(arrays[name], ends[:-1])


def differing(ours, other):
    return [i for i, (a, b) in enumerate(zip(ours, other)) if not np.array_equal(a, b)]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_transformers(lines, name):
    folder = CACHE / "tokenizers" / name
    tokenizer = tokenizers.load(folder)
    ours = tokenizer.encode_batch(lines)
    found = differing(ours, theirs(folder, "auto"))
    print(f"{name}: {len(found)} of {len(lines)} lines differ")
    may_differ = APART.get(name, lambda line: None)
    other = theirs(folder, "auto")
    bad = [
        lines[i]
        for i in found
        if not may_differ(lines[i])
        and not (name == "t5_trained" and is_tie(lines[i], ours[i], other[i]))
    ]
    assert bad == []


def is_tie(line, ours, other):
    """Whether the pieces of two cuts are the same, or a line spells T5's marks."""
    return T5_MARKS.search(line) or sorted(ours) == sorted(other)


@pytest.mark.parametrize("name", FILES)
def test_a_file_means_what_it_says(lines, name, tmp_path):
    """Without what transformers add to it: by its config, or by the class's rules."""
    folder = CACHE / "tokenizers" / name
    other = theirs(folder, "alone")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    ours = tokenizers.load(tmp_path).encode_batch(lines)
    assert differing(ours, other) == []


@pytest.mark.parametrize("name", NAMES)
def test_marks_are_those_of_transformers(lines, name):
    folder = CACHE / "tokenizers" / name
    tokenizer = tokenizers.load(folder)
    about = json.loads((folder / "about.json").read_text())
    marks = {key: -1 if id is None else id for key, id in about["marks"].items()}
    assert tokenizer.vocab_size == about["size"]
    assert tokenizer.bos_id == max(marks["bos"], marks["cls"])
    assert tokenizer.eos_id == max(marks["eos"], marks["sep"])
    assert tokenizer.pad_id == marks["pad"]
    assert tokenizer.mask_id == (-1 if name == "gemma3" else marks["mask"])
    ids = tokenizer.encode(lines[0])
    # Decoders begin a text with a mark and do not end what they continue.
    is_whole = name.startswith(("minilm", "bert", "t5"))
    whole = marked(tokenizer, ids) if is_whole else [*marked(tokenizer), *ids]
    assert about["whole"] == (ids if name in BARE else np.array(whole)).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_saved_tokenizers_give_the_same_ids(lines, name, tmp_path):
    tokenizer = tokenizers.load(CACHE / "tokenizers" / name)
    tokenizer.save(tmp_path / "saved")
    again = tokenizers.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    part = lines[::10]
    pairs = zip(again.encode_batch(part), tokenizer.encode_batch(part))
    assert all(itertools.starmap(np.array_equal, pairs))


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3"])
def test_conversations_are_those_of_the_chat_template(lines, name):
    folder = CACHE / "tokenizers" / name
    config, tokenizer = chat.read(folder, folder, 8192)
    task = Chat(config, tokenizer)
    chats = json.loads((folder / "about.json").read_text())["chats"]
    assert len(chats) == 500
    for each in chats:
        # A prompt is what comes before the assistant's last turn.
        asked = [*each["messages"], {"role": "assistant", "content": ""}]
        assert task.prompt({"messages": asked}).tolist() == each["ids"]
