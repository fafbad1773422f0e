"""Charts of a sweep as SVG text: axes of any values, plots, parallel coordinates.

They look as those of `lm.page`, whose axes have numbers only and are linear. What is
drawn of a point has its number in `data-p`, so that the page can show where it is in
every chart.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.search.results import identity
from lm.page import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    escaped,
    is_number,
    tick_labels,
    ticks,
)

# From this ratio of the greatest to the least on, an axis is logarithmic: of what is
# swept, and of what is measured.
KEY_SPAN, METRIC_SPAN = 30, 1000

FEW = 8  # different numbers, each of which has its tick
SLOT, SLOTS = 0.12, 0.5  # of an axis with numbers: a value's that is none, and of all
CHAR = 6.6  # about the width of a character
LINE = 15  # the height of one

# Dots on a coarse axis are strewn so wide, by their numbers times the golden ratio,
# which spreads any few that follow each other.
BESIDE, GOLDEN = 16, 0.618034

# Parallel coordinates, in units of about a pixel.
GAP, LEAST_WIDTH, TALL = 110, 992, 400
SIDES, ABOVE, BELOW = (96, 64), 44, 14
BAND = 0.06  # of a coarse axis, for the lines through one value


class _NotSet:
    """The value of a key that a trial does not have."""

    def __str__(self) -> str:
        return "not set"


NOT_SET = _NotSet()


def text_of(value: Any) -> str:
    """Returns a value of a config as it is read.

    >>> [text_of(value) for value in (0.00032123, 16, "gelu", True, ("a", 1))]
    ['0.0003212', '16', 'gelu', 'True', "('a', 1)"]
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cut(text: str, chars: int) -> str:
    """Returns the text, or its beginning and an ellipsis, of at most `chars`."""
    return text if len(text) <= chars else f"{text[: max(chars, 2) - 1]}…"


class Axis:
    """Where values stand from 0 to 1, and what is written there.

    Numbers are spread evenly, or their logarithms if none is negative, their span is
    great and most are small. What is no number, and a zero beside logarithms, has a
    place of its own at the low end; where there are no numbers, such places fill the
    axis evenly.

    Attributes:
        is_numeric: Whether there are numbers.
        is_log: Whether numbers stand by their logarithms.
        is_coarse: Whether many may stand at the same place.
        ticks: Places, and the texts that belong there.
    """

    def __init__(self, values: Iterable[Any], span: float = KEY_SPAN, few: int = FEW):
        """Makes the axis of these values.

        Args:
            values: All that will stand on it, or the least and the greatest.
            span: The ratio of two numbers from which on it is logarithmic.
            few: Up to so many different numbers have a tick each; more have round
                ticks.
        """
        values = list(values)
        numbers = sorted({value for value in values if _is_real(value)})
        others = {identity(v): v for v in values if not _is_real(v)}
        slots = sorted(others.values(), key=lambda v: (v is not NOT_SET, str(v)))
        self.is_log = _is_log(numbers, span)
        if self.is_log and numbers[0] == 0:
            slots.append(numbers.pop(0))
        self.is_numeric = bool(numbers)
        self.is_coarse = len(numbers) <= few
        at = _slots(len(slots), self.is_numeric)
        self._slots = {_name(value): place for value, place in zip(slots, at)}
        self.ticks = [(place, text_of(value)) for value, place in zip(slots, at)]
        if not numbers:
            return
        shown, labels = numbers, [f"{value:.4g}" for value in numbers]
        if len(numbers) > few:
            ends = numbers[0], numbers[-1]
            shown = _decades(*ends) if self.is_log else ticks(*ends)
            labels = [f"{v:g}" for v in shown] if self.is_log else tick_labels(shown)
        low, high = (f(numbers if self.is_log else shown) for f in (min, max))
        self._base = min(SLOT * len(slots), SLOTS)
        self._low, self._high = self._scaled(low), self._scaled(high)
        self.ticks += [(self.place(v), label) for v, label in zip(shown, labels)]

    def place(self, value: Any) -> float:
        """Returns where one of the axis's values stands."""
        if not _is_real(value) or (self.is_log and value == 0):
            return self._slots[_name(value)]
        size = self._high - self._low
        share = (self._scaled(value) - self._low) / size if size else 0.5
        return self._base + (1 - self._base) * share

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def _is_real(value: Any) -> bool:
    return is_number(value) and not isinstance(value, bool)


