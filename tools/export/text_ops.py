"""Tokenizers as TensorFlow's operations, so that a graph takes and gives text.

SentencePiece is TensorFlow Text's. Of a unigram model pieces whose scores tie, as in a
run of spaces, may come in another order than ours: their sums are rounded otherwise.

Axes: B batch, T time, V vocab.
"""

import importlib
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tokenizers as hf

from lm import cli
from lm.text.sentencepiece_tokenizer import KINDS
from lm.text.tokenizer import Tokenizer
from lm.types import UserError

try:
    # What it says of its types is not TensorFlow's.
    tf_text: Any = importlib.import_module("tensorflow_text")
except (ImportError, tf.errors.NotFoundError) as error:
    raise UserError(
        f"TensorFlow {tf.__version__} lacks its TensorFlow Text; install it by pip "
        "install --no-deps tensorflow-text==2.21.1"
    ) from error

_SPACE = "\u2581"  # what SentencePiece writes for a space

# Where Unicode has characters. What lies between is as the last before it, what is
# private as the last of all.
_PLAIN, _TAGS, _PRIVATE = (
    range(0x32400),
    range(0xE0000, 0xE01F0),
    range(0xF0000, 0xF0001),
)

# Texts on which TensorFlow has to do what a tokenizer does.
_ODD = (
    *("", " ", " two  spaces\n", "It's 12 345, 3.5\u00a0% don't STOP—now"),
    *("Straße İstanbul ΑΣ Ǆ ﬁ ½ e\u0301 \u1e9e", "日本 中文 한국 ไทย हिन्दी ਪੰਜਾਬੀ"),
    *("🌊👩‍👩‍👧 \ufffd \U000f0000", "a\x00b\x7fc\u200bd\u3000e\r", "\u2581a \u2581"),
    *("x" * 101, "é" * 100, "日" * 300),
)


class Bytes(tf.Module):
    """What `ByteTokenizer` does."""

    def __init__(self, offset: int):
        """Takes the id of the first byte."""
        super().__init__()
        self._offset = offset

    def encode(self, texts: Any) -> Any:
        """Returns ids, without marks, of texts [B] in UTF-8: ragged int32 [B, T]."""
        return tf.ragged.map_flat_values(self._ids, tf.strings.bytes_split(texts))

    def _ids(self, chars: Any) -> Any:
        values = tf.reshape(tf.io.decode_raw(chars, tf.uint8), [-1])
        return tf.cast(values, tf.int32) + self._offset


class SentencePiece(tf.Module):
    """What `SentencePieceTokenizer` does."""

    def __init__(self, model: bytes, space: Sequence[int]):
        """Takes a model, and the ids of a U+2581 that is none of its spaces."""
        super().__init__()
        self._model = tf_text.SentencepieceTokenizer(model, out_type=tf.int32)
        self._space = list(space)

    def encode(self, texts: Any) -> Any:
        """See `Bytes`."""
        if not self._space:
            return self._model.tokenize(texts)
        parts = self._model.tokenize(tf.strings.split(texts, _SPACE))
        spaces = tf.tile(tf.constant([self._space]), [parts.values.nrows(), 1])
        parts = parts.with_values(tf.concat([parts.values, spaces], axis=1))
        return parts.merge_dims(1, 2)[:, : -len(self._space)]


class WordPiece(tf.Module):
    """What a `tokenizer.json` does whose words are BERT's.

    What becomes of a character does not depend on others but by NFKC, which comes
    first. TensorFlow's knows more characters than that of `tokenizers`.
    """

    def __init__(self, file: Path):
        """Opens the file."""
        super().__init__()
        tokenizer = hf.Tokenizer.from_file(str(file))
        spec = json.loads(tokenizer.to_str())
        codes = itertools.chain(_PLAIN, _TAGS, _PRIVATE)
        self._become = tf.constant([_become(tokenizer, code) for code in codes])
        self._nfkc = '"NFKC"' in json.dumps(spec["normalizer"])
        model, vocab = spec["model"], tokenizer.get_vocab()
        self._unk, self._longest = model["unk_token"], model["max_input_chars_per_word"]
        ids = tf.lookup.KeyValueTensorInitializer(
            list(vocab), list(vocab.values()), tf.string, tf.int64
        )
        self._model = tf_text.WordpieceTokenizer(
            tf.lookup.StaticHashTable(ids, -1),
            model["continuing_subword_prefix"],
            max_bytes_per_word=4 * self._longest,
            unknown_token=self._unk,
        )

    def encode(self, texts: Any) -> Any:
        """See `Bytes`."""
        if self._nfkc:
            texts = tf_text.normalize_utf8(texts, "NFKC")
        codes = tf.strings.unicode_decode(texts, "UTF-8")
        chars = tf.ragged.map_flat_values(self._look_up, codes)
        words = tf.strings.split(tf.strings.reduce_join(chars, axis=-1))
        words = tf.ragged.map_flat_values(self._known, words)
        return tf.cast(self._model.tokenize(words).merge_dims(1, 2), tf.int32)

    def _look_up(self, code: Any) -> Any:
        place = tf.minimum(code, _PLAIN.stop - 1)
        is_tag = (code >= _TAGS.start) & (code < _TAGS.stop)
        place = tf.where(is_tag, code - _TAGS.start + _PLAIN.stop, place)
        place = tf.where(code >= _PRIVATE.start, len(_PLAIN) + len(_TAGS), place)
        return tf.gather(self._become, place)

    def _known(self, words: Any) -> Any:
        is_long = tf.strings.length(words, "UTF8_CHAR") > self._longest
        return tf.where(is_long, self._unk, words)


