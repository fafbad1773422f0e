"""Intervals of scores, over examples and over runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tasks import intervals
from lm.types import UserError

# Other tests' garbage may be collected during one of these.
pytestmark = pytest.mark.filterwarnings(
    "error", "default::pytest.PytestUnraisableExceptionWarning"
)


def mean_of(values):
    values = np.array(values)
    return lambda numbers: {"accuracy": values[numbers].mean()}


@settings(max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_interval_has_the_point_in_it(is_right):
    found = intervals.bootstrap(mean_of(is_right), len(is_right), samples=300)
    low, high = found["accuracy"]
    assert 0 <= low <= np.mean(is_right) <= high <= 1


def test_interval_is_the_binomials():
    is_right = np.arange(1000) < 800
    low, high = intervals.bootstrap(mean_of(is_right), 1000)["accuracy"]
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.004)


def test_a_seed_gives_one_interval():
    score = mean_of(np.arange(50))
    first, again, other = (
        intervals.bootstrap(score, 50, samples=20, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_scores_that_some_samples_lack():
    gold = np.array([0, 1, 1, 1])

    def score(numbers):
        has_both = len(set(gold[numbers].tolist())) == 2
        return {"always": 1.0} | ({"sometimes": 0.5} if has_both else {"new": 0.0})

    found = intervals.bootstrap(score, 4, samples=50)
    assert found == {"always": (1, 1), "sometimes": (0.5, 0.5)}
    assert intervals.bootstrap(score, 4, samples=0) == {}


def test_bootstrap_is_watched():
    seen = []

    def watch(numbers, total):
        for number in numbers:
            seen.append((number, total))
            yield number

    intervals.bootstrap(mean_of([1.0]), 1, samples=3, watch=watch)
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_interval_of_seeds_by_the_table_of_t():
    mean, low, high = intervals.interval_of_seeds([1, 2, 3, 4, 5])
    half = 2.776 * np.sqrt(2.5 / 5)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-3)
    assert intervals.interval_of_seeds([2, 2]) == (2, 2, 2)
    mean, *bounds = intervals.interval_of_seeds([0.7])
    assert mean == 0.7
    assert np.isnan(bounds).all()


def test_nothing_to_score():
    with pytest.raises(UserError, match="no examples"):
        intervals.bootstrap(mean_of([]), 0)
    with pytest.raises(UserError, match="no runs"):
        intervals.interval_of_seeds([])
