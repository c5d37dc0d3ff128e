"""The data of a run that is resumed must be those that it was begun with.

    found = fingerprints.of(source)
    same_data.check(config, found)      # UsageError: --dataset (folder:photos) is ...

The order of the examples, the split and the classes follow from the data: with others
a resumed run would be another one, and nobody would be told.
"""

from __future__ import annotations

import pathlib

from mp_loop.config import errors, json_values, settings
from mp_loop.data import fingerprints
from mp_loop.run import files, records, strict_json


def check(config: settings.Config, found: json_values.Object) -> None:
    """Compares with the fingerprint in the run folder.

    A run of an earlier version has none. What is damaged is named, and not compared.

    Args:
      config: of the run that is resumed.
      found: the fingerprint of its data.

    Raises:
      UsageError: the data are others; the message says what differs.
    """
    folder = config.records.output_dir
    path = pathlib.Path(folder) / records.DATA_FILE
    try:
        before = strict_json.parse(files.read_regular(path)[0])
        if not isinstance(before, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        return records.warn(path, [errors.one_line(error)])
    if said := fingerprints.differences(before, found):
        raise errors.UsageError(
            f"--dataset ({config.data.dataset}) is not what the run in '{folder}' was "
            f"begun with: {', '.join(said)}. Resume with the same data, or begin "
            f"another run; to go on with these nevertheless, remove '{path}'."
        )
