import dataclasses
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.text import cleaning
from lm.text.cleaning import CleanConfig, clean
from lm.types import UserError

PROSE = (
    "The river rises in the hills above the town, and on its way to the sea it turns "
    "the wheels of nine old mills. In spring, when the snow melts, it floods the "
    "meadows; nobody who lives there has ever thought of that as a misfortune."
)
CHINESE = (
    "这条河发源于小城北面的群山，在流向大海的路上，推动着九座古老的水车。春天积雪融化的时"
    "候，河水会漫过草地；住在那里的人，从来没有把这当作一种不幸。"
)
GERMAN = "Der Fluss entspringt in den Bergen über der Stadt und fließt ins Meer."

# Halves of surrogate pairs too: JSON files have them.
anything = st.text(st.characters(codec=None, categories=None))


@given(anything)
def test_normalise_is_idempotent(text):
    once = cleaning.normalise(text)
    assert cleaning.normalise(once) == once


@given(anything)
def test_normal_text_has_one_form(text):
    normal = cleaning.normalise(text)
    assert unicodedata.is_normalized("NFC", normal)
    assert normal == normal.strip()
    assert "\n\n\n" not in normal and "  " not in normal and " \n" not in normal
    kinds = {unicodedata.category(c) for c in normal if c != "\n"}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}


@given(st.text())
def test_composed_and_decomposed_are_one(text):
    composed = unicodedata.normalize("NFC", text)
    decomposed = unicodedata.normalize("NFD", text)
    assert cleaning.normalise(composed) == cleaning.normalise(decomposed)


def test_normalise_keeps_joiners_that_carry_meaning():
    for text in ("می‌خواهم", "👩‍⚕️"):
        assert cleaning.normalise(text) == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\x85"])
def test_line_ends(end):
    assert cleaning.normalise(f"a{end}b{end}{end}c") == "a\nb\n\nc"


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("schön", "latin-1"),
        ("naïve café", "cp1252"),
        ("l’été — à Lyon", "cp1252"),
        ("Привет", "latin-1"),
    ],
)
def test_repair_undoes_mojibake(text, wrong):
    assert cleaning.repair(text.encode().decode(wrong)) == text


@pytest.mark.parametrize(
    "text", [PROSE, CHINESE, GERMAN, "“Ça va?” — ‘Oui’…", "日本語。"]
)
def test_repair_leaves_sound_text_alone(text):
    assert cleaning.repair(text) == text


PAGE = """<html><head><title>T</title><style>p {}</style></head><body>
<nav><ul><li><a href="/">Home</a></li></ul></nav>
<main><h1>Bread</h1><p>Flour &amp; salt,<br>then wait.</p><script>track()</script>
<!-- secret --></main><footer>All rights reserved</footer></body></html>"""


def test_html_main_content():
    text = cleaning.normalise(cleaning.strip_html(PAGE))
    assert text == "Bread\n\nFlour & salt,\nthen wait."


def test_html_plain_keeps_what_surrounds_it():
    text = cleaning.strip_html(PAGE, main=False)
    assert "Home" in text and "All rights reserved" in text
    assert "track" not in text and "secret" not in text and "p {}" not in text


def test_html_page_without_main_content_is_kept_whole():
    page = "<nav><a href='/'>Home</a></nav>"
    assert cleaning.extract_plain_text(page, main_content=True) == ""
    assert cleaning.strip_html(page) == "Home"


def test_html_may_be_broken():
    assert cleaning.strip_html("<p>one<p>two</b></div><a href='") == "one\n\ntwo"
    assert cleaning.strip_html("") == ""


@given(st.text())
def test_without_punctuation(text):
    left = cleaning.remove_punctuation(text)
    marks = {c for c in left if unicodedata.category(c)[0] in "PS"}
    assert marks <= {"'", "’"}
    assert left == cleaning.remove_punctuation(left)


def test_punctuation_is_not_vowel_signs():
    assert cleaning.remove_punctuation("हिन्दी, भाषा।") == "हिन्दी भाषा"


