"""What every tokenizer can do, and the one that needs no vocabulary."""

import abc
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.cli import valid
from lm.types import UserError

CONFIG = "tokenizer_config.json"
NO_TEXT = "there is no text to train a tokenizer on; name another source"

# Names of marks, those of `train` first. BERT's [CLS] and [SEP] are bos and eos.
MARKS = {
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "unk": ("<unk>", "[UNK]"),
    "bos": ("<s>", "[CLS]", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "[SEP]", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]"),
}
_CONFIG_KEYS = {
    "pad": ("pad_token",),
    "bos": ("bos_token", "cls_token"),
    "eos": ("eos_token", "sep_token"),
    "mask": ("mask_token",),
}
_SENTINEL = re.compile(r"<extra_id_(\d+)>")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_WORD_STARTS = frozenset(b" \t\n\v\f\r") | frozenset(range(0xE3, 0xEA))
_REPLACEMENT = "\ufffd".encode()


class Marks(NamedTuple):
    """Ids of the tokens that no text encodes to; -1 where there is none.

    Attributes:
        pad: Fills up rows.
        unk: Stands for text that the vocabulary lacks.
        bos: Begins a text; BERT's [CLS].
        eos: Ends a text; BERT's [SEP].
        mask: Stands for a hidden token.
        sentinels: T5's <extra_id_0>, <extra_id_1>, … in order of use.
    """

    pad: int = -1
    unk: int = -1
    bos: int = -1
    eos: int = -1
    mask: int = -1
    sentinels: tuple[int, ...] = ()


