"""Scores of predictions: tiny cases by hand, laws, and odd inputs without warnings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics

from lm.tasks import scores
from lm.types import UserError

# Other tests' garbage may be collected during one of these.
pytestmark = pytest.mark.filterwarnings(
    "error", "default::pytest.PytestUnraisableExceptionWarning"
)

NAMES = ("a", "b", "c", "d")


@st.composite
def classified(draw, classes=(2, 3, 4)):
    """Draws gold [n] and probabilities [n, C], some classes missing, some equal."""
    n, size = draw(st.integers(1, 12)), draw(st.sampled_from(classes))
    gold = draw(arrays.arrays(int, n, elements=st.integers(0, size - 1)))
    weights = draw(arrays.arrays(int, (n, size), elements=st.integers(1, 5)))
    return gold, weights / weights.sum(axis=1, keepdims=True)


@st.composite
def several(draw):
    """Draws gold [n, C], bool, and probabilities [n, C]."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(2, 4)))
    chances = st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 1.0])
    return (
        draw(arrays.arrays(bool, shape)),
        draw(arrays.arrays(float, shape, elements=chances)),
    )


def one_hot(gold, size):
    return np.eye(size)[gold]


def test_classification_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.6, 0.4]])
    found = scores.classification(np.array([0, 0, 1, 1]), probabilities, NAMES[:2])
    assert all(type(value) is float for value in found.values())
    # The second and the last are wrong; 3 of 4 pairs of both classes are in order.
    assert found["accuracy"] == found["f1_micro"] == found["f1_macro"] == 0.5
    assert found["auc"] == 0.75
    assert found["mcc"] == 0
    log = np.log([0.9, 0.4, 0.7, 0.4])
    assert found["log_loss"] == pytest.approx(-log.mean())
    # Two of them share the bin of 0.6; the others have bins of their own.
    assert found["ece"] == pytest.approx((0.1 + 0.3 + 0.6 + 0.6) / 4)


def test_averages_by_hand():
    gold, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    found = scores.averages(gold, predicted, np.arange(2))
    assert found["precision_macro"] == (1 + 1 / 2) / 2
    assert found["recall_macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["f1_weighted"] == pytest.approx((3 * 4 / 5 + 2 / 3) / 4)
    assert found["f1_micro"] == 0.75
    none = scores.averages(gold, predicted, np.arange(0))
    assert none == dict.fromkeys(found, 0)


@given(classified())
def test_perfect_classes(case):
    gold, probabilities = case
    size = probabilities.shape[1]
    found = scores.classification(gold, one_hot(gold, size), NAMES[:size])
    assert found.pop("ece") == 0
    assert found.pop("log_loss") == pytest.approx(0)
    assert all(value == pytest.approx(1) for value in found.values())
    assert ("auc" in found) == ("mcc" in found) == (len(set(gold.tolist())) > 1)


@given(classified(), st.randoms())
def test_names_of_classes_do_not_matter(case, random):
    gold, probabilities = case
    size = probabilities.shape[1]
    # No ties, of which the first wins; of two classes the last has the auc.
    probabilities = probabilities + np.arange(size) / 1e6
    order = random.sample(range(size), size)
    before = scores.classification(gold, probabilities, NAMES[:size])
    after = scores.classification(
        np.argsort(order)[gold], probabilities[:, order], NAMES[:size]
    )
    assert after == pytest.approx(before)


@given(classified([3]))
def test_auc_is_scikit_learns_where_that_has_one(case):
    gold, probabilities = case
    found = scores.classification(gold, probabilities, NAMES[:3])
    if len(set(gold.tolist())) == 3:
        expected = metrics.roc_auc_score(gold, probabilities, multi_class="ovr")
        assert found["auc"] == pytest.approx(expected)


def test_scores_are_of_the_classes_that_are_there():
    gold, probabilities = np.array([0, 1, 0]), one_hot([0, 1, 0], 4)
    assert scores.classification(gold, probabilities, NAMES)["f1_macro"] == 1
    assert scores.classification(gold, probabilities, NAMES)["auc"] == 1


def test_probabilities_of_low_precision():
    exact = np.random.default_rng(0).dirichlet(np.ones(4), size=50)
    gold = np.arange(50) % 4
    rough = exact.astype(np.float16)
    found = scores.classification(gold, rough, NAMES)
    expected = scores.classification(gold, exact, NAMES)
    assert found == pytest.approx(expected, abs=0.01)


def test_ece_of_well_and_badly_calibrated_predictions():
    rng = np.random.default_rng(0)
    last = rng.random(20_000)
    probabilities = np.stack([1 - last, last], axis=1)
    honest = (rng.random(20_000) < last).astype(int)
    assert scores.classification(honest, probabilities, NAMES[:2])["ece"] < 0.02
    coin = rng.integers(2, size=20_000)
    assert scores.classification(coin, probabilities, NAMES[:2])["ece"] > 0.2


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1))
def test_calibration_counts_each_once(pairs):
    is_right, confidence = map(np.array, zip(*pairs))
    bins = scores.calibration(is_right, confidence)
    assert len(bins) <= 15
    assert sum(b["count"] for b in bins) == len(pairs)
    right = sum(b["count"] * b["accuracy"] for b in bins)
    assert right == pytest.approx(is_right.sum())
    for one, other in zip(bins, bins[1:]):
        assert one["confidence"] < other["confidence"]


