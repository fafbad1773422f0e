"""Tokenizers whose model is that of Hugging Face's `tokenizers`."""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lm.text.tokenizer import (
    MARKS,
    NO_TEXT,
    Added,
    Tokenizer,
    find_marks,
    mark_names,
    misplaced,
    named_marks,
    piece_bytes,
)
from lm.types import UserError

# Beside the `tokenizer.json` of words: how often each was in the training texts.
COUNTS = "counts.json"
# Pre-tokenizers that cut text without changing it.
_CUTS = ("ByteLevel", "Split", "Digits")
# Names of the options of BERT's normalizer, in a `tokenizer_config.json` and here.
_BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
# The parts of a `tokenizer.json` that decide what text becomes.
_DECIDING = ("added_tokens", "normalizer", "pre_tokenizer", "model", "decoder")


class HuggingFaceTokenizer(Tokenizer):
    """Whatever a `tokenizer.json` describes; marks are never read from text.

    In WordPiece, `num_bytes` and `num_chars` count a token as it is written, less the
    "##"; spaces between words count nowhere.
    """

    def __init__(
        self,
        tokenizer: hf.Tokenizer,
        config: Mapping[str, Any],
        counts: Mapping[str, int] | None = None,
    ):
        """Takes a tokenizer over.

        Args:
            tokenizer: Its truncation, padding and adding of marks are switched off.
            config: Of a `tokenizer_config.json`, may name marks.
            counts: How often each token was in the training texts, by its name, if
                that is known; of tokens that it lacks, 0.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        spec = json.loads(tokenizer.to_str())
        model = spec["model"]
        ids = tokenizer.get_vocab(with_added_tokens=True)
        # A foreign vocabulary may have holes: ids that no text encodes to.
        tokens = [""] * (max(ids.values()) + 1)
        for token, id in ids.items():
            tokens[id] = token
        added = {token["id"]: token for token in spec["added_tokens"]}
        special_ids = {id for id, token in enumerate(tokens) if not token}
        special_ids |= {id for id, token in added.items() if token["special"]}
        marks = find_marks({tokens[i]: i for i in special_ids}, config)
        self._is_byte_level = (spec["decoder"] or {}).get("type") == "ByteLevel"
        self._is_word_piece = model["type"] == "WordPiece"
        self._is_words = model["type"] == "WordLevel"
        if marks.unk < 0 and not self._is_byte_level:
            unk_id = ids.get(model.get("unk_token"), model.get("unk_id"))
            marks = marks._replace(unk=-1 if unk_id is None else unk_id)
        kind = {
            "BPE": "byte_bpe" if self._is_byte_level else "bpe",
            "WordPiece": "wordpiece",
            "Unigram": "unigram",
            "WordLevel": "words",
        }[model["type"]]
        super().__init__(
            kind,
            tokens,
            [
                token.encode()
                if i in added
                else self._piece(token, bool(model.get("byte_fallback")))
                for i, token in enumerate(tokens)
            ],
            [*special_ids, *([marks.unk] if marks.unk >= 0 else [])],
            marks,
            lossless=self._is_byte_level and _is_lossless(spec, ids),
        )
        if counts:
            numbers = [counts.get(token, 0) for token in tokens]
            self.counts = np.array(numbers, np.int64)

    def _piece(self, token: str, has_bytes: bool) -> bytes:
        """Returns the UTF-8 that a token stands for."""
        if self._is_byte_level:
            table = byte_of_char()
            if all(char in table for char in token):
                return bytes(table[char] for char in token)
        if self._is_word_piece:
            return token.removeprefix("##").encode()
        return piece_bytes(token, has_bytes)

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """See `Tokenizer.starts_word`; in WordPiece, whether it lacks the "##".

        Every token of words begins one.
        """
        if self._is_words:
            return ~self.is_special
        if not self._is_word_piece:
            return super().starts_word
        starts = np.array([not token.startswith("##") for token in self._tokens])
        return starts & ~self.is_special

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See `Tokenizer.decode`; spaces between words are the file's decoder's."""
        if self._is_byte_level:
            return super().decode(ids)
        tokens = [
            "\ufffd" if i == self.unk_id else self._tokens[i]
            for i in self._known(ids)
            if i == self.unk_id or not self.is_special[i]
        ]
        decoder = self._tokenizer.decoder
        return decoder.decode(tokens) if decoder else " ".join(tokens)

    def token(self, id: int) -> str:
        """See `Tokenizer.token`; what is readable of a byte-level token is read."""
        if self._is_byte_level:
            text = self.pieces[id].decode(errors="replace").replace(" ", "\u2581")
            if text and text.isprintable() and "\ufffd" not in text:
                return text
        return super().token(id)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def _mapping(self) -> Any:
        spec = json.loads(self._tokenizer.to_str())
        return [spec[key] for key in _DECIDING]

    def _files(self) -> dict[str, bytes]:
        files = {"tokenizer.json": self._tokenizer.to_str(pretty=True).encode()}
        if self.counts is not None:
            counts = dict(zip(self._tokens, self.counts.tolist()))
            files[COUNTS] = (json.dumps(counts, indent=0) + "\n").encode()
        return files


