"""Scores of a whole split's predictions.

They are computed by scikit-learn and SciPy, which load when they are first needed. A
ratio of nothing to nothing (the precision of a class that is never predicted) is 0. A
score that is not defined for the examples is left out. Scores of tags and texts are in
`lm.tasks.text_scores`, intervals in `lm.tasks.intervals`.

Axes: n examples, C classes, D documents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.types import UserError

NO_EXAMPLES = "there are no examples to score; check the split and its source"

AVERAGES = ("micro", "macro", "weighted")

# What scikit-learn takes a ratio of nothing to nothing for; by default it also warns.
ZERO: Any = 0
ONE: Any = 1


def classification(
    gold: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]
) -> dict[str, float]:
    """Scores predictions of one class for each example: the most probable one.

    Args:
        gold: Number of the right class [n].
        probabilities: [n, C].
        labels: Names of the C classes, two or more.

    Returns:
        accuracy; precision, recall and f1, averaged as by `averages` over the classes
        that are in gold or predicted; auc, of the last of two classes, and the mean
        over one against the rest of more, over those in gold (left out where only one
        is); mcc, Matthews' correlation (left out there too); ece, the expected
        calibration error (see `calibration`); log_loss, in nats.

    Raises:
        UserError: If there are no examples, or a probability is not finite.
    """
    from sklearn import metrics

    gold, probabilities = np.asarray(gold), _finite(probabilities)
    predicted = probabilities.argmax(axis=1)
    classes = np.arange(len(labels))
    judged = classes[-1:] if len(classes) == 2 else classes
    scores = {
        "accuracy": metrics.accuracy_score(gold, predicted),
        **averages(gold, predicted, np.union1d(gold, predicted)),
        **_auc(gold[:, None] == judged, probabilities[:, judged]),
    }
    if len(np.unique(gold)) > 1:
        scores["mcc"] = metrics.matthews_corrcoef(gold, predicted)
    bins = calibration(predicted == gold, probabilities.max(axis=1))
    scores["ece"] = sum(
        b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins
    ) / len(gold)
    # Rounded to float32 or less, they may not add up to 1.
    shares = probabilities / probabilities.sum(axis=1, keepdims=True)
    scores["log_loss"] = metrics.log_loss(gold, shares, labels=classes)
    return _floats(scores)


def multilabel(
    gold: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray
) -> dict[str, float]:
    """Scores predictions of any number of classes for each example.

    Args:
        gold: Which classes are right [n, C], bool.
        probabilities: Of each class alone [n, C].
        thresholds: The least probability of each class that counts [C].

    Returns:
        f1, precision and recall, averaged as by `averages` over the classes that are in
        gold or predicted; f1_samples, the mean over examples, where one that has no
        class and is given none counts 1; accuracy, the share of examples with exactly
        the right classes; auc and average_precision, means over the classes for which
        they are defined.

    Raises:
        UserError: If there are no examples, or a probability is not finite.
    """
    from sklearn import metrics

    gold, probabilities = np.asarray(gold, bool), _finite(probabilities)
    predicted = probabilities >= thresholds
    there = np.flatnonzero((gold | predicted).any(axis=0))
    scores = {
        **averages(gold, predicted, there),
        "f1_samples": metrics.f1_score(
            gold, predicted, average="samples", zero_division=ONE
        ),
        "accuracy": metrics.accuracy_score(gold, predicted),
        **_auc(gold, probabilities),
    }
    if len(known := np.flatnonzero(gold.any(axis=0))):
        scores["average_precision"] = metrics.average_precision_score(
            gold[:, known], probabilities[:, known]
        )
    return _floats(scores)


def averages(
    gold: np.ndarray,
    predicted: np.ndarray,
    classes: np.ndarray,
    kinds: Sequence[str] = AVERAGES,
) -> dict[str, float]:
    """Returns precision, recall and F1 over some classes, averaged in several ways.

    `micro` counts the decisions of all classes together, `macro` is the mean over
    classes, `weighted` the mean weighted by how often gold has them.

    Args:
        gold: Numbers of classes [n], or which of them there are, bool [n, C].
        predicted: As `gold`.
        classes: Numbers of those that count; all scores of none are 0.
        kinds: Of averages.

    >>> gold, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    >>> averages(gold, predicted, np.arange(2), ["micro"])
    {'f1_micro': 0.75, 'precision_micro': 0.75, 'recall_micro': 0.75}
    """
    from sklearn.metrics import precision_recall_fscore_support

    scores = {}
    for kind in kinds:
        precision = recall = f1 = 0.0
        if len(classes):
            precision, recall, f1, _ = precision_recall_fscore_support(
                gold, predicted, labels=classes, average=kind, zero_division=ZERO
            )
        scores |= {
            f"f1_{kind}": float(f1),
            f"precision_{kind}": float(precision),
            f"recall_{kind}": float(recall),
        }
    return scores


def regression(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Scores predictions of a number.

    Args:
        gold: The right numbers [n].
        predicted: [n].

    Returns:
        pearson and spearman, correlations (left out where gold or predicted does not
        vary); r2, the share of gold's variance that is explained (left out where gold
        does not vary); mse and mae, the mean squared and absolute errors.

    Raises:
        UserError: If there are no examples, or a prediction is not finite.
    """
    from scipy import stats
    from sklearn import metrics

    gold, predicted = np.asarray(gold, np.float64), _finite(predicted)
    scores = {}
    if _varies(gold) and _varies(predicted):
        scores["pearson"] = stats.pearsonr(gold, predicted)[0]
        scores["spearman"] = stats.spearmanr(gold, predicted)[0]
    if _varies(gold):
        scores["r2"] = metrics.r2_score(gold, predicted)
    scores["mse"] = metrics.mean_squared_error(gold, predicted)
    scores["mae"] = metrics.mean_absolute_error(gold, predicted)
    return _floats(scores)