def test_upper_edge_belongs_to_the_bin():
    (one,) = scores.calibration(np.array([True, False]), np.array([0.5, 0.1]), bins=2)
    assert one["count"] == 2
    assert len(scores.calibration(np.ones(2), np.array([0.0, 1.0]))) == 2


def test_multilabel_by_hand():
    gold = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool)
    probabilities = np.array([[0.9, 0.2], [0.8, 0.1], [0.3, 0.2], [0.6, 0.7]])
    found = scores.multilabel(gold, probabilities, np.array([0.5, 0.5]))
    # Right are 3 of the 4 that are predicted; 3 of the 4 of gold are found.
    assert (
        found["f1_micro"] == found["precision_micro"] == found["recall_micro"] == 0.75
    )
    assert found["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["accuracy"] == 0.5
    assert found["f1_samples"] == pytest.approx((1 + 2 / 3 + 1 + 2 / 3) / 4)
    assert found["auc"] == pytest.approx((4 / 4 + 2 / 4) / 2)
    assert found["average_precision"] == pytest.approx((1 + (1 + 2 / 4) / 2) / 2)
    strict = scores.multilabel(gold, probabilities, np.array([0.7, 0.5]))
    assert strict["accuracy"] == 0.75


@given(several())
def test_perfect_labels(case):
    gold, _ = case
    found = scores.multilabel(gold, gold.astype(float), np.full(gold.shape[1], 0.5))
    assert found.pop("accuracy") == found.pop("f1_samples") == 1
    if gold.any():
        assert set(found.values()) == {1}
    else:
        assert set(found.values()) == {0}
        assert "average_precision" not in found


@given(several(), st.floats(0, 1))
def test_best_thresholds_have_the_best_f1(case, other):
    gold, probabilities = case
    thresholds = scores.best_thresholds(gold, probabilities)
    for is_positive, chances, threshold in zip(gold.T, probabilities.T, thresholds):
        if not is_positive.any():
            assert threshold == 0.5
            continue
        best = metrics.f1_score(is_positive, chances >= threshold)
        for tried in [other, *chances]:
            f1 = metrics.f1_score(is_positive, chances >= tried, zero_division=0)
            assert f1 <= best + 1e-9


def test_best_threshold_lies_halfway():
    gold = np.array([[1, 1], [1, 1], [0, 1]], bool)
    probabilities = np.array([[0.99, 0.8], [0.97, 0.6], [0.01, 0.4]])
    found = scores.best_thresholds(gold, probabilities)
    np.testing.assert_allclose(found, [0.49, 0.2])


def test_best_threshold_between_neighbouring_numbers():
    low = 0.5 + np.finfo(float).epsneg
    probabilities = np.array([[low], [np.nextafter(low, 1)]])
    (threshold,) = scores.best_thresholds(np.array([[False], [True]]), probabilities)
    assert (probabilities[:, 0] >= threshold).tolist() == [False, True]


def test_regression_by_hand():
    found = scores.regression(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0]))
    assert found == pytest.approx(
        {
            "pearson": 5 / np.sqrt(2 * 14),
            "spearman": 1,
            "r2": 1 - 9 / 2,
            "mse": 3,
            "mae": 1,
        }
    )


@pytest.mark.parametrize(
    ("gold", "predicted", "names"),
    [
        ([1.0], [2.0], {"mse", "mae"}),
        ([1.0, 1.0], [1.0, 2.0], {"mse", "mae"}),
        ([1.0, 2.0], [3.0, 3.0], {"r2", "mse", "mae"}),
        ([1.0, 2.0], [1e9, 1e9 + 1e-7], {"r2", "mse", "mae"}),
        ([1.0, 2.0], [3.0, 1.0], {"pearson", "spearman", "r2", "mse", "mae"}),
    ],
)
def test_regression_without_variance(gold, predicted, names):
    assert set(scores.regression(np.array(gold), np.array(predicted))) == names


