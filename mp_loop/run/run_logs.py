"""The files that a run appends to while it trains: JSON lines and TensorBoard."""

from __future__ import annotations

import pathlib
import shutil

from mp_loop.config import json_values
from mp_loop.run import json_lines, records, tensorboard


class RunLogs:
    """The open logs of one run folder.

    numerics.jsonl is made with its first line: most runs have none.

    Attributes:
      events: TensorBoard's.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Opens the files of a folder, or makes them. Raises OSError."""
        self._folder = folder
        names = [records.METRICS_FILE, records.EVALUATIONS_FILE]
        if (folder / records.NUMERICS_FILE).exists():
            names.append(records.NUMERICS_FILE)
        self._files: dict[str, json_lines.Log] = {}
        try:
            for name in names:
                self._files[name] = json_lines.Log(folder / name)
            self.events = tensorboard.EventLog(folder / records.TENSORBOARD_FOLDER)
        except BaseException:
            self._close_files()
            raise

    def append(self, name: str, line: json_values.Object) -> None:
        """Appends a line to the file of that name. Raises OSError."""
        if name not in self._files:
            self._files[name] = json_lines.Log(self._folder / name)
        self._files[name].write(line)

    def read(self) -> dict[str, bytes]:
        """The whole lines of every file by name, even if the folder has vanished."""
        return {name: log.read() for name, log in self._files.items()}

    def sync(self) -> None:
        """Waits until every line is on the disk."""
        for log in self._files.values():
            log.sync()

    def close(self) -> None:
        """Closes all files; calling it again does nothing."""
        self._close_files()
        self.events.close()

    def _close_files(self) -> None:
        for log in self._files.values():
            log.close()


def drop_after(folder: pathlib.Path, step: int) -> None:
    """Removes from all logs of a folder what came after a step, and what is damaged.

    A file with damaged lines is kept as a copy, under its name and `.damaged`.

    Raises:
      RecordError: a file cannot be read; then nothing has been changed.
    """
    names = [records.METRICS_FILE, records.EVALUATIONS_FILE]
    if (folder / records.NUMERICS_FILE).exists():
        names.append(records.NUMERICS_FILE)
    read = {name: records.read(folder, name) for name in names}
    for name, found in read.items():
        # A probe looks before the step that follows: it will look again.
        last = step - 1 if name == records.NUMERICS_FILE else step
        if found.damaged:
            records.warn(folder / name, found.damaged)
            shutil.copyfile(folder / name, folder / f"{name}.damaged")
        kept = [line for line in found.lines if line["step"] <= last]
        json_lines.rewrite(folder / name, kept)
    tensorboard.drop_events_after(folder / records.TENSORBOARD_FOLDER, step)
