"""Parts of SVG charts: axes, crosses, and the frame around them.

Colours are variables of the page's style (`--c0` to `--c7`, `--bad`, `--text`,
`--grid`), so that one chart serves a light and a dark page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

# In units of the viewBox; a phone shows it at about this size.
WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 26  # margins
COLORS = 8


class Axis:
    """Maps the numbers from `low` to `high` to places from `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.high = (low, high) if high > low else (low - 1, low + 1)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self, most: int, whole: bool) -> list[float]:
        """Round numbers within the axis, at most about `most`."""
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        while (self.high - self.low) / step > most:
            step *= 2.5 if f"{step:e}"[0] == "2" else 2  # 1, 2, 5, 10
        if whole:
            step = max(1.0, math.ceil(step))
        first = math.ceil(self.low / step)
        found = [i * step for i in range(first, math.floor(self.high / step) + 1)]
        return [tick for tick in found if tick >= self.low]  # `low` may be subnormal


def cross(x: float, y: float, text: str) -> str:
    """A cross at a place, with a tooltip."""
    return (
        f'<path class="cross" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8">'
        f"<title>{html.escape(text)}</title></path>"
    )


def figure(
    title: str, height: int, parts: Sequence[str], attributes: str = "", below: str = ""
) -> str:
    """A chart with its title.

    Args:
      title: shown above.
      height: of the viewBox.
      parts: elements of the SVG.
      attributes: of the SVG element.
      below: HTML below the chart.
    """
    return framed(
        title,
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(title)}" {attributes}>{"".join(parts)}</svg>{below}',
    )


def framed(title: str, content: str) -> str:
    """HTML below a title."""
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{content}</figure>"