def _become(tokenizer: hf.Tokenizer, code: int) -> str:
    """Returns what a character is in a text that has spaces between all words."""
    if 0xD800 <= code < 0xE000:
        return ""
    normalizer = tokenizer.normalizer or hf.normalizers.Sequence([])
    cut = tokenizer.pre_tokenizer or hf.pre_tokenizers.Sequence([])
    words = cut.pre_tokenize_str(f"a{normalizer.normalize_str(chr(code))}a")
    return " ".join(word for word, _ in words)[1:-1]


Text = Bytes | SentencePiece | WordPiece


def open_text(tokenizer: Tokenizer, writes: bool) -> Text | None:
    """Returns what encodes as a tokenizer does, on texts of many scripts and its marks.

    Args:
        tokenizer: The tokenizer.
        writes: Whether `make_decode` is to do what its `decode` does.

    Returns:
        None, and says so, if nothing does that.
    """
    text: Text | None = None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "tokenizer")
        tokenizer.save(folder)
        model = folder / "tokenizer.model"
        if tokenizer.kind == "bytes":
            text = Bytes(tokenizer.vocab_size - 256)
        elif tokenizer.kind in KINDS and model.exists():
            space = tokenizer.encode(_SPACE).tolist() if tokenizer.lossless else ()
            text = SentencePiece(model.read_bytes(), space)
        elif tokenizer.kind == "wordpiece" and not writes:
            text = WordPiece(folder / "tokenizer.json")
    marks = np.flatnonzero(tokenizer.is_special).tolist()
    texts = [*_ODD, *(f"a {tokenizer.token(i)}b" for i in marks)]
    expected = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    if text and text.encode(tf.constant(texts)).to_list() == expected:
        return text
    cli.say(
        f"TensorFlow cannot do what this {tokenizer.kind} tokenizer does: the "
        "SavedModel takes tokens, not text"
    )
    return None


def make_decode(tokenizer: Tokenizer, spells: bool) -> Callable[[Any, Any], Any]:
    """Returns a function from tokens to texts [B], as `lm.completion` makes them.

    It takes what comes before the tokens, [B, 1] or [B, 0], and the tokens [B, T]; one
    below 0 stands for nothing.

    Args:
        tokenizer: Of SentencePiece or of bytes.
        spells: Whether sentinels are spelled.
    """
    pieces = [*tokenizer.pieces, b""]
    is_mark = [*tokenizer.is_special.tolist(), True]
    if tokenizer.unk_id >= 0:
        pieces[tokenizer.unk_id], is_mark[tokenizer.unk_id] = "\ufffd".encode(), False
    for i in tokenizer.sentinel_ids if spells else ():
        pieces[i] = tokenizer.token(i).encode()
    drops = tokenizer.drops_space
    first = [piece.removeprefix(b" ") if drops else piece for piece in pieces]

    def text(ids: Any) -> Any:
        ids = tf.where(ids < 0, tokenizer.vocab_size, ids)
        is_first = tf.concat(
            [tf.ones_like(ids[:, :1], tf.bool), tf.gather(is_mark, ids)[:, :-1]], axis=1
        )
        parts = tf.where(is_first, tf.gather(first, ids), tf.gather(pieces, ids))
        return valid(tf.strings.reduce_join(parts, axis=1))

    def decode(before: Any, ids: Any) -> Any:
        # What a token stands for may depend on whether it is a text's first.
        begin = tf.strings.length(text(before), "UTF8_CHAR")
        both = text(tf.concat([before, ids], axis=1))
        return tf.strings.substr(
            both, begin, tf.fill(tf.shape(begin), 1 << 30), "UTF8_CHAR"
        )

    return decode


def valid(texts: Any) -> Any:
    """Puts U+FFFD in the place of what is not UTF-8."""
    return tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")
