"""Predicts with a finished run: `python -m mp_loop.predict --run=runs/a`.

Without --dataset it predicts on the test split of the run's own data. With
--dataset=folder:PATH it predicts on every image in a folder; the name of an image's
own folder is its label if it is that of a class. --output names the file, of a row for
each example: its file (or its place in the split), the most probable class, the
probability of that class, and the label if it has one; of several labels the
probability of each class; of a segmentation the file of its mask, in a folder beside
the output. Examples are read as they are
needed: a data set may be larger than memory.

--export=saved_model,tflite writes the predictor for programs without Keras, into
saved_model/ and model.tflite of the run folder; with it, predictions are made only if
--dataset, --split or --output is given.

Exit codes:

    0    done
    1    some examples could not be used: each is named and left out; with
         --skip_bad_examples this is 0
    2    bad input: one line on stderr, nothing written
    3    a file could not be written
    129, 130, 143    SIGHUP, SIGINT or SIGTERM: nothing was written
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from absl import flags

from mp_loop.cli import app, outcomes, signals
from mp_loop.config import errors, names, sections, settings
from mp_loop.hardware import startup
from mp_loop.run import (
    exports,
    file_errors,
    prediction,
    prediction_files,
    prediction_scores,
    records,
)

if TYPE_CHECKING:  # It imports TensorFlow, which takes seconds.
    from mp_loop.data import raw_examples

_FILE = "predictions.csv"
# What an example is called by, by the kind of its data set; else its place.
_COLUMNS = {"folder": "file", "array_record": "file", "csv": "row", "jsonl": "row"}


class _Stopped(Exception):
    """A signal asked to stop; its number is the argument."""


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command."""
    define = app.definer(flag_values)
    define(flags.DEFINE_string, "run", "", "Folder of a finished run (required).")
    text = "What to predict on, as of train; default: the data set of the run."
    define(flags.DEFINE_string, "dataset", "", text)
    text = "Folder of TFDS data sets; default: that of the run."
    define(flags.DEFINE_string, "data_dir", "", text)
    text = (
        "Split, such as train[:100] of TFDS. Default: test of the run's own data and "
        "of TFDS; all images of another folder."
    )
    define(flags.DEFINE_string, "split", "", text)
    text = f"File to write, .csv or .jsonl. Default: {_FILE} in the run folder."
    define(flags.DEFINE_string, "output", "", text)
    text = "Replace what is written if it is there."
    define(flags.DEFINE_bool, "overwrite", False, text)
    text = "Examples at once."
    define(flags.DEFINE_integer, "batch_size", 128, text, lower_bound=1)
    text = f"Comma-separated formats to export to: {', '.join(exports.FORMATS)}."
    define(flags.DEFINE_list, "export", [], text)
    text = "Exit with 0 although examples could not be used."
    define(flags.DEFINE_bool, "skip_bad_examples", False, text)


def run(_config: settings.Config, flag_values: flags.FlagValues) -> int:
    """Predicts and writes what it found; returns the exit code."""
    if not flag_values.run:
        raise errors.UsageError("--run must name the folder of a finished run.")
    folder = pathlib.Path(flag_values.run)
    prediction.refuse_unfinished(folder)
    config, split = _data(folder, flag_values)
    paths = _exported(folder, flag_values)
    output = None
    if not paths or flag_values.dataset or flag_values.split or flag_values.output:
        output = _output(folder, flag_values, config.model.task)
        names.check_data_set(config.data)
    startup.start_tensorflow()
    with errors.bad_input(errors.ModelError, flag="run", value=flag_values.run):
        predictor = prediction.SavedPredictor.read(folder, config)
    code = outcomes.DONE
    try:
        with contextlib.ExitStack() as written:
            for name, path in paths.items():
                with errors.bad_input(errors.ModelError, flag="export", value=name):
                    made = exports.FORMATS[name].writing(predictor, path)
                    written.enter_context(made)
            if output is not None:
                code = _predict(predictor, config.data, split, output, flag_values)
    except _Stopped as stop:
        code = outcomes.signal_code(stop.args[0])
        return outcomes.Outcome(code, "Interrupted: nothing was written.").tell()
    except OSError as error:
        reason = file_errors.reason(error)
        where = f"--run ({folder})" if output is None else f"--output ({output})"
        said = f"{where} cannot be written: {reason}."
        return outcomes.Outcome(outcomes.NOT_WRITABLE, said).tell()
    for path in paths.values():
        print(f"Exported: {path}")
    return code


