"""Linear models of word counts, one kind for each kind of task.

Each is a function that takes a task and its training split and yields fitted models of
different strength; `experiments.baseline` takes the best.
"""

import functools
import itertools
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from lm.text.cleaning import words

Example = Mapping[str, Any]
Prediction = dict[str, Any]

# Inverse strength of the penalty on large weights.
STRENGTHS = (1.0, 10.0, 100.0)

# What texts are made of, as TfidfVectorizer is told.
UNITS = {
    "words": {"token_pattern": r"(?u)\b\w+\b", "ngram_range": (1, 2)},
    "parts of words": {"analyzer": "char_wb", "ngram_range": (3, 4)},
    "characters": {"analyzer": "char", "ngram_range": (1, 3)},
}
# Of so many texts, what only one has is left out: it is the most, and tells the least.
MANY_TEXTS = 1000
# Texts that are looked at to see whether their words are spaced.
SAMPLE = 1000

# A word seen less often counts as new, so that it is learned how new words are tagged.
LEAST_SEEN = 2
WINDOW = (-2, -1, 0, 1, 2)
# Columns for pairs of words.
PAIRS = 2**17
PENALTIES = (1e-5, 1e-6, 1e-7)
EPOCHS = 5
# Words, and words times tags, that an epoch has at most: so it takes seconds, and the
# features some GB.
MOST_WORDS = 1_500_000
MOST_WORK = 15_000_000

# Queries that are compared with all texts at once.
CHUNK = 512


class Split(NamedTuple):
    """Examples that a task can use, and what it encodes each to."""

    examples: Sequence[Example]
    documents: Sequence[Mapping[str, np.ndarray]]


class Candidate(NamedTuple):
    """A fitted model: its name, and what makes a prediction of each example."""

    name: str
    predict: Callable[[Sequence[Example]], list[Prediction]]


def _fit_texts(task: Any, train: Split) -> Iterator[Candidate]:
    """Fits models of one text or two: for a class, several of them or a number."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    texts = _texts(task, train.examples)
    unit = "words" if _is_spaced(texts) else "characters"
    vectorizer = _vectorizer(unit, least=1 + (len(texts) >= MANY_TEXTS))
    inputs = _features(vectorizer.fit_transform, task, train.examples)
    wanted = targets(task.config, [d["label"] for d in train.documents])
    for strength in STRENGTHS:
        name = f"tf-idf of {unit}, logistic regression, C={strength:g}"
        model = LogisticRegression(C=strength, max_iter=1000)
        if task.config.kind == "several":
            model = OneVsRestClassifier(model)
        elif task.config.kind == "number":
            name = f"tf-idf of {unit}, ridge regression, alpha={1 / strength:g}"
            model = Ridge(1 / strength)
        model.fit(inputs, wanted)
        yield Candidate(
            name, functools.partial(_predict_texts, task, vectorizer, model)
        )


def _predict_texts(
    task: Any, vectorizer: Any, model: Any, examples: Sequence[Example]
) -> list[Prediction]:
    inputs = _features(vectorizer.transform, task, examples)
    if task.config.kind == "number":
        outputs = [{"value": value} for value in model.predict(inputs)]
    else:
        outputs = [{"probabilities": row} for row in model.predict_proba(inputs)]
    return [
        task.decode(example, [output]) for example, output in zip(examples, outputs)
    ]


def targets(config: Any, labels: Sequence[np.ndarray]) -> np.ndarray:
    """Returns numbers of classes [n], which of them are right [n, C], or values [n]."""
    if config.kind == "number":
        return np.concatenate(labels).view(np.float32)
    if config.kind == "one":
        return np.concatenate(labels)
    targets = np.zeros((len(labels), len(config.labels)), np.int8)
    for row, found in zip(targets, labels):
        row[found] = 1
    return targets


def _vectorizer(unit: str, least: int) -> Any:
    """Returns what makes tf-idf of the terms that are in so many texts or more."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        **UNITS[unit],
        min_df=least,
        sublinear_tf=True,
        dtype=np.float32,  # pyright: ignore
    )


