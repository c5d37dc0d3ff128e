"""Records some steps with TensorFlow's profiler, for TensorBoard.

    profile = Profile("runs/a/tensorboard", (20, 30))
    profile.before(position)             # starts at step 20
    profile.after(position, metrics)     # stops at step 30, when the device is done
    profile.close()                      # or here, if the run ends before

To see it: `pip install tensorboard-plugin-profile`, then TensorBoard's tab
"Profile".
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import tensorflow as tf


class Profile:
    """A range of steps to be recorded, once."""

    def __init__(self, folder: str | os.PathLike[str], steps: tuple[int, int] | None):
        """Records nothing yet.

        Args:
          folder: TensorBoard's.
          steps: the first, and the one after the last; None: nothing is recorded.
        """
        self._folder, self._steps = str(folder), steps
        self._running = False

    def before(self, position: int) -> None:
        """Starts, if the next step is the first one."""
        if self._steps and position == self._steps[0]:
            tf.profiler.experimental.start(self._folder)
            self._running = True

    def after(self, position: int, metrics: Mapping[str, tf.Tensor]) -> None:
        """Stops, if the last step has been taken.

        Args:
          position: steps taken so far.
          metrics: of the steps just taken; they are waited for.
        """
        if self._running and position >= self._steps[1]:
            tf.nest.map_structure(lambda value: value.numpy(), metrics)
            self.close()

    def close(self) -> None:
        """Stops and writes what was recorded, if a recording is under way."""
        if self._running:
            tf.profiler.experimental.stop()
            self._running, self._steps = False, None
