"""Every unit has its place: the laws of all layouts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.packing import (
    BucketRows,
    ConcatRows,
    EpochCache,
    FitRows,
    Piece,
    WindowRows,
    cut,
    join,
    permutation,
)
from lm.types import UserError

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=40).map(np.array)
LENGTH = st.integers(1, 20)
SEED = st.integers(-1, 5)


def all_pieces(rows, epoch=0):
    return [rows.pieces(epoch, row) for row in range(rows.num_rows)]


def scored_units(rows, epoch=0):
    return Counter(
        (piece.doc, unit)
        for pieces in all_pieces(rows, epoch)
        for piece in pieces
        for unit in range(piece.score_from, piece.stop)
    )


def units_of(sizes):
    return Counter((doc, unit) for doc, n in enumerate(sizes) for unit in range(n))


def check_sound(rows):
    """Rows are never empty nor overfull, pieces never empty nor beyond context."""
    for row, pieces in enumerate(all_pieces(rows)):
        assert pieces
        assert sum(p.stop - p.start for p in pieces) <= rows.capacity(row)[0]
        assert all(0 <= p.start <= p.score_from < p.stop for p in pieces)
        assert all(type(field) is int for p in pieces for field in p)


@given(SIZES, LENGTH, SEED, st.integers(0, 3))
def test_concat_places_every_unit_once_an_epoch(sizes, length, seed, epoch):
    rows = ConcatRows(sizes, length, seed)
    check_sound(rows)
    assert scored_units(rows, epoch) == units_of(sizes)
    # Only the last row is padded.
    filled = [sum(p.stop - p.start for p in row) for row in all_pieces(rows, epoch)]
    assert filled[:-1] == [length] * (len(filled) - 1)


@given(SIZES, LENGTH, SEED)
def test_fit_places_every_unit_once(sizes, length, seed):
    rows = FitRows(sizes[:, None], (length,), seed)
    check_sound(rows)
    assert scored_units(rows, 2) == units_of(sizes)


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 7)), min_size=1, max_size=40
    ).map(np.array),
    SEED,
)
def test_fit_keeps_within_every_capacity(sizes, seed):
    rows = FitRows(sizes, (12, 7), seed)
    docs = [piece.doc for pieces in all_pieces(rows) for piece in pieces]
    assert sorted(docs) == np.flatnonzero(sizes.any(axis=1)).tolist()
    for row, pieces in enumerate(all_pieces(rows)):
        used = sizes[[piece.doc for piece in pieces]].sum(axis=0)
        assert (used <= rows.capacity(row)).all()
        assert all(
            (p.start, p.stop, p.score_from) == (0, sizes[p.doc, 0], 0) for p in pieces
        )


@given(SIZES, SEED)
def test_fit_takes_pieces_of_documents(sizes, seed):
    pieces = cut(sizes, 8)
    taken = np.stack([pieces[:, 2] - pieces[:, 1], np.full(len(pieces), 2)], axis=1)
    rows = FitRows(taken, (16, 6), seed, pieces)
    assert scored_units(rows) == units_of(sizes)
    assert all(len(row) <= 3 for row in all_pieces(rows))


@given(SIZES, st.sets(st.integers(1, 20), min_size=1, max_size=4).map(sorted))
def test_buckets_place_every_unit_once_in_the_smallest_that_holds(sizes, boundaries):
    rows = BucketRows(sizes, boundaries)
    check_sound(rows)
    assert scored_units(rows) == units_of(sizes)
    for row, (piece,) in enumerate(all_pieces(rows)):
        size = piece.stop - piece.start
        assert rows.capacity(row)[0] == min(b for b in boundaries if b >= size)
        assert rows.capacity(row)[0] == boundaries[rows.groups[row]]


@given(SIZES, LENGTH, st.data())
def test_windows_score_every_unit_once_with_context(sizes, length, data):
    stride = data.draw(st.integers(1, length))
    rows = WindowRows(sizes, length, stride)
    check_sound(rows)
    assert scored_units(rows) == units_of(sizes)
    docs = [piece.doc for pieces in all_pieces(rows) for piece in pieces]
    assert docs == sorted(docs)
    for pieces in all_pieces(rows):
        for piece in pieces:
            context = length - stride if piece.start else 0
            assert piece.score_from - piece.start == context


def test_order_is_of_the_seed_and_the_epoch():
    sizes = np.arange(1, 100)
    rows = ConcatRows(sizes, 16, seed=3)
    again = ConcatRows(sizes, 16, seed=3)
    # Asked for in another order, from another object.
    backwards = [again.pieces(1, row) for row in reversed(range(again.num_rows))]
    assert all_pieces(rows, 1) == backwards[::-1]
    assert all_pieces(rows, 0) != all_pieces(rows, 1)
    assert all_pieces(rows, 0) != all_pieces(ConcatRows(sizes, 16, seed=4), 0)
    plain = ConcatRows(sizes, 16, seed=-1)
    docs = [piece.doc for pieces in all_pieces(plain, 5) for piece in pieces]
    assert docs == sorted(docs)


def test_fit_wastes_little():
    sizes = np.random.default_rng(0).geometric(1 / 40, 20_000).clip(max=256)
    rows = FitRows(sizes, (256,), seed=0)
    assert sizes.sum() / (rows.num_rows * 256) > 0.99


def test_fit_of_two_capacities_wastes_little():
    rng = np.random.default_rng(0)
    inputs = rng.integers(4, 128, 5_000)
    sizes = np.stack([inputs, (inputs * rng.uniform(0.7, 1.3, 5_000)).clip(1)], axis=1)
    sizes = sizes.astype(int)
    rows = FitRows(sizes, (256, 256), seed=0)
    assert sizes.sum() / (rows.num_rows * 512) > 0.9


def test_layouts_of_nothing_have_no_rows():
    nothing = np.zeros(3, np.int64)
    for rows in (
        ConcatRows(nothing, 4, 0),
        FitRows(nothing, (4,), 0),
        FitRows(np.zeros((3, 2), int), (4, 4), 0),
        BucketRows(nothing, (4, 8)),
        WindowRows(nothing, 4, 2),
    ):
        assert rows.num_rows == 0


def test_buckets_of_two_capacities():
    rows = BucketRows(np.array([[3, 9], [4, 4], [1, 8]]), ((4, 4), (4, 8), (8, 16)))
    assert [rows.capacity(row) for row in range(3)] == [(8, 16), (4, 4), (4, 8)]


def test_a_document_too_large_is_named():
    with pytest.raises(UserError, match=r"document 1 takes \(3, 9\).*holds \(8, 8\)"):
        FitRows(np.array([[1, 1], [3, 9]]), (8, 8), 0)


def test_join_keeps_pieces_apart():
    tokens, segment_ids, positions = join(
        [np.array([7, 8, 9]), np.array([4, 5])], 7, pad_id=1
    )
    assert tokens.tolist() == [7, 8, 9, 4, 5, 1, 1]
    assert segment_ids.tolist() == [1, 1, 1, 2, 2, 0, 0]
    assert positions.tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert {a.dtype for a in (tokens, segment_ids, positions)} == {np.dtype(np.int32)}
    assert not any(join([], 3)[1])


def test_permutation_differs_by_every_key():
    orders = {
        tuple(permutation(50, seed, use, epoch))
        for seed in (0, 1)
        for use in (1, 2)
        for epoch in (0, 1)
    }
    assert len(orders) == 8
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_epoch_cache_computes_each_of_two_epochs_once():
    asked = []
    cache = EpochCache(lambda epoch: asked.append(epoch) or epoch)
    assert [cache(e) for e in (0, 1, 0, 1, 2, 1, 2)] == [0, 1, 0, 1, 2, 1, 2]
    assert asked == [0, 1, 2]


def test_pieces_are_named():
    assert WindowRows(np.array([2]), 4, 4).pieces(0, 0) == [Piece(0, 0, 2, 0)]
