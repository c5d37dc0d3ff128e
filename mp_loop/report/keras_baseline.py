"""Against what a run stands: Keras' own loop, of the same settings, data and seed.

    paragraph(folder, summary)     # "Keras' loop in float16 (keras-float16-0): ..."

A run of Keras' loop is one that lies in the same folder, as the runs of a comparison
do. Where there is none, the paragraph is the command that makes one.
"""

from __future__ import annotations

import dataclasses
import html
import os
import pathlib
import shlex
import urllib.parse
from collections.abc import Iterator, Sequence

from mp_loop.config import errors, fields, json_values, settings
from mp_loop.rendering import numbers
from mp_loop.report import page, sections
from mp_loop.run import files, records, strict_json

# What changes no result, or only how it is computed.
_WITHOUT_EFFECT = (
    "data_dir", "max_data_gib", "accumulate_steps", "steps_per_call", "jit_compile",
    "deterministic", "profile_steps", "log_every", "checkpoint_every",
    "diverged_after", "on_stuck", "rollback", "rollback_factor", "inspect_every",
    "explain_skips",
)  # fmt: skip
# What Keras' loop does not have; without it the same is trained.
_OURS = (
    "float32_layers", "keras_arithmetic", "recompute", "rollback", "inspect_every",
    "accumulate_steps", "strategy", "all_reduce_dtype", "sync_batch_norm",
    "scale_preset",
)  # fmt: skip
# What times and memory depend on.
_MACHINE = ("cpu", "cpu_cores", "gpus", "tensorflow", "keras")
_DEFAULTS = settings.Config().values()


@dataclasses.dataclass(frozen=True)
class _Run:
    """A finished run.

    Attributes:
      folder: of it.
      config: its settings.
      summary: its summary.
    """

    folder: pathlib.Path
    config: settings.Config
    summary: json_values.Object

    @property
    def trained(self) -> tuple[fields.Section, ...]:
        """What is trained, on what, and how: of all arms of a comparison the same."""
        config = self.config.replace(**{x: _DEFAULTS[x] for x in _WITHOUT_EFFECT})
        return config.data, config.model, config.optimizer, config.training

    def document(self, name: str) -> json_values.Object:
        """The object in a file of the run; empty where there is none."""
        try:
            found = strict_json.parse(files.read_regular(self.folder / name)[0])
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def is_of(self, other: _Run) -> bool:
        """Whether both trained the same on the same data."""
        data = [run.document(records.DATA_FILE) for run in (self, other)]
        return self.trained == other.trained and (not all(data) or data[0] == data[1])


def paragraph(folder: pathlib.Path, summary: json_values.Object) -> str:
    """Compares a finished run of our loop with one of Keras', in HTML.

    Args:
      folder: of the run.
      summary: of the run; of one that has not finished, empty.
    """
    config = _config(folder)
    if not summary or config is None or config.precision.loop == "keras":
        return ""
    run = _Run(folder, config, summary)
    found = [one for one in _runs_beside(folder) if one.is_of(run)]
    if not found:
        return _how_to(run)
    same = [one for one in found if _precision(one) == _precision(run)]
    return _compared(run, (same or found)[0])


def _compared(run: _Run, other: _Run) -> str:
    """Says how the runs differ; times only where they are of one machine."""
    key = records.metric_key(run.summary)
    title = records.metric_title(key)
    name = other.folder.name
    to = urllib.parse.quote(os.fsencode(name))
    link = f'<a href="../{to}/{page.FILE}">{html.escape(name)}</a>'
    theirs, ours = [], []
    values = run.summary.get(key), other.summary.get(key)
    if None not in values:
        theirs.append(f"{title} {numbers.metric(values[1])}")
        more = "+" if values[0] >= values[1] else ""
        ours.append(f"{title} {more}{numbers.metric(values[0] - values[1])}")
    machines = [
        [one.document(records.ENVIRONMENT_FILE).get(name) for name in _MACHINE]
        for one in (run, other)
    ]
    note = ""
    if machines[0] != machines[1]:
        note = " Theirs ran on another machine or other versions: times say nothing."
    else:
        for key, what, form, of in (
            ("milliseconds_per_step", "time per step", "{:.1f} ms/step", 1),
            ("peak_memory_bytes", "memory", "{:,.0f} MiB", 2**20),
        ):
            own, its = run.summary.get(key), other.summary.get(key)
            if own and its:
                theirs.append(form.format(its / of))
                ours.append(f"{own / its:.2f} of the {what}")
    return (
        f"<p>Keras' loop in {html.escape(_precision(other))} ({link}), with the same "
        f"settings, data and seed: {html.escape(', '.join(theirs))}. This run: "
        f"{html.escape(', '.join(ours))}.{note} What of it is chance, a comparison of "
        "several runs tells (python -m mp_loop.compare).</p>"
    )


def _how_to(run: _Run) -> str:
    """The command that makes a run of Keras' loop to compare with."""
    changed = {
        name: _DEFAULTS[name]
        for name in _OURS
        if run.config.values()[name] != _DEFAULTS[name]
    }
    try:
        run.config.replace(loop="keras", **changed)
    except ValueError as error:
        said = errors.one_line(error)
        return f"<p>Keras' loop cannot be compared with: {html.escape(said)}</p>"
    folder = run.folder
    if folder.name in ("", ".."):
        folder = folder.resolve()
    beside = folder.with_name(f"{folder.name}-keras")
    words = [
        "python", "-m", "mp_loop.train", f"--flagfile={folder / records.FLAGS_FILE}",
        *map(_as_flag, changed.items()), "--loop=keras", f"--output_dir={beside}",
    ]  # fmt: skip
    then = shlex.join(["python", "-m", "mp_loop.report", str(folder)])
    return (
        "<details><summary>Against Keras' loop: not measured. How to</summary>"
        f"<pre>{html.escape(f'{shlex.join(words)} && {then}')}</pre></details>"
    )


def _as_flag(setting: tuple[str, fields.Value]) -> str:
    name, value = setting
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={value}"


def _runs_beside(folder: pathlib.Path) -> Iterator[_Run]:
    """The finished runs of Keras' loop in the same folder, by name."""
    for path in _folders(folder.absolute().parent):
        if sections.read_flags(path).get("loop") != "keras":
            continue
        config = _config(path)
        summary, damaged = records.summary_and_damage(path)
        if config is not None and summary and not damaged:
            yield _Run(path, config, summary)


def _folders(parent: pathlib.Path) -> Sequence[pathlib.Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except OSError:
        return ()


def _precision(run: _Run) -> str:
    return run.config.precision.precision


def _config(folder: pathlib.Path) -> settings.Config | None:
    """The settings of a run; None where they cannot be read."""
    try:
        text, _ = files.read_regular(folder / records.FLAGS_FILE)
        return settings.Config.from_flagfile(text.decode("utf-8", errors="replace"))
    except (OSError, ValueError, OverflowError):
        return None
