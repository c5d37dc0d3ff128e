"""One process at a time writes a run folder.

    with locking.FolderLock(output_dir):
        ...

The operating system holds the lock, on the folder itself: it ends with the
process, and no file is left that could be stale.
"""

from __future__ import annotations

import logging
import os

from mp_loop.config import errors

logger = logging.getLogger(__name__)


class FolderLock:
    """Held by the one process that writes a folder, until `release`."""

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        """Takes the lock.

        Raises:
          RecordError: a living process holds it.
          OSError: the folder cannot be opened.
        """
        import fcntl  # Unix only.

        self._descriptor = os.open(output_dir, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise errors.RecordError(
                f"--output_dir ({output_dir}) is being written by another process; "
                "wait until it ends, or choose another folder."
            ) from None
        except OSError as error:  # Some network file systems have no locks.
            logger.warning(
                "%s cannot be locked (%s): make sure that no other process writes "
                "there.",
                output_dir,
                error.strerror,
            )

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()

    def release(self) -> None:
        """Releases the lock; calling it again does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
