"""Predictions against targets as SVG: of a perfect model, all points on one line.

    draw("price", [(2.0, 2.5), (3.0, 2.9)])

Both axes are of one range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mp_loop.rendering import numbers
from mp_loop.report import svg

_HEIGHT = 320
_LEFT, _BOTTOM = svg.LEFT + 16, svg.BOTTOM + 18  # with the names of the axes
_ROOM = 0.25  # beyond the targets, as a share of their range


def draw(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Draws the examples of one target.

    Args:
      name: of the target.
      points: the target and its prediction of each example.

    Returns:
      A `<figure>`. Predictions far outside the range of the targets are crosses at
      the edge.
    """
    title = f"{name}: predicted against true"
    finite = [point for point in points if all(map(math.isfinite, point))]
    low = min((x for x, _ in finite), default=0.0)
    high = max((x for x, _ in finite), default=0.0)
    room = (high - low) * _ROOM or abs(low) * _ROOM or 1.0
    low, high = low - room, high + room
    if not finite or not math.isfinite(high - low):
        return svg.framed(title, "<p>There is nothing that can be drawn.</p>")
    across = svg.Axis(low, high, _LEFT, svg.WIDTH - svg.RIGHT)
    down = svg.Axis(low, high, _HEIGHT - _BOTTOM, svg.TOP)
    parts = [*_grid(across, down), *_axis_names()]
    away = 0
    for x, y in finite:
        if low <= y <= high:
            parts.append(
                f'<circle class="point" r="2.4" cx="{across(x):.1f}" '
                f'cy="{down(y):.1f}"/>'
            )
        else:
            away += 1
            edge = down(min(max(y, low), high))
            parts.append(svg.cross(across(x), edge, f"{x:g}, predicted {y:g}"))
    below = f"{len(finite)} examples; on the line, a prediction is right."
    if away:
        below += f" Crosses: {away} predictions beyond the picture."
    legend = f'<p class="legend">{below}</p>'
    return svg.figure(title, _HEIGHT, parts, "", legend)


def _grid(across: svg.Axis, down: svg.Axis) -> Iterator[str]:
    """Lines and labels of both axes, and the line of right predictions."""
    left, right = _LEFT, svg.WIDTH - svg.RIGHT
    top, bottom = svg.TOP, _HEIGHT - _BOTTOM
    for tick in down.ticks(5, whole=False):
        y = down(tick)
        yield f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield (
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{numbers.short(tick)}</text>"
        )
    for tick in across.ticks(5, whole=False):
        x = across(tick)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        yield (
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{numbers.short(tick)}</text>"
        )
    yield f'<path class="diagonal" d="M{left} {bottom}L{right} {top}"/>'


def _axis_names() -> Iterator[str]:
    middle = (svg.TOP + _HEIGHT - _BOTTOM) / 2
    yield (
        f'<text x="{(_LEFT + svg.WIDTH) / 2:.0f}" y="{_HEIGHT - 8}" '
        f'text-anchor="middle">true</text>'
    )
    yield (
        f'<text x="12" y="{middle:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle:.0f})">predicted</text>'
    )
