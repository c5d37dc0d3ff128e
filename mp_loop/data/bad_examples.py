"""Examples that cannot be used: refused in one line, or left out with a warning.

bad_examples.settle("folder:photos", ["cat/1.jpg: Input is empty."], skip=False)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from mp_loop.config import errors

logger = logging.getLogger(__name__)

_NAMED = 3  # the others are counted


def settle(dataset: str, bad: Sequence[str], skip: bool) -> None:
    """Tells what is wrong with a data set, if anything is.

    Args:
      dataset: its name.
      bad: for each example its place, and what is wrong there.
      skip: whether they are left out (`--skip_bad_examples`).

    Raises:
      DataError: they are not left out.
    """
    if not bad:
        return
    said = "; ".join(errors.one_line(x)[:200].rstrip(". ") for x in bad[:_NAMED])
    if len(bad) > _NAMED:
        said += f"; and {len(bad) - _NAMED} more"
    counted = f"{len(bad)} bad example{'s' if len(bad) > 1 else ''}"
    said = readable(f"Data set '{dataset}': {counted} (%s{said})")
    if not skip:
        raise errors.DataError(
            f"{said.replace('%s', '', 1)}; --skip_bad_examples leaves out what is bad."
        )
    logger.warning("%s", f"{said.replace('%s', 'left out: ', 1)}.")


def readable(path: str) -> str:
    """Returns a file's name as text: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode(errors="replace")
