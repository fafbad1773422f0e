"""Scores of predicted tags, answers, translations and summaries.

They are computed by seqeval and scikit-learn, sacreBLEU and rouge-score, which load
when they are first needed. What is found for one example is kept, since a bootstrap
scores the same examples a thousand times.
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from lm.config import check_choice
from lm.tasks.scores import NO_EXAMPLES, averages
from lm.types import UserError

# How tags mark entities: the first word (B) and the others (I) of each; or the first,
# the inner, the last (E) and the only one (S); or not at all.
SCHEMES = {"bio": "BI", "bioes": "BIES", "none": ""}

# How sacreBLEU tells words; the first is that of BLEU for most languages.
TOKENIZERS = ("13a", "intl", "zh", "char", "none")

KEPT = 1 << 17  # examples for which what was found is kept

Tags = Sequence[str]


def tagging(
    gold: Sequence[Tags], predicted: Sequence[Tags], scheme: str
) -> dict[str, float]:
    """Scores the tags of sentences.

    Args:
        gold: The right tag of each word of each sentence.
        predicted: As many.
        scheme: One of `SCHEMES`.

    Returns:
        Of entities: f1, precision and recall, `micro` and `macro` over the types that
        are in gold or predicted, as seqeval computes them by default, which is as
        CoNLL's conlleval does (Tjong Kim Sang and De Meulder 2003,
        https://aclanthology.org/W03-0419): an entity counts if its type and all its
        words are right; see `entities` for tags that break the scheme. Without
        entities in gold and predicted they are 0. Of all schemes: accuracy, the share
        of words with the right tag. Of `none`: f1_macro over the tags.

    Raises:
        UserError: If there are no words, a sentence has more or fewer tags in
            `predicted`, or a tag is not of the scheme.
    """
    found, made, names = outcomes(gold, predicted, scheme)
    same = sum(a == b for pair in zip(gold, predicted) for a, b in zip(*pair))
    accuracy = {"accuracy": same / sum(map(len, gold))}
    classes = np.arange(len(names))
    if scheme == "none":
        f1 = averages(found, made, classes, ["macro"])["f1_macro"]
        return accuracy | {"f1_macro": f1}
    return averages(found, made, classes, ["micro", "macro"]) | accuracy


def outcomes(
    gold: Sequence[Tags], predicted: Sequence[Tags], scheme: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns what `scores.per_class` and `scores.confusion` need to show tags.

    Args:
        gold: As in `tagging`.
        predicted: As in `tagging`.
        scheme: As in `tagging`.

    Returns:
        Numbers of classes in gold and predicted [m], and the names of the classes. Of
        `none` they are the words' tags. Else a class is a type, and there is an entry
        for each entity of either side, -1 on the side that lacks it.

    Raises:
        UserError: As in `tagging`.

    >>> outcomes([["B-X", "O", "B-Y"]], [["B-X", "O", "B-X"]], "bio")
    (array([ 0,  1, -1]), array([ 0, -1,  0]), ['X', 'Y'])
    """
    check_choice("scheme", scheme, list(SCHEMES))
    if not any(map(len, gold)):
        raise UserError(NO_EXAMPLES)
    pairs = []
    for number, (right, made) in enumerate(zip(gold, predicted, strict=True), 1):
        if len(right) != len(made):
            raise UserError(
                f"sentence {number} has {len(right)} tags but {len(made)} predicted "
                "ones; predict one for each word"
            )
        if scheme == "none":
            pairs += zip(right, made)
        else:
            pairs += _compare(tuple(right), tuple(made), scheme)
    names = sorted({name for pair in pairs for name in pair} - {""})
    ids = {name: i for i, name in enumerate(names)} | {"": -1}
    numbers = np.array([(ids[a], ids[b]) for a, b in pairs], int).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1], names


