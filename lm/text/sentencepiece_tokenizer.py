"""Tokenizers whose model is SentencePiece's."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sentencepiece import (
    SentencePieceProcessor,
    SentencePieceTrainer,
    sentencepiece_model_pb2,
)

from lm.text.tokenizer import (
    Added,
    Tokenizer,
    find_marks,
    is_mark,
    mark_names,
    misplaced,
    piece_bytes,
)
from lm.types import UserError

KINDS = ("unigram", "bpe", "chars")

_OWN_MARKS = ("pad", "bos", "eos")
_SPACE = "\u2581"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018).

    https://arxiv.org/abs/1808.06226
    """

    def __init__(
        self, model: bytes, config: Mapping[str, Any], added: Sequence[Added] = ()
    ):
        """Opens a model.

        Args:
            model: The content of a `.model` file.
            config: Of a `tokenizer_config.json`; the marks that it names come before
                those that the model does.
            added: Tokens that become pieces of the model, in the order of their ids.

        Raises:
            UserError: If one of these has the id of another piece.
        """
        if added:
            model = _with_added(model, added)
        self._model = model
        self._processor = SentencePieceProcessor(model_proto=model)
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore
        self._proto = proto
        kind = {1: "unigram", 2: "bpe", 3: "words", 4: "chars"}
        piece_type = proto.SentencePiece
        tokens = [piece.piece for piece in proto.pieces]
        special_ids = [
            i
            for i, piece in enumerate(proto.pieces)
            if piece.type in (piece_type.UNKNOWN, piece_type.CONTROL)
            or (piece.type == piece_type.USER_DEFINED and is_mark(piece.piece))
        ]
        byte_ids = {
            token: i
            for i, token in enumerate(tokens)
            if proto.pieces[i].type == piece_type.BYTE
        }
        ids = {mark: getattr(self._processor, f"{mark}_id")() for mark in _OWN_MARKS}
        own = {f"{mark}_token": tokens[id] for mark, id in ids.items() if id >= 0}
        marks = find_marks({tokens[i]: i for i in special_ids}, {**own, **config})
        marks = marks._replace(unk=self._processor.unk_id())
        rules = proto.normalizer_spec
        # A foreign model puts a space first.
        self.drops_space = rules.add_dummy_prefix or rules.remove_extra_whitespaces
        lossless = (
            len(byte_ids) == 256
            and not rules.precompiled_charsmap
            and not self.drops_space
        )
        # SentencePiece writes a space as U+2581; where the text has one, bytes do.
        self._escape = (
            [byte_ids[f"<0x{b:02X}>"] for b in _SPACE.encode()] if lossless else []
        )
        super().__init__(
            kind[proto.trainer_spec.model_type],
            tokens,
            [piece_bytes(token, token in byte_ids) for token in tokens],
            special_ids,
            marks,
            lossless,
        )

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        if self._escape and any(_SPACE in text for text in texts):
            return [self._encode_escaped(text) for text in texts]
        if len(texts) == 1:
            # Without the pool of threads, which takes longer than a short text.
            return [self._processor.encode(texts[0], out_type="numpy")]
        return self._processor.encode(texts, out_type="numpy")

    def _encode_escaped(self, text: str) -> np.ndarray:
        """Encodes a text in which U+2581 may be."""
        parts = self._processor.encode(text.split(_SPACE), out_type="numpy")
        for i in range(len(parts) - 1, 0, -1):
            parts.insert(i, np.array(self._escape, np.int32))
        return np.concatenate(parts)

    def _mapping(self) -> Any:
        pieces = [[p.piece, p.score, p.type] for p in self._proto.pieces]
        rules = self._proto.normalizer_spec.SerializeToString(deterministic=True)
        return [pieces, rules.hex()]

    def _files(self) -> dict[str, bytes]:
        return {"tokenizer.model": self._model}


def sentinels(model: bytes, number: int) -> list[Added]:
    """Returns the <extra_id_…> that T5 has after the pieces of its model, if not there.

    The last one is <extra_id_0>.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore
    if any("extra_id_" in piece.piece for piece in proto.pieces):
        return []
    end = len(proto.pieces) + number
    names = [f"<extra_id_{i}>" for i in range(number)]
    return sorted(Added(end - 1 - i, name, True) for i, name in enumerate(names))


def _with_added(model: bytes, added: Sequence[Added]) -> bytes:
    """Returns a model that has these tokens as pieces."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore
    kinds = proto.SentencePiece
    for token in added:
        if token.id == len(proto.pieces):
            kind = kinds.CONTROL if token.is_special else kinds.USER_DEFINED
            proto.pieces.add(piece=token.name, score=0.0, type=kind)
            continue
        piece = proto.pieces[token.id] if token.id < len(proto.pieces) else None
        if piece is None or piece.piece != token.name:
            raise UserError(misplaced(token))
        if token.is_special and piece.type in (kinds.NORMAL, kinds.USER_DEFINED):
            piece.type = kinds.CONTROL
    return proto.SerializeToString()


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
    """Trains unigram, bpe or chars; see `lm.text.tokenizers.train`."""
    names = mark_names(num_sentinels)
    least = len(names) + 257
    if 0 < vocab_size < least:
        raise UserError(
            f"vocab_size {vocab_size} is too low; set it to {least} or more"
        )
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="char" if kind == "chars" else kind,
            # Unicode has no more characters than 2**21.
            vocab_size=vocab_size or 1 << 21,
            hard_vocab_limit=kind != "chars",
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            control_symbols=names[4:],
            byte_fallback=True,
            normalization_rule_name=normalization,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=character_coverage,
            split_digits=split_digits,
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(str(error), kind, vocab_size) from error
    return SentencePieceTokenizer(model.getvalue(), {})


def _explained(message: str, kind: str, vocab_size: int) -> Exception:
    """Turns what SentencePiece says about a vocabulary's size into one line."""
    if limit := re.search(r"value <= (\d+)", message):
        return UserError(
            f"vocab_size {vocab_size} is too high for {kind} of this text; set it to "
            f"{limit[1]} or less"
        )
    if limit := re.search(r"required_chars. \d+ vs (\d+)", message):
        return UserError(
            f"vocab_size {vocab_size} is too low for {kind} of this text; set it to "
            f"{limit[1]} or more, or lower character_coverage"
        )
    return RuntimeError(message)
