"""Lives of trainings, each a real process, and all that a run leaves behind.

    nursery = lives.Nursery(log)
    end = nursery.live(words, "before a line:2:0")      # killed there
    end = nursery.live(["--output_dir=DIR", "--resume"])
    nursery.close()
    lives.outcome(folder)

See `tests.claims.victim`.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np

from mp_loop.run import checkpoint_files, manifests, records
from tests.support import run_folders

ROOT = pathlib.Path(__file__).parents[2]
TIMED = {"examples_per_second", "input_wait"}
TIMED_SUMMARY = {
    "train_seconds",
    "examples_per_second",
    "milliseconds_per_step",
    "peak_memory_bytes",
}
LINES = (records.METRICS_FILE, records.EVALUATIONS_FILE, records.NUMERICS_FILE)


@dataclasses.dataclass(frozen=True)
class End:
    """How a life ended: as `subprocess` tells it, and what was written to stderr."""

    code: int
    said: str


class Nursery:
    """A process that has imported everything, and forks a training when asked."""

    def __init__(self, log, environment=(), modules=()):
        """Starts it.

        Args:
          log: file for what the trainings write.
          environment: variables that differ; None removes one.
          modules: imported besides.
        """
        self._log = pathlib.Path(log)
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2"}  # as `cli.app` sets it, but in time
        changed = {**quiet, **os.environ, **dict(environment)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.claims.victim", *modules],
            cwd=ROOT,
            env={name: value for name, value in changed.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def live(self, words, moment="-", **surroundings):
        """One life of a training; see `tests.claims.victim` for what may be given."""
        request = {"moment": moment, "words": words, "log": str(self._log)}
        self._process.stdin.write(json.dumps({**request, **surroundings}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return End(code, self._log.read_text(errors="replace"))

    @property
    def pid(self):
        """The number of the process."""
        return self._process.pid

    def close(self):
        """Ends it."""
        self._process.communicate()


def without(line, names):
    return {name: value for name, value in line.items() if name not in names}


def outcome(folder):
    """All that a run leaves, times aside."""
    newest = max((folder / "checkpoints").glob("step-*"))
    kinds = {n: t["dtype"] for n, t in manifests.read(newest).tensors.items()}
    tensors = checkpoint_files.read_tensors(newest, kinds)
    model = keras.saving.load_model(folder / "model.keras")
    predictor = keras.saving.load_model(folder / "predictor.keras")
    picture = folder / "training.png"
    report = (folder / "report.html").read_text()
    return {
        "state": {
            name: tensor.numpy().tobytes()
            for name, tensor in zip(kinds, tensors, strict=True)
        },
        "kept": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        **{
            name: [without(x, TIMED) for x in records.read(folder, name).lines]
            for name in LINES
        },
        "summary": without(records.read_summary(folder), TIMED_SUMMARY),
        "weights": [np.asarray(w).tobytes() for w in model.get_weights()],
        "config": json.dumps(model.get_config()),
        "predictor": [np.asarray(w).tobytes() for w in predictor.get_weights()],
        "tensorboard": [
            entry
            for entry in run_folders.tensorboard_scalars(folder)
            if entry[0].split("/")[1] not in TIMED
        ],
        "events": run_folders.tensorboard_kinds(folder),
        "picture": picture.read_bytes(),
        "report": report.rstrip()[-7:],
        "files": sorted(p.name for p in folder.iterdir()),
    }


def assert_same(folder, whole, but=()):
    """A run left what an uninterrupted one leaves, bit for bit, `but` some of it."""
    one, other = outcome(folder), outcome(whole)
    for name in sorted({*one} - {*but}):
        assert str(one[name]) == str(other[name]), name
    assert one["report"] == "</html>"
    assert not any(name.startswith(".") for name in one["files"] + one["kept"])
