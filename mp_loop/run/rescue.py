"""Where a run continues when its folder can no longer be written.

A rescue folder is a run folder under the system's temporary folder, or in memory,
which holds everything that was logged so far.
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile
from collections.abc import Mapping

from mp_loop.run import records


def roots() -> list[str]:
    """Folders to try, in order."""
    return list(dict.fromkeys([tempfile.gettempdir(), "/dev/shm"]))


def make_folder(root: str, flagfile: str, found: Mapping[str, bytes]) -> pathlib.Path:
    """Makes a rescue folder under `root`; returns it.

    Args:
      root: an existing folder.
      flagfile: of the run.
      found: the content of the run's logs, and of what else is to be kept, by name.

    Raises:
      OSError: it cannot be written; then nothing is left.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mp_loop_", dir=root))
    try:
        for name, text in found.items():
            (folder / name).write_bytes(text)
        text = f"{flagfile}--output_dir={folder}\n"
        (folder / records.FLAGS_FILE).write_text(text, encoding="utf-8")
        (folder / records.CHECKPOINTS_FOLDER).mkdir()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