def _is_lossless(spec: Mapping[str, Any], ids: Mapping[str, int]) -> bool:
    """Returns whether a byte-level model gives every text back."""
    cuts = spec["pre_tokenizer"] or {}
    cuts = cuts.get("pretokenizers", [cuts])
    return (
        spec["normalizer"] is None
        and not spec["model"]["dropout"]
        and all(char in ids for char in byte_of_char())
        and all(
            cut["type"] in _CUTS
            and not cut.get("add_prefix_space")
            and cut.get("behavior") != "Removed"
            for cut in cuts
        )
        and any(cut["type"] == "ByteLevel" for cut in cuts)
        and not any(
            token["lstrip"] or token["rstrip"]
            for token in spec["added_tokens"]
            if not token["special"]
        )
    )


@functools.cache
def byte_of_char() -> dict[str, int]:
    """Returns the byte behind each character of a byte-level vocabulary.

    Printable Latin-1 stands for itself, the other bytes for U+0100 and on, in order;
    `bytes_to_unicode` of https://github.com/openai/gpt-2, `src/encoder.py`.

    >>> byte_of_char()["A"], byte_of_char()["Ġ"]
    (65, 32)
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {
        chr(256 + n): b for n, b in enumerate(others)
    }


def open_json(
    file: Path, config: Mapping[str, Any], counts: Mapping[str, int]
) -> Tokenizer:
    """Opens a `tokenizer.json`; `counts` as of `HuggingFaceTokenizer`."""
    tokenizer = hf.Tokenizer.from_file(str(file))
    _configure(tokenizer, config)
    # Gemma's <mask> is added as if it were a word, as its <s> is, which is HTML's.
    named = named_marks(config)
    for token in tokenizer.get_added_tokens_decoder().values():
        if not token.special and token.content in named:
            tokenizer.add_special_tokens([hf.AddedToken(token.content, special=True)])
    return HuggingFaceTokenizer(tokenizer, config, counts)


def open_wordpiece(
    vocab: Path, config: Mapping[str, Any], added: Sequence[Added] = ()
) -> Tokenizer:
    """Opens BERT's vocabulary; see `lm.text.tokenizers.load`."""
    words = vocab.read_text(encoding="utf-8").split("\n")
    names = [name for name in mark_names(0, style=1) if name in words]
    if "[UNK]" not in names:
        raise UserError(f"{vocab} has no [UNK]; it is not a vocabulary of WordPiece")
    has_capitals = any(w != w.lower() for w in words if not w.startswith("["))
    tokenizer = _wordpiece(lowercase=not has_capitals)
    tokenizer.model = models.WordPiece.from_file(str(vocab), unk_token="[UNK]")
    tokenizer.add_special_tokens(names)
    _configure(tokenizer, config)
    _add(tokenizer, added)
    return HuggingFaceTokenizer(tokenizer, config)


def open_byte_bpe(
    vocab: Path,
    merges: Path,
    config: Mapping[str, Any],
    added: Sequence[Added] = (),
) -> Tokenizer:
    """Opens GPT-2's or RoBERTa's vocabulary."""
    for file, other in ((vocab, merges), (merges, vocab)):
        if not file.is_file():
            raise UserError(f"{other} is of no use without {file.name} beside it")
    tokenizer = _byte_bpe()
    tokenizer.model = models.BPE.from_file(str(vocab), str(merges))
    ids = tokenizer.get_vocab()
    names = {name for names in MARKS.values() for name in names if name in ids}
    tokenizer.add_special_tokens(sorted(names))
    _configure(tokenizer, config)
    _add(tokenizer, added)
    return HuggingFaceTokenizer(tokenizer, config)


def _configure(tokenizer: hf.Tokenizer, config: Mapping[str, Any]) -> None:
    """Sets what a `tokenizer_config.json` says, which transformers prefer to the file.

    These are options of BERT's normalizer and of the byte-level pre-tokenizer.
    """
    normalizer: Any = tokenizer.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        for key, name in _BERT_OPTIONS.items():
            if key in config:
                setattr(normalizer, name, config[key])
    cuts: Any = tokenizer.pre_tokenizer
    prefix = config.get("add_prefix_space")
    if prefix is not None and isinstance(cuts, pre_tokenizers.ByteLevel):
        cuts.add_prefix_space = prefix


def _add(tokenizer: hf.Tokenizer, added: Sequence[Added]) -> None:
    """Gives a vocabulary its further tokens.

    Raises:
        UserError: If one would have another id than is said.
    """
    for token in added:
        own = tokenizer.token_to_id(token.name)
        if token.id != (tokenizer.get_vocab_size() if own is None else own):
            raise UserError(misplaced(token))
        entry = hf.AddedToken(token.name, special=token.is_special, normalized=False)
        (tokenizer.add_special_tokens if token.is_special else tokenizer.add_tokens)(
            [entry]
        )


