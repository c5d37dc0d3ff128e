"""Line charts as SVG.

    draw("Training loss", [Series("float16", steps, losses)])

Values that are not finite are gaps.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence

from mp_loop.rendering import numbers
from mp_loop.report import svg

_MOST_POINTS = 400
_FEW_POINTS = 30  # are drawn as dots, too


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
      label: what it is; series of one label share a colour and a legend.
      x: numbers, rising.
      y: as many; NaN and inf are gaps.
      stairs: whether a value holds until the next one.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    stairs: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
    """A cross at a point, and what it means."""

    x: float
    y: float
    text: str


def draw(
    title: str,
    series: Sequence[Series],
    marks: Sequence[Mark] = (),
    log: int = 0,
) -> str:
    """Draws lines over a common x.

    Args:
      title: shown above.
      series: at least one.
      marks: crosses.
      log: base of a logarithmic y axis; 0: a linear one.

    Returns:
      A `<figure>`; it says so where there is nothing to draw.
    """
    finite = [y for one in series for y in one.y if _drawable(y, log)]
    if log == 10 and finite and max(finite) < 10 * min(finite):
        log = 0  # there is not one power of ten to label
    drawn = [
        dataclasses.replace(one, x=[x for x, _ in kept], y=[y for _, y in kept])
        for one in series
        if (kept := _thinned(one, log))
    ]
    if not any(math.isfinite(y) for one in drawn for y in one.y):
        return svg.framed(title, "<p>Nothing was recorded.</p>")
    area = _PlotArea(drawn, log)
    labels = list(dict.fromkeys(one.label for one in drawn))
    parts = list(area.grid())
    for index, one in enumerate(drawn):
        first = all(one.label != other.label for other in drawn[:index])
        parts += _line(one, area, labels.index(one.label) % svg.COLORS, first)
    parts += [
        svg.cross(area.across(mark.x), area.height(mark.y), mark.text)
        for mark in marks
        if _drawable(mark.y, log)
    ]
    attributes = _data_attributes(drawn, labels, area.across)
    legend = _legend(drawn, labels) if any(labels) and len(labels) > 1 else ""
    return svg.figure(title, svg.HEIGHT, parts, attributes, legend)


class _PlotArea:
    """Where the points of all series go."""

    def __init__(self, drawn: Sequence[Series], log: int):
        self._log = log
        self._up: Callable[[float], float] = (
            (lambda value: math.log(value, log)) if log else float
        )
        values = [self._up(y) for one in drawn for y in one.y if math.isfinite(y)]
        xs = [x for one in drawn for x in one.x]
        low, high = min(values), max(values)
        room = (high - low) * 0.05 or (1 if log else abs(values[0]) / 2 or 1)
        self.across = svg.Axis(min(xs), max(xs), svg.LEFT, svg.WIDTH - svg.RIGHT)
        self._down = svg.Axis(low - room, high + room, svg.HEIGHT - svg.BOTTOM, svg.TOP)

    def height(self, y: float) -> float:
        """The place of a value, counted from the top."""
        return self._down(self._up(y))

    def grid(self) -> Iterator[str]:
        """Lines and labels of both axes."""
        for tick in self._down.ticks(5, whole=bool(self._log)):
            y = self._down(tick)
            said = f"{self._log}^{tick:g}" if self._log else numbers.short(tick)
            yield (
                f'<line x1="{svg.LEFT}" x2="{svg.WIDTH - svg.RIGHT}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/>'
            )
            yield (
                f'<text x="{svg.LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
                f"{said}</text>"
            )
        for tick in self.across.ticks(5, whole=True):
            yield (
                f'<text x="{self.across(tick):.1f}" y="{svg.HEIGHT - 8}" '
                f'text-anchor="middle">{numbers.short(tick)}</text>'
            )


def _line(one: Series, area: _PlotArea, color: int, first: bool) -> Iterator[str]:
    """The paths of a series, and its points where they are few."""
    faint = "" if first else ' class="faint"'
    for path in _paths(one, area):
        yield f'<path{faint} style="stroke:var(--c{color})" d="{path}"/>'
    if len(one.x) > (1 if one.stairs else _FEW_POINTS):
        return
    for x, y in zip(one.x, one.y, strict=True):
        if math.isfinite(y):
            yield (
                f'<circle{faint} style="fill:var(--c{color})" r="2.6" '
                f'cx="{area.across(x):.1f}" cy="{area.height(y):.1f}"/>'
            )


def _paths(one: Series, area: _PlotArea) -> Iterator[str]:
    """One path for each stretch without a gap."""
    stretch: list[tuple[float, float]] = []
    for x, y in itertools.chain(zip(one.x, one.y, strict=True), [(0, math.nan)]):
        if math.isfinite(y):
            stretch.append((area.across(x), area.height(y)))
            continue
        if stretch:
            (x0, y0), *rest = stretch
            path = f"M{x0:.1f} {y0:.1f}"
            for x1, y1 in rest or [(x0 + 0.1, y0)]:
                path += f"H{x1:.1f}V{y1:.1f}" if one.stairs else f"L{x1:.1f} {y1:.1f}"
            yield path
        stretch = []


def _legend(drawn: Sequence[Series], labels: Sequence[str]) -> str:
    """The labels of the series that have a finite value."""
    shown = {one.label for one in drawn if any(map(math.isfinite, one.y))}
    entries = "".join(
        f'<span><i style="background:var(--c{i % svg.COLORS})"></i>'
        f"{html.escape(label)}</span>"
        for i, label in enumerate(labels)
        if label in shown
    )
    return f'<p class="legend">{entries}</p>'


def _data_attributes(
    drawn: Sequence[Series], labels: Sequence[str], across: svg.Axis
) -> str:
    """For the page's script, which says what is under the pointer."""
    data = [
        [one.label, labels.index(one.label) % svg.COLORS, list(one.x), _plain(one.y)]
        for one in drawn
    ]
    scale = [across.low, across.high, svg.LEFT, svg.WIDTH - svg.RIGHT]
    return f"data-series='{html.escape(json.dumps(data))}' data-x='{scale}'"


def _thinned(one: Series, log: int) -> list[tuple[float, float]]:
    """At most so many points, the extremes of each stretch among them."""
    points = [
        (x, y if _drawable(y, log) else math.nan)
        for x, y in zip(one.x, one.y, strict=True)
    ]
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    if size <= 2:
        return points
    kept = []
    for i in range(0, len(points), size):
        finite = [point for point in points[i : i + size] if math.isfinite(point[1])]
        ends = [min, max] if finite else []
        found = {end(finite, key=lambda point: point[1]) for end in ends}
        kept += sorted(found) or [points[i]]
    return kept


def _drawable(y: float, log: int) -> bool:
    return math.isfinite(y) and (not log or y > 0)


def _plain(values: Sequence[float]) -> list[float | None]:
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]