def _name(value: Any) -> str:
    """Returns what a value's slot is called; 0 and 0.0 are one."""
    return "0" if _is_real(value) and value == 0 else identity(value)


def _is_log(numbers: Sequence[float], span: float) -> bool:
    """Returns whether sorted numbers are better spread by their logarithms.

    >>> _is_log([0.001, 0.2, 0.5], 30), _is_log([0.001, 0.02, 0.5], 30)
    (False, True)
    """
    positive = [value for value in numbers if value > 0]
    if not positive or numbers[0] < 0 or positive[-1] < span * positive[0]:
        return False
    # Of the values drawn evenly from a range, too, the least may be very small.
    return statistics.median_low(positive) < (positive[0] + positive[-1]) / 4


def _slots(count: int, has_numbers: bool) -> list[float]:
    """Returns the places of values that are no numbers.

    >>> _slots(3, False), _slots(1, False), _slots(2, True)
    ([0.0, 0.5, 1.0], [0.5], [0.0, 0.12])
    """
    if has_numbers:
        step = min(SLOT, SLOTS / max(count, 1))
        return [i * step for i in range(count)]
    return [i / (count - 1) for i in range(count)] if count > 1 else [0.5] * count


def _decades(low: float, high: float) -> list[float]:
    """Returns round numbers between two, about equally far apart by their logarithm.

    >>> _decades(2e-5, 3e-3), _decades(0.3, 1.5)
    ([0.0001, 0.001], [0.5, 1.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5)):
        found = [float(f"{d}e{power}") for power in powers for d in digits]
        found = [value for value in found if low <= value <= high]
        if len(found) > 1:
            return found[:: math.ceil(len(found) / FEW)]
    return [low, high]


@dataclass(frozen=True)
class Mark:
    """Whose a line or a dot is.

    Attributes:
        point: Its number on the page.
        title: What is said of it where the mouse is.
        tone: How good it is, from 0 to 1; None if it has no value.
    """

    point: int
    title: str
    tone: float | None

    def opening(self, css: str) -> str:
        """Returns its attributes."""
        if self.tone is None:
            return f'class="run none {css}" data-p="{self.point}"'
        style = f'style="--tone:{self.tone:.2f}"'
        return f'class="run {css}" data-p="{self.point}" {style}'


class Plot:
    """Two axes, and what is drawn between them."""

    def __init__(self, x: Axis, y: Axis, x_label: str, y_label: str):
        """Draws the axes."""
        self._x, self._y = x, y
        self._label = f"{y_label} by {x_label}"
        self._parts = []
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for place, text in spaced(y.ticks, [LINE] * len(y.ticks), bottom - TOP):
            at = bottom - place * (bottom - TOP)
            self._parts.append(_polyline([(LEFT, at), (right, at)], 'class="grid"'))
            self._parts.append(_text(LEFT - 8, at + 4, "end", cut(text, 7), text))
        self._inset = BESIDE if x.is_coarse else 0
        width = right - LEFT - 2 * self._inset
        chars = int(width / max(len(x.ticks), 1) / CHAR) if not x.is_numeric else 9
        named = [(place, cut(text, max(chars, 4))) for place, text in x.ticks]
        sizes = [CHAR * len(text) + 8 for _, text in named]
        for place, text in spaced(named, sizes, width):
            at = LEFT + self._inset + place * width
            self._parts.append(_text(at, bottom + 18, "middle", text))
        self._parts.append(_text(0, 12, "start", y_label))
        chars = int(width / CHAR)
        self._parts.append(_text(right, HEIGHT - 3, "end", cut(x_label, chars)))

    def line(self, points: Iterable[Sequence[Any]], css: str, mark: Mark | None = None):
        """Draws a line; without a mark it is of the CSS class alone."""
        opening = mark.opening(css) if mark else f'class="{css}"'
        title = mark.title if mark else ""
        self._parts.append(_polyline(map(self._at, points), opening, title))

    def dot(self, point: Sequence[Any], css: str, mark: Mark, radius: float = 4):
        """Draws a point; where many stand at one place they are beside each other."""
        x, y = self._at(point)
        if self._x.is_coarse:
            x += BESIDE * (mark.point * GOLDEN % 1 - 0.5)
        self._parts.append(
            f'<circle {mark.opening(css)} cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{escaped(mark.title)}</title></circle>"
        )

    def svg(self) -> str:
        """Returns the plot."""
        return _svg(WIDTH, HEIGHT, self._label, self._parts)

    def _at(self, point: Sequence[Any]) -> tuple[float, float]:
        width = WIDTH - LEFT - RIGHT - 2 * self._inset
        height = HEIGHT - TOP - BOTTOM
        x, y = self._x.place(point[0]), self._y.place(point[1])
        return LEFT + self._inset + x * width, TOP + (1 - y) * height


def parallel(
    axes: Sequence[tuple[str, Axis]], lines: Iterable[tuple[Sequence[Any], Mark]]
) -> str:
    """Draws parallel coordinates (Inselberg 1985, https://doi.org/10.1007/BF01898350).

    Lines through one value of a coarse axis are side by side, the best on top.

    Args:
        axes: Names and axes, from left to right.
        lines: A value for each axis, or for the first ones; the last is on top.
    """
    width = max(LEAST_WIDTH, GAP * (len(axes) - 1) + sum(SIDES))
    gap = (width - sum(SIDES)) / max(len(axes) - 1, 1)
    height = TALL - ABOVE - BELOW
    chars = int((gap - 16) / CHAR)

    def at(i: int, place: float, tone: float | None = 0.5) -> tuple[float, float]:
        band = BAND * axes[i][1].is_coarse
        up = (1 - band) * place + band * (tone or 0)
        return SIDES[0] + i * gap, ABOVE + (1 - up) * height

    parts = []
    for values, mark in lines:
        places = [
            at(i, axis.place(value), mark.tone)
            for i, (value, (_, axis)) in enumerate(zip(values, axes))
        ]
        parts.append(_polyline(places, mark.opening("path"), mark.title))
    for i, (name, axis) in enumerate(axes):
        x, top = at(i, 1, 1.0)
        parts.append(_polyline([(x, top), at(i, 0, 0.0)], 'class="axis"'))
        parts.append(_text(x, ABOVE - 22, "middle", cut(name, chars + 2), name, "name"))
        for place, text in spaced(axis.ticks, [LINE] * len(axis.ticks), height):
            y = at(i, place)[1]
            parts.append(_polyline([(x - 4, y), (x, y)], 'class="axis"'))
            room = int((SIDES[0] - 8) / CHAR) if i == 0 else min(chars, 16)
            parts.append(_text(x - 7, y + 4, "end", cut(text, room), text, "tick"))
    return _svg(
        width, TALL, "parallel coordinates", parts, f"min-width:{width * 0.8:.0f}px"
    )


def spaced(
    ticks: Iterable[tuple[float, str]], sizes: Sequence[float], length: float
) -> list[tuple[float, str]]:
    """Returns the ticks that have room, from the low end on.

    Args:
        ticks: Places from 0 to 1, and texts.
        sizes: Of each, along the axis.
        length: Of the axis.

    >>> spaced([(0.0, "a"), (0.1, "b"), (1.0, "c")], [20, 20, 20], 100)
    [(0.0, 'a'), (1.0, 'c')]
    """
    kept, end = [], -math.inf
    for (place, text), size in sorted(zip(ticks, sizes)):
        if place * length - size / 2 >= end:
            kept.append((place, text))
            end = place * length + size / 2
    return kept


def _polyline(
    points: Iterable[tuple[float, float]], opening: str, title: str = ""
) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    inside = f"<title>{escaped(title)}</title>" if title else ""
    return f'<polyline {opening} points="{places}">{inside}</polyline>'


def _text(
    x: float, y: float, anchor: str, text: str, whole: str = "", css: str = ""
) -> str:
    """Returns a text; the mouse shows the whole one if it is cut."""
    title = f"<title>{escaped(whole)}</title>" if whole not in ("", text) else ""
    kind = f' class="{css}"' if css else ""
    return (
        f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(text)}'
        f"{title}</text>"
    )


def _svg(
    width: float, height: float, label: str, parts: Iterable[str], style: str = ""
) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height}" role="img" style="{style}" '
        f'aria-label="{escaped(label)}">{"".join(parts)}</svg>'
    )
