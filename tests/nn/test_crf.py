"""Conditional random fields beside a sum over all ways to tag."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.crf import Chains

C = 3
# Documents of wanted tokens; 0 is passed over.
ROWS = np.array(
    [
        [1, 1, 1, 1, 1, 0, 0],
        [0, 1, 0, 1, 2, 2, 0],
        [2, 0, 3, 3, 0, 5, 5],
        [0, 0, 0, 0, 0, 0, 0],
    ]
)


@pytest.fixture(scope="module")
def chains():
    rng = np.random.default_rng(0)
    unary = rng.normal(size=(*ROWS.shape, C), scale=2)
    numbers = [rng.normal(size=size) for size in ((C, C), C, C)]
    return Chains(*(jnp.asarray(x, jnp.float32) for x in (unary, *numbers)), ROWS)


def ways(chains, row):
    """Yields, for each chain of a row, its places and all tags with their scores."""
    unary, transitions, begin, end = (
        np.asarray(x, np.float64)
        for x in (chains.unary[row], chains.transitions, chains.begin, chains.end)
    )
    for document in sorted(set(ROWS[row]) - {0}):
        places = np.flatnonzero(ROWS[row] == document)
        scores = {
            tags: begin[tags[0]]
            + sum(unary[place, tag] for place, tag in zip(places, tags))
            + sum(transitions[pair] for pair in itertools.pairwise(tags))
            + end[tags[-1]]
            for tags in itertools.product(range(C), repeat=len(places))
        }
        yield places, scores


def test_the_partition_is_a_sum_over_all_ways(chains):
    expected = [
        sum(np.log(np.exp(list(s.values())).sum()) for _, s in ways(chains, row))
        for row in range(len(ROWS))
    ]
    np.testing.assert_allclose(chains.log_partition(), expected, rtol=1e-5)


def test_the_likelihood_is_a_share_of_it(chains):
    tags = np.random.default_rng(1).integers(0, C, ROWS.shape)
    expected = [
        sum(
            s[tuple(tags[row, places])] - np.log(np.exp(list(s.values())).sum())
            for places, s in ways(chains, row)
        )
        for row in range(len(ROWS))
    ]
    found = chains.log_likelihood(tags)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_best_tags_are_those_of_the_highest_score(chains):
    found = np.asarray(chains.best())
    for row in range(len(ROWS)):
        for places, scores in ways(chains, row):
            assert tuple(found[row, places]) == max(scores, key=lambda t: scores[t])


def test_of_equal_ways_one_is_chosen_not_two_mixed():
    # Tags must differ from one token to the next: two ways are equally good.
    transitions = jnp.where(jnp.eye(2, dtype=bool), -5.0, 0.0)
    zeros = jnp.zeros(2)
    chains = Chains(jnp.zeros((1, 6, 2)), transitions, zeros, zeros, jnp.ones((1, 6)))
    assert set(np.abs(np.diff(chains.best()[0])).tolist()) == {1}


def test_marginals_are_sums_over_all_ways_that_have_the_tag(chains):
    found = chains.marginals()
    for row in range(len(ROWS)):
        for places, scores in ways(chains, row):
            expected = np.zeros((len(places), C))
            for tags, score in scores.items():
                expected[np.arange(len(places)), tags] += np.exp(score)
            expected /= expected.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(found[row][places], expected, atol=1e-5)


def test_the_gradient_is_what_is_there_less_what_is_expected(chains):
    # Lafferty et al. (2001), section 3: of log p, with respect to a score.
    tags = np.random.default_rng(2).integers(0, C, ROWS.shape)

    def loss(unary):
        return chains.replace(unary=unary).log_likelihood(tags).sum()

    wanted = (ROWS > 0)[:, :, None]
    expected = wanted * (np.eye(C)[tags] - chains.marginals())
    np.testing.assert_allclose(jax.grad(loss)(chains.unary), expected, atol=1e-5)


def test_what_is_not_wanted_changes_nothing(chains):
    other = jnp.where((ROWS > 0)[:, :, None], chains.unary, 7.0)
    tags = np.random.default_rng(3).integers(0, C, ROWS.shape)
    changed = np.where(ROWS > 0, tags, 0)
    np.testing.assert_array_equal(
        chains.log_likelihood(tags), chains.replace(unary=other).log_likelihood(changed)
    )
