"""Where the lines, marks and labels of a plot lie: geometry alone, drawn as SVG by a template.

Series differ in colour, dash and mark, so that they can be told apart without colour too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

WIDTH, HEIGHT = 460, 300  # narrow, so that text can still be read on a small screen
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 12, 46
_MOST_TICKS = 8
_DIGITS = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1,))
_RADIUS = 4.5
_LETTER, _LINE = 6.4, 14.0  # about how wide and high a character of a label is
_LABEL_GAP = 8.0

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 4", "5 2 1 2 1 2", "1 4", "14 3 3 3")
_COLOURS = 8


class Style(NamedTuple):
    """How a series is drawn: the number of a colour of the style sheet, a dash pattern, a mark."""

    colour: int
    dash: str
    mark: int

    def path(self, x: float, y: float, radius: float = _RADIUS) -> str:
        """Return the outline of the mark around a point."""
        return _MARKS[self.mark](x, y, radius)


def style_of(number: int) -> Style:
    """Return the style of a series by its number; another for each of the first 64."""
    turn = number // _COLOURS
    return Style(number % _COLOURS, _DASHES[(number + turn) % len(_DASHES)], (number + 3 * turn) % len(_MARKS))


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float, float], str]:
    def path(x: float, y: float, radius: float) -> str:
        return "M" + "L".join(f"{x + radius * dx:.1f} {y + radius * dy:.1f}" for dx, dy in corners) + "Z"

    return path


def _circle(x: float, y: float, radius: float) -> str:
    return f"M{x - radius:.1f} {y:.1f}a{radius} {radius} 0 1 0 {2 * radius} 0a{radius} {radius} 0 1 0 {-2 * radius} 0Z"


_MARKS: tuple[Callable[[float, float, float], str], ...] = (
    _circle,
    _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    _polygon((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    _polygon((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    _polygon((0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
    _polygon((-1.2, 0), (0.9, -1.15), (0.9, 1.15)),
    _polygon((1.2, 0), (-0.9, -1.15), (-0.9, 1.15)),
    _polygon((0, -1.4), (0.4, -0.4), (1.4, 0), (0.4, 0.4), (0, 1.4), (-0.4, 0.4), (-1.4, 0), (-0.4, -0.4)),
)


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values with marked ones.

    Attributes
    ----------
    title : str
        What the values are.
    low, high : float
        The ends.
    ticks : tuple of float
        Values to mark.
    log : bool
        Equal ratios lie equally far apart.

    Examples
    --------
    >>> log_axis("depth", [1, 100]).share(10)
    0.5
    """

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Return how far along the axis a value lies, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(title: str, values: Iterable[float], *, least: float = 0.1) -> Axis:
    """Return an axis around the values from one round number to another, at least `least` long."""
    known = list(values)
    low, high = min(known), max(known)
    step = _round_step(max(high - low, least) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    first = min(first, last - math.ceil(least / step))
    if first < 0 <= low:  # nothing is measured below 0
        first, last = 0, last - first
    return Axis(title, first * step, last * step, tuple(number * step for number in range(first, last + 1)))


def log_axis(title: str, values: Iterable[float], *, margin: float = 1.0) -> Axis:
    """Return an axis from the smallest value to the largest, both positive, `margin` being the ratio left beside them.

    Marked are as many of 1, 1.5, 2, 3 and so on as there is room for, of many decades the powers of ten.
    """
    known = list(values)
    low, high = min(known) / margin, max(known) * margin
    high = max(high, 2 * low)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in _DIGITS:
        ticks = [digit * 10.0**power for power in decades for digit in digits]
        inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) <= _MOST_TICKS:
            break
    return Axis(title, low, high, tuple(inside), log=True)


