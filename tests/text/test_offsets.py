"""Places of tokens: they cover the text, in order, and are exact where they can be."""

import io
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import assume, given
from hypothesis import strategies as st

from lm.text import tokenizers
from lm.text.offsets import place
from lm.text.sentencepiece_tokenizer import SentencePieceTokenizer

CORPUS = [
    "In the beginning God created the heaven and the earth.",
    "He said: “Let there be light!”, and there was light; U.S. 1,234.5 cafés.",
    "春眠不觉晓,处处闻啼鸟。 夜来风雨声",
] * 20


def foreign():
    """Puts a space before every text, as T5's does."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=60,
        character_coverage=0.98,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue(), {})


LOSSLESS = {
    "bytes": tokenizers.train("bytes", []),
    "unigram": tokenizers.train("unigram", CORPUS, 320),
    "byte_bpe": tokenizers.train("byte_bpe", CORPUS, 360),
}
LOSSY = {
    "wordpiece": tokenizers.train("wordpiece", CORPUS, 115),
    "uncased": tokenizers.train("wordpiece", CORPUS, 105, normalization="nfkc_cf"),
    "nfkc": tokenizers.train("unigram", CORPUS, 320, normalization="nfkc"),
    "foreign": foreign(),
}
WORDS = st.lists(
    st.sampled_from(" ".join(CORPUS[:3]).split()) | st.text(min_size=1, max_size=8)
)
TEXTS = st.builds(" ".join, WORDS) | st.text(max_size=30)


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
@given(text=TEXTS)
def test_places_are_in_order_and_within_the_text(kind, text):
    tokenizer = (LOSSLESS | LOSSY)[kind]
    (found,) = place(tokenizer, [text])
    assert len(found.ids) == len(found.starts) == len(found.stops)
    for bounds in (found.starts, found.stops):
        assert (np.diff(bounds) >= 0).all()
        assert ((bounds >= 0) & (bounds <= len(text))).all()
    assert (found.starts <= found.stops).all()


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=TEXTS)
def test_a_lossless_tokenizers_places_are_exact(kind, text):
    tokenizer = LOSSLESS[kind]
    (found,) = place(tokenizer, [text])
    np.testing.assert_array_equal(found.ids, tokenizer.encode(text))
    for token, start, stop in zip(*found):
        piece = tokenizer.decode([token])
        assert piece == text[start:stop] or "\ufffd" in piece


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY])
@given(text=TEXTS, data=st.data())
def test_words_are_found_again(kind, text, data):
    tokenizer = (LOSSLESS | LOSSY)[kind]
    words = [(m.start(), m.end()) for m in re.finditer(r"\S+", text)]
    # Some tokenizers drop characters that are not printed.
    assume(words and all(len(tokenizer.encode(text[a:b])) for a, b in words))
    (found,) = place(tokenizer, [text])
    (start, _), (_, stop) = sorted(data.draw(st.tuples(*2 * [st.sampled_from(words)])))
    first, last = found.tokens(start, stop)
    covered = text[found.starts[first] : found.stops[last - 1]]
    assert covered.lstrip() == text[start:stop]


def test_ids_are_those_of_the_whole_text():
    text = "  He said: “Let there be light!”,\n and  there was light; U.S. 1,234.5 "
    for tokenizer in (LOSSLESS | LOSSY).values():
        (found,) = place(tokenizer, [text])
        whole = tokenizer.encode(text)
        np.testing.assert_array_equal(found.ids, whole[: len(found.ids)])
        assert not tokenizer.decode(whole[len(found.ids) :]).strip()


@pytest.mark.parametrize(
    "text, word, spans",
    [
        ("the café", "café", "café"),  # é becomes e
        ("the light,", "light", "light"),  # a comma is a token of its own
        ("不觉☃晓", "晓", "晓"),  # one unknown character
        ("the ☃☃ day", "☃☃", "☃☃"),
    ],
)
def test_within_words_of_a_lossy_tokenizer(text, word, spans):
    (found,) = place(LOSSY["uncased"], [text])
    start = text.index(word)
    first, last = found.tokens(start, start + len(word))
    assert text[found.starts[first] : found.stops[last - 1]].strip() == spans


def test_where_lengths_do_not_add_up_it_is_the_whole_word():
    text = "the ﬃﬃ!light day"  # one character becomes three letters
    (found,) = place(LOSSY["nfkc"], [text])
    first, last = found.tokens(text.index("light"), text.index("light") + 5)
    assert text[found.starts[first] : found.stops[last - 1]].strip() == "ﬃﬃ!light"
