"""Tables for a terminal, for Markdown and for a web page.

    rows = [["", "float16", "float32"], ["loss", "0.5", "0.25"]]
    lines = tables.columns(rows)
    lines = tables.markdown(rows)
    text = tables.html(rows)

A table is a list of rows of strings, all of the same length, the head first. The
first column is aligned to the left, the others to the right.
"""

from __future__ import annotations

import html as entities
from collections.abc import Collection, Sequence

Rows = Sequence[Sequence[str]]

_NARROWEST_FIRST_COLUMN = 12


def columns(
    rows: Rows, left: bool = False, indent: str = "", line_width: int = 0
) -> list[str]:
    """Lays a table out in columns for a terminal.

    Args:
      rows: the table.
      left: whether every column is aligned to the left, not only the first.
      indent: precedes each line.
      line_width: the first column is cut so that lines are not longer, and keeps its
        end, which tells more of a path than its beginning; 0: nothing is cut.

    Returns:
      The lines.
    """
    widths = _widths(rows)
    if line_width:
        others = sum(widths[1:]) + 2 * (len(widths) - 1)
        widths[0] = min(widths[0], max(line_width - others, _NARROWEST_FIRST_COLUMN))
    lines = []
    for first, *others in rows:
        if len(first) > widths[0]:
            first = "…" + first[1 - widths[0] :]
        cells = _padded([first, *others], widths, left)
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def markdown(rows: Rows) -> list[str]:
    """Lays a table out in Markdown that is aligned in a terminal, too."""
    widths = _widths(rows)
    rules = [f"{'-' * (width - 1)}:" for width in widths]
    rules[0] = "-" * widths[0]
    head, *body = (_padded(row, widths) for row in rows)
    return [f"| {' | '.join(cells)} |" for cells in (head, rules, *body)]


def html(rows: Rows, head: bool = True, changed: Collection[int] = ()) -> str:
    """Lays a table out in HTML; what the cells hold is escaped.

    Args:
      rows: the table.
      head: whether the first row is a head.
      changed: indices of rows that get the class `changed`.
    """
    lines = []
    for index, row in enumerate(rows):
        cell = "th" if head and not index else "td"
        cells = "".join(f"<{cell}>{entities.escape(word)}</{cell}>" for word in row)
        lines.append(f"<tr{' class=changed' if index in changed else ''}>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _widths(rows: Rows) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _padded(row: Sequence[str], widths: Sequence[int], left: bool = False) -> list[str]:
    return [
        cell.ljust(width) if left or not index else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