@given(st.lists(st.sampled_from([*sorted(cleaning.STOP_WORDS), "river", "mill's"])))
def test_without_stop_words(words):
    text = " ".join(words)
    left = [word for word in words if word not in cleaning.STOP_WORDS]
    for cased in (text, text.upper(), text.replace("'", "’")):
        found = cleaning.remove_stop_words(cased).lower().replace("’", "'")
        assert found.split() == left


@pytest.mark.parametrize(
    "text, expected",
    [(PROSE, "en"), (CHINESE, "zh"), (GERMAN, "de"), ("Сегодня хорошая погода.", "ru")],
)
def test_language(text, expected):
    language, confidence = cleaning.detect_language(text)
    assert language == expected and confidence > 0.5


@pytest.mark.parametrize(
    "text, options, reason",
    [
        (PROSE, {}, ""),
        ("", {}, "empty"),
        (" \u200b\r\n\x00", {}, "empty"),
        ("?!", {"remove_punctuation": True}, "empty"),
        ("The, of and", {"remove_stop_words": True}, ""),
        ("short", {"min_chars": 6}, "too short"),
        ("exact", {"min_chars": 5, "max_chars": 5}, ""),
        ("longer", {"max_chars": 5}, "too long"),
        (GERMAN, {"languages": ("en",)}, "other language"),
        (GERMAN, {"languages": ("en", "de")}, ""),
        ("12345", {"languages": ("en",)}, "unclear language"),
        ("12345", {"languages": ("en",), "min_confidence": 0.0}, "other language"),
        ("1 2 3 4 5 six", {"quality": True}, "few letters"),
        ("# tag # tag # tag # tag", {"quality": True}, "few letters"),
        ("#one #two three four", {"quality": True}, "many symbols"),
        ("well, one… two... three", {"quality": True}, "many symbols"),
        ("the same line\n" * 3 + PROSE, {"quality": True}, "repeated lines"),
        ("buy this now or never, " * 9, {"quality": True}, "repeated phrases"),
    ],
)
def test_reasons(text, options, reason):
    assert clean(text, CleanConfig(**options)).reason == reason


@pytest.mark.parametrize("text", [PROSE, CHINESE, GERMAN, "To be, or not to be."])
def test_prose_has_quality(text):
    assert cleaning.quality_reason(text) == ""


def test_all_steps_come_in_order():
    config = CleanConfig(
        html="main",
        languages=("en",),
        lower_case=True,
        remove_stop_words=True,
        remove_punctuation=True,
    )
    page = (
        f"<nav>Menu</nav><p>{PROSE.replace('nobody', 'No caf&Atilde;&copy; owner')}</p>"
    )
    cleaned = clean(page, config)
    # The language was told from the whole text, before its words were taken out.
    assert (cleaned.language, cleaned.reason) == ("en", "")
    assert cleaned.text.startswith("river rises hills town way sea turns wheels nine")
    assert "café owner lives" in cleaned.text


@given(anything, st.booleans())
def test_clean_takes_anything(text, flag):
    config = CleanConfig(
        html="main" if flag else "plain",
        quality=flag,
        remove_stop_words=flag,
        remove_punctuation=flag,
    )
    cleaned = clean(text, config)
    cleaned.text.encode()
    assert bool(cleaned.text) == (cleaned.reason != "empty")


def test_five_megabytes_on_a_line():
    text = "word " * 1_000_000
    cleaned = clean(text, CleanConfig(html="main", remove_punctuation=True))
    assert cleaned.text == text.strip()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"html": "most"}, "unknown html 'most'"),
        ({"languages": ("english",)}, "unknown language 'english'"),
        ({"min_confidence": 50.0}, "min_confidence is 50"),
        ({"min_chars": 9, "max_chars": 8}, "leave no length"),
        ({"max_chars": -1}, "leave no length"),
        ({"languages": ("zh",), "remove_stop_words": True}, "English"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CleanConfig(), **options)
