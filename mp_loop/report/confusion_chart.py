"""A confusion matrix as SVG: which class is taken for which.

    draw(["cat", "dog"], [[90, 10], [5, 95]], sizes=[100, 100])

Row i holds the examples of class i, by the class that was predicted.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from mp_loop.report import svg

MOST_CLASSES = 24  # whose names can be read at the sides
_DIGIT = 7  # width
_LONGEST_NAME = 15
_STRONGEST = 0.5  # opacity: what is written on it can be read

Counts = Sequence[Sequence[int]]


def draw(names: Sequence[str], counts: Counts, sizes: Sequence[int]) -> str:
    """Draws a matrix.

    Args:
      names: of the classes, at most `MOST_CLASSES`.
      counts: of each class, for how many of its examples each class was predicted.
      sizes: how many examples each class has, those without a prediction included.

    Returns:
      A `<figure>`.
    """
    size = len(names)
    side = 12 + 6 * max(len(_shortened(name)) for name in names)  # for the names
    width = (svg.WIDTH - svg.RIGHT - side) / size
    height = min(max(width, 14), 30)
    bottom = svg.TOP + height * size
    shares = [
        [n / max(total, 1) for n in row]
        for row, total in zip(counts, sizes, strict=True)
    ]
    wrong = [x for i, row in enumerate(shares) for j, x in enumerate(row) if i != j]
    most_wrong = max(wrong, default=0) or 1
    numbered = _DIGIT * len(str(max(map(max, counts)))) < width
    parts = []
    for i, name in enumerate(names):
        y = svg.TOP + height * i
        parts.append(_name(name, side - 6, y + height / 2 + 4))
        for j, share in enumerate(shares[i]):
            x, count = side + width * j, counts[i][j]
            said = f"{name}, predicted {names[j]}: {count} ({share:.1%})"
            opacity = share if i == j else share / most_wrong
            color = "--c0" if i == j else "--bad"
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" '
                f'height="{height:.2f}" class="cell" style="fill:var({color});'
                f'fill-opacity:{_STRONGEST * opacity:.3f}">'
                f"<title>{html.escape(said)}</title></rect>"
            )
            if numbered and count:
                middle = f'x="{x + width / 2:.1f}" y="{y + height / 2 + 4:.1f}"'
                parts.append(
                    f'<text class="number" {middle} text-anchor="middle">{count}</text>'
                )
    rotated = side - 6 > width
    parts += _columns(names, side, width, bottom, rotated)
    below = (
        '<p class="legend">Rows: the true class; columns: the predicted one. Blue is '
        "right, red is wrong: the stronger, the more of the row.</p>"
    )
    total = bottom + (side if rotated else 16) + 4
    return svg.figure("Confusion matrix", round(total), parts, "", below)


def _columns(
    names: Sequence[str], side: float, width: float, bottom: float, rotated: bool
) -> Iterator[str]:
    """The names below the columns; rotated, they are read from bottom to top."""
    for j, name in enumerate(names):
        x, y = side + width * (j + 0.5), bottom + 8
        if rotated:
            turned = f' transform="rotate(-90 {x - 4:.1f} {y:.1f})" dy="8"'
            yield _name(name, x - 4, y, "end", turned)
        else:
            yield _name(name, x, y + 6, "middle")


def _name(
    name: str, x: float, y: float, anchor: str = "end", attributes: str = ""
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>'
        f"{html.escape(_shortened(name))}<title>{html.escape(name)}</title></text>"
    )


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:8]}…{name[-6:]}"
