"""Cleaning of texts: repairs, removals, and reasons to drop a document.

    strip_html → repair → normalise → [lower case, stop words, punctuation] → filters

Every step is a function str → str that can be used alone; `clean` is all of them in
order, as a `CleanConfig` says. Nothing here keeps state or depends on other documents.
"""

import functools
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import ftfy
from ftfy.fixes import fix_surrogates
from py3langid.langid import LanguageIdentifier
from resiliparse.extract.html2text import extract_plain_text

from lm.config import check_choice
from lm.types import UserError

# Characters at the beginning of a text that tell its language: each takes time.
LANGUAGE_CHARS = 1_000

# Scripts that put no spaces between words: Thai to Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
    "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)

# Porter 2001, http://snowball.tartarus.org/algorithms/english/stop.txt
_ENGLISH = """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his
    himself she her hers herself it its itself they them their theirs themselves what
    which who whom this that these those am is are was were be been being have has had
    having do does did doing would should could ought i'm you're he's she's it's we're
    they're i've you've we've they've i'd you'd he'd she'd we'd they'd i'll you'll he'll
    she'll we'll they'll isn't aren't wasn't weren't hasn't haven't hadn't doesn't don't
    didn't won't wouldn't shan't shouldn't can't cannot couldn't mustn't let's that's
    who's what's here's there's when's where's why's how's a an the and but if or
    because as until while of at by for with about against between into through during
    before after above below to from up down in out on off over under again further then
    once here there when where why how all any both each few more most other some such
    no nor not only own same so than too very
"""
STOP_WORDS = frozenset(_ENGLISH.split())

# Quotes and full-width punctuation are part of how a text is written: they stay.
_FTFY = ftfy.TextFixerConfig(
    uncurl_quotes=False, fix_character_width=False, explain=False
)
_LINE_END = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
# Control characters except tab and newline; zero-width space, soft hyphen, word joiner
# and byte-order mark, which are invisible and split words; halves of surrogate pairs.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u2060\ufeff\ud800-\udfff]"
)
_SPACES = re.compile(r"[^\S\n]+")
_LINE_SPACES = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_STOP = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_MARK = re.compile(r"(\b['’]\b)|[^\w\s]|_")
# A word of a text as it is written, with the marks at its ends.
_TOKEN = re.compile(rf"[{_UNSPACED}][^\w\s]*|[^\s{_UNSPACED}]+")


@dataclass(frozen=True)
class CleanConfig:
    """What is done to texts and which are dropped.

    Attributes:
        html: What of an HTML page to keep: `main` (its content, without menus and
            footers), `plain` (all text); "" if texts are not HTML.
        languages: ISO 639 codes of the languages to keep; () keeps all.
        min_confidence: How sure the language must be, from 0 to 1.
        min_chars: Characters that a clean text has at least.
        max_chars: Characters that it has at most; 0 means any number.
        quality: Whether to drop texts that are hardly prose, see `quality_reason`.
        lower_case: Whether to lower the case.
        remove_stop_words: Whether to remove English words that carry little meaning.
        remove_punctuation: Whether to remove punctuation and symbols.
    """

    html: str = ""
    languages: tuple[str, ...] = ()
    min_confidence: float = 0.5
    min_chars: int = 1
    max_chars: int = 0
    quality: bool = False
    lower_case: bool = False
    remove_stop_words: bool = False
    remove_punctuation: bool = False

    def __post_init__(self):
        check_choice("html", self.html, ("", "main", "plain"))
        for language in self.languages:
            check_choice("language", language, _identifier().labels)
        if not 0 <= self.min_confidence <= 1:
            raise UserError(f"min_confidence is {self.min_confidence}, not from 0 to 1")
        least, most = self.min_chars, self.max_chars
        if least < 0 or most < 0 or 0 < most < least:
            raise UserError(
                f"min_chars {least} and max_chars {most} leave no length for a text"
            )
        if self.remove_stop_words and set(self.languages) - {"en"}:
            raise UserError("stop words are known of English alone; keep languages en")


class Cleaned(NamedTuple):
    """A clean text.

    Attributes:
        text: The text after all steps.
        language: Its ISO 639 code; "" if it was dropped before that was looked at,
            `und` if it is less sure than `min_confidence`.
        reason: Why it is to be dropped; "" if it is to be kept.
    """

    text: str
    language: str
    reason: str


def clean(text: str, config: CleanConfig) -> Cleaned:
    """Cleans a text and says whether to keep it.

    >>> clean("<p>It&rsquo;s   sch\u00c3\u00b6n</p>", CleanConfig(html="plain")).text
    'It’s schön'
    >>> clean("Das Wetter ist heute schön.", CleanConfig(languages=("en",))).reason
    'other language'
    """
    if config.html:
        text = strip_html(text, main=config.html == "main")
    natural = text = normalise(repair(text))
    if config.lower_case:
        text = text.lower()
    if config.remove_stop_words:
        text = remove_stop_words(text)
    if config.remove_punctuation:
        text = remove_punctuation(text)
    reason = length_reason(text, config.min_chars, config.max_chars)
    if not reason and config.quality:
        reason = quality_reason(natural)
    if reason:
        return Cleaned(text, "", reason)
    language, confidence = detect_language(natural)
    if confidence < config.min_confidence:
        language, reason = "und", "unclear language" if config.languages else ""
    elif config.languages and language not in config.languages:
        reason = "other language"
    return Cleaned(text, language, reason)