def _is_spaced(texts: Iterable[str]) -> bool:
    """Returns whether most words are more than one character of an unspaced script.

    >>> _is_spaced(["What a day"]), _is_spaced(["今天天气很好, OK"])
    (True, False)
    """
    found = [word for text in itertools.islice(texts, SAMPLE) for word in words(text)]
    # Thai and all that `words` takes apart stand behind Latin, Greek, Arabic and Hindi.
    single = sum(len(word) == 1 and word >= "\u0e00" for word in found)
    return single <= len(found) / 2


def _texts(task: Any, examples: Iterable[Example]) -> list[str]:
    """Returns one or two texts of each example, one after the other.

    Of `relation` the second is from the first marked span to the end of the other.
    """
    if task.config.name != "relation":
        return [text for example in examples for text in task.texts(example)]
    names, texts = (task.config.head, task.config.tail), []
    for example in examples:
        starts, stops = zip(*(task.span_of(example, name) for name in names))
        texts += [example["text"], example["text"][min(starts) : max(stops)]]
    return texts


def _features(
    transform: Callable[[list[str]], Any], task: Any, examples: Sequence[Example]
) -> Any:
    """Returns the tf-idf of texts [n, F]; of two, of both and of what they share."""
    rows = transform(_texts(task, examples))
    if rows.shape[0] == len(examples):
        return rows
    a, b = rows[0::2], rows[1::2]
    shared = a.multiply(b)
    cosines, common, *sizes = (
        np.reshape(m.sum(axis=1), (-1, 1)) for m in (shared, shared > 0, a > 0, b > 0)
    )
    shares = [common / np.maximum(size, 1) for size in sizes]
    return sparse.hstack([a, b, shared, cosines, *shares], "csr", np.float32)


def _fit_tagger(task: Any, train: Split) -> Iterator[Candidate]:
    """Fits models of a word in its window."""
    from sklearn.linear_model import SGDClassifier

    labels = [d["label"][d["is_word"] > 0] for d in train.documents]
    sentences = [task.words_of(example) for example in train.examples]
    windows = _Windows(sentences, labels)
    most = min(MOST_WORDS, MOST_WORK / len(task.config.labels))
    share = min(1, most / sum(map(len, sentences)))
    number = max(1, int(share * len(sentences)))
    chosen = np.linspace(0, len(sentences) - 1, number).astype(int)
    inputs = windows.features([sentences[i] for i in chosen])
    wanted = np.concatenate([labels[i] for i in chosen])
    for penalty in PENALTIES:
        model = SGDClassifier(
            loss="log_loss",
            alpha=penalty,
            max_iter=EPOCHS,
            tol=None,  # pyright: ignore
            average=True,
            random_state=0,
            n_jobs=-1,
        ).fit(inputs, wanted)
        name = f"words in a window, logistic regression, alpha={penalty:g}"
        yield Candidate(name, functools.partial(_predict_tags, task, windows, model))


def _predict_tags(
    task: Any, windows: "_Windows", model: Any, examples: Sequence[Example]
) -> list[Prediction]:
    sentences = [task.words_of(example) for example in examples]
    found = model.predict(windows.features(sentences))
    tags = iter(np.array(task.config.labels, object)[found])
    return [{"tags": list(itertools.islice(tags, len(s)))} for s in sentences]