def ranking(ranks: np.ndarray) -> dict[str, float]:
    """Scores the places of the one right document of each query.

    Args:
        ranks: From 1 [n]; see `ranks_of`.

    Returns:
        recall@1, @5 and @10, the share of queries whose document is among so many; mrr,
        the mean reciprocal rank (Voorhees 1999,
        https://trec.nist.gov/pubs/trec8/papers/qa_report.pdf); ndcg@10, the discounted
        cumulative gain (Järvelin and Kekäläinen 2002,
        https://doi.org/10.1145/582415.582418), which for one right document is
        1 / log2(1 + rank).

    Raises:
        UserError: If there are no queries.

    >>> ranking(np.array([1, 3]))["ndcg@10"]
    0.75
    """
    ranks = _finite(ranks)
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
    scores = {f"recall@{k}": np.mean(ranks <= k) for k in (1, 5, 10)}
    return _floats(scores | {"mrr": np.mean(1 / ranks), "ndcg@10": gains.mean()})


def ranks_of(similarities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the place of each query's right document, from 1 [n].

    Documents that are as similar as the right one come before it, so that a model that
    finds all alike ranks it last.

    Args:
        similarities: Of each query to each document [n, D].
        right: Number of its right document [n].

    Raises:
        UserError: If there are no queries, or a similarity is not finite.

    >>> similarities = np.array([[0.9, 0.1, 0.5], [0.2, 0.2, 0.1]])
    >>> ranks_of(similarities, np.array([2, 0])).tolist()
    [2, 2]
    """
    similarities = _finite(similarities)
    of_right = np.take_along_axis(similarities, np.asarray(right)[:, None], axis=1)
    return (similarities >= of_right).sum(axis=1)


def confusion(
    gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> list[list[int]]:
    """Counts the examples of each right class (row) and predicted class (column).

    Args:
        gold: Numbers of the right classes [n].
        predicted: Numbers of the predicted classes [n].
        labels: Names of the C classes.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), ["a", "b"])
    [[1, 1], [0, 1]]
    """
    from sklearn import metrics

    classes = range(len(labels))
    return metrics.confusion_matrix(gold, predicted, labels=classes).tolist()


def per_class(
    gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns label, precision, recall, f1 and support (how many are in gold) of each.

    Args:
        gold: Numbers of classes [n], or which of them there are, bool [n, C].
        predicted: As `gold`.
        labels: Names of the C classes.

    >>> per_class(np.array([0, 1, 1]), np.array([0, 2, 2]), ["a", "b", "c"])[:2]
    [{'label': 'a', 'precision': 1.0, 'recall': 1.0, 'f1': 1.0, 'support': 1},
     {'label': 'b', 'precision': 0.0, 'recall': 0.0, 'f1': 0.0, 'support': 2}]
    """
    from sklearn import metrics

    columns = metrics.precision_recall_fscore_support(
        gold, predicted, labels=range(len(labels)), average=None, zero_division=ZERO
    )
    names = ("label", "precision", "recall", "f1", "support")
    rows = zip(labels, *(np.asarray(column).tolist() for column in columns))
    return [dict(zip(names, row)) for row in rows]


