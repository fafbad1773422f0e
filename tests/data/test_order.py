"""Which row comes when: the laws of every stream."""

import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.order import BLOCK, Draw, Endless, Mixture, OnePass
from lm.types import UserError


class Layout(NamedTuple):
    """What an order asks of a layout."""

    num_rows: int
    groups: np.ndarray | None = None


PLAIN = st.integers(1, 30).map(Layout)
BUCKETED = st.lists(st.integers(0, 3), min_size=1, max_size=30).map(
    lambda groups: Layout(len(groups), np.array(groups, np.int16))
)
BATCH = st.integers(1, 8)
SEED = st.integers(-1, 5)


def rows_of(order, first, last):
    return [draw for number in range(first, last) for draw in order.batch(number)]


def parts(drawn, size):
    return [drawn[start : start + size] for start in range(0, len(drawn), size)]


@given(PLAIN | BUCKETED, BATCH)
def test_one_pass_draws_every_row_once(layout, batch_size):
    order = OnePass(layout, batch_size)
    batches = [order.batch(number) for number in range(order.num_batches)]
    drawn = list(itertools.chain(*batches))
    assert Counter(drawn) == Counter(Draw(r, 0, 0, r) for r in range(layout.num_rows))
    groups = np.zeros(layout.num_rows) if layout.groups is None else layout.groups
    kinds = [{int(groups[draw.row]) for draw in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    # Rows keep their order, and only the last batch of a bucket is short.
    assert drawn == sorted(drawn, key=lambda draw: (groups[draw.row], draw.row))
    for batch, kind, after in zip(batches, kinds, [*kinds[1:], None]):
        assert len(batch) == batch_size or (len(batch) < batch_size and kind != after)


@given(PLAIN, BATCH, SEED)
def test_every_epoch_draws_every_row_once(layout, batch_size, seed):
    epochs, size = 3, layout.num_rows
    order = Endless([layout], [1], batch_size, seed)
    drawn = rows_of(order, 0, -(-epochs * size // batch_size))
    assert [draw.number for draw in drawn] == list(range(len(drawn)))
    for epoch, part in enumerate(parts(drawn, size)):
        assert {draw.epoch for draw in part} == {epoch}
        if len(part) == size:
            assert sorted(draw.row for draw in part) == list(range(size))


@given(BUCKETED, BATCH, SEED, st.integers(1, 3))
def test_every_epoch_of_buckets_draws_every_row_once(layout, batch_size, seed, epochs):
    order = Endless([layout], [1], batch_size, seed)
    sizes = [size for size in np.bincount(layout.groups).tolist() if size]
    num_batches = sum(-(-epochs * size // batch_size) for size in sizes)
    drawn = rows_of(order, 0, num_batches)
    assert [draw.number for draw in drawn] == list(range(num_batches * batch_size))
    for batch in parts(drawn, batch_size):
        assert len({int(layout.groups[draw.row]) for draw in batch}) == 1
    times = Counter((draw.epoch, draw.row) for draw in drawn)
    assert set(times.values()) == {1}
    # What is drawn of later epochs only fills up a bucket's last batch.
    assert {*itertools.product(range(epochs), range(layout.num_rows))} <= set(times)
    assert all(
        sum(layout.groups[row] == group for epoch, row in times if epoch >= epochs)
        < batch_size
        for group in set(layout.groups.tolist())
    )


CORPORA = st.lists(PLAIN, min_size=1, max_size=3)


@given(CORPORA, BATCH, BATCH, st.integers(0, 50), SEED)
def test_a_row_depends_on_its_number_alone(corpora, batch, other, first_row, seed):
    weights = range(1, len(corpora) + 1)
    stream = rows_of(Endless(corpora, weights, batch, seed), 0, 100 // batch + 1)
    order = Endless(corpora, weights, other, seed, first_row)
    # Later batches are asked for first: nothing is remembered.
    batches = [order.batch(number) for number in reversed(range(50 // other))]
    resumed = list(itertools.chain(*reversed(batches)))
    assert resumed == stream[first_row : first_row + len(resumed)]


@given(st.lists(BUCKETED, min_size=1, max_size=3), BATCH, st.integers(0, 9), SEED)
def test_batches_of_buckets_go_on_where_they_stopped(corpora, batch, done, seed):
    weights = range(1, len(corpora) + 1)
    stream = Endless(corpora, weights, batch, seed)
    order = Endless(corpora, weights, batch, seed, done * batch)
    assert rows_of(order, 0, 8) == rows_of(stream, done, done + 8)


@pytest.mark.parametrize(
    ("groups", "num_batches"),
    [(None, 10), (np.arange(100) % 2, 10), (np.zeros(100, int), 1)],
)
def test_the_order_is_of_the_seed_and_the_epoch(groups, num_batches):
    layout = Layout(100, groups)

    def epoch(number, seed):
        order = Endless([layout], [1], 100 // num_batches, seed)
        drawn = rows_of(order, number * num_batches, (number + 1) * num_batches)
        return [draw.row for draw in drawn]

    orders = {tuple(epoch(number, seed)) for number in (0, 1) for seed in (0, 1)}
    assert len(orders) == 4
    assert epoch(1, seed=0) == epoch(1, seed=0)
    by_bucket = np.arange(100) if groups is None else np.argsort(groups, kind="stable")
    assert epoch(0, seed=-1) == epoch(1, seed=-1) == by_bucket.tolist()


WEIGHTS = st.lists(st.floats(0.1, 10), min_size=1, max_size=4)


@settings(max_examples=30)
@given(WEIGHTS, SEED)
def test_every_block_of_a_mixture_has_the_exact_shares(weights, seed):
    mixture = Mixture(weights, seed)
    drawn = [mixture(number) for number in range(3 * BLOCK)]
    shares = np.array(weights) / sum(weights) * BLOCK
    counts = [
        np.bincount([which for which, _ in block], minlength=len(weights))
        for block in parts(drawn, BLOCK)
    ]
    assert (counts[0] == counts[1]).all()
    assert (counts[0] == counts[2]).all()
    assert (np.abs(counts[0] - shares) < 1).all()
    # Nothing of a source is skipped or comes twice.
    for source in range(len(weights)):
        indices = [index for which, index in drawn if which == source]
        assert indices == list(range(len(indices)))


@settings(max_examples=30)
@given(st.lists(PLAIN, min_size=2, max_size=3), SEED)
def test_every_source_of_a_mixture_is_seen_in_full(corpora, seed):
    drawn = rows_of(Endless(corpora, [3, 2, 1][: len(corpora)], 8, seed), 0, 40)
    for number, layout in enumerate(corpora):
        mine = [draw for draw in drawn if draw.corpus == number]
        for epoch, part in enumerate(parts(mine, layout.num_rows)):
            assert {draw.epoch for draw in part} == {epoch}
            assert len({draw.row for draw in part}) == len(part)


def test_sources_are_mixed_in_every_block_anew():
    mixture = Mixture([1, 1], seed=0)
    first, second = (
        [mixture(number)[0] for number in range(block * BLOCK, (block + 1) * BLOCK)]
        for block in (0, 1)
    )
    assert first != second
    assert first != [Mixture([1, 1], seed=1)(number)[0] for number in range(BLOCK)]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="0.5 is less than 1/1024 of their sum"):
        Mixture([0.5, 1000, 1000], seed=0)
    with pytest.raises(UserError, match="row 6 is not the first of a batch of 4"):
        Endless([Layout(8, np.zeros(8, int))], [1], 4, seed=0, first_row=6)
