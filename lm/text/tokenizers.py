"""Opening tokenizers, ours and others', and training them.

| kind | what does it | file |
|---|---|---|
| unigram, bpe, chars | `lm.text.sentencepiece_tokenizer` | `tokenizer.model` |
| wordpiece, byte_bpe | `lm.text.huggingface_tokenizer` | `tokenizer.json` |
| words | `lm.text.huggingface_tokenizer` | `tokenizer.json`, `counts.json` |
| bytes | `lm.text.tokenizer` | `tokenizer_config.json` alone |
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.config import check_choice, check_range
from lm.text import huggingface_tokenizer, sentencepiece_tokenizer
from lm.text.sentencepiece_tokenizer import SentencePieceTokenizer
from lm.text.tokenizer import (
    CONFIG,
    NO_TEXT,
    Added,
    ByteTokenizer,
    Tokenizer,
    is_mark,
    named_marks,
)
from lm.types import UserError

KINDS = ("unigram", "bpe", "chars", "wordpiece", "byte_bpe", "words", "bytes")
NORMALIZATIONS = ("identity", "nfkc", "nfkc_cf")
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
# Classes of transformers whose rules are ours for a file that holds a vocabulary alone.
_WORDPIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
_BYTE_BPE = ("GPT2Tokenizer", "RobertaTokenizer")
_SENTENCEPIECE = ("T5Tokenizer", "MT5Tokenizer", "LlamaTokenizer", "GemmaTokenizer")


class _UnreadableError(Exception):
    """Says what is wrong with a file, without a cure."""


def load(
    path: Path,
    marks: Mapping[str, str | None] | None = None,
    cure: str = "train one with python -m tools.train_tokenizer",
) -> Tokenizer:
    """Opens a tokenizer.

    Args:
        path: A folder or a file. One of `Tokenizer.save`, or a foreign
            `tokenizer.json`, `*.model` (SentencePiece), `vocab.txt` (WordPiece), or
            `vocab.json` with `merges.txt` (byte-level BPE; OpenAI named them
            `encoder.json` and `vocab.bpe`); a folder is searched in this order. A
            `tokenizer_config.json` or `special_tokens_map.json` beside it may name
            marks; the former may say `do_lower_case` (else a `vocab.txt` is so if no
            token has a capital), `strip_accents`, `tokenize_chinese_chars` and
            `add_prefix_space`. All but a `tokenizer.json` take the further tokens of
            `added_tokens.json`, `added_tokens_decoder` and T5's `extra_ids`.
        marks: Names of marks by `bos_token`, `eos_token` and so on, which count before
            those of the files; None is none.
        cure: What an error says about a tokenizer that is missing or broken.

    Raises:
        UserError: If there is none, it is broken, or it is of a class whose rules stand
            in a `tokenizer.json` alone.
    """
    path = Path(path)
    file = _find(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"no tokenizer at {path}; {cure}")
    try:
        config = _read_json(file, "special_tokens_map.json") | _read_json(file, CONFIG)
        return _open(file, config | dict(marks or {}))
    except UserError:
        raise
    except _UnreadableError as error:
        raise UserError(f"{error}; {cure}") from error
    # The libraries raise plain exceptions about anything that they cannot read.
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"tokenizer {file} cannot be read: {line}; {cure}") from error


def _find(folder: Path) -> Path:
    """Returns the file of a tokenizer's folder."""
    found = sorted(file.name for file in folder.glob("*.model"))
    firsts = (first for first, _ in _PAIRS)
    for name in ("tokenizer.json", *found, "vocab.txt", *firsts):
        if (folder / name).is_file():
            if len(found) > 1 and name in found:
                raise UserError(f"{folder} has {', '.join(found)}; name one of them")
            return folder / name
    return folder / CONFIG