def calibration(
    is_right: np.ndarray, confidence: np.ndarray, bins: int = 15
) -> list[dict[str, Any]]:
    """Compares how sure predictions are with how often they are right.

    Args:
        is_right: Whether each prediction is [n].
        confidence: The probability given to each [n].
        bins: Of equal width, the upper edge belonging to each, as in Guo et al. (2017),
            https://arxiv.org/abs/1706.04599, section 2. Their expected calibration
            error is the mean of |accuracy - confidence|, weighted by count.

    Returns:
        Of each bin that is not empty: mean confidence, accuracy and count.

    >>> calibration(np.array([True, False]), np.array([0.5, 0.52]), bins=2)
    [{'confidence': 0.5, 'accuracy': 1.0, 'count': 1},
     {'confidence': 0.52, 'accuracy': 0.0, 'count': 1}]
    """
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    number = np.digitize(confidence, inner_edges, right=True)
    count = np.bincount(number)
    sure = np.bincount(number, confidence)
    right = np.bincount(number, is_right)
    return [
        {
            "confidence": float(sure[b] / count[b]),
            "accuracy": float(right[b] / count[b]),
            "count": int(count[b]),
        }
        for b in np.flatnonzero(count)
    ]


def roc(
    is_positive: np.ndarray, probability: np.ndarray, max_points: int = 200
) -> dict[str, Any]:
    """Returns the receiver operating characteristic of one class.

    Args:
        is_positive: Whether each example is of the class [n].
        probability: Of the class [n].
        max_points: More of the curve's corners are thinned out evenly.

    Returns:
        points, [false positive rate, true positive rate] from [0, 0] to [1, 1], and
        auc, of the whole curve. Nothing if all examples are of the class or none is.
    """
    from sklearn import metrics

    if len(np.unique(is_positive)) < 2:
        return {}
    false, true, _ = metrics.roc_curve(is_positive, probability)
    kept = np.linspace(0, len(false) - 1, min(len(false), max_points)).round()
    points = np.stack([false, true], axis=1)[kept.astype(int)].tolist()
    return {"points": points, "auc": float(metrics.auc(false, true))}


def best_thresholds(gold: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the least probability to count of each class that gives the best F1 [C].

    To be found on other examples than those that are scored. It lies halfway between
    the lowest probability that then counts and the highest that does not (0 if all
    count); of several that are as good, it is the lowest. A class that no example has
    gets 0.5.

    Args:
        gold: Which classes are right [n, C], bool.
        probabilities: Of each class alone [n, C].

    Raises:
        UserError: If there are no examples, or a probability is not finite.

    >>> gold = np.array([[False], [True], [True]])
    >>> best_thresholds(gold, np.array([[0.1], [0.3], [0.9]]))
    array([0.2])
    """
    from sklearn.metrics import precision_recall_curve

    def best(is_positive: np.ndarray, probability: np.ndarray) -> float:
        if not is_positive.any():
            return 0.5
        precision, recall, lowest = precision_recall_curve(is_positive, probability)
        total = precision + recall
        f1 = 2 * precision * recall / np.where(total, total, 1)
        # The last point counts nothing and has no threshold.
        i = f1[:-1].argmax()
        below = lowest[i - 1] if i else 0.0
        # Of two neighbouring numbers, half their sum may be the lower one.
        return max((below + lowest[i]) / 2, np.nextafter(below, lowest[i]))

    gold, probabilities = np.asarray(gold, bool), _finite(probabilities)
    return np.array([best(*columns) for columns in zip(gold.T, probabilities.T)])


def _finite(predictions: np.ndarray) -> np.ndarray:
    """Returns predictions [n, ...] as float64, having checked them."""
    values = np.asarray(predictions, np.float64)
    if not len(values):
        raise UserError(NO_EXAMPLES)
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise UserError(
            f"the prediction for example {bad.argmax() + 1} of {len(values)} is not "
            "finite; take an earlier step, or train with a lower learning rate"
        )
    return values


def _auc(is_positive: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Returns the mean area under the ROC curves [n, C] of classes that have one."""
    from sklearn import metrics

    known = np.flatnonzero(is_positive.any(axis=0) & ~is_positive.all(axis=0))
    if not len(known):
        return {}
    return {
        "auc": metrics.roc_auc_score(is_positive[:, known], probabilities[:, known])
    }


def _varies(values: np.ndarray) -> bool:
    """Returns whether numbers differ by more than rounding."""
    return bool(np.ptp(values) > 1e-12 * np.abs(values).max())


def _floats(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}
