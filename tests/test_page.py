import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lm.page import (
    MAX_POINTS,
    SHOWN_CHARS,
    Chart,
    curve_chart,
    interval,
    long_text,
    number,
    strip,
    strip_axis,
    thin,
    tick_labels,
    ticks,
)

FINITE = st.floats(-1e12, 1e12)
VALUES = st.one_of(FINITE, st.just(math.nan), st.just(math.inf), st.none())


def coordinates(svg):
    places = re.findall(r' (?:c?[xy][12]?|width|height|points)="([^"]*)"', svg)
    found = [float(n.rstrip("%")) for place in places for n in re.split("[ ,]", place)]
    assert found and all(map(math.isfinite, found))
    return found


def test_long_texts_are_cut_between_words_where_there_are_any():
    assert "details" not in long_text("short")
    for text in ("word " * 200, "字" * 999, "مرحبا " * 200):
        page = long_text(text)
        start = re.search(r"auto>(.*?) …</span>", page)[1]
        assert text.startswith(start) and text in page
        assert SHOWN_CHARS / 2 <= len(start) <= SHOWN_CHARS
        assert " " not in text or text[len(start)] == " "
        assert page.count("dir=auto") == 2


@given(st.lists(st.tuples(VALUES, VALUES), max_size=30), VALUES)
def test_curves_have_places_whatever_their_values(points, step):
    if kept := thin(points):
        caption, chart = curve_chart("loss", {"a": kept, "b": kept[:1]}, step)
        coordinates(chart.svg())
        assert caption.count("key") == 2


@given(FINITE, FINITE)
@example(3.0, 3.0)
@example(0.0, 5e-324)
@example(1.0, 1.0 + 1e-15)
def test_ticks_are_round_few_and_around(a, b):
    low, high = sorted((a, b))
    at = ticks(low, high)
    steps = [y - x for x, y in zip(at, at[1:])]
    slack = 1e-6 * max(abs(low), abs(high), 1e-9)
    assert 2 <= len(at) <= 8 and at[0] <= low + slack and high - slack <= at[-1]
    assert min(steps) > 0 and max(steps) == pytest.approx(min(steps), rel=1e-3)
    if max(steps) > 1e-6 * max(map(abs, at)):
        assert len(set(tick_labels(at))) == len(at)


@given(st.lists(VALUES, min_size=1, max_size=5), VALUES, VALUES)
def test_strips_have_places_whatever_their_values(values, low, mark):
    at = ticks(0.5, 0.5)
    drawn = strip(at, {"low": low, "high": mark}, values, mark)
    coordinates(drawn + strip_axis(at))


def test_a_thin_curve_keeps_its_ends_and_its_extremes():
    points = [[i, float(i % 7)] for i in range(5000)]
    points[1234][1], points[4321][1] = 99.0, -99.0
    kept = thin(points)
    assert len(kept) <= MAX_POINTS and kept == sorted(kept)
    for point in (0, -1, 1234, 4321):
        assert points[point] in kept


def test_points_lie_between_the_axes():
    chart = Chart((0, 10), (2, 3), "step", "loss")
    chart.line([(0, 2), (10, 3)], "s0")
    (left, low), (right, high) = (
        map(float, place.split(","))
        for place in re.search('class="s0" points="(.*?)"', chart.svg())[1].split()
    )
    assert left < right and high < low


def test_numbers_have_the_digits_that_are_read():
    assert [number(v) for v in (0, 0.0, -0.25, 99.5, 1000.4, True)] == [
        *("0", "0.000", "-0.250", "99.50", "1,000", "1")
    ]
    assert interval({"low": 0.1}) == "" and "0.100" in interval({"low": 0.1, "high": 1})
