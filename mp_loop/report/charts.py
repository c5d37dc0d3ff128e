"""Charts as text: SVG for a page that needs nothing else to be seen.

    chart.lines("Training loss", [Series("float16", steps, losses)])
    chart.heat_map("Share lost", names, steps, shares, low=0, high=0.1)

Colours are the page's CSS variables (`--c0` to `--c7`, `--bad`, `--text`, `--grid`),
so that one chart serves a light and a dark page. Values that are not finite are gaps.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence

from mp_loop.rendering import numbers

# In units of the viewBox; a phone shows it at about this size.
WIDTH, HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 26
_MOST_POINTS = 400
_FEW_POINTS = 30  # are drawn as dots, too
COLORS = 8


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


def lines(
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
        log = 0  # not one power between them to label
    up: Callable[[float], float] = (lambda v: math.log(v, log)) if log else float
    drawn = [
        dataclasses.replace(one, x=[x for x, _ in kept], y=[y for _, y in kept])
        for one in series
        if (kept := _thinned(one, log))
    ]
    values = [up(y) for one in drawn for y in one.y if math.isfinite(y)]
    if not values:
        return _figure(title, "<p>Nothing was recorded.</p>")
    xs = [x for one in drawn for x in one.x]
    across = _Axis(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
    room = (max(values) - min(values)) * 0.05 or (1 if log else abs(values[0]) / 2 or 1)
    down = _Axis(min(values) - room, max(values) + room, HEIGHT - _BOTTOM, _TOP)
    labels = list(dict.fromkeys(one.label for one in drawn))
    parts = [*_grid(across, down, log)]
    seen = set()
    for one in drawn:
        faint = ' class="faint"' if one.label in seen else ""
        color = f"var(--c{labels.index(one.label) % COLORS})"
        seen.add(one.label)
        for path in _paths(one, across, down, up):
            parts.append(f'<path{faint} style="stroke:{color}" d="{path}"/>')
        if len(one.x) <= _FEW_POINTS and not one.stairs:
            parts += [
                f'<circle{faint} style="fill:{color}" r="2.6" cx="{across(x):.1f}" '
                f'cy="{down(up(y)):.1f}"/>'
                for x, y in zip(one.x, one.y, strict=True)
                if math.isfinite(y)
            ]
    for mark in marks:
        if _drawable(mark.y, log):
            parts.append(_cross(across(mark.x), down(up(mark.y)), mark.text))
    legend = ""
    if any(labels) and len(labels) > 1:
        legend = "".join(
            f'<span><i style="background:var(--c{i % COLORS})"></i>'
            f"{html.escape(label)}</span>"
            for i, label in enumerate(labels)
            if any(
                math.isfinite(y) for one in drawn if one.label == label for y in one.y
            )
        )
        legend = f'<p class="legend">{legend}</p>'
    # For the page's script: what is under the pointer.
    data = [
        [one.label, labels.index(one.label) % COLORS, list(one.x), _plain(one.y)]
        for one in drawn
    ]
    scale = [across.low, across.high, _LEFT, WIDTH - _RIGHT]
    attributes = f"data-series='{html.escape(json.dumps(data))}' data-x='{scale}'"
    return _figure(title, _svg(title, HEIGHT, parts, attributes) + legend)


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[float],
    values: Sequence[Sequence[float]],
    low: float,
    high: float,
    marks: Sequence[Sequence[bool]] = (),
) -> str:
    """Draws a grid of cells, the more intense the worse.

    Args:
      title: shown above, with the worst value.
      rows: their names.
      columns: their numbers, shown below.
      values: of each row one for each column; not finite: an empty cell.
      low: what is not coloured at all.
      high: what is coloured fully; below `low` where small values are bad.
      marks: of each row, which cells get a cross.

    Returns:
      A `<figure>`.
    """
    name_width, row = 150, 14
    height = _TOP + row * len(rows) + _BOTTOM
    cell = (WIDTH - _RIGHT - name_width) / max(len(columns), 1)
    parts = []
    for i, name in enumerate(rows):
        y = _TOP + row * i
        shown = name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"
        parts.append(
            f'<text x="{name_width - 6}" y="{y + 10.5}" text-anchor="end">'
            f"{html.escape(shown)}<title>{html.escape(name)}</title></text>"
        )
        for j, value in enumerate(values[i]):
            x = name_width + cell * j
            said = html.escape(f"{name}, step {columns[j]:g}: {value:.3g}")
            share = (value - low) / (high - low) if math.isfinite(value) else 0.0
            share = abs(min(max(share, 0.0), 1.0))
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{cell:.2f}" height="{row}" '
                f'style="fill:var(--bad);fill-opacity:{share:.3f}">'
                f"<title>{said}</title></rect>"
            )
            if marks and marks[i][j]:
                parts.append(_cross(x + cell / 2, y + row / 2, f"{said}, inf or NaN"))
    finite = [v for row in values for v in row if math.isfinite(v)]
    if finite:
        title += f" (worst: {(min if high < low else max)(finite):.3g})"
    every = math.ceil(len(columns) / 6)
    for j in range(0, len(columns), every):
        parts.append(
            f'<text x="{name_width + cell * (j + 0.5):.1f}" y="{height - 10}" '
            f'text-anchor="middle">{columns[j]:g}</text>'
        )
    return _figure(title, _svg(title, height, parts))


class _Axis:
    """Maps numbers to places."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.high = (low, high) if high > low else (low - 1, low + 1)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self, most: int, whole: bool) -> list[float]:
        """Round numbers within the axis, at most so many."""
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        while (self.high - self.low) / step > most:
            step *= 2.5 if f"{step:e}"[0] == "2" else 2  # 1, 2, 5, 10
        if whole:
            step = max(1.0, math.ceil(step))
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def _grid(across: _Axis, down: _Axis, log: int) -> Iterator[str]:
    """Lines and labels of both axes."""
    for tick in down.ticks(5, whole=bool(log)):
        y = down(tick)
        said = f"{log}^{tick:g}" if log else numbers.short(tick)
        yield f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{said}</text>'
    for tick in across.ticks(5, whole=True):
        yield (
            f'<text x="{across(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{numbers.short(tick)}</text>"
        )


def _paths(
    one: Series, across: _Axis, down: _Axis, up: Callable[[float], float]
) -> Iterator[str]:
    """One path for each stretch without a gap."""
    stretch: list[tuple[float, float]] = []
    for x, y in itertools.chain(zip(one.x, one.y, strict=True), [(0, math.nan)]):
        if math.isfinite(y):
            stretch.append((across(x), down(up(y))))
            continue
        if stretch:
            (x0, y0), *rest = stretch
            path = f"M{x0:.1f} {y0:.1f}"
            for x1, y1 in rest or [(x0 + 0.1, y0)]:
                path += f"H{x1:.1f}V{y1:.1f}" if one.stairs else f"L{x1:.1f} {y1:.1f}"
            yield path
        stretch = []


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


def _cross(x: float, y: float, text: str) -> str:
    return (
        f'<path class="cross" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8">'
        f"<title>{html.escape(text)}</title></path>"
    )


def _svg(title: str, height: int, parts: Sequence[str], attributes: str = "") -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(title)}" {attributes}>{"".join(parts)}</svg>'
    )


def _figure(title: str, content: str) -> str:
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{content}</figure>"