def entities(tags: Tags, scheme: str) -> list[tuple[str, int, int]]:
    """Returns the type of each entity, its first word and the one after its last.

    Tags that break the scheme are read as conlleval does: an entity also begins where
    an I or E follows none of its type, and ends where its type does.

    Args:
        tags: Of a sentence's words.
        scheme: `bio` or `bioes`.

    Raises:
        UserError: If a tag is not of the scheme.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC"], "bio")
    [('PER', 0, 2), ('LOC', 3, 4)]
    """
    from seqeval.metrics.sequence_labeling import get_entities

    form = _form(scheme)
    for tag in tags:
        if not form.fullmatch(tag):
            raise UserError(
                f"the tag {tag!r} is not of the scheme {scheme!r} (O, or one of "
                f"{', '.join(SCHEMES[scheme])} with a type, such as B-PER); mend it or "
                "choose another scheme"
            )
    return [(kind, first, last + 1) for kind, first, last in get_entities(list(tags))]


@functools.cache
def _form(scheme: str) -> re.Pattern[str]:
    # Without a type where there is but one, as in the segmentation of words.
    return re.compile(f"O|[{SCHEMES[scheme]}](-.+)?")


@functools.lru_cache(KEPT)
def _compare(gold: Tags, predicted: Tags, scheme: str) -> list[tuple[str, str]]:
    """Returns the type in gold and predicted of each entity, "" where it is not."""
    right, made = entities(gold, scheme), entities(predicted, scheme)
    return [
        (entity[0] if entity in right else "", entity[0] if entity in made else "")
        for entity in dict.fromkeys([*right, *made])
    ]


