"""Parts of a web page as HTML and SVG text; the page's CSS gives their colours.

A number that is None, NaN or infinite is shown as a dash, or is not drawn.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

# A chart and its margins, in units of about a pixel.
WIDTH, HEIGHT = 400, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 28, 36
BAR = 16

COLORS = 6  # that the page has for curves
MAX_POINTS = 400  # of a curve
DOTTED = 20  # points of a curve that shows each
SHOWN_CHARS = 280  # of a long text

# No page may hold these, or they turn the direction of what stands around them.
HARMFUL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

Point = Sequence[Any]


def is_number(value: Any) -> bool:
    """Returns whether a value can be drawn."""
    return isinstance(value, int | float) and abs(value) < 1e100


def escaped(value: Any) -> str:
    """Escapes a text; a harmful character is shown by its number.

    >>> escaped("a<b\\x00")
    'a&lt;b\\\\x00'
    """
    return escape(HARMFUL.sub(lambda match: ascii(match[0])[1:-1], str(value)))


def number(value: Any) -> str:
    """Returns a number with as many digits as are read.

    >>> [number(value) for value in (0.98655, 31.4159, 587, 12345.6, 0.00002, None)]
    ['0.987', '31.42', '587', '12,346', '2e-05', '–']
    """
    if not is_number(value):
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 0.0005:
        return f"{value:.0e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def difference(value: Any, other: Any) -> str:
    """Returns by how much a value is greater.

    >>> difference(0.9, 0.95), difference(0.9, None)
    ('−0.050', '–')
    """
    if not (is_number(value) and is_number(other)):
        return "–"
    sign = "−" if value < other else "+"
    return sign + number(abs(value - other))


def interval(values: Mapping[str, Any]) -> str:
    """Returns `low` and `high`, "" if one of them is missing."""
    bounds = values.get("low"), values.get("high")
    # Spaces at which no line ends.
    return "\xa0–\xa0".join(map(number, bounds)) if all(map(is_number, bounds)) else ""


def table(css: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table, each of whose rows begins with its name."""
    body = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return (
        f"<table class={css}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )


def heat(count: int, total: int, color: int) -> str:
    """Returns a number and its share of a total; the greater it is, the deeper."""
    if not count:
        return ""
    # The root, so that rare things are seen.
    depth = math.sqrt(count / total)
    return (
        f'<div class=s{color} style="--depth:{depth:.3f}">{count:,}'
        f"<small>{count / total:.0%}</small></div>"
    )


def key(label: str, color: int) -> str:
    """Returns what a line of this colour is."""
    return f'<span class="key s{color % COLORS}">{label}</span>'


def more(title: str, content: str) -> str:
    """Returns what is behind a click."""
    return f"<details class=more><summary>{title}</summary>{content}</details>"


def long_text(text: str) -> str:
    """Shows a text, or its beginning until it is clicked on."""
    whole = f"<div class=text dir=auto>{escaped(text)}</div>"
    if len(text) < 1.2 * SHOWN_CHARS:
        return whole
    # At a space if there is one near: Chinese has none.
    end = text.rfind(" ", SHOWN_CHARS // 2, SHOWN_CHARS)
    start = text[: end if end > 0 else SHOWN_CHARS]
    return (
        "<details class=cut><summary><span class=text dir=auto>"
        f"{escaped(start)} …</span></summary>{whole}</details>"
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers, equally far apart, from `low` or less to `high` or more.

    >>> ticks(0, 7.3)
    [0.0, 2.0, 4.0, 6.0, 8.0]
    >>> ticks(0.947, 1, about=3)
    [0.94, 0.96, 0.98, 1.0]
    """
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-12):
        spread = size / 2 if size > 1e-12 else 0.5
        low, high = low - spread, high + spread
    least = (high - low) / about
    power = math.floor(math.log10(least))
    step = next(d * 10.0**power for d in (1, 2, 5, 10) if d * 10.0**power >= least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, -power) for n in range(first, last + 1)]


def tick_labels(at: Sequence[float]) -> list[str]:
    """Returns round numbers with as many digits as tell each from the next.

    >>> tick_labels([0.0, 0.5, 1.0]), tick_labels([0.0, 1e-5, 2e-5])
    (['0', '0.5', '1.0'], ['0', '1e-05', '2e-05'])
    >>> tick_labels([0.0, 1e3, 2e3]), tick_labels([0.0, 5e5, 1e6])
    (['0', '1,000', '2,000'], ['0', '0.5M', '1M'])
    """
    step, most = at[1] - at[0], max(abs(at[0]), abs(at[-1]))
    if step < 1e-3:
        return [f"{value:.3g}" for value in at]
    for size, unit, least in ((1e6, "M", 1e6), (1e3, "k", 1e4)):
        if most >= least and step >= size / 10:
            return [f"{value / size:g}{unit}" if value else "0" for value in at]
    # A step is not exact: the logarithm of 0.01 may be just below -2.
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{digits}f}" if value else "0" for value in at]


def thin(points: Sequence[Point]) -> list[Point]:
    """Leaves out points of a curve; never its ends, its lowest and its highest.

    Returns:
        At most `MAX_POINTS` of the points that are two numbers, in their order.

    >>> thin([[1, 0.5], [2, float("nan")], [3, None], [4, 0.25]])
    [[1, 0.5], [4, 0.25]]
    """
    points = [point for point in points if all(map(is_number, point))]
    if len(points) <= MAX_POINTS:
        return points
    kept = {0, len(points) - 1}
    size = math.ceil(2 * len(points) / (MAX_POINTS - 2))
    for start in range(0, len(points), size):
        part = range(start, min(start + size, len(points)))
        kept |= {pick(part, key=lambda i: points[i][1]) for pick in (min, max)}
    return [points[i] for i in sorted(kept)]


class Chart:
    """Two axes with round numbers, and what is drawn between them."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        x_label: str,
        y_label: str,
        height: int = HEIGHT,
    ):
        """Draws the axes.

        Args:
            x: The least and the greatest; where both are the same, there is room
                around it.
            y: Likewise; the axis goes on to the next round number.
            x_label: Below the axis.
            y_label: Above it.
            height: In units of which the width has `WIDTH`.
        """
        x_ticks, y_ticks = ticks(*x), ticks(*y)
        self._x = x if x[0] < x[1] else (x_ticks[0], x_ticks[-1])
        self._y = y_ticks[0], y_ticks[-1]
        self._height = height
        self._label = f"{y_label} by {x_label}"
        bottom = height - BOTTOM
        self._parts = []
        for value, label in zip(y_ticks, tick_labels(y_ticks)):
            self.line([(self._x[0], value), (self._x[1], value)], "grid")
            at = self._at(self._x[0], value)[1]
            self._write(LEFT - 8, at + 4, label, "end")
        for value, label in zip(x_ticks, tick_labels(x_ticks)):
            if self._x[0] <= value <= self._x[1]:
                at = self._at(value, self._y[0])[0]
                self._write(at, bottom + 18, label, "middle")
        self._write(0, 12, y_label, "start")
        self._write(WIDTH - RIGHT, height - 3, x_label, "end")

    def line(self, points: Iterable[Point], css: str) -> None:
        """Draws a line of a CSS class."""
        places = " ".join("{:.1f},{:.1f}".format(*self._at(*p)) for p in points)
        self._parts.append(f'<polyline class="{css}" points="{places}"/>')

    def dots(self, points: Iterable[Point], css: str) -> None:
        """Draws points of a CSS class."""
        for point in points:
            x, y = self._at(*point)
            self._parts.append(
                f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
            )

    def bar(self, x: float, share: float, css: str) -> None:
        """Draws a bar at `x`; the longest, of share 1, has a fifth of the height."""
        height = share * (self._height - TOP - BOTTOM) / 5
        at, y = self._at(x, self._y[0])
        left = min(max(at - BAR / 2, LEFT), WIDTH - RIGHT - BAR)
        self._parts.append(
            f'<rect class="{css}" x="{left:.1f}" y="{y - height:.1f}" width="{BAR}" '
            f'height="{height:.1f}"/>'
        )

    def rule(self, x: float, label: str) -> None:
        """Draws a named line from top to bottom if `x` is on the axis."""
        if self._x[0] <= x <= self._x[1]:
            self.line([(x, y) for y in self._y], "rule")
            self._write(self._at(x, self._y[0])[0], TOP - 6, label, "end")

    def svg(self) -> str:
        """Returns the chart."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {self._height}" role="img" '
            f'aria-label="{escaped(self._label)}">{"".join(self._parts)}</svg>'
        )

    def _at(self, x: float, y: float) -> tuple[float, float]:
        right, down = (
            (value - low) / (high - low)
            for value, (low, high) in ((x, self._x), (y, self._y[::-1]))
        )
        width, height = WIDTH - LEFT - RIGHT, self._height - TOP - BOTTOM
        return LEFT + right * width, TOP + down * height

    def _write(self, x: float, y: float, text: str, anchor: str) -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(text)}'
            "</text>"
        )


def curve_chart(
    label: str, curves: Mapping[str, Sequence[Point]], step: Any
) -> tuple[str, Chart]:
    """Draws curves on the same axes.

    Args:
        label: Of the values.
        curves: By name; of each a point or more, all of two numbers.
        step: The one that is scored, or None.

    Returns:
        What each curve is and its last value; and the chart.
    """
    steps, values = zip(*(point for points in curves.values() for point in points))
    chart = Chart(
        (min(0, *steps), max(steps)), (min(values), max(values)), "step", label
    )
    if is_number(step):
        chart.rule(step, "scored here")
    keys = []
    for color, (name, points) in enumerate(curves.items()):
        is_sparse = len(points) <= DOTTED
        css = f"s{color % COLORS}"
        # What is logged often is noisy.
        chart.line(points, css if is_sparse else f"{css} noisy")
        if is_sparse:
            chart.dots(points, css)
        keys.append(key(f"{escaped(name)} <b>{number(points[-1][1])}</b>", color))
    return " ".join(keys), chart


def figures(charts: Iterable[tuple[str, Chart]]) -> str:
    """Shows charts beside each other, each below its caption; "" if there are none."""
    shown = "".join(
        f"<figure><figcaption>{caption}</figcaption>{chart.svg()}</figure>"
        for caption, chart in charts
    )
    return f"<div class=charts>{shown}</div>" if shown else ""


def strip(
    at: Sequence[float],
    interval: Mapping[str, Any],
    dots: Iterable[Any],
    mark: Any = None,
) -> str:
    """Draws values on a line as wide as its place on the page.

    Args:
        at: The ticks of its axis.
        interval: `low` and `high` of a bar, if it has them.
        dots: Values.
        mark: A value to compare them with.
    """
    place = _places(at)
    parts = [
        f'<line class=grid x1="{place(t)}" x2="{place(t)}" y2="100%"/>' for t in at
    ]
    low, high = interval.get("low"), interval.get("high")
    if is_number(low) and is_number(high):
        parts.append(
            f'<line class=interval x1="{place(low)}" x2="{place(high)}" y1="50%" '
            'y2="50%"/>'
        )
    if is_number(mark):
        x = place(mark)
        parts.append(f'<line class=mark x1="{x}" x2="{x}" y1="22%" y2="78%"/>')
    parts += [
        f'<circle class=value cx="{place(value)}" cy="50%" r="5.5"/>'
        for value in dots
        if is_number(value)
    ]
    return f"<svg class=strip>{''.join(parts)}</svg>"


def strip_axis(at: Sequence[float]) -> str:
    """Draws the numbers above strips."""
    place = _places(at)
    texts = (
        f'<text x="{place(value)}" y="12" text-anchor="middle">{label}</text>'
        for value, label in zip(at, tick_labels(at))
    )
    return f"<svg class='strip axis'>{''.join(texts)}</svg>"


def _places(at: Sequence[float]):
    return lambda value: f"{100 * (value - at[0]) / (at[-1] - at[0]):.2f}%"