def tick_text(value: float) -> str:
    """Return a marked value as it is written at the axis."""
    return f"{value:,.0f}" if 10_000 <= abs(value) < 10_000_000 else f"{value:.4g}"


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= size * (1 - 1e-9))


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that is drawn as one.

    Attributes
    ----------
    x, y : float
        In values of the axes.
    hint : str
        What is said where the pointer rests on it.
    interval : tuple of float, or None
        The ends of a line through it, on the vertical axis.
    label : str
        Written beside it where there is room.
    """

    x: float
    y: float
    hint: str
    interval: tuple[float, float] | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one kind: a line, marks, or both.

    Attributes
    ----------
    number : int
        Decides the style.
    line : sequence of (x, y)
        The corners of the line.
    marks : sequence of Mark
        Drawn on top.
    """

    number: int
    line: Sequence[tuple[float, float]] = ()
    marks: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot: what is in it, and where that lies.

    Attributes
    ----------
    says : str
        What is plotted, for those who do not see it.
    x, y : Axis
        Horizontal and vertical.
    series : sequence of Series
        The first at the bottom.
    diagonal : bool
        Draw a thin line where both values are equal.

    Examples
    --------
    >>> line = Series(0, [(0.0, 0.5), (1.0, 1.0)])
    >>> Chart("a line", linear_axis("x", [0, 1]), linear_axis("y", [0, 1]), [line]).path(line.line)
    'M52.0 133.0L440.0 12.0'
    """

    says: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    diagonal: bool = False
    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT
    left: ClassVar[float] = _LEFT
    right: ClassVar[float] = WIDTH - _RIGHT
    top: ClassVar[float] = _TOP
    bottom: ClassVar[float] = HEIGHT - _BOTTOM

    def across(self, value: float) -> float:
        """Return where a value of the horizontal axis lies."""
        return round(self.left + self.x.share(value) * (self.right - self.left), 1)

    def up(self, value: float) -> float:
        """Return where a value of the vertical axis lies."""
        return round(self.bottom - self.y.share(value) * (self.bottom - self.top), 1)

    def path(self, line: Sequence[tuple[float, float]]) -> str:
        """Return a line through points."""
        return "M" + "L".join(f"{self.across(x)} {self.up(y)}" for x, y in line)

    def labels(self) -> list[tuple[float, float, str, str]]:
        """Return x, y, anchor and text of the labels that hit no mark, no interval and no other label."""
        marks = [mark for series in self.series for mark in series.marks]
        lines, taken = list(self._boxes_of_lines()), list[_Box]()
        placed = []
        for mark in marks:
            others = [_widened(self._box_of(other)) for other in marks if other is not mark]
            for x, y, anchor, box in self._beside(mark) if mark.label else ():
                if self._is_inside(box) and not any(_overlap(box, other) for other in (*taken, *others, *lines)):
                    placed.append((x, y, anchor, mark.label))
                    taken.append(box)
                    break
        return placed

    def _box_of(self, mark: Mark) -> _Box:
        x, y = self.across(mark.x), self.up(mark.y)
        low, high = (y, y) if mark.interval is None else (self.up(mark.interval[1]), self.up(mark.interval[0]))
        return _Box(x - _RADIUS, min(low, y - _RADIUS), x + _RADIUS, max(high, y + _RADIUS))

    def _boxes_of_lines(self) -> Iterator[_Box]:
        """Yield small boxes along the lines."""
        for series in self.series:
            corners = [(self.across(x), self.up(y)) for x, y in series.line]
            for (x0, y0), (x1, y1) in itertools.pairwise(corners):
                steps = math.ceil(math.hypot(x1 - x0, y1 - y0) / 5) or 1
                for x, y in ((x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps) for step in range(steps)):
                    yield _Box(x - 1, y - 1, x + 1, y + 1)

    def _beside(self, mark: Mark) -> list[tuple[float, float, str, _Box]]:
        x, y, wide = self.across(mark.x), self.up(mark.y), _LETTER * len(mark.label)
        box = self._box_of(mark)
        right, left, above, below = x + _LABEL_GAP, x - _LABEL_GAP, box.top - 5, box.bottom + _LINE - 1
        near, high, low = x + 5, y - 6, y + _LINE
        return [
            (right, y + 4, "start", _Box(right, y - _LINE / 2, right + wide, y + _LINE / 2)),
            (left, y + 4, "end", _Box(left - wide, y - _LINE / 2, left, y + _LINE / 2)),
            (near, high, "start", _Box(near, high - _LINE + 3, near + wide, high + 3)),
            (x - 5, low, "end", _Box(x - 5 - wide, low - _LINE + 3, x - 5, low + 3)),
            (x, above, "middle", _Box(x - wide / 2, above - _LINE + 3, x + wide / 2, above + 3)),
            (x, below, "middle", _Box(x - wide / 2, below - _LINE + 3, x + wide / 2, below + 3)),
        ]

    def _is_inside(self, box: _Box) -> bool:
        return self.left <= box.left and box.right <= self.right + _RIGHT and self.top - 6 <= box.top < self.bottom - 8


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float


def _widened(box: _Box) -> _Box:
    """Return the box with room at its sides, where a label of another mark would read as its own."""
    return _Box(box.left - _LABEL_GAP, box.top, box.right + _LABEL_GAP, box.bottom)


def _overlap(a: _Box, b: _Box) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom
