"""Real processes, really killed: what is resumed is the uninterrupted run."""

import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.run import records
from tests.claims import victim
from tests.support import run_folders

ROOT = pathlib.Path(__file__).parents[2]
TIMED = {"examples_per_second"}
TIMED_SUMMARY = {
    "train_seconds",
    "examples_per_second",
    "milliseconds_per_step",
    "peak_memory_bytes",
}
# An epoch has 31 steps; what is due when never coincides for long.
BASE = (
    "--model=tests.claims.victim:model",
    "--batch_size=192",
    "--steps=48",
    "--steps_per_call=4",
    "--log_every=5",
    "--eval_every=14",
    "--checkpoint_every=7",
    "--deterministic",
)
# Scales that overflow at first, so that they move both ways.
HIGH = ("--initial_scale=4e9", "--growth_interval=9")
OURS = (*HIGH, "--max_scale=1e10")
RUNS = {
    "float16": ("--augment=flip_shift", *OURS),
    "accumulated": ("--accumulate_steps=3", "--optimizer=nesterov", "--clip_norm=0.5"),
    "bfloat16": ("--precision=bfloat16", "--optimizer=adamw", "--weight_decay=.01"),
    "float32": ("--precision=float32", "--schedule=cosine", "--optimizer=momentum"),
    "scheduled": ("--schedule=piecewise", "--warmup_steps=9", "--keep_checkpoints=1"),
    "one step a call": ("--steps_per_call=1", "--optimizer=sgd", "--eval_every=5"),
    "as Keras": ("--keras_arithmetic", *OURS),
    "keras float16": ("--loop=keras", *HIGH),
    "keras float32": ("--loop=keras", "--precision=float32", "--optimizer=adamw"),
    # The head for 31 steps, then what is not frozen.
    "two phases": ("--head_epochs=1", "--freeze=^batch", "--augment=flip_crop", *OURS),
    "keras two phases": ("--head_epochs=1", "--loop=keras", "--precision=bfloat16"),
    "rolled back": (
        "--rollback=3",
        "--diverged_after=5",
        "--learning_rate=1e12",
        "--rollback_factor=1e-14",
    ),
}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Returns a function for one life of a run: to its end or until it is killed."""
    log = tmp_path_factory.mktemp("log") / "log"
    nurseries = {}

    def live(folder, name, moment="-"):
        # oneDNN's float16 convolutions: see `mp_loop.run.build.start_tensorflow`.
        onednn = "0" if name == "keras float16" else "1"
        if onednn not in nurseries:
            nurseries[onednn] = subprocess.Popen(
                [sys.executable, "-m", "tests.claims.victim"],
                cwd=ROOT,
                env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        begun = (folder / "flags.txt").exists()
        words = [*BASE, *RUNS[name]]
        words = [f"--flagfile={folder}/flags.txt", "--resume"] if begun else words
        words.append(f"--output_dir={folder}")
        request = {"moment": moment, "words": words, "log": str(log)}
        nursery = nurseries[onednn]
        nursery.stdin.write(json.dumps(request) + "\n")
        nursery.stdin.flush()
        ended = int(nursery.stdout.readline())
        assert ended in (0, -signal.SIGKILL), log.read_text()
        return ended

    yield live
    for nursery in nurseries.values():
        nursery.communicate()


def without(line, names):
    return {name: value for name, value in line.items() if name not in names}


def outcome(folder):
    """All that a run leaves, times aside."""
    newest = max((folder / "checkpoints").glob("step-*"))
    reader = tf.train.load_checkpoint(str(newest / "state"))
    model = keras.saving.load_model(folder / "model.keras")
    return {
        "state": {
            name: reader.get_tensor(name).tobytes()
            for name in reader.get_variable_to_shape_map()
        },
        "kept": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        "metrics": [without(x, TIMED) for x in records.read_metrics(folder)],
        "evaluations": records.read_evaluations(folder),
        "summary": without(records.read_summary(folder), TIMED_SUMMARY),
        "weights": [np.asarray(w).tobytes() for w in model.get_weights()],
        "config": json.dumps(model.get_config()),
        "tensorboard": [
            entry
            for entry in run_folders.tensorboard_scalars(folder)
            if entry[0].split("/")[1] not in TIMED
        ],
        "left": sorted(p.name for p in folder.iterdir() if p.name.startswith(".")),
    }


def same(folder, whole):
    one, other = outcome(folder), outcome(whole)
    for name in one:
        assert str(one[name]) == str(other[name]), name
    steps = [line["step"] for line in records.read_metrics(folder)]
    phases = "--head_epochs=1" in (folder / "flags.txt").read_text().split()
    assert steps == sorted({*range(5, 48, 5), 48} | ({31} if phases else set()))
    assert not [*(folder / "checkpoints").glob(".*")]


@pytest.fixture(scope="module")
def survives(live, tmp_path_factory):
    """Kills a run at each moment in turn; then lets it finish and compares."""
    wholes = {}

    def survives(folder, name, moments):
        if name not in wholes:
            wholes[name] = tmp_path_factory.mktemp("whole") / "run"
            assert live(wholes[name], name) == 0
        killed = [m for m in moments if live(folder, name, m)]
        assert live(folder, name) == 0
        same(folder, wholes[name])
        print(f"{name}: killed {len(killed)} times, {killed}")
        return killed

    return survives


def test_killed_again_and_again(tmp_path, survives):
    moments = ["in an evaluation:1:3", "before its name:6:0", "in a line:2:0"]
    assert survives(tmp_path / "run", "float16", moments) == moments
    lines = records.read_metrics(tmp_path / "run")
    scales = [line["loss_scale"] for line in lines]
    assert lines[-1]["skipped_steps"] > 3 and any(
        earlier < later for earlier, later in itertools.pairwise(scales)
    )


def test_killed_between_two_phases(tmp_path, survives):
    # The sixth checkpoint is the first of the second phase, and replaces the fifth.
    moments = [
        "before a checkpoint:6:0",
        "in a replacement:1:0",
        "before a checkpoint:2:0",
    ]
    assert survives(tmp_path / "run", "two phases", moments) == moments


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float16", "keras float32", "rolled back"])
def test_killed_at_every_boundary(tmp_path, survives, name):
    moments = [f"{where}:1:0" for where in victim.PLACES]
    killed = survives(tmp_path / "run", name, moments)
    missed = {m.split(":")[0] for m in moments if m not in killed}
    assert missed <= {"in a replacement", "in a rollback"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_moments(tmp_path, survives, name):
    chance = random.Random(name)
    moments = [
        f"{chance.choice([*victim.PLACES])}:{chance.randint(1, 4)}:"
        f"{chance.choice([0, chance.expovariate(1 / 30)])}"
        for _ in range(4)
    ]
    survives(tmp_path / "run", name, moments)