class Added(NamedTuple):
    """A token that a vocabulary's file lacks, or knows less of.

    Attributes:
        id: Its id.
        name: How it is spelled.
        is_special: Whether it is a mark, and so is never read from text.
    """

    id: int
    name: str
    is_special: bool


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Text is Unicode; a surrogate that lacks its other half is read as U+FFFD. Plain
    text never encodes to a mark, even if it spells one; `unk_id` alone may come out,
    and does not if `lossless`.

    Attributes:
        kind: unigram, bpe, chars, wordpiece, byte_bpe, words or bytes.
        vocab_size: V, the number of ids.
        pad_id: Fills up rows; like all marks -1 where the tokenizer has none.
        unk_id: Stands for text that the vocabulary lacks.
        bos_id: Begins a text; BERT's [CLS].
        eos_id: Ends a text; BERT's [SEP].
        mask_id: Stands for a hidden token.
        sentinel_ids: T5's <extra_id_0>, <extra_id_1>, … in order of use.
        lossless: Whether `decode(encode(text)) == text` for every valid text.
        is_special: Whether an id is a mark, bool [V].
        pieces: UTF-8 that each id stands for, empty for a mark [V].
        drops_space: Whether a text is decoded without the space that it begins with.
        counts: How often each id was in the texts that it was trained on, int64 [V],
            `unk_id` for all words that have no other; None if that is not known.
    """

    drops_space = False
    counts: np.ndarray | None = None

    def __init__(
        self,
        kind: str,
        tokens: Sequence[str],
        pieces: Sequence[bytes],
        special_ids: Sequence[int],
        marks: Marks,
        lossless: bool,
    ):
        """Keeps what all kinds have in common.

        Args:
            kind: See the class.
            tokens: Name of each id, for display [V].
            pieces: UTF-8 that each id stands for; marks are empty here [V].
            special_ids: Ids of the marks.
            marks: Which is which.
            lossless: See the class.
        """
        self.kind = kind
        self.vocab_size = len(tokens)
        self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.mask_id = marks[:5]
        self.sentinel_ids = marks.sentinels
        self.lossless = lossless
        self.is_special = np.zeros(self.vocab_size, bool)
        self.is_special[list(special_ids)] = True
        self._tokens = tokens
        self.pieces = [
            b"" if is_special else piece
            for piece, is_special in zip(pieces, self.is_special.tolist())
        ]
        self._marks = marks
        self._forbidden = self.is_special.copy()
        if self.unk_id >= 0:
            self._forbidden[self.unk_id] = False

    @functools.cached_property
    def num_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, 0 for a mark: int32 [V]."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    @functools.cached_property
    def num_chars(self) -> np.ndarray:
        """Characters that each id stands for, 0 for a mark: int32 [V].

        A character whose bytes are spread over tokens counts where its first byte is.
        """
        counts = [sum(b & 0xC0 != 0x80 for b in piece) for piece in self.pieces]
        return np.array(counts, np.int32)

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """Whether an id begins a word, for whole-word masking: bool [V].

        A word begins at whitespace, and at every token that begins with a character
        from U+3000 to U+9FFF (Chinese and kana), where no spaces part words.
        """
        return np.array([p[0] in _WORD_STARTS if p else False for p in self.pieces])

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the mapping; the same after `save` and `load`."""
        made_of = [self.kind, self._marks, self._mapping()]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def encode(self, text: str) -> np.ndarray:
        """Returns the text's ids, without marks: int32 [T]."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes texts in parallel; see `encode`."""
        texts = [valid(text) for text in texts]
        found = self._encode(texts)
        # Some foreign vocabularies hold their marks as ordinary pieces too.
        if found and self._forbidden[np.concatenate(found)].any():
            for i, ids in enumerate(found):
                if self._forbidden[ids].any():
                    found[i] = self._encode_spelled(texts[i])
        return found

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids.

        Marks, and ids outside the vocabulary, stand for nothing; `unk_id`, and bytes
        that are not UTF-8, become U+FFFD.
        """
        parts = [
            _REPLACEMENT if i == self.unk_id else self.pieces[i]
            for i in self._known(ids)
        ]
        text = b"".join(parts).decode(errors="replace")
        return text.removeprefix(" ") if self.drops_space else text

    def token(self, id: int) -> str:
        """Returns a token's name, for display."""
        return self._tokens[id]

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Writes a folder that `load` reads; it appears whole or not at all.

        Raises:
            UserError: If the folder has files; `overwrite` replaces another tokenizer.
        """
        folder = Path(folder)
        check_free(folder, overwrite=overwrite)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in self._files().items():
            (temporary / name).write_bytes(content)
        # null where there is none, or `load` would look for another.
        names = {
            f"{mark}_token": self._tokens[id] if id >= 0 else None
            for mark in MARKS
            for id in [getattr(self._marks, mark)]
        }
        config = {"kind": self.kind, **names, "num_sentinels": len(self.sentinel_ids)}
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)

    @functools.cached_property
    def _spelled(self) -> re.Pattern:
        """Finds what spells a mark in a text."""
        names = [self._tokens[i] for i in np.flatnonzero(self._forbidden).tolist()]
        return re.compile("|".join(re.escape(name) for name in names if name))

    def _encode_spelled(self, text: str) -> np.ndarray:
        """Encodes a text cut after the first character of all that spells a mark."""
        cuts = [match.start() + 1 for match in self._spelled.finditer(text)]
        parts = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        ids = np.concatenate(self._encode(parts))
        return ids[~self._forbidden[ids]]

    def _known(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        """Returns the ids that are in the vocabulary."""
        return [i for i in np.asarray(ids).tolist() if 0 <= i < self.vocab_size]

    @abc.abstractmethod
    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """Encodes texts without surrogates."""

    @abc.abstractmethod
    def _mapping(self) -> Any:
        """Returns what decides the mapping, for JSON."""

    @abc.abstractmethod
    def _files(self) -> dict[str, bytes]:
        """Returns the files of `save` besides the config."""


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes: marks, sentinels, then the 256 bytes.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.vocab_size, tokenizer.encode("né").tolist()
    (261, [115, 200, 174])
    >>> tokenizer.decode([2, 115, 200, 174, 3])
    'né'
    """

    def __init__(self, num_sentinels: int = 0):
        """Makes the tokenizer; there is nothing to train."""
        tokens = [*mark_names(num_sentinels), *(f"<0x{b:02X}>" for b in range(256))]
        self._offset = len(tokens) - 256
        pieces = [b""] * self._offset + [bytes([b]) for b in range(256)]
        special_ids = range(self._offset)
        marks = find_marks({token: i for i, token in enumerate(tokens)}, {})
        super().__init__("bytes", tokens, pieces, special_ids, marks, lossless=True)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [
            np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self._offset
            for text in texts
        ]

    def _mapping(self) -> Any:
        return []

    def _files(self) -> dict[str, bytes]:
        return {}


