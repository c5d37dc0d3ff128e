"""What all pictures share: they need matplotlib, become PNG files, and look alike.

    def fill(figure): figure.subplots().plot([1, 2])

    drawn = figures.draw("loss.png", (8, 8), fill)   # False without matplotlib

matplotlib is imported when something is drawn, as it is optional.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mp_loop.rendering import whole_files

if TYPE_CHECKING:
    from matplotlib import axes, figure

MISSING = "matplotlib is missing (pip install 'mp_loop[plots]')."


def draw(
    path: str | os.PathLike[str],
    size: tuple[float, float],
    fill: Callable[[figure.Figure], None],
    dpi: int = 150,
) -> bool:
    """Draws a picture, whole or not at all.

    Args:
      path: of the PNG file.
      size: width and height in inches.
      fill: draws on an empty figure.
      dpi: dots per inch.

    Returns:
      False, and draws nothing, where matplotlib is missing.

    Raises:
      OSError: it cannot be written; what was there is unchanged.
    """
    try:
        from matplotlib import figure
    except ImportError:
        return False
    picture = figure.Figure(figsize=size, layout="constrained")
    fill(picture)
    final = pathlib.Path(path)
    with whole_files.replacing(final, whole_files.temporary(final)) as temporary:
        picture.savefig(temporary, dpi=dpi, format="png")
    return True


def hide_spines(axis: axes.Axes, sides: Sequence[str] = ("top", "right")) -> None:
    """Removes the lines around a plot that carry no scale."""
    axis.spines[list(sides)].set_visible(False)