class _Windows:
    """Features of words and of those around them, made once for each different word."""

    def __init__(
        self, sentences: Sequence[Sequence[str]], labels: Sequence[np.ndarray]
    ):
        """Learns which features there are, and how often a word has which tag."""
        from sklearn.feature_extraction import DictVectorizer

        self._tags: dict[str, Counter[int]] = defaultdict(Counter)
        for sentence, numbers in zip(sentences, labels):
            for word, number in zip(sentence, numbers.tolist()):
                self._tags[word.casefold()][number] += 1
        # Sorted, as the order of a set changes from run to run.
        vocabulary = sorted(set(itertools.chain.from_iterable(sentences)))
        self._own: Any = DictVectorizer().fit(map(self._of_word, vocabulary))
        self._near: Any = DictVectorizer().fit(map(self._of_neighbour, vocabulary))

    def _of_neighbour(self, word: str) -> dict[str, Any]:
        """Returns a word, if it is not new, and the shares of its tags in training."""
        word = word.casefold()
        counts = self._tags.get(word, Counter())
        total = counts.total()
        if total < LEAST_SEEN:
            return {"is new": 1}
        return {"word": word} | {f"tag {n}": c / total for n, c in counts.items()}

    def _of_word(self, word: str) -> dict[str, Any]:
        """Returns the same, and how the word is written."""
        ends = range(1, min(len(word), 4))
        signs = {
            "is capital": word[:1].isupper(),
            "has digit": any(map(str.isdigit, word)),
            "has hyphen": "-" in word,
        }
        return {
            **self._of_neighbour(word),
            **{f"end {size}": word[-size:].casefold() for size in ends},
            **{name: 1 for name, is_so in signs.items() if is_so},
        }

    def features(self, sentences: Sequence[Sequence[str]]) -> Any:
        """Returns the features of all words, one row each, sentence after sentence."""
        numbers: dict[str, int] = {}
        between = [-1] * max(WINDOW)
        flat = [*between]
        for sentence in sentences:
            flat += [numbers.setdefault(word, len(numbers)) for word in sentence]
            flat += between
        places = np.array(flat)
        middle = np.flatnonzero(places >= 0)
        at = {step: places[middle + step] for step in WINDOW}
        own = self._own.transform(map(self._of_word, numbers)).astype(np.float32)
        near = self._near.transform(map(self._of_neighbour, numbers))
        # The last row, number -1, is of what is between sentences.
        end = sparse.csr_array((1, near.shape[1]))
        near: Any = sparse.vstack([near, end], "csr", np.float32)
        around = [near[at[step]] for step in WINDOW if step]
        codes = np.array([*map(_code, numbers), 0])
        pairs = [(codes[at[step]], codes[at[step + 1]]) for step in WINDOW[:-1]]
        return sparse.hstack([own[at[0]], *around, _hashed(pairs)], "csr")


def _code(word: str) -> int:
    return zlib.crc32(word.casefold().encode())


def _hashed(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
    """Returns a feature of each pair of numbers [n], in one of `PAIRS` columns.

    Which pairs share a column is left to chance: Weinberger et al. 2009,
    https://arxiv.org/abs/0902.2206.
    """
    columns = [(31 * a + b + place) % PAIRS for place, (a, b) in enumerate(pairs)]
    indices = np.stack(columns, axis=1, dtype=np.int32).ravel()
    starts = np.arange(0, len(indices) + 1, len(columns))
    ones = np.ones(len(indices), np.float32)
    return sparse.csr_array((ones, indices, starts), (len(starts) - 1, PAIRS))


def _fit_ranking(task: Any, train: Split) -> Iterator[Candidate]:
    """Fits weights of terms."""
    query = task.config.query
    texts = [e[name] for e in train.examples for name in ("text", query)]
    units = ("words", "parts of words") if _is_spaced(texts) else ("characters",)
    for unit in units:
        vectorizer = _vectorizer(unit, least=1).fit(texts)
        predict = functools.partial(_predict_ranks, task.config, vectorizer)
        yield Candidate(f"cosine of tf-idf of {unit}", predict)


def _predict_ranks(
    config: Any, vectorizer: Any, examples: Sequence[Example]
) -> list[Prediction]:
    """Ranks the texts that `lm.tasks.rank` ranks: all, or of `cross` a few a query."""
    from lm.tasks.rank import CANDIDATES
    from lm.tasks.scores import ranks_of

    places: dict[str, int] = {}
    own = np.array([places.setdefault(e["text"], len(places)) for e in examples])
    texts = vectorizer.transform(places).T
    queries = vectorizer.transform(example[config.query] for example in examples)
    ranks = []
    for start in range(0, len(examples), CHUNK):
        cosines = (queries[start : start + CHUNK] @ texts).toarray()
        rows = np.arange(start, start + len(cosines))
        if config.kind == "cross":
            shown = own[(rows[:, None] + np.arange(CANDIDATES)) % len(examples)]
            hidden = np.ones(cosines.shape, bool)
            np.put_along_axis(hidden, shown, False, axis=1)
            cosines[hidden] = -1
        ranks += ranks_of(cosines, own[rows]).tolist()
    return [{"rank": rank} for rank in ranks]


# Task -> what fits its models.
MODELS: dict[str, Callable[[Any, Split], Iterator[Candidate]]] = {
    "classify": _fit_texts,
    "pair": _fit_texts,
    "rank": _fit_ranking,
    "relation": _fit_texts,
    "tag": _fit_tagger,
}