def is_mark(name: str) -> bool:
    """Returns whether a token is named like a mark.

    >>> is_mark("[CLS]"), is_mark("<extra_id_7>"), is_mark("the")
    (True, True, False)
    """
    known = itertools.chain.from_iterable(MARKS.values())
    return name in known or bool(_SENTINEL.fullmatch(name))


def named_marks(config: Mapping[str, Any]) -> set[str]:
    """Returns the tokens that a `tokenizer_config.json` names as marks.

    >>> sorted(named_marks({"eos_token": "</s>", "mask_token": {"content": "<m>"}}))
    ['</s>', '<m>']
    """
    named = [value for key, value in config.items() if key.endswith("_token") and value]
    named += config.get("additional_special_tokens") or []
    texts = (value["content"] if isinstance(value, dict) else value for value in named)
    return {text for text in texts if isinstance(text, str)}


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raises a UserError if `Tokenizer.save` must not write to this folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} exists and is no tokenizer; choose another folder")
    if not overwrite:
        raise UserError(f"{folder} has a tokenizer; choose another or --overwrite")


def mark_names(num_sentinels: int, style: int = 0) -> list[str]:
    """Returns the tokens that every trained vocabulary begins with.

    >>> mark_names(1)
    ['<pad>', '<unk>', '<s>', '</s>', '<mask>', '<extra_id_0>']
    >>> mark_names(0, style=1)
    ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    """
    sentinels = [f"<extra_id_{i}>" for i in range(num_sentinels)]
    return [names[style] for names in MARKS.values()] + sentinels


def find_marks(special: Mapping[str, int], config: Mapping[str, Any]) -> Marks:
    """Finds the marks among special tokens.

    Args:
        special: Id of each special token.
        config: Of a `tokenizer_config.json`; names of marks there come first, and one
            that is null there, as Qwen's `bos_token`, is none.
    """
    found = {}
    for mark, names in MARKS.items():
        keys = [key for key in _CONFIG_KEYS.get(mark, ()) if key in config]
        named = [config[key] for key in keys]
        if keys and not any(named):
            names = ()
        # Hugging Face writes a token as its text, or as a dict of its properties.
        known = [n["content"] if isinstance(n, dict) else n for n in named if n]
        ids = [special[name] for name in (*known, *names) if name in special]
        found[mark] = ids[0] if ids else -1
    sentinels = {
        int(match[1]): id
        for token, id in special.items()
        if (match := _SENTINEL.fullmatch(token))
    }
    return Marks(**found, sentinels=tuple(sentinels[i] for i in sorted(sentinels)))


def misplaced(token: Added) -> str:
    """Says that an added token is not where the vocabulary has room for it."""
    return (
        f"the added token {token.name!r} has the id {token.id}, which the vocabulary "
        "gives to another; give the folder's tokenizer.json"
    )


def piece_bytes(piece: str, has_bytes: bool) -> bytes:
    """Returns the UTF-8 that a piece of SentencePiece's stands for.

    Args:
        piece: Its name.
        has_bytes: Whether names such as <0xE2> mean a byte.

    >>> piece_bytes("\u2581the", True), piece_bytes("<0xE2>", True)
    (b' the', b'\\xe2')
    """
    if has_bytes and (match := _BYTE.fullmatch(piece)):
        return bytes([int(match[1], 16)])
    return piece.replace("\u2581", " ").encode()
