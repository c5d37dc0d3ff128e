"""What TensorBoard shows of a run: scalars, histograms, settings, the graph.

    events = tensorboard.EventLog(folder)
    events.write_scalars("train", {"step": 20, "loss": 0.7})
    events.close()
    tensorboard.drop_events_after(folder, step)     # before a resume

Every method raises OSError where the files cannot be written.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mp_loop.config import json_values
from mp_loop.rendering import whole_files
from mp_loop.run import file_errors, files, strict_json

if TYPE_CHECKING:  # A command that only names a run folder must not wait for it.
    import tensorflow as tf


class EventLog:
    """The event file that a process writes."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Opens a new file in a folder, which is made if it is missing."""
        import tensorflow as tf

        with file_errors.tensorflow_to_os():
            self._writer = tf.summary.create_file_writer(str(folder))

    def write_scalars(self, prefix: str, line: json_values.Object) -> None:
        """Writes the numbers of a line as `prefix/name` at its step."""
        import tensorflow as tf

        with (
            file_errors.tensorflow_to_os(),
            self._writer.as_default(step=int(line["step"])),
        ):
            for name, value in strict_json.to_python(line).items():
                if name != "step" and isinstance(value, (int, float)):
                    tag = f"{prefix}/{name.removeprefix('eval_')}"
                    tf.summary.scalar(tag, value)
        # Leaving the context has flushed the writer.

    def write_histograms(self, line: json_values.Object) -> None:
        """Writes the exponents that a probe counted (`probe_report.summarize`).

        The histograms are over the logarithm to base 2 of the magnitude, zeros left
        out.
        """
        import tensorflow as tf
        from tensorboard.plugins.histogram import metadata

        described = metadata.create_summary_metadata(
            display_name=None, description="exponents: log2 of the magnitude"
        )
        with (
            file_errors.tensorflow_to_os(),
            self._writer.as_default(step=int(line["step"])),
        ):
            for tag, entry in _histograms(line):
                buckets = [
                    (float(e), float(e + 1), float(count))
                    for e, count in enumerate(entry["histogram"], entry["first"])
                ]
                tf.summary.write(
                    tag, tf.constant(buckets, tf.float64), metadata=described
                )

    def write_setup(
        self, config: json_values.Object, graph: tf.Graph | None = None
    ) -> None:
        """Writes what the run is: its settings, and the graph of a step.

        Args:
          config: numbers, strings and booleans; what is None is left out.
          graph: `tf.Graph`, or None.
        """
        import tensorflow as tf
        from tensorboard.plugins.hparams import api as hparams

        given = {name: value for name, value in config.items() if value is not None}
        with file_errors.tensorflow_to_os(), self._writer.as_default(step=0):
            hparams.hparams(given)
            if graph is not None:
                tf.summary.graph(graph)

    def close(self) -> None:
        """Closes the file."""
        # Everything has been flushed; a full disk may raise its error once more.
        with contextlib.suppress(OSError), file_errors.tensorflow_to_os():
            self._writer.close()


def drop_events_after(folder: pathlib.Path, step: int) -> None:
    """Removes from all event files of a folder what came after a step.

    What a probe saw before the step that follows goes too: it will look again.
    """
    for path in sorted(folder.glob("events.out.tfevents.*")):
        with file_errors.tensorflow_to_os():
            _drop_events_after(path, step)


def _drop_events_after(path: pathlib.Path, step: int) -> None:
    """Rewrites an event file without later steps and without a torn last event.

    One that holds nothing else stays as it is: a full disk may have no room for it.
    """
    import tensorflow as tf
    from google.protobuf import message

    kept, summaries, count = [], 0, 0
    torn = True
    with contextlib.suppress(tf.errors.DataLossError, message.DecodeError):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            count += 1
            event = tf.compat.v1.Event.FromString(record)
            if _is_kept(event, step):
                kept.append(record)
                summaries += event.HasField("summary")
        torn = False
    if not summaries:
        path.unlink()
    elif torn or len(kept) < count:
        _replace(path, kept)


def _is_kept(event: tf.compat.v1.Event, step: int) -> bool:
    """Whether a run that goes on after `step` steps does not write the event again."""
    if event.step != step:
        return event.step < step
    plugins = {value.metadata.plugin_data.plugin_name for value in event.summary.value}
    return "histograms" not in plugins


def _replace(path: pathlib.Path, records: Sequence[bytes]) -> None:
    """Rewrites an event file with these records."""
    import tensorflow as tf

    with whole_files.replacing(path, whole_files.temporary(path)) as temporary:
        with tf.io.TFRecordWriter(str(temporary)) as file:
            for record in records:
                file.write(record)
        files.flush(temporary)


def _histograms(line: json_values.Object) -> Iterator[tuple[str, json_values.Object]]:
    """Yields tag and histogram of every layer and variable that has one."""
    for values in ("activations", "activation_grads"):
        for layer in line["layers"]:
            if layer[values] and layer[values].get("histogram"):
                yield f"{values}/{layer['name']}", layer[values]
    for variable in line["variables"]:
        if variable["grads"] and variable["grads"].get("histogram"):
            yield f"grads/{variable['name']}", variable["grads"]