def _read_json(file: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object that may be beside a file."""
    path = file.with_name(name)
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _UnreadableError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise _UnreadableError(f"{path} cannot be read: it is no JSON object")
    return values


def _open(file: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Opens one file."""
    if file.name == CONFIG and config.get("kind") == "bytes":
        return ByteTokenizer(config["num_sentinels"])
    for pair in _PAIRS:
        if file.name in pair:
            _check_class(config, _BYTE_BPE)
            vocab, merges = (file.with_name(name) for name in pair)
            added = _added(file, config)
            return huggingface_tokenizer.open_byte_bpe(vocab, merges, config, added)
    if file.suffix == ".model":
        _check_class(config, _SENTENCEPIECE)
        return SentencePieceTokenizer(file.read_bytes(), config, _added(file, config))
    if file.suffix == ".txt":
        _check_class(config, _WORDPIECE)
        added = _added(file, config)
        return huggingface_tokenizer.open_wordpiece(file, config, added)
    if file.suffix == ".json" and file.name != CONFIG:
        counts = _read_json(file, huggingface_tokenizer.COUNTS)
        tokenizer = huggingface_tokenizer.open_json(file, config, _numbers(counts))
        found = tokenizer.counts
        if found is not None and not (found[~tokenizer.is_special] > 0).all():
            raise _UnreadableError(
                f"{file.with_name(huggingface_tokenizer.COUNTS)} lacks words of {file}"
            )
        return tokenizer
    raise _UnreadableError(
        f"{file} is no tokenizer.json, *.model, vocab.txt, or vocab.json with "
        "merges.txt"
    )


def _numbers(counts: Mapping[str, Any]) -> dict[str, int]:
    """Returns the counts of a `counts.json`."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < 0:
            raise _UnreadableError(
                f"{huggingface_tokenizer.COUNTS} says {count!r} of {name!r}, which is "
                "no count"
            )
    return dict(counts)


def _check_class(config: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises a UserError if a vocabulary is read by rules that it does not hold."""
    name = config.get("tokenizer_class") or known[0]
    if name.removesuffix("Fast") not in known:
        raise UserError(
            f"{name} has rules of its own; give a folder with its tokenizer.json, "
            "which save_pretrained of transformers writes"
        )


def _added(file: Path, config: Mapping[str, Any]) -> list[Added]:
    """Returns the further tokens of a vocabulary, in the order of their ids."""
    special = named_marks(config)
    found = {
        id: Added(id, name, name in special or is_mark(name))
        for name, id in _read_json(file, "added_tokens.json").items()
    }
    for key, token in (config.get("added_tokens_decoder") or {}).items():
        found[int(key)] = Added(int(key), token["content"], token["special"])
    if str(config.get("tokenizer_class")).startswith("T5") and not found:
        return sentencepiece_tokenizer.sentinels(
            file.read_bytes(), config.get("extra_ids", 100)
        )
    return sorted(found.values())


def train(
    kind: str,
    texts: Iterable[str],
    vocab_size: int = 0,
    *,
    num_sentinels: int = 0,
    normalization: str = "identity",
    character_coverage: float = 0.9995,
    split_digits: bool = False,
    max_sentences: int = 1_000_000,
    min_count: int = 1,
) -> Tokenizer:
    """Trains a tokenizer; the same texts give the same one.

    Its ids are pad 0, unk 1, bos 2, eos 3, mask 4, the sentinels, then the rest. All
    kinds but wordpiece and words have a token for each of the 256 bytes, and are
    lossless unless `normalization` is another than identity. words have a token for
    each of the commonest words and runs of punctuation, in the order of their number,
    and know how often each was there.

    Args:
        kind: One of `KINDS`.
        texts: Documents. SentencePiece learns from each of their lines.
        vocab_size: Number of ids. 0 is for bytes, and for chars and words: all there
            are.
        num_sentinels: Number of <extra_id_…> marks.
        normalization: identity; nfkc, Unicode's compatibility forms as one; nfkc_cf,
            and capitals as small letters (in wordpiece also without accents, as in
            BERT uncased). bytes have none.
        character_coverage: Share of the text's characters that get a token of their
            own, the commonest first; of use in SentencePiece and wordpiece.
        split_digits: Whether no token has two digits.
        max_sentences: Learn from a random sample of so many lines, or (wordpiece,
            byte_bpe) documents; parts of at most 4,000 characters count as one. words
            are counted in all texts.
        min_count: How often a word must be there to have a token; of use in words.

    Raises:
        UserError: If an option does not fit, there is no text, or the text does not
            make just `vocab_size` tokens.

    >>> tokenizer = train("chars", ["a rose is a rose"])
    >>> [tokenizer.token(i) for i in tokenizer.encode("as is").tolist()]
    ['a', 's', '▁', 'i', 's']
    """
    check_choice("kind", kind, KINDS)
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_range("the vocabulary's size", vocab_size, 0, 2**31)
    if not 0.98 <= character_coverage <= 1:
        raise UserError(
            f"character_coverage is {character_coverage}; it must be from 0.98 to 1"
        )
    check_range("num_sentinels", num_sentinels, 0)
    check_range("max_sentences", max_sentences, 1)
    check_range("min_count", min_count, 1)
    if min_count > 1 and kind != "words":
        raise UserError(f"min_count is for words, not for {kind}; leave it out")
    if kind == "bytes":
        return _bytes(vocab_size, num_sentinels, normalization)
    if kind == "words":
        return huggingface_tokenizer.train_words(
            texts,
            vocab_size,
            num_sentinels=num_sentinels,
            normalization=normalization,
            split_digits=split_digits,
            min_count=min_count,
        )
    if not vocab_size and kind != "chars":
        raise UserError(f"{kind} needs a vocab_size; set it")
    by_line = kind in sentencepiece_tokenizer.KINDS
    sample = Reservoir(max_sentences)
    for sentence in _sentences(texts, by_line):
        sample.add(sentence)
    if not any(map(str.strip, sample.items)):
        raise UserError(NO_TEXT)
    train_kind = (sentencepiece_tokenizer if by_line else huggingface_tokenizer).train
    return train_kind(
        kind,
        sample.items,
        vocab_size,
        num_sentinels=num_sentinels,
        normalization=normalization,
        character_coverage=character_coverage,
        split_digits=split_digits,
    )


def _bytes(vocab_size: int, num_sentinels: int, normalization: str) -> Tokenizer:
    """Returns the bytes, which there is no choice about."""
    tokenizer = ByteTokenizer(num_sentinels)
    if vocab_size not in (0, tokenizer.vocab_size):
        raise UserError(
            f"bytes make {tokenizer.vocab_size} tokens, not {vocab_size}; leave "
            "vocab_size out"
        )
    if normalization != "identity":
        raise UserError("bytes are never normalised; leave normalization out")
    return tokenizer


def _sentences(texts: Iterable[str], by_line: bool) -> Iterator[str]:
    """Yields all text, in parts of at most 4,000 characters.

    SentencePiece keeps U+2585 to itself and would drop lines that have it.
    """
    size = 4000
    for text in texts:
        for part in re.split("[\n\u2585]", text) if by_line else (text,):
            for start in range(0, len(part), size):
                yield part[start : start + size]


class Reservoir:
    """A random sample of a stream, every item alike likely; the same every time.

    Algorithm R in Vitter 1985, https://doi.org/10.1145/3147.3165.

    >>> sample = Reservoir(3)
    >>> for number in range(100):
    ...     sample.add(str(number))
    >>> sample.items
    ['53', '1', '28']

    Attributes:
        items: The sample; all items while these are no more than `size`.
    """

    def __init__(self, size: int):
        """Starts with no items."""
        self.items: list[str] = []
        self._size = size
        self._seen = 0
        self._rng = random.Random(0)

    def add(self, item: str) -> None:
        """Offers the next item of the stream."""
        self._seen += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (place := self._rng.randrange(self._seen)) < self._size:
            self.items[place] = item