@given(st.lists(st.floats(-1e3, 1e3), min_size=1))
def test_perfect_numbers(numbers):
    found = scores.regression(np.array(numbers), np.array(numbers))
    assert found.pop("mse") == found.pop("mae") == 0
    assert all(value == pytest.approx(1) for value in found.values())


def test_ranking_by_hand():
    found = scores.ranking(np.array([1, 2, 7, 11]))
    assert found["recall@1"] == 0.25
    assert found["recall@5"] == 0.5
    assert found["recall@10"] == 0.75
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 7 + 1 / 11) / 4)


@given(st.integers(1, 6), st.integers(2, 15), st.randoms())
def test_ndcg_is_scikit_learns(n, documents, random):
    rows = [random.sample(range(documents), documents) for _ in range(n)]
    right = np.array([random.randrange(documents) for _ in range(n)])
    ranks = scores.ranks_of(np.array(rows), right)
    relevance = one_hot(right, documents)
    expected = metrics.ndcg_score(relevance, rows, k=10)
    assert scores.ranking(ranks)["ndcg@10"] == pytest.approx(expected)


def test_equal_similarities_rank_last():
    assert scores.ranks_of(np.ones((2, 5)), np.array([0, 4])).tolist() == [5, 5]


def test_confusion_and_rows_of_classes_that_are_not_there():
    gold, predicted = np.array([0, 0, 2]), np.array([0, 2, 2])
    matrix = scores.confusion(gold, predicted, NAMES[:3])
    assert matrix == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    rows = scores.per_class(gold, predicted, NAMES[:3])
    assert [row["support"] for row in rows] == [2, 0, 1]
    assert rows[0]["precision"] == 1
    assert rows[0]["recall"] == 0.5
    assert rows[1]["f1"] == 0
    assert scores.confusion([1], [1], NAMES[:2]) == [[0, 0], [0, 1]]


def test_rows_of_several_classes():
    gold = np.array([[1, 0], [1, 1]], bool)
    rows = scores.per_class(gold, np.array([[1, 1], [0, 1]], bool), NAMES[:2])
    assert [row["recall"] for row in rows] == [0.5, 1]


def test_roc():
    rng = np.random.default_rng(0)
    is_positive = rng.random(5000) < 0.3
    probability = np.clip(0.3 * is_positive + rng.random(5000), 0, 1)
    curve = scores.roc(is_positive, probability)
    assert len(curve["points"]) == 200
    assert curve["points"][0] == [0, 0]
    assert curve["points"][-1] == [1, 1]
    exact = metrics.roc_auc_score(is_positive, probability)
    assert curve["auc"] == pytest.approx(exact)
    assert metrics.auc(*np.array(curve["points"]).T) == pytest.approx(exact, abs=0.01)
    few = scores.roc(np.array([True, False]), np.array([0.9, 0.1]))
    assert few == {"points": [[0, 0], [0, 1], [1, 1]], "auc": 1}
    assert scores.roc(np.array([True, True]), np.array([0.2, 0.3])) == {}


NAN = np.array([[0.5, 0.5], [np.nan, 0.5]])
BOTH = np.array([[True, False], [False, True]])


@pytest.mark.parametrize(
    "score",
    [
        lambda: scores.classification(np.array([0, 1]), NAN, NAMES[:2]),
        lambda: scores.multilabel(BOTH, NAN, np.array([0.5, 0.5])),
        lambda: scores.best_thresholds(BOTH, NAN),
        lambda: scores.regression(np.array([1.0, 2.0]), np.array([1.0, np.inf])),
        lambda: scores.ranks_of(NAN, np.array([0, 1])),
    ],
)
def test_predictions_that_are_not_finite(score):
    with pytest.raises(UserError, match="example 2 of 2 is not finite; .*earlier step"):
        score()


@pytest.mark.parametrize(
    "score",
    [
        lambda: scores.classification(np.zeros(0, int), np.array([]), NAMES[:2]),
        lambda: scores.multilabel(np.zeros((0, 2), bool), np.zeros((0, 2)), np.ones(2)),
        lambda: scores.best_thresholds(np.zeros((0, 2), bool), np.zeros((0, 2))),
        lambda: scores.regression(np.array([]), np.array([])),
        lambda: scores.ranking(np.array([])),
    ],
)
def test_no_examples(score):
    with pytest.raises(UserError, match="no examples to score; check the split"):
        score()
