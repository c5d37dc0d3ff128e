"""The folder of a command's results."""

from __future__ import annotations

import pathlib

from mp_loop.config import errors


def create(output_dir: str, what: str) -> pathlib.Path:
    """Makes the folder of a command's results.

    Args:
      output_dir: its path.
      what: what is not continued in a folder that holds something, "a comparison".

    Raises:
      UsageError: it is not named, in use, or cannot be made.
    """
    if not output_dir:
        raise errors.UsageError(f"--output_dir must name a folder for {what}.")
    folder = pathlib.Path(output_dir)
    try:
        if folder.exists() and not folder.is_dir():
            raise errors.UsageError(f"--output_dir ({output_dir}) must be a folder.")
        if folder.exists() and any(folder.iterdir()):
            raise errors.UsageError(
                f"--output_dir ({output_dir}) must be new or empty: {what} is not "
                "continued."
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UsageError(
            f"--output_dir ({output_dir}) must be writable: {error.strerror}."
        ) from error
    return folder