def _wordpiece(lowercase: bool) -> hf.Tokenizer:
    """Returns BERT's tokenizer without a vocabulary."""
    tokenizer = hf.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_bpe() -> hf.Tokenizer:
    """Returns GPT-2's tokenizer without a vocabulary."""
    tokenizer = hf.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(
    kind: str,
    sentences: list[str],
    vocab_size: int,
    *,
    num_sentinels: int,
    normalization: str,
    character_coverage: float,
    split_digits: bool,
) -> Tokenizer:
    """Trains wordpiece or byte_bpe; see `lm.text.tokenizers.train`."""
    is_wordpiece = kind == "wordpiece"
    names = mark_names(num_sentinels, style=int(is_wordpiece))
    lowercase = normalization == "nfkc_cf"
    tokenizer = _wordpiece(lowercase) if is_wordpiece else _byte_bpe()
    steps = [] if normalization == "identity" else [normalizers.NFKC()]
    if is_wordpiece:
        steps += [tokenizer.normalizer]
    elif lowercase:
        steps += [normalizers.Lowercase()]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    if split_digits:
        tokenizer.pre_tokenizer = _digits_apart(tokenizer.pre_tokenizer)
    if is_wordpiece:
        _train_wordpiece(tokenizer, sentences, vocab_size, names, character_coverage)
    else:
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=names,
            initial_alphabet=list(byte_of_char()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(sentences, trainer)
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        fault, cure = ("low", "more") if size > vocab_size else ("high", "less")
        raise UserError(
            f"vocab_size {vocab_size} is too {fault} for {kind} of this text; set it "
            f"to {size} or {cure}"
        )
    return HuggingFaceTokenizer(tokenizer, {})


def train_words(
    texts: Iterable[str],
    vocab_size: int,
    *,
    num_sentinels: int,
    normalization: str,
    split_digits: bool,
    min_count: int,
) -> Tokenizer:
    """Makes a vocabulary of whole words; see `lm.text.tokenizers.train`."""
    names = mark_names(num_sentinels)
    unk = names[1]
    steps: list[normalizers.Normalizer] = []
    if normalization != "identity":
        steps.append(normalizers.NFKC())
    if normalization == "nfkc_cf":
        steps.append(normalizers.Lowercase())
    normalizer = normalizers.Sequence(steps)
    cuts = pre_tokenizers.Whitespace()
    if split_digits:
        cuts = _digits_apart(cuts)
    counts: Counter[str] = Counter()
    for text in texts:
        words = cuts.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    if not counts:
        raise UserError(NO_TEXT)
    # Equally common words stand in the order of their characters.
    common = sorted(counts, key=lambda word: (-counts[word], word))
    known = [word for word in common if counts[word] >= min_count]
    size = len(names) + len(known)
    if vocab_size and not len(names) < vocab_size <= size:
        fault, cure = ("low", "more") if vocab_size < size else ("high", "less")
        least = len(names) + 1 if fault == "low" else size
        raise UserError(
            f"vocab_size {vocab_size} is too {fault} for words of this text; set it to "
            f"{least} or {cure}"
        )
    tokens = [*names, *known][: vocab_size or size]
    own = {word: counts[word] for word in tokens[len(names) :]}
    own[unk] = counts.total() - sum(own.values())
    vocab = {token: id for id, token in enumerate(tokens)}
    tokenizer = hf.Tokenizer(models.WordLevel(vocab, unk_token=unk))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = cuts
    tokenizer.add_special_tokens(names)
    return HuggingFaceTokenizer(tokenizer, {}, own)


def _digits_apart(cuts: Any) -> pre_tokenizers.PreTokenizer:
    """Returns cuts that also part all digits."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, cuts])


def _train_wordpiece(
    tokenizer: hf.Tokenizer,
    sentences: list[str],
    vocab_size: int,
    names: list[str],
    coverage: float,
) -> None:
    """Gives the tokenizer a vocabulary."""
    alphabet = _alphabet(map(tokenizer.normalizer.normalize_str, sentences), coverage)

    def fit(size: int, first: list[str]) -> dict[str, int]:
        scratch = hf.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        scratch.normalizer = tokenizer.normalizer
        scratch.pre_tokenizer = tokenizer.pre_tokenizer
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=names + first,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        scratch.train_from_iterator(sentences, trainer)
        return scratch.get_vocab()

    # The trainer numbers "##" characters in the order of a hash table, and breaks ties
    # by these numbers: we ask which there are, and give them numbers of our own.
    inner = sorted(token for token in fit(0, []) if token.startswith("##"))
    vocab = fit(vocab_size, inner)
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]")
    tokenizer.add_special_tokens(names)


def _alphabet(texts: Iterable[str], coverage: float) -> list[str]:
    """Returns the commonest characters that make up this share of the texts.

    >>> _alphabet(["a rose is", "a rose"], 0.5)
    ['s', 'a', 'e']
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update("".join(text.split()))
    common = sorted(counts, key=lambda char: (-counts[char], char))
    covered = np.cumsum([counts[char] for char in common])
    return common[: np.searchsorted(covered, coverage * covered[-1]) + 1]
