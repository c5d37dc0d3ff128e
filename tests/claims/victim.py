"""Trainings that kill themselves: `python -m tests.claims.victim [MODULE ...]`.

Reads requests, a JSON object a line: {"moment": ..., "words": [...], "log": ...}.
Each is a process of its own, forked here, where everything is imported already (the
modules named besides, too) but TensorFlow has not been used. The answer is how it
ended, as `subprocess` tells it.

A moment is `where:count:milliseconds`: the signal comes so long after the count-th time
that the place is reached, in the middle of whatever runs then; or `-` for never.
A request may also hold

    signal      its name; default: SIGKILL. What is stopped is continued
    limits      {"NOFILE": 64, ...}: soft limits of the process (`resource`)
    backwards   true: each look at the clock shows an hour less than the one before
"""

import gc
import importlib
import itertools
import json
import os
import resource
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
    "before the predictor": ("mp_loop.run.run_folder", "RunFolder.write_predictor"),
    "before the picture": ("mp_loop.report.training_plot", "draw_run"),
    "before the summary": ("mp_loop.run.run_folder", "RunFolder.write_summary"),
    "before the report": ("mp_loop.report.run_page", "write"),
}

# In the last seconds of a run.
LATE = ("before the model", "before the predictor", "before the picture",
        "before the summary", "before the report")  # fmt: skip

# What a training imports only when it needs it.
IMPORTED = (
    "mp_loop.data.sources",
    "mp_loop.hardware.machine",
    "mp_loop.models.catalog",
    "mp_loop.run.experiment",
    "mp_loop.run.session",
    "mp_loop.step.keras_step",
    "matplotlib.backends.backend_agg",
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


def kill(number, milliseconds):
    time.sleep(milliseconds / 1e3)
    os.kill(os.getpid(), number)


def arm(where, count, milliseconds, number):
    module_name, attribute = PLACES[where]
    owner = importlib.import_module(module_name)
    *names, last = attribute.split(".")
    for name in names:
        owner = getattr(owner, name)
    true, calls = getattr(owner, last), [0]

    def counted(*arguments, **named):
        calls[0] += 1
        if calls[0] == count:
            dies_here = number == signal.SIGKILL and not milliseconds
            if where == "in a line" and dies_here:  # half of it is there
                log, line = arguments
                text = strict_json.to_line(line).encode()
                os.write(log._descriptor, text[: len(text) // 2])
            if milliseconds:
                when = (number, milliseconds)
                threading.Thread(target=kill, args=when, daemon=True).start()
            else:
                kill(number, 0)
        return true(*arguments, **named)

    setattr(owner, last, counted)


def turn_clock():
    """The clock of Python goes backwards, an hour at each look."""
    hours = itertools.count(1)
    true = time.time()
    time.time = lambda: true - 3600.0 * next(hours)
    time.time_ns = lambda: int(time.time() * 1e9)


def live(words, log, moment, number=signal.SIGKILL, limits=(), backwards=False):
    """One training, in this process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    for name, most in dict(limits).items():
        which = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(which, (most, resource.getrlimit(which)[1]))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
    if backwards:
        turn_clock()
    if moment != "-":
        where, count, milliseconds = moment.split(":")
        arm(where, int(count), float(milliseconds), number)
    sys.argv = ["train", *words]
    app.main(train.run)


def wait(child):
    """Waits for the end of a process; one that is stopped is continued."""
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        os.kill(child, signal.SIGCONT)


def main():
    for name in (*IMPORTED, *sys.argv[1:]):
        importlib.import_module(name)
    gc.freeze()  # or each fork would look through, and copy, what is imported
    gc.set_threshold(50_000, 20, 20)
    for line in sys.stdin:
        request = json.loads(line)
        number = getattr(signal, request.pop("signal", "SIGKILL"))
        child = os.fork()
        if not child:
            live(number=number, **request)  # exits
        print(wait(child), flush=True)


if __name__ == "__main__":
    main()
