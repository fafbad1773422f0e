"""Scores of tags, answers, translations and summaries, against the libraries' own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from seqeval import metrics as seqeval

from lm.tasks import scores, text_scores
from lm.types import UserError

# Other tests' garbage may be collected during one of these.
pytestmark = pytest.mark.filterwarnings(
    "error", "default::pytest.PytestUnraisableExceptionWarning"
)

BIOES = ["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y"]
WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "."]))
TEXTS = WORDS.map(" ".join)


@st.composite
def tagged(draw, tags=BIOES):
    """Draws gold and predicted tags of some sentences, in any order."""
    pair = st.tuples(st.sampled_from(tags), st.sampled_from(tags))
    sentences = draw(st.lists(st.lists(pair), min_size=1, max_size=4).filter(any))
    return tuple([[pair[side] for pair in s] for s in sentences] for side in (0, 1))


def test_tagging_by_hand():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-LOC"]]
    found = text_scores.tagging(gold, predicted, "bio")
    assert found == pytest.approx(
        {
            **dict.fromkeys(["f1_micro", "precision_micro", "recall_micro"], 2 / 3),
            **dict.fromkeys(["f1_macro", "precision_macro", "recall_macro"], 1 / 2),
            "accuracy": 4 / 5,
        }
    )
    assert next(iter(found)) == "f1_micro"


@given(tagged())
def test_tagging_is_seqevals(pair):
    gold, predicted = pair
    found = text_scores.tagging(gold, predicted, "bioes")
    assert found["accuracy"] == seqeval.accuracy_score(gold, predicted)
    if set(sum(gold + predicted, [])) == {"O"}:
        assert found["f1_micro"] == found["f1_macro"] == 0
        return
    for average in ("micro", "macro"):
        for name in ("precision", "recall", "f1"):
            expected = getattr(seqeval, f"{name}_score")(
                gold, predicted, average=average, zero_division=0
            )
            assert found[f"{name}_{average}"] == pytest.approx(expected)


@given(tagged())
def test_perfect_tags(pair):
    gold, _ = pair
    for scheme in ("bioes", "none"):
        found = text_scores.tagging(gold, gold, scheme)
        if scheme == "none" or any(tag != "O" for tags in gold for tag in tags):
            assert set(found.values()) == {1}


def test_tags_without_entities():
    found = text_scores.tagging([["O"]], [["O"]], "bio")
    assert found["accuracy"] == 1
    assert found["f1_micro"] == found["f1_macro"] == 0
    assert text_scores.tagging([["B-X"]], [["O"]], "bio")["f1_micro"] == 0


def test_parts_of_speech_by_hand():
    found = text_scores.tagging([["N", "V"], ["N"]], [["N", "N"], ["N"]], "none")
    assert found == pytest.approx({"accuracy": 2 / 3, "f1_macro": (4 / 5 + 0) / 2})


def test_outcomes_are_what_tables_need():
    gold, predicted = [["B-X", "O", "S-Y"], ["S-Y"]], [["S-X", "S-X", "S-Y"], ["O"]]
    rows = scores.per_class(*text_scores.outcomes(gold, predicted, "bioes"))
    assert [row["label"] for row in rows] == ["X", "Y"]
    assert [row["support"] for row in rows] == [1, 2]
    assert [row["precision"] for row in rows] == [0.5, 1]
    pair = [["N", "V"]], [["N", "N"]]
    matrix = scores.confusion(*text_scores.outcomes(*pair, "none"))
    assert matrix == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("scheme", "tags", "expected"),
    [
        ("bio", [], []),
        ("bio", ["B-X", "B-X", "I-X"], [("X", 0, 1), ("X", 1, 3)]),
        ("bio", ["I-X", "I-Y"], [("X", 0, 1), ("Y", 1, 2)]),
        ("bioes", ["S-X", "B-X", "I-X", "E-X"], [("X", 0, 1), ("X", 1, 4)]),
        ("bioes", ["B-X", "O", "E-X"], [("X", 0, 1), ("X", 2, 3)]),
        ("bioes", ["B", "E", "S"], [("_", 0, 2), ("_", 2, 3)]),
        ("bio", ["B-A-B", "I-A-B"], [("A-B", 0, 2)]),
    ],
)
def test_entities(scheme, tags, expected):
    assert text_scores.entities(tags, scheme) == expected


@pytest.mark.parametrize("tag", ["NN", "S-X", "b-X", "B-", "BX", ""])
def test_a_tag_of_another_scheme(tag):
    with pytest.raises(UserError, match=f"the tag '{tag}' is not of the scheme 'bio'"):
        text_scores.tagging([["O"]], [[tag]], "bio")


def test_odd_tags():
    with pytest.raises(UserError, match="sentence 2 has 1 tags but 2 predicted"):
        text_scores.tagging([["O"], ["O"]], [["O"], ["O", "O"]], "none")
    with pytest.raises(UserError, match="unknown scheme 'iob'; did you mean 'bio'"):
        text_scores.tagging([["O"]], [["O"]], "iob")
    for nothing in ([], [[], []]):
        with pytest.raises(UserError, match="no examples"):
            text_scores.tagging(nothing, nothing, "bio")


@pytest.mark.parametrize(
    ("gold", "predicted", "f1", "exact"),
    [
        (["The Eiffel Tower."], "eiffel  tower", 1, 1),
        (["a cat", "cats"], "cats!", 1, 1),
        (["cat sat mat"], "cat mat dog", 2 / 3, 0),
        (["cat cat"], "cat", 2 / 3, 0),
        (["cat", "cat sat"], "cat sat on", 4 / 5, 0),
        (["cat"], "", 0, 0),
        (["cat"], "the", 0, 0),
        ([], "", 1, 1),
        ([], "the", 1, 1),
        ([], "cat", 0, 0),
        ([""], "", 1, 1),
        (["the", "cat"], "", 0, 0),
        (["anthem"], "them", 0, 0),
        (["北京"], "北京。", 0, 0),
    ],
)
def test_squad(gold, predicted, f1, exact):
    found = text_scores.squad([gold], [predicted])
    assert found == pytest.approx({"f1": f1, "exact_match": exact})


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_translation_is_sacrebleus(pairs):
    references, hypotheses = (list(side) for side in zip(*pairs))
    found = text_scores.translation(references, hypotheses)
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        expected = metric.corpus_score(hypotheses, [references])
        assert found[name] == pytest.approx(expected.score)
        signatures = text_scores.translation_signatures()
        assert signatures[name] == metric.get_signature().format()


def test_perfect_translation():
    text = ["The cat sat on the mat.", "No."]
    assert text_scores.translation(text, text) == pytest.approx(
        {"bleu": 100, "chrf": 100}
    )
    short = text_scores.translation(["No way."], ["No way."])
    assert short["bleu"] == 0


def test_translation_into_chinese():
    found = [
        text_scores.translation(["我今天去北京了"], ["我今天去上海了"], tokenize=name)
        for name in ("13a", "zh")
    ]
    assert found[0]["bleu"] == 0 < found[1]["bleu"]
    assert "tok:zh" in text_scores.translation_signatures("zh")["bleu"]


def test_summaries_by_hand():
    found = text_scores.summarization(["cats sat here", "a"], ["cat sat here", "b"])
    assert found == pytest.approx({"rouge1": 1 / 3, "rouge2": 1 / 4, "rougeL": 1 / 3})
    stemmed = text_scores.summarization(["cats sat here"], ["cat sat here"], stem=True)
    assert set(stemmed.values()) == {1}


@pytest.mark.parametrize(
    ("text", "tokenize"), [("the cat sat", ""), ("我去北京", "zh"), ("été à", "13a")]
)
def test_perfect_summaries(text, tokenize):
    found = text_scores.summarization([text], [text], tokenize=tokenize)
    assert set(found.values()) == {1}


def test_summaries_without_words():
    assert set(text_scores.summarization(["", "。"], ["", "。"]).values()) == {0}


@pytest.mark.parametrize("score", [text_scores.translation, text_scores.summarization])
def test_odd_texts(score):
    with pytest.raises(UserError, match="no examples"):
        score([], [])
    with pytest.raises(UserError, match="unknown tokenize 'ja'; .*13a"):
        score(["a"], ["b"], tokenize="ja")
    with pytest.raises(ValueError, match="shorter"):
        score(["a", "b"], ["b"])


def test_no_questions():
    with pytest.raises(UserError, match="no examples"):
        text_scores.squad([], [])


def test_kinds_of_generated_texts():
    pair = ["a b", "c"], ["a b ", "d"]
    of_any = text_scores.generation(*pair, "text")
    assert of_any.pop("exact_match") == 0.5
    assert of_any == text_scores.generation(*pair, "translation")
    assert set(text_scores.generation(*pair, "summary")) == set(text_scores.ROUGES)


def test_resampled_texts_score_as_themselves():
    references = ["the cat sat on the mat", "a dog ran far away home"]
    hypotheses = ["the cat sat on a mat", "a dog ran far from home"]
    numbers = np.array([1, 1, 0])
    drawn = [[side[i] for i in numbers] for side in (references, hypotheses)]
    expected = BLEU().corpus_score(drawn[1], [drawn[0]]).score
    assert text_scores.translation(*drawn)["bleu"] == pytest.approx(expected)