def strip_html(html: str, main: bool = True) -> str:
    """Returns the text of an HTML page, with its paragraphs and lists.

    Args:
        html: The page, or a part of one.
        main: Whether to leave out menus, footers and the like. A page of which nothing
            would be left is kept whole.

    >>> strip_html("<nav><a href='/'>Home</a></nav><p>Bread &amp; salt</p><script>x()"
    ...            "</script>")
    'Bread & salt'
    """
    html = fix_surrogates(html)
    text = extract_plain_text(html, main_content=main)
    return text if text or not main else extract_plain_text(html)


def repair(text: str) -> str:
    """Undoes wrong decoding (mojibake), HTML entities and ligatures, by ftfy.

    Speer 2019, https://doi.org/10.5281/zenodo.2591652. Quotes stay curly and
    full-width punctuation stays wide.

    >>> repair("L\u00e2\u20ac\u2122\u00c3\u00a9t\u00c3\u00a9 &amp; l\u2019hiver")
    'L’été & l’hiver'
    """
    return ftfy.fix_text(text, _FTFY)


def normalise(text: str) -> str:
    r"""Writes a text in one way; `normalise(normalise(text)) == normalise(text)`.

    Unicode NFC; lines end in "\n"; no control characters, zero-width spaces, soft
    hyphens or byte-order marks; any other white space is one blank, and none at either
    end of a line; at most one empty line in a row, and none at either end of the text.

    >>> normalise(" Cafe\u0301\t\u00a0au  lait \r\n\r\n\r\n\r\n\x00Ende\ufeff ")
    'Café au lait\n\nEnde'
    """
    text = _INVISIBLE.sub("", _LINE_END.sub("\n", text))
    return _squeeze(unicodedata.normalize("NFC", text))


def remove_stop_words(text: str) -> str:
    """Removes English words that carry little meaning, in any case.

    >>> remove_stop_words("The cat isn’t on the mat, but it could be.")
    'cat mat, .'
    """

    def blank(match: re.Match[str]) -> str:
        return "" if match[0].lower().replace("’", "'") in STOP_WORDS else match[0]

    return _squeeze(_STOP.sub(blank, text))


def remove_punctuation(text: str) -> str:
    """Removes punctuation and symbols; an apostrophe within a word stays.

    These are the characters of the Unicode categories P and S.

    >>> remove_punctuation("'Don't!' she_said -- 3 × (well-known) 你好。")
    "Don't she said 3 well known 你好"
    """

    def blank(match: re.Match[str]) -> str:
        is_word = match[1] or unicodedata.category(match[0])[0] not in "PS"
        return match[0] if is_word else " "

    return _squeeze(_MARK.sub(blank, text))


def words(text: str) -> list[str]:
    """Returns words; in scripts without spaces each character is one.

    >>> words("Tokyo (東京) is 2,000 km²")
    ['Tokyo', '東', '京', 'is', '2', '000', 'km²']
    """
    return _WORD.findall(text)


def detect_language(text: str) -> tuple[str, float]:
    """Returns the ISO 639 code of the likeliest language and its probability.

    Lui and Baldwin 2012, https://aclanthology.org/P12-3005, as kept up in py3langid.

    >>> language, confidence = detect_language("今天天气很好，我们去公园散步吧。")
    >>> language, confidence > 0.9
    ('zh', True)
    >>> detect_language("123")[1] < 0.1
    True
    """
    return _identifier().classify(text[:LANGUAGE_CHARS])


def length_reason(text: str, min_chars: int, max_chars: int) -> str:
    """Returns why a text's length is a reason to drop it, or "".

    >>> length_reason("short", min_chars=10, max_chars=0)
    'too short'
    """
    if not text:
        return "empty"
    if len(text) < min_chars:
        return "too short"
    return "too long" if 0 < max_chars < len(text) else ""


def quality_reason(text: str) -> str:
    """Returns why a text is hardly prose, or "".

    Four of the rules of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446,
    appendix A.1), with its thresholds: under 80% of words have a letter; there are over
    a tenth as many `#`, or ellipses, as words; over 30% of lines repeat another; the
    commonest pair of words makes up over 20% of the characters.

    >>> quality_reason("12 34 5.6 78 table 90")
    'few letters'
    >>> quality_reason("buy now! " * 20)
    'repeated phrases'
    """
    tokens = _TOKEN.findall(text)
    if sum(any(map(str.isalpha, token)) for token in tokens) < 0.8 * len(tokens):
        return "few letters"
    ellipses = len(re.findall(r"\.{3}|…+", text))
    if max(text.count("#"), ellipses) > 0.1 * len(tokens):
        return "many symbols"
    lines = [line for line in text.split("\n") if line]
    if len(lines) - len(set(lines)) > 0.3 * len(lines):
        return "repeated lines"
    pairs = Counter(zip(tokens, tokens[1:]))
    pair, count = max(pairs.items(), key=lambda item: item[1], default=(("",), 1))
    is_common = count > 1 and count * len("".join(pair)) > 0.2 * len("".join(tokens))
    return "repeated phrases" if is_common else ""


def _squeeze(text: str) -> str:
    """Leaves single blanks, and single empty lines."""
    text = _LINE_SPACES.sub("\n", _SPACES.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


@functools.cache
def _identifier() -> LanguageIdentifier:
    """Loads the language model, which takes half a second."""
    return LanguageIdentifier.from_model_file("data/model.npz.xz", norm_probs=True)
