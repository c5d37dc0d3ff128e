"""Trainings that kill themselves: `python -m tests.claims.victim`.

Reads requests, a JSON object a line: {"moment": ..., "words": [...], "log": ...}.
Each is a process of its own, forked here, where everything is imported already but
TensorFlow has not been used. The answer is how it ended, as `subprocess` tells it.

A moment is `where:count:milliseconds`: SIGKILL comes so long after the count-th time
that the place is reached, in the middle of whatever runs then; or `-` for never.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time

import keras

from mp_loop import train
from mp_loop.cli import app
from mp_loop.run import strict_json

# Where: module, attribute. The kill comes before the call, at 0 ms.
PLACES = {
    "before the run folder": ("mp_loop.run.files", "write_atomically"),
    "in training": ("mp_loop.run.timing", "StepTimer.window"),
    "before a line": ("mp_loop.run.run_folder", "RunFolder.log"),
    "in a line": ("mp_loop.run.json_lines", "Log.write"),
    "between a line and TensorBoard": (
        "mp_loop.run.tensorboard",
        "EventLog.write_scalars",
    ),
    "before an evaluation": ("mp_loop.run.experiment", "Experiment.evaluate"),
    "in an evaluation": ("mp_loop.data.batching", "evaluation_batches"),
    "before a checkpoint": ("mp_loop.run.checkpointing", "Checkpoints.save"),
    "in the files of a checkpoint": ("mp_loop.run.manifests", "sha256"),
    "before its name": ("mp_loop.run.files", "flush"),
    "after its name": ("mp_loop.run.checkpointing", "Checkpoints._prune"),
    "in a replacement": ("mp_loop.run.checkpoint_files", "put_aside"),
    "in a rollback": ("mp_loop.run.run_folder", "RunFolder.rewind"),
    "in a resume": ("mp_loop.run.tensorboard", "_drop_events_after"),
    "before the model": ("mp_loop.run.run_folder", "RunFolder.write_model"),
    "before the summary": ("mp_loop.run.run_folder", "RunFolder.write_summary"),
    "before the report": ("mp_loop.report.run_page", "write"),
}

# What a training imports only when it needs it.
IMPORTED = (
    "mp_loop.data.sources",
    "mp_loop.hardware.machine",
    "mp_loop.models.catalog",
    "mp_loop.run.experiment",
    "mp_loop.run.session",
    "mp_loop.step.keras_step",
    "tqdm",
)


def model(input_shape, num_classes):
    """Every kind of state in little: kernels, statistics, dropout."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(4, 4, strides=4, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes),
        ]
    )


def kill(milliseconds):
    time.sleep(milliseconds / 1e3)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(where, count, milliseconds):
    module_name, attribute = PLACES[where]
    owner = importlib.import_module(module_name)
    *names, last = attribute.split(".")
    for name in names:
        owner = getattr(owner, name)
    true, calls = getattr(owner, last), [0]

    def counted(*arguments, **named):
        calls[0] += 1
        if calls[0] == count:
            if where == "in a line":  # half of it is there
                log, line = arguments
                text = strict_json.to_line(line).encode()
                os.write(log._descriptor, text[: len(text) // 2])
            if milliseconds:
                threading.Thread(target=kill, args=(milliseconds,), daemon=True).start()
            else:
                kill(0)
        return true(*arguments, **named)

    setattr(owner, last, counted)


def live(moment, words, log):
    """One training, in this process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if moment != "-":
        where, count, milliseconds = moment.split(":")
        arm(where, int(count), float(milliseconds))
    sys.argv = ["train", *words]
    app.main(train.run)


def main():
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            live(**json.loads(line))  # exits
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
