"""Text to ids and back, as in training.

A tokenizer's folder has a `tokenizer.json`, which the library `tokenizers` reads, or a
`tokenizer.model`, which `sentencepiece` does, or neither: then ids are bytes. Its
`pieces.json` has what the libraries do not tell.
"""

import functools
import itertools
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

# What SentencePiece writes for a space, and what stands for unreadable text.
_SPACE, _UNREADABLE = "\u2581", "\ufffd"

# A word with the white space before it.
_WORD = re.compile(r"\s*(\S+)")


class Placed(NamedTuple):
    """A text's tokens, each with the characters [start, stop) that it stands for.

    Attributes:
        ids: int [n].
        starts: int [n].
        stops: int [n].
    """

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def tokens(self, start, stop):
        """Returns the tokens [first, last) that cover the characters [start, stop)."""
        first = int(np.searchsorted(self.stops, start, side="right"))
        last = int(np.searchsorted(self.starts, stop, side="left"))
        return first, max(first, last)


class Tokenizer:
    """Text to ids and back.

    Attributes:
        unk_id: Stands for text that the vocabulary lacks; -1 if it lacks none.
        lossless: Whether `decode(encode(text))` is the text, whatever it is.
    """

    def __init__(self, folder):
        """Opens a tokenizer's folder."""
        folder = Path(folder)
        table = json.loads((folder / "pieces.json").read_text(encoding="utf-8"))
        self.unk_id, self.lossless = table["unk_id"], table["lossless"]
        # The UTF-8 that each id stands for, byte by byte; nothing for a mark.
        self._pieces = [piece.encode("latin-1") for piece in table["pieces"]]
        self._marks = {int(id): name for id, name in table["marks"].items()}
        self._drops_space, self._library = table["drops_space"], None
        if (folder / "tokenizer.json").exists():
            from tokenizers import Tokenizer as Library
            from tokenizers.decoders import ByteLevel

            library = Library.from_file(str(folder / "tokenizer.json"))
            library.no_truncation()
            library.no_padding()
            library.encode_special_tokens = True
            self._ids = lambda text: library.encode(text, add_special_tokens=False).ids
            # Bytes are joined here; how words are, the library knows.
            self._library = None if isinstance(library.decoder, ByteLevel) else library
        elif (folder / "tokenizer.model").exists():
            from sentencepiece import SentencePieceProcessor

            model = str(folder / "tokenizer.model")
            self._ids = SentencePieceProcessor(model_file=model).encode
            if self.lossless:
                self._ids = functools.partial(self._escaped, self._ids)
        elif table["kind"] != "bytes":
            raise FileNotFoundError(
                f"{folder} has neither tokenizer.json nor tokenizer.model; copy all of "
                "the artefact"
            )
        else:
            first = len(self._pieces) - 256
            self._ids = lambda text: [first + byte for byte in text.encode()]

    def encode(self, text):
        """Returns a text's ids, a list, without marks: it may spell them."""
        # Half a character, which has no UTF-8, is unreadable.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ids = self._ids(text)
        if self._marks.keys().isdisjoint(ids):
            return ids
        # The library took what spells a mark for one: cut after its first character.
        spelled = "|".join(re.escape(name) for name in self._marks.values() if name)
        cuts = [match.start() + 1 for match in re.finditer(spelled, text)]
        parts = itertools.pairwise([0, *cuts, len(text)])
        found = [id for start, stop in parts for id in self._ids(text[start:stop])]
        return [id for id in found if id not in self._marks]

    def _escaped(self, encode, text):
        """Encodes a text in which U+2581 itself may be, as its bytes."""
        space = [self._pieces.index(bytes([byte])) for byte in _SPACE.encode()]
        first, *others = map(encode, text.split(_SPACE))
        return first + [id for other in others for id in (*space, *other)]

    def decode(self, ids):
        """Returns the text of ids; marks, and ids that there are none of, are none."""
        ids = [int(id) for id in ids if 0 <= id < len(self._pieces)]
        if self._library:
            name, decoder = self._library.id_to_token, self._library.decoder
            ids = [id for id in ids if id not in self._marks]
            names = [_UNREADABLE if i == self.unk_id else str(name(i)) for i in ids]
            return decoder.decode(names) if decoder else " ".join(names)
        unknown, pieces = _UNREADABLE.encode(), self._pieces
        parts = [unknown if id == self.unk_id else pieces[id] for id in ids]
        text = b"".join(parts).decode(errors="replace")
        return text.removeprefix(" ") if self._drops_space else text

    @functools.cached_property
    def _num_chars(self):
        """Characters that each id stands for; one counts where its first byte is."""
        pieces = self._pieces
        return np.array([sum(b & 0xC0 != 0x80 for b in piece) for piece in pieces])

    def place(self, text):
        """Encodes a text and finds the place of every token.

        A lossless tokenizer's places are exact. Others encode a text word by word, so
        that the words' places are; within a word the tokens' are as long as they are
        written, if that adds up to the word, else each stands for all of it.
        """
        words = [(m.start(), m.start(1), m.end()) for m in _WORD.finditer(text)]
        if self.lossless:
            words = [(0, 0, len(text))] if text else []
        encode = functools.cache(self.encode)
        placed = [self._placed(encode(text[w[0] : w[2]]), *w) for w in words]
        empty = (np.zeros(0, int),) * 3
        return Placed(*(np.concatenate(column) for column in zip(empty, *placed)))

    def _placed(self, ids, begin, start, stop):
        """Places the tokens of a word at [start, stop), its white space at `begin`."""
        ids = np.array(ids, int)
        counts, unknown = self._num_chars[ids], ids == self.unk_id
        missing, shares = stop - start - counts.sum(), unknown.sum()
        if shares and missing > 0 and missing % shares == 0:
            counts = np.where(unknown, missing // shares, counts)
        # It may count a space before the word, even one that is not there.
        if not 0 <= counts.sum() - (stop - start) <= max(1, start - begin):
            return ids, np.full(len(ids), start), np.full(len(ids), stop)
        ends = stop - counts.sum() + counts.cumsum()
        # What has only the later bytes of a character stands for the character.
        starts = np.minimum(ends - counts, ends - 1)
        return ids, np.maximum(starts, begin), np.maximum(ends, begin)
