"""Heat maps as SVG: a grid of cells, the more intense the worse.

    draw("Share lost", Grid(names, steps, shares), low=0, high=0.1)

Values that are not finite are empty cells.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterator, Sequence

from mp_loop.report import svg

_NAME_WIDTH, _ROW_HEIGHT = 150, 14
_LONGEST_NAME = 24


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a heat map shows.

    Attributes:
      rows: their names.
      columns: their numbers, shown below.
      values: of each row one for each column; not finite: an empty cell.
      marks: of each row, which cells get a cross; empty: none.
    """

    rows: Sequence[str]
    columns: Sequence[float]
    values: Sequence[Sequence[float]]
    marks: Sequence[Sequence[bool]] = ()

    @property
    def cell_width(self) -> float:
        """In units of the viewBox."""
        return (svg.WIDTH - svg.RIGHT - _NAME_WIDTH) / max(len(self.columns), 1)


def draw(title: str, grid: Grid, low: float, high: float) -> str:
    """Draws a heat map.

    Args:
      title: shown above, with the worst value.
      grid: what to show.
      low: what is not coloured at all.
      high: what is coloured fully; below `low` where small values are bad.

    Returns:
      A `<figure>`.
    """
    finite = [v for row in grid.values for v in row if math.isfinite(v)]
    if finite:
        title += f" (worst: {(min if high < low else max)(finite):.3g})"
    height = svg.TOP + _ROW_HEIGHT * len(grid.rows) + svg.BOTTOM
    parts = [part for i in range(len(grid.rows)) for part in _row(grid, i, low, high)]
    parts += _labels(grid, height - 10)
    return svg.figure(title, height, parts)


def _row(grid: Grid, i: int, low: float, high: float) -> Iterator[str]:
    """The name and the cells of a row."""
    name = grid.rows[i]
    y = svg.TOP + _ROW_HEIGHT * i
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:11]}…{name[-12:]}"
    yield (
        f'<text x="{_NAME_WIDTH - 6}" y="{y + 10.5}" text-anchor="end">'
        f"{html.escape(shown)}<title>{html.escape(name)}</title></text>"
    )
    for j, value in enumerate(grid.values[i]):
        x = _NAME_WIDTH + grid.cell_width * j
        tooltip = f"{name}, step {grid.columns[j]:g}: {value:.3g}"
        share = (value - low) / (high - low) if math.isfinite(value) else 0.0
        share = abs(min(max(share, 0.0), 1.0))
        yield (
            f'<rect x="{x:.1f}" y="{y}" width="{grid.cell_width:.2f}" '
            f'height="{_ROW_HEIGHT}" style="fill:var(--bad);fill-opacity:{share:.3f}">'
            f"<title>{html.escape(tooltip)}</title></rect>"
        )
        if grid.marks and grid.marks[i][j]:
            middle = x + grid.cell_width / 2, y + _ROW_HEIGHT / 2
            yield svg.cross(*middle, f"{tooltip}, inf or NaN")


def _labels(grid: Grid, y: int) -> Iterator[str]:
    """Some of the columns' numbers."""
    every = math.ceil(len(grid.columns) / 6)
    for j in range(0, len(grid.columns), every):
        yield (
            f'<text x="{_NAME_WIDTH + grid.cell_width * (j + 0.5):.1f}" y="{y}" '
            f'text-anchor="middle">{grid.columns[j]:g}</text>'
        )