def _predict(
    predictor: prediction.SavedPredictor,
    data: sections.Data,
    split: str,
    output: pathlib.Path,
    flag_values: flags.FlagValues,
) -> int:
    """Predicts on a data set; returns the exit code."""
    from mp_loop.data import raw_examples

    with errors.bad_input(errors.DataError, flag="dataset", value=data.dataset):
        size = flag_values.batch_size
        # The next batch is read while the model computes.
        examples = raw_examples.read(data, predictor.wanted, split, ahead=size)
        found = prediction.of(predictor, examples, size)
        kind, _, _ = data.dataset.partition(":")
        column = _COLUMNS.get(kind, "index")
        if column == "row" and len(predictor.wanted.shape) == 3:
            column = "file"
        scores, unreadable = _write(found, output, column, predictor.wanted)
    for line in scores.lines():
        print(line)
    if unreadable:
        all_ = scores.readable + unreadable
        print(f"{unreadable} of {all_} examples left out", file=sys.stderr)
    if predictor.wanted.task == "segmentation":
        print(f"Masks: {prediction_files.masks_folder(output)}")
    print(f"Predictions: {output}")
    complete = not unreadable or flag_values.skip_bad_examples
    return outcomes.DONE if complete else outcomes.FAILED


def _data(
    folder: pathlib.Path, flag_values: flags.FlagValues
) -> tuple[settings.Config, str]:
    """The settings of the run, with the data to predict on, and the split of these."""
    config, _ = app.parse(["train", f"--flagfile={folder / records.FLAGS_FILE}"])
    own = config.data.dataset
    dataset, split = flag_values.dataset or own, flag_values.split
    if dataset == own and names.local_path(own) is not None:
        split = split or "test"
    replaced = {"dataset": dataset}
    replaced["data_dir"] = flag_values.data_dir or config.data.data_dir
    if not names.is_table(dataset):
        replaced["input_columns"] = ""
    with errors.bad_input(ValueError):
        return config.replace(**replaced), split


def _output(
    folder: pathlib.Path, flag_values: flags.FlagValues, task: str
) -> pathlib.Path:
    """The file to write, which is not there; nor is the folder of masks."""
    path = pathlib.Path(flag_values.output or folder / _FILE)
    named = f"--output ({path})"
    if path.suffix not in prediction_files.SUFFIXES:
        known = " or ".join(prediction_files.SUFFIXES)
        raise errors.UsageError(f"{named} must end in {known}.")
    if not path.parent.is_dir():
        raise errors.UsageError(f"{named}: there is no folder '{path.parent}'.")
    if path.is_dir() or (path.exists() and not flag_values.overwrite):
        raise errors.UsageError(
            f"{named} is there already: name another file, or add --overwrite."
        )
    masks = prediction_files.masks_folder(path)
    if task == "segmentation" and masks.exists() and not flag_values.overwrite:
        raise errors.UsageError(
            f"{named}: '{masks}', for its masks, is there already: name another file, "
            "or add --overwrite."
        )
    return path


def _exported(
    folder: pathlib.Path, flag_values: flags.FlagValues
) -> dict[str, pathlib.Path]:
    """What to write in which format; it is not there."""
    given = flag_values.export
    unknown = [name for name in given if name not in exports.FORMATS]
    if unknown:
        raise errors.UsageError(
            f"--export ({','.join(given)}) must be of {', '.join(exports.FORMATS)}; "
            f"'{unknown[0]}' is not."
        )
    paths = {name: folder / exports.FORMATS[name].name for name in given}
    found = [path for path in paths.values() if path.exists()]
    if found and not flag_values.overwrite:
        raise errors.UsageError(
            f"--export ({','.join(given)}): '{found[0]}' is there already; "
            "--overwrite replaces it."
        )
    return paths


def _write(
    predictions: Iterable[prediction.Prediction],
    output: pathlib.Path,
    column: str,
    wanted: raw_examples.Wanted,
) -> tuple[prediction_scores.Scores, int]:
    """Writes the predictions, and names what cannot be read.

    Returns:
      How good they are, and how many examples cannot be read.
    """
    import tqdm

    scores, unreadable = prediction_scores.Scores(wanted), 0
    with (
        signals.stop_requested() as stop_requested,
        prediction_files.replacing(output, wanted, column) as write,
    ):
        for found in tqdm.tqdm(predictions, unit=" examples", disable=None):
            if number := stop_requested():
                raise _Stopped(number)
            if found.example.problem:
                unreadable += 1
                said = f"{found.example.name}: {found.example.problem}"
                tqdm.tqdm.write(errors.one_line(said), file=sys.stderr)
                continue
            write(found)
            scores.add(found)
        if not scores.readable:
            raise errors.DataError(f"None of the {unreadable} examples can be used.")
    return scores, unreadable


if __name__ == "__main__":
    app.main(run, declare, of_experiment=False)