def squad(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """Scores answers as SQuAD's script does, but from 0 to 1.

    Rajpurkar et al. (2016), https://arxiv.org/abs/1606.05250, section 6.1, and for
    questions without an answer (2018), https://arxiv.org/abs/1806.03822; the script is
    at https://rajpurkar.github.io/SQuAD-explorer. It drops case, punctuation of ASCII,
    articles of English and repeated spaces, and words are what spaces part: an answer
    in a language without spaces is one word.

    Args:
        gold: The right answers of each question; () if it has none.
        predicted: One answer for each; "" for none.

    Returns:
        f1, of the words of the answer and of the right one that gives the most, and
        exact_match, the share of answers that are a right one.

    Raises:
        UserError: If there are no questions.

    >>> squad([["the Eiffel Tower", "Paris"], []], ["Eiffel tower!", "a guess"])
    {'f1': 0.5, 'exact_match': 0.5}
    """
    if not len(gold):
        raise UserError(NO_EXAMPLES)
    pairs = [_answer(tuple(g), p) for g, p in zip(gold, predicted, strict=True)]
    f1, exact = np.mean(pairs, axis=0).tolist()
    return {"f1": f1, "exact_match": exact}


@functools.lru_cache(KEPT)
def _answer(gold: Sequence[str], predicted: str) -> tuple[float, float]:
    """Returns F1 and exact match of one answer."""
    words = _normal(predicted)
    golds = [right for text in gold if (right := _normal(text))] or [[]]
    return max(_f1(right, words) for right in golds), float(words in golds)


def _normal(text: str) -> list[str]:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _f1(gold: list[str], predicted: list[str]) -> float:
    if not (gold and predicted):
        return float(gold == predicted)
    common = (Counter(gold) & Counter(predicted)).total()
    return 2 * common / (len(gold) + len(predicted))


def generation(
    references: Sequence[str], hypotheses: Sequence[str], kind: str
) -> dict[str, float]:
    """Scores generated texts.

    Args:
        references: A right text for each example.
        hypotheses: The one to score.
        kind: `translation`, `summary` (see `summarization`), or any `text`: as a
            translation, and before that exact_match, the share that are the right one
            but for spaces around them.

    Raises:
        UserError: If there are no texts.
    """
    if kind == "summary":
        return summarization(references, hypotheses)
    scores = translation(references, hypotheses)
    if kind == "translation":
        return scores
    pairs = zip(references, hypotheses)
    exact = np.mean([right.strip() == made.strip() for right, made in pairs])
    return {"exact_match": float(exact)} | scores


def translation(
    references: Sequence[str], hypotheses: Sequence[str], tokenize: str = "13a"
) -> dict[str, float]:
    """Scores translations by sacreBLEU.

    Args:
        references: A right translation of each text.
        hypotheses: The one to score.
        tokenize: How BLEU tells words, one of `TOKENIZERS`; `zh` is for Chinese, `char`
            for other languages without spaces.

    Returns:
        bleu (Post 2018, https://aclanthology.org/W18-6319) and chrf (Popović 2015,
        https://aclanthology.org/W15-3049) of all texts together, from 0 to 100. BLEU is
        0 if no text has four words.

    Raises:
        UserError: If there are no texts, or no such tokenizer.
    """
    if not len(references):
        raise UserError(NO_EXAMPLES)
    scores = {}
    for name, metric in _metrics(tokenize).items():
        counts = [
            _counts(name, tokenize, *pair)
            for pair in zip(references, hypotheses, strict=True)
        ]
        total = np.sum(counts, axis=0).tolist()
        scores[name] = float(metric._compute_score_from_stats(total).score)
    return scores


def translation_signatures(tokenize: str = "13a") -> dict[str, str]:
    """Returns the text that says how each score of `translation` is computed.

    >>> translation_signatures()["bleu"].partition("|version")[0]
    'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp'
    """
    metrics = _metrics(tokenize)
    return {name: metric.get_signature().format() for name, metric in metrics.items()}


@functools.cache
def _metrics(tokenize: str) -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    check_choice("tokenize", tokenize, TOKENIZERS)
    # `force` keeps it from warning of texts that look as if already cut into words.
    metrics = {"bleu": BLEU(tokenize=tokenize, force=True), "chrf": CHRF()}
    for metric in metrics.values():
        metric.corpus_score([""], [[""]])  # A signature says how many references.
    return metrics


@functools.lru_cache(2 * KEPT)
def _counts(name: str, tokenize: str, reference: str, hypothesis: str) -> list[int]:
    """Returns the numbers of one text that are summed over all texts."""
    metric = _metrics(tokenize)[name]
    return metric._extract_corpus_statistics([hypothesis], [[reference]])[0]


def summarization(
    references: Sequence[str],
    hypotheses: Sequence[str],
    stem: bool = False,
    tokenize: str = "",
) -> dict[str, float]:
    """Scores summaries by ROUGE (Lin 2004, https://aclanthology.org/W04-1013).

    Args:
        references: A right summary of each text.
        hypotheses: The one to score.
        stem: Whether to compare stems of English words.
        tokenize: How to tell words, one of `TOKENIZERS`; "" is ROUGE's own way, which
            knows no letters but a to z. `stem` is for that way.

    Returns:
        rouge1, rouge2 and rougeL, means of F1 over texts, from 0 to 1. A text without
        words has 0.

    Raises:
        UserError: If there are no texts, or no such tokenizer.

    >>> summarization(["the old cat sat"], ["an old sat cat"])
    {'rouge1': 0.75, 'rouge2': 0.0, 'rougeL': 0.5}
    """
    if not len(references):
        raise UserError(NO_EXAMPLES)
    pairs = zip(references, hypotheses, strict=True)
    rows = [_rouge(stem, tokenize, *pair) for pair in pairs]
    return dict(zip(ROUGES, np.mean(rows, axis=0).tolist()))


ROUGES = ("rouge1", "rouge2", "rougeL")


@functools.cache
def _rouge_scorer(stem: bool, tokenize: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    if not tokenize:
        return RougeScorer(ROUGES, use_stemmer=stem)
    words = _metrics(tokenize)["bleu"].tokenizer
    tokenizer = SimpleNamespace(tokenize=lambda text: words(text.lower()).split())
    return RougeScorer(ROUGES, tokenizer=tokenizer)


@functools.lru_cache(KEPT)
def _rouge(
    stem: bool, tokenize: str, reference: str, hypothesis: str
) -> tuple[float, ...]:
    found = _rouge_scorer(stem, tokenize).score(reference, hypothesis)
    return tuple(found[name].fmeasure for name in ROUGES)
