"""The page of a report: one HTML file that holds all it shows.

It needs no network and no other file, follows the reader's light or dark setting, and
fits a phone. Its frame, style and script are in page.html.
"""

from __future__ import annotations

import html
import importlib.resources
import os
import pathlib
import re
from collections.abc import Sequence

from mp_loop.config import errors
from mp_loop.run import files

FILE = "report.html"


def write(output_dir: str | os.PathLike[str], title: str, body: Sequence[str]) -> str:
    """Writes report.html; returns its path.

    Args:
      output_dir: the folder of the run or comparison.
      title: of the browser's window, as text.
      body: sections in HTML.

    Raises:
      RecordError: the report cannot be written.
    """
    frame = importlib.resources.files("mp_loop.report").joinpath("page.html")
    template = frame.read_text(encoding="utf-8")
    start, middle, end = re.split(r"\{\{title\}\}|\{\{body\}\}", template)
    path = pathlib.Path(output_dir) / FILE
    text = "".join([start, html.escape(title), middle, "\n".join(body), end])
    # Names of files and of classes may hold what is no character.
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    try:
        files.write_atomically(path, text)
    except OSError as error:
        raise errors.RecordError(f"{path} must be writable: {error}.") from error
    return str(path)
